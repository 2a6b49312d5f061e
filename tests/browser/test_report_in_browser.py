"""The report as a browser shows it: on a telephone, by keyboard, in both colour schemes, and with no request at all."""

import time
from pathlib import Path

import pytest

from mralign_core.reporting.report import CHART_TITLES, render_report
from mralign_core.reporting.style import LEAST_CONTRAST
from tests.core.evaluation.sample_run import full_inputs

TEXT_CONTRAST = Path(__file__).with_name("text_contrast.js").read_text()
TELEPHONE, DESK = {"width": 420, "height": 850}, {"width": 1400, "height": 900}
SCROLLED_S = 10
OPEN_ALL = "for (const details of document.querySelectorAll('details')) details.open = true"


@pytest.fixture(scope="module")
def report(tmp_path_factory, browser):  # rendered only where there is a browser
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(full_inputs()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(watched_page, report):
    """The page on a telephone."""
    with watched_page(viewport=TELEPHONE) as watched:
        watched.page.goto(report)
        yield watched


@pytest.mark.parametrize("width", [320, 420, 900, 1400])
def test_the_page_never_scrolls_sideways(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 850})
    opened.page.evaluate(OPEN_ALL)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width


def test_it_asks_nobody_and_says_nothing_to_the_console(opened):
    assert not opened.elsewhere and not opened.errors
    opened.page.evaluate("fetch('https://pictures.example/').catch(() => {})")
    assert any("Content Security Policy" in line for line in opened.errors)  # which would have refused it


@pytest.mark.parametrize("viewport", [TELEPHONE, DESK], ids=["telephone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_it_takes_to_be_read(watched_page, report, scheme, viewport):
    with watched_page(viewport=viewport, color_scheme=scheme) as watched:
        watched.page.goto(report)
        texts = watched.page.evaluate(TEXT_CONTRAST, LEAST_CONTRAST)
    assert texts["count"] > 1000 and not texts["found"]


def test_a_text_that_can_not_be_read_would_be_found(opened):
    opened.page.evaluate("document.querySelector('.lead').style.color = '#999'")
    opened.page.evaluate("document.querySelector('figure svg text').style.fill = '#999'")
    assert len(opened.page.evaluate(TEXT_CONTRAST, LEAST_CONTRAST)["found"]) >= 2


def test_the_keyboard_skips_to_the_results_and_scrolls_what_is_wider_than_the_page(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("Math.abs(document.querySelector('#results').getBoundingClientRect().top)") < 5
    figure = page.get_by_role("group", name=f"Figure: {CHART_TITLES['differences']}")
    for _ in range(20):
        page.keyboard.press("Tab")
        if figure.evaluate("box => box === document.activeElement"):
            break
    page.keyboard.press("ArrowRight")
    # Playwright's own wait runs a string as a script, which the page forbids.
    deadline = time.monotonic() + SCROLLED_S
    while page.evaluate("document.activeElement.scrollLeft") == 0:
        assert time.monotonic() < deadline
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Figure: {CHART_TITLES['differences']}"
    )


def test_a_screen_reader_finds_sections_tables_and_figures_by_name(opened):
    page = opened.page
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    assert page.get_by_role("navigation", name="Sections").count() == 1
    for section in ("Results", "How sure are the weights?", "Provenance"):
        assert page.get_by_role("region", name=section).count() == 1
    levels = page.get_by_role("table", name="Levels in %").first
    assert levels.get_by_role("rowheader", name="MR-ALIGN").count() == 1
    assert levels.get_by_role("columnheader", name="Acc").count() == 1
    assert page.get_by_role("img", name="MR-ALIGN − think on +").count() == 1
