"""The report for those who don't see it, who see little of it, or who meet the method for the first time."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.reporting import diagnostic_findings, style
from mralign_core.reporting.report import INTRODUCTION, PLANTED, render_report

HEADINGS = ("h1", "h2", "h3", "h4")
LANDMARKS = ("header", "nav", "main", "footer")


class Tables(HTMLParser):
    """The tables of a page as (caption, scopes of its header cells, first cells of its rows)."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.captions, self.scopes, self.first_cells, self.order = [], [], [], []
        self._in_caption, self._is_first = False, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in (*HEADINGS, *LANDMARKS):
            self.order.append(tag)
        if tag == "table":
            self.captions.append("")
        self._in_caption = tag == "caption" or (self._in_caption and tag != "thead")
        if tag in ("th", "td"):
            if tag == "th":
                self.scopes.append(dict(attrs).get("scope"))
            if self._is_first:
                self.first_cells.append(tag)
        self._is_first = tag == "tr"

    def handle_endtag(self, tag):
        self._in_caption = self._in_caption and tag != "caption"

    def handle_data(self, data):
        if self._in_caption:
            self.captions[-1] += data


@pytest.fixture(scope="module")
def html(inputs):
    return render_report(inputs)


@pytest.fixture(scope="module")
def tables(html):
    return Tables(html)


def test_every_table_is_named_and_each_of_its_headers_says_what_it_heads(tables):
    assert len(tables.captions) > 20 and all(tables.captions)
    assert set(tables.scopes) == {"col", "row"}
    assert set(tables.first_cells) == {"th"}


def test_headings_leave_out_no_level_and_every_landmark_is_there(tables):
    levels = [HEADINGS.index(tag) for tag in tables.order if tag in HEADINGS]
    assert levels[0] == 0 and levels.count(0) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert [tag for tag in tables.order if tag in LANDMARKS] == list(LANDMARKS)


def test_what_scrolls_by_itself_can_be_reached_and_has_a_name(html):
    boxes = re.findall(r"<div class=\"scroll\"([^>]*)>", html)
    assert boxes and all(
        re.search(r'tabindex="0" role="group" aria-label="(Table|Figure): [^"]+"', box) for box in boxes
    )
    assert html.count("<table") + html.count("<svg") == len(boxes)


def test_a_figure_says_what_is_seen_in_it_with_its_own_numbers(inputs, html):
    told = dict(
        zip(
            re.findall('aria-label="Figure: ([^"]+)"', html),
            re.findall('<svg role="img" aria-label="([^"]+)"', html),
            strict=True,
        )
    )
    assert all(re.search(r"\d", text) and len(text) > 40 for text in told.values())
    (row,) = inputs.differences.query(
        "variant == 'mr_align' and baseline == 'on' and metric == 'acc' and stratum == '(all)'"
    ).itertuples()
    interval = f"MR-ALIGN − think on {100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    assert interval in told["Paired differences with their intervals"]
    assert (
        told["Yield of the selection"]
        == "Bars of what each step kept: questions 60 (dropped 0); selection 24 (dropped 36)."
    )
    shifted = dataclasses.replace(inputs, funnel=inputs.funnel.assign(kept=[60, 23], dropped=[0, 37]), transitions=None)
    assert "selection 23 (dropped 37)" in render_report(dataclasses.replace(shifted, diagnostics=None, training={}))


def test_a_newcomer_is_told_what_it_is_and_that_the_pocket_world_plants_its_effect(inputs, html):
    assert html.index(INTRODUCTION.partition("'")[0]) < html.index('headline">')
    assert PLANTED not in html
    small = dataclasses.replace(inputs, is_pocket=True, transitions=None, diagnostics=None, training={})
    assert PLANTED in render_report(small)


def test_how_sure_the_weights_are_begins_with_the_verdict(inputs, html):
    section = html[html.index("How sure are the weights?</h2>") :]
    assert re.match(r"How sure are the weights\?</h2>\s*<p class=\"verdict\">Sure enough", section)


@pytest.mark.parametrize(
    ("overall", "within", "begins"),
    [
        ("shown", "not shown", "Not sure: the labels tell kinds"),
        ("not shown", "shown", "Not sure: that"),
        ("too few", "too few", "Not known"),
    ],
)
def test_the_verdict_claims_no_more_than_was_found(inputs, overall, within, begins):
    first = inputs.diagnostics.discrimination[0]
    changed = first.model_copy(
        update={
            "overall": first.overall.model_copy(update={"verdict": overall}),
            "within": first.within.model_copy(update={"verdict": within}),
        }
    )
    found = inputs.diagnostics.model_copy(update={"discrimination": (changed,)})
    assert diagnostic_findings.verdict(found).startswith(begins)


COLOURS = st.tuples(*[st.floats(0, 1)] * 3)


@given(COLOURS)
def test_ink_reads_on_any_colour_and_any_colour_can_be_made_ink(colour):
    assert style.contrast(style.ink_on(colour), colour) >= style.LEAST_CONTRAST
    assert style.contrast(style.as_ink(colour), "white") >= style.LEAST_CONTRAST


@pytest.mark.parametrize("colour", [style.INK, style.MUTED, *matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]])
def test_contrast_is_that_of_two_colours_in_either_order(colour):
    assert style.contrast(colour, "white") == style.contrast("white", colour) > 1
