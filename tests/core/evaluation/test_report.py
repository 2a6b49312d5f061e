import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, random_scores, score

from mralign_core.errors import DataError
from mralign_core.evaluation.metrics import paired_differences, summarize
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting import report
from mralign_core.reporting.decision_findings import MOST_FLIPS, MOST_TEXT
from mralign_core.reporting.judged_findings import JudgedResults, judged_tables
from mralign_core.reporting.people_findings import PeopleSection
from mralign_core.reporting.report import CHART_TITLES, ReportInputs, render_report
from mralign_core.reporting.result_table import ResultCell, ResultTable
from mralign_core.workbench.filters import pattern_regex, read_filter
from mralign_core.workbench.lists import LISTINGS

HOSTILE = (
    "</span></article><script>alert(1)</script><img src=x onerror=alert(1)> \" onmouseover='x' {{ 7*7 }} & \x00\x1b[31m"
)
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects the tags of a page, its text, and whether they nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"unclosed {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(inputs):
    return render_report(inputs)


@pytest.fixture(scope="module")
def quick(inputs):
    """Inputs without the figures that take longest to draw."""
    slow: dict[str, Any] = {"transitions": None, "diagnostics": None, "training": {}, "held_out_traces": None}
    return dataclasses.replace(inputs, **slow)


@pytest.fixture(scope="module")
def quick_html(quick):
    return render_report(quick)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_a_function_of_its_inputs(inputs, html):
    assert render_report(inputs) == html
    assert len(html.encode()) < 2_000_000


def test_the_page_loads_nothing(html, page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    loads = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert loads and all(value.startswith(("#", "data:image/png;base64,")) for value in loads)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    (policy,) = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    anchors = [attrs for tag, attrs in page.tags if tag == "a"]
    links = [attrs["href"][1:] for attrs in anchors if "href" in attrs]
    assert links and set(links) <= set(ids)
    assert all(("href" in attrs) != ("data-cases" in attrs) for attrs in anchors)  # no dead link in a file


def test_every_address_of_cases_is_one_that_the_workbench_has(page):
    cases = [attrs["data-cases"] for tag, attrs in page.tags if tag == "a" and "data-cases" in attrs]
    views = Counter(address.partition("?")[0] for address in cases)
    assert set(views) == {"traces", "answers", "draws", "trace", "question"} and views["traces"] > 900
    for address in set(cases):
        view, _, query = address.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query, strict_parsing=True).items()}
        if view in LISTINGS:
            pattern = getattr(read_filter(LISTINGS[view].filter, asked), "pattern", "")
            assert not pattern or pattern_regex(pattern, PAPER_TAXONOMY)
        else:
            assert "id" in asked and set(asked) <= {"id", "draw"}


def test_rows_and_cells_have_the_addresses_of_their_cases(page):
    cases = {attrs["data-cases"] for tag, attrs in page.tags if tag == "a" and "data-cases" in attrs}
    for address in (
        "answers?variant=mr_align&hit=gap",
        "answers?variant=kto&hit=both&stratum=one_hop",
        "answers?variant=mr_align&against=kto&flip=any",
        "answers?variant=mr_align&against=kto&flip=any&stratum=one_hop",
        "answers?variant=sft&against=on&hit_before=gap&hit=both",
        "traces?rule=agree",
        "traces?label=framing&polarity=negative",
        "draws?outcome=unclosed_thinking",
        "traces?polarity=positive&pattern=%3Cstart%3E+%E2%86%92+framing",
    ):
        assert address in cases


def test_every_section_has_its_content(page):
    boxes = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("aria-label", "").startswith("Figure: ")]
    assert sorted(boxes) == sorted(f"Figure: {title}" for title in CHART_TITLES.values())
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == len(CHART_TITLES) == 16
    assert len([1 for _, attrs in page.tags if attrs.get("class") == "seg"]) == 15
    assert len([1 for _, attrs in page.tags if attrs.get("class") == "two"]) >= 2
    for text in (
        "MR-ALIGN narrows the hit gap",
        "MR-ALIGN − KTO",
        "draws disagree",
        "must be text",
        "0" * 64,
        "num_draws: 2",
        "one_hop",
    ):
        assert text in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("class") == "absent"]


def test_think_off_has_a_dash_for_what_is_not_defined(page):
    assert re.search(r"think off\s*–\s*–\s*–\s*\d", page.text)


def test_hostile_text_from_model_annotator_and_files_is_escaped(quick):
    candidates = quick.candidates.copy()
    candidates["question"] = HOSTILE
    candidates["completion"] = [f"<think>{HOSTILE}" + text[len(HOSTILE) + 7 :] for text in candidates["completion"]]
    scores = quick.scores.copy()
    scores["thinking"] = [f"{HOSTILE}\n\n{variant}" for variant in scores["variant"]]
    scores["answer"] = HOSTILE
    frame = pd.DataFrame({HOSTILE: [HOSTILE]})
    hostile = dataclasses.replace(
        quick,
        # Tables hold UTF-8, but a lone surrogate can come from a file name.
        run={"model": HOSTILE + "\ud800"},
        notes=[HOSTILE],
        candidates=candidates,
        scores=scores,
        questions=quick.questions.assign(question=HOSTILE),
        funnel=quick.funnel.assign(step=HOSTILE, reason=HOSTILE),
        quarantine=frame,
        costs=frame,
        artifacts={HOSTILE: HOSTILE},
        config={"instruction": HOSTILE},
    )
    html = render_report(hostile)
    html.encode("utf-8")
    assert "\x00" not in html and "\x1b" not in html
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "49" not in page.text.partition("{{ 7*7 }}")[0][-40:] and page.text.count("{{ 7*7 }}") > 10


def test_partly_made_draws_are_said_to_be_no_fair_sample(quick):
    partial, full = (
        Page(render_report(dataclasses.replace(quick, draws_are_partial=flag))).text for flag in (True, False)
    )
    assert "What became of the draws" in partial and "What became of the draws" in full
    assert "counts are no fair sample of all draws" in partial
    assert "counts are no fair sample of all draws" not in full


def test_matrices_of_draws_are_told_from_those_of_the_training_traces(quick, quick_html):
    rows = pd.DataFrame(
        [("think-on draws", 90, 0, ""), ("draws that count", 12, 78, "its question ends one way only")],
        columns=["step", "kept", "dropped", "reason"],
    )
    of_draws = Page(render_report(dataclasses.replace(quick, draws_funnel=rows))).text
    said = "Estimated from think-on draws that end right (P⁺) and wrong (P⁻), not from the training traces"
    assert said in of_draws and "its question ends one way only" in of_draws
    assert said not in Page(quick_html).text


def test_judged_answers_have_a_section_with_their_judges_agreement_and_cost(quick, quick_html):
    of_set = {"source": "simpleqa", "kind": "grade", "num_answers": 40, "no_answer": 0.1}
    grades = {
        "correct": 0.5,
        "incorrect": 0.25,
        "not_attempted": 0.25,
        "correct_given_attempted": 2 / 3,
        "f_score": 4 / 7,
    }
    rates = [{**of_set, **grades, "variant": "on", "judge": judge} for judge in ("", "m/one", "m/<b>two")]
    agreed = {"source": "simpleqa", "verdict": "grade", "judge_a": "m/one", "judge_b": "m/<b>two"}
    moved = {"source": "simpleqa", "variant": "kto", "baseline": "on", "difference": 0.25, "low": 0.1, "high": 0.375}
    judged = JudgedResults(
        pd.DataFrame(rates),
        pd.DataFrame([{**agreed, "num_answers": 36, "agree": 0.75, "kappa": -0.125}]),
        pd.DataFrame([{"source": "simpleqa", "num_answers": 42, "left_out": 2}]),
        pd.DataFrame([{**moved, "metric": grade} for grade in ("correct", "incorrect", "not_attempted", "f_score")]),
        pd.DataFrame(),
    )
    page = Page(render_report(dataclasses.replace(quick, judged=judged)))
    for text in (
        "simpleqa is judged by m/one, m/<b>two: what most of them say counts, in a tie what m/one says.",
        "simpleqa: 2 of 42 questions and draws lack a verdict of some judge",
        "where a draw has no answer (it was cut off), it counts as not attempted: think on 10.0 %",
        "66.7",
        "57.1",
        "−0.12",
        "+25.0 [+10.0, +37.5]",
        "0.25",
    ):
        assert text in page.text, text
    (differences,) = [table for table in judged_tables(judged) if table.columns[0] == "difference, points"]
    assert [cell.tone for cell in differences.rows[0][1:] if isinstance(cell, ResultCell)] == [
        "better",
        "worse",
        "open",
        "better",
    ]
    assert "Judged answers" in page.text and "Judged answers" not in Page(quick_html).text


def test_peoples_verdicts_have_a_section_where_a_sheet_is_named(quick, quick_html):
    table = ResultTable(["right: answers of", "κ"], [["think on", "0.78 [0.60, 0.91]"]])
    page = Page(render_report(dataclasses.replace(quick, people=PeopleSection(["100 of <b>sheet.csv</b>"], [table]))))
    for text in ("People", "100 of <b>sheet.csv</b>", "0.78 [0.60, 0.91]", "misses are answers that people call right"):
        assert text in page.text, text
    stale = Page(render_report(dataclasses.replace(quick, people=PeopleSection(["Nothing is corrected."]))))
    assert "Nothing is corrected." in stale.text and "misses are answers" not in stale.text
    assert not any(attrs.get("id") == "people" for _, attrs in Page(quick_html).tags)


FRAMES = [field.name for field in dataclasses.fields(ReportInputs) if "DataFrame | None" in str(field.type)]


WHERE_THEY_PART = {"scores", "questions", "candidates", "annotations", "held_out_traces", "held_out_annotations"}
"""Tables that the part of this name is made of, which takes longest; without them it is the same."""


@pytest.mark.parametrize("absent", [None, "empty"])
@pytest.mark.parametrize("name", FRAMES)
def test_any_one_table_may_be_absent_or_empty(inputs, quick, name, absent, monkeypatch):
    if name not in WHERE_THEY_PART:
        monkeypatch.setattr(report, "parting_blocks", lambda *_, **__: [])
    held_out = inputs.held_out_traces if name.startswith("held_out") else None
    with_draws = dataclasses.replace(quick, draws_funnel=quick.funnel, held_out_traces=held_out)
    frame = getattr(with_draws, name).head(0) if absent else None
    Page(render_report(dataclasses.replace(with_draws, **{name: frame})))


def test_with_nothing_each_section_says_so_plainly():
    page = Page(
        render_report(
            ReportInputs(
                run={"run": "empty"}, taxonomy=PAPER_TAXONOMY, confidence=0.95, notes=["Selection kept no trace."]
            )
        )
    )
    absent = [attrs for _, attrs in page.tags if attrs.get("class") == "absent"]
    assert len(absent) == 11
    for text in (
        "nothing is claimed about the model",
        "Selection kept no trace.",
        "Nothing was trained in this run.",
    ):
        assert text in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("scorings", "lead"),
    [
        ({"nq": "exact_match", "gsm8k": "number"}, "First nq: sets are not pooled"),
        ({"nq": "exact_match", "sciq": "exact_match"}, "First the macro average of nq and sciq: sets are not pooled"),
    ],
)
def test_the_results_say_which_sets_come_first(scorings, lead):
    rows = [
        score("on", f"{name}{place}", None if scoring == "number" else True, True, source=name, scoring=scoring)
        for name, scoring in scorings.items()
        for place in range(2)
    ]
    summary = summarize(as_scores(rows))
    empty = ReportInputs(run={"run": "sets"}, taxonomy=PAPER_TAXONOMY, confidence=0.95, notes=[], summary=summary)
    assert lead in Page(render_report(empty)).text


def test_one_variant_and_one_polarity_still_make_a_report(inputs, quick):
    scores = inputs.scores[inputs.scores["variant"].isin(["on", "kto"])]
    kept = inputs.candidates[inputs.candidates["polarity"] == "positive"]
    page = Page(
        render_report(
            dataclasses.replace(
                quick,
                scores=scores,
                candidates=kept,
                summary=inputs.summary[inputs.summary["variant"].isin(["on", "kto"])],
                differences=inputs.differences.query("variant == 'kto'"),
                decisions=inputs.decisions.query("variant == 'kto'"),
                flips=inputs.flips.query("variant == 'kto'"),
            )
        )
    )
    assert "KTO does not measurably change the hit gap" in page.text
    assert "MR-ALIGN −" not in page.text


def test_what_annotators_say_is_shown_where_true_labels_are_hidden(inputs, html):
    assert "What annotators say of each label" not in html
    names = inputs.transitions.taxonomy.state_names[1:-1]
    channels = np.full((3, len(names), len(names) + 1), 0.2 / len(names))
    channels[:, range(len(names)), range(1, len(names) + 1)] = 0.8
    channels[1, 0] = np.eye(len(names) + 1)[0]  # annotator b never labels the first
    page = render_report(
        dataclasses.replace(inputs, training={}, transitions=inputs.transitions._replace(channels=channels))
    )
    table = page[page.index("What annotators say of each label") :]
    assert f">{names[0]}<" in table and "80 %; " in table and "0 %; none 100 %" in table


def test_contrast_weights_are_named_as_a_departure(inputs):
    contrast = dataclasses.replace(inputs, training={}, transitions=inputs.transitions._replace(reference="opposite"))
    assert "contrast weights, a departure from the paper" in render_report(contrast)


def test_unpaired_scores_are_refused(inputs):
    scores = inputs.scores.drop(index=inputs.scores.index[inputs.scores["variant"] == "kto"][0])
    with pytest.raises(DataError, match="differences are paired"):
        render_report(dataclasses.replace(inputs, scores=scores))


def test_diagnostics_are_told_in_words_and_tables_and_may_be_absent(inputs, page, quick_html):
    assert "How sure are the weights?" in page.text
    for text in ("Positive traces:", "Of the settings tried one at a time", "EM to convergence", "by chance, mean"):
        assert text in page.text
    assert "No diagnostics were made in this run." in quick_html


def test_a_large_evaluation_stays_under_the_limit(quick):
    rng = np.random.default_rng(0)
    scores = random_scores(rng, ("on", "kto", "mr_align"), 1500)
    differences = paired_differences(scores, num_resamples=200, confidence=0.95, rng=rng)
    html = render_report(dataclasses.replace(quick, scores=scores, summary=summarize(scores), differences=differences))
    assert len(html.encode()) < 2_000_000


def test_what_moved_is_told_and_its_flips_can_be_read(inputs, page, quick):
    repaired = len(inputs.flips.query("variant == 'mr_align' and baseline == 'kto'"))
    for text in (
        "MR-ALIGN against KTO, Acc: a difference of",
        "KTO against think on, Acc: no difference is shown",
        f"MR-ALIGN against KTO: {repaired} answers that flipped, {MOST_FLIPS} shown",
        "All of them are in flips.parquet of the results.",
    ):
        assert text in page.text
    undecided = Page(render_report(dataclasses.replace(quick, decisions=None, flips=None)))
    assert "What moved" not in undecided.text


def test_flips_show_hostile_and_long_texts_as_they_are(quick, inputs):
    flips = inputs.flips.head(2).assign(
        question=HOSTILE, answers=[[HOSTILE], ["Oslo"]], answer_before=[None, "x" * 9999], answer_after=HOSTILE
    )
    html = render_report(dataclasses.replace(quick, flips=flips))
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count("<script>alert(1)</script>") >= 5 and f"{'x' * MOST_TEXT} […]" in page.text
    assert "x" * (MOST_TEXT + 1) not in page.text
