"""The workbench in a real Chromium: find a trace, follow a number to its cases, lay variants side by side."""

import dataclasses
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, RewardConfig, StorageConfig
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import labelled_traces
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting.matrix_figures import Transitions
from mralign_core.reporting.report import ReportInputs, render_report
from mralign_core.reporting.style import LEAST_CONTRAST
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.storage.tables import write_table
from mralign_core.workbench import analyses
from mralign_core.workbench.kept_tables import KeptTables
from mralign_core.workbench.tables import find_run
from tests.simulated_run import NAME, RUN, Size, publish_run
from tests.workbench_server import serving_workbench

TEXT_CONTRAST = Path(__file__).with_name("text_contrast.js").read_text()
TELEPHONE, DESK = {"width": 420, "height": 850}, {"width": 1400, "height": 900}
HOSTILE = "<img src=x onerror=\"document.body.textContent='a script ran'\"><script>document.title='ran'</script>&amp;"
VIEWS = ["", "traces", "moves", "draws", "answers", "trace", "question"]
QUERIES = {"trace": "id=trace-000007", "question": "id=eval-000003", "traces": "sort=weight"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory, browser):  # made only where there is a browser
    """A run of 120 traces, one of which holds what a page might take for HTML, with a report made from its tables."""
    folder = tmp_path_factory.mktemp("workbench")
    section = StorageConfig(root=str(folder / "store"))
    made = publish_run(section, Size(120))
    store = ArtifactStore(section)
    tables = {
        name: store.read_table(made[name], f"{name}.parquet") for name in ("candidates", "annotations", "weights")
    }
    tables["candidates"].loc[11, "question"] = HOSTILE
    write_table(folder / "hostile", "candidates.parquet", tables["candidates"], CANDIDATES)
    made["candidates"] = store.publish("candidates", "hostile-key", folder / "hostile", parents=[], fingerprint={})
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text(report_of(tables), encoding="utf-8")
    parents = [ref for name, ref in made.items() if not name.startswith("adapter")]
    made["report"] = store.publish("report", "report-key", folder / "report", parents=parents, fingerprint={})
    RunRecords(store, NAME).add(RUN, {}, made, goes_on=False)
    return section


def report_of(tables):
    traces = labelled_traces(tables["candidates"], tables["annotations"], taxonomy=PAPER_TAXONOMY)
    section = EstimateConfig(num_resamples=0)
    matrices = estimate_transitions(traces, section, PAPER_TAXONOMY, rng=np.random.default_rng(0))
    inputs = ReportInputs(run={"run": "test"}, taxonomy=PAPER_TAXONOMY, confidence=0.95)
    transitions = Transitions.of(matrices, RewardConfig(), 0.95, PAPER_TAXONOMY)
    named = {"segment_weights": tables["weights"], "transitions": transitions}
    return render_report(
        dataclasses.replace(inputs, candidates=tables["candidates"], annotations=tables["annotations"], **named)
    )


@pytest.fixture(scope="module")
def workbench(storage, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, serving_workbench(storage, NAME) as served:
        patch.setattr(analyses, "_TABLES", KeptTables(tmp_path_factory.mktemp("analyses")))
        yield served


@pytest.fixture
def entered(watched_page, workbench):
    """A page that came in by the printed link."""
    with watched_page(workbench.own, viewport=DESK) as watched:
        watched.page.goto(workbench.link)
        watched.page.get_by_role("heading", name="Overview").wait_for()
        yield watched
        assert not watched.elsewhere and not watched.errors, watched.errors


def settled(page):
    """The page, once it shows what its address says."""
    page.locator("main:not([aria-busy])").wait_for()
    return page


def heading(page, name, **more):
    return page.get_by_role("heading", name=name, **more)


def query_of(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def test_the_link_lets_in_and_leaves_no_token_in_the_address(entered, workbench):
    assert entered.page.url == workbench.at("")
    assert entered.page.get_by_role("navigation", name="Views").get_by_role("link").count() == 6


def test_nobody_is_let_in_without_it(watched_page, workbench):
    with watched_page(workbench.own) as watched:
        watched.page.goto(workbench.at("traces"))
        heading(watched.page, "Who is asking?").wait_for()


def test_a_trace_is_found_by_text_by_labels_and_by_weight(entered, workbench, storage):
    page = entered.page
    page.keyboard.press("/")  # nothing to search in here, and no error
    page.get_by_role("link", name="Traces", exact=True).click()
    heading(page, "Traces").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("CODE000042")
    page.keyboard.press("Enter")
    page.get_by_text("1 found").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.get_by_role("list", name="Segments of the thinking").wait_for()
    assert query_of(page)["id"] == "trace-000042"

    run = find_run(ArtifactStore(storage), NAME)
    labels = run.store.read_table(run.artifacts["annotations"], "annotations.parquet")
    chain = [row[0] for row in labels[labels["trace_id"] == "trace-000042"]["labels"]]
    page.goto(workbench.at("traces"))
    page.get_by_role("textbox", name="labels in a row").fill(" → ".join(["<start>", *chain, "<stop>"]))
    page.get_by_role("button", name="Find").click()
    settled(page).get_by_text(" found, page 1").wait_for()
    ids = [query["id"][0] for query in links(page)]
    assert "trace-000042" in ids and len(ids) < 5

    weights = run.store.read_table(run.artifacts["weights"], "weights.parquet")
    own = weights[weights["trace_id"] == "trace-000042"]["weight"].astype(float).max()
    page.goto(workbench.at("traces", f"weight_min={own - 1e-9}&weight_max={own + 1e-9}"))
    settled(page).get_by_text(" found, page 1").wait_for()
    assert "trace-000042" in [query["id"][0] for query in links(page)]


def links(page):
    return [parse_qs(urlsplit(link.get_attribute("href")).query) for link in page.locator("a[data-item]").all()]


def test_back_and_forward_show_what_was_there(entered):
    page = entered.page
    page.get_by_role("link", name="Traces", exact=True).click()
    heading(page, "Traces").wait_for()
    page.get_by_role("combobox", name="polarity").select_option("negative")
    page.get_by_text("60 found, page 1 of 2").wait_for()
    page.keyboard.press("n")
    page.get_by_text("60 found, page 2 of 2").wait_for()
    page.go_back()
    page.get_by_text("60 found, page 1 of 2").wait_for()
    page.go_back()
    page.get_by_text("120 found").wait_for()
    page.reload()
    page.get_by_text("120 found").wait_for()


def test_a_cell_of_the_reports_heat_map_leads_to_its_traces(entered, workbench):
    page = entered.page
    page.get_by_role("link", name="the report").click()
    report = page.frame_locator("iframe")
    cell = report.locator("a[data-cases*='polarity=negative'][data-cases*='%3Cstart%3E+'] path").first
    cell.wait_for()
    title = cell.locator("xpath=../../*[local-name()='title']").text_content()
    source, target = title.split(":")[0].split(" → ")
    cell.click()
    heading(page, "Traces").wait_for()
    assert query_of(page)["pattern"] == f"{source} → {target}" and query_of(page)["run"].startswith("report/report-key")
    first = [row.locator("li").first.text_content() for row in page.get_by_role("list", name="Labels in a row").all()]
    assert first and all(target in label for label in first)
    assert all("negative" in each for each in page.locator(".cards .facts").all_text_contents())


def test_a_cell_of_the_moves_leads_to_as_many_traces_as_it_says(entered):
    page = entered.page
    page.get_by_role("link", name="Moves").click()
    cell = page.get_by_role("table", name="Moves in positive traces").locator("a.cell").nth(5)
    number = cell.get_attribute("title").split(" in ")[1].split(" ")[0]
    cell.click()
    page.get_by_text(f"{number} found").wait_for()


def test_a_cell_of_held_out_moves_leads_to_answers_that_make_it(entered):
    page = entered.page
    page.get_by_role("link", name="Moves").click()
    page.get_by_role("link", name="in held-out thinkings of MR-ALIGN").click()
    cell = page.get_by_role("table", name="Moves in held-out thinkings of MR-ALIGN").locator("a.cell").nth(3)
    pattern, _, told = cell.get_attribute("title").partition(": ")
    cell.click()
    page.get_by_text(f"{told.split(' in ')[1].split(' ')[0]} found").wait_for()
    labels = page.get_by_role("list", name="Labels in a row").first.get_by_role("listitem").all_text_contents()
    assert pattern in " → ".join(["<start>", *(label.strip() for label in labels), "<stop>"])


def test_a_list_is_sorted_by_a_click_and_turned_round_by_another(entered, workbench):
    page = entered.page
    page.goto(workbench.at("traces", "polarity=negative"))
    page.get_by_role("link", name="earliest last mention").click()
    settled(page).get_by_role("link", name="earliest last mention ↓").click()
    page.get_by_role("link", name="earliest last mention, turned round ↑").wait_for()
    assert query_of(page).items() >= {"polarity": "negative", "sort": "last", "reverse": "yes"}.items()
    places = [
        text.split("last at ")[1].split(" %")[0]
        for text in page.locator(".facts").all_text_contents()
        if "last at" in text
    ]
    assert len({*places}) > 1 and places == sorted(places, key=int, reverse=True)


def test_a_table_of_the_overview_is_sorted_by_a_click_on_a_column_and_turned_round_by_another(entered):
    page, asked = entered.page, []
    page.on("request", lambda request: asked.append(request.url) if "/api/summary" in request.url else None)
    labels = page.get_by_role("table", name="Labels, by how many segments have them from one annotator only")

    def column(place):
        cells = labels.locator(f"tbody tr > :nth-child({place})").all_text_contents()
        return [float(cell.replace(",", "").replace("−", "-")) for cell in cells if cell != "–"] if place > 1 else cells

    page.evaluate("scrollTo(0, 100)")
    labels.get_by_role("link", name="mean weight").click()
    turn = settled(page).get_by_role("link", name="mean weight ↓")
    weights = column(8)
    assert len({*weights}) > 2 and weights == sorted(weights, reverse=True)
    assert turn.evaluate("link => link === document.activeElement") and page.evaluate("scrollY") == 100
    page.keyboard.press("Enter")
    labels.get_by_role("link", name="mean weight ↑").wait_for()
    assert column(8) == weights[::-1] and query_of(page)["reverse"] == "yes"
    assert labels.get_by_role("columnheader", name="mean weight").get_attribute("aria-sort") == "ascending"
    labels.get_by_role("link", name="label", exact=True).click()
    labels.get_by_role("link", name="label ↓").wait_for()
    assert column(1) == sorted(column(1), key=str.lower)
    page.go_back()
    labels.get_by_role("link", name="mean weight ↑").wait_for()
    assert column(8) == weights[::-1] and not asked, "nothing is counted anew"


def test_orders_are_those_that_a_list_has(entered, workbench):
    page, by_mention = entered.page, entered.page.get_by_role("link", name="earliest last mention")
    page.goto(workbench.at("answers", "variant=mr_align"))
    by_mention.wait_for()
    page.goto(workbench.at("answers", "variant=off"))
    page.get_by_role("link", name="most tokens").wait_for()
    assert by_mention.count() == 0
    page.goto(workbench.at("traces", "sort=tokens"))
    assert "4 segments, 20 tokens" in settled(page).locator(".facts").first.text_content()


def test_moves_of_a_variant_that_is_not_labelled_say_whose_are(entered, workbench):
    entered.page.goto(workbench.at("moves", "variant=kto"))
    told = "the held-out thinkings of 'kto' are not labelled; those of on, mr_align are"
    entered.page.get_by_role("alert").filter(has_text=told).wait_for()
    assert entered.errors.pop().endswith("400 (Bad Request)")


def test_who_waits_for_an_analysis_sees_how_far_it_is(entered, workbench):
    page, held = entered.page, []
    page.goto(workbench.at("traces"))
    settled(page).get_by_text("120 found").wait_for()
    page.route("**/api/traces?*loops=*", lambda route: held.append(route))
    page.route("**/api/under-way?*", lambda route: route.fulfill(json=[{"done": 1500, "rows": 100_000}]))
    page.get_by_text("Where thinking and answer part").click()
    page.get_by_role("combobox", name="loops").select_option("no")
    page.get_by_text("1,500 of 100,000").wait_for()
    assert page.get_by_role("progressbar", name="Analysed").get_attribute("value") == "1500"
    held[0].continue_()
    settled(page).get_by_text(" found, page 1").wait_for()
    assert page.get_by_role("progressbar").count() == 0


def test_two_variants_stand_beside_each_other_and_a_flip_is_found(entered):
    page = entered.page
    page.get_by_role("link", name="Answers", exact=True).click()
    settled(page).get_by_role("combobox", name="compared with", exact=True).select_option("kto")
    settled(page).get_by_role("combobox", name="flip", exact=True).select_option("right to wrong")
    settled(page).get_by_text(" found, page 1").wait_for()
    card = page.get_by_role("article").first
    assert "answer right" in card.locator(".said").first.text_content()  # KTO's, then MR-ALIGN's
    assert "answer wrong" in card.locator(".said").last.text_content()
    card.get_by_role("link").first.click()
    heading(page, "Answers side by side").wait_for()
    assert page.get_by_role("article").count() == 4
    page.get_by_role("button", name="think off").click()
    page.get_by_role("article", name="think off").wait_for(state="detached")
    assert query_of(page)["variants"] == "on,kto,mr_align" and page.get_by_role("article").count() == 3


def test_a_segment_says_who_decided_it_by_keyboard_and_colours_turn_to_weights(entered, workbench):
    page = entered.page
    page.goto(workbench.at("trace", "id=trace-000007"))
    page.get_by_role("list", name="Segments of the thinking").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    head = page.locator(".segment-head").nth(1)
    assert head.evaluate("button => button === document.activeElement")
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-expanded") == "true"
    assert "annotator B" in page.locator("#why-1").get_by_label("Who decided").inner_text()
    assert "soft counts" in page.locator("#why-1").get_by_label("The weight").inner_text()
    assert not page.locator("#why-0").is_visible()
    page.keyboard.press("c")
    assert query_of(page)["by"] == "weight"
    shades = page.locator(".segment > .model").evaluate_all(
        "all => all.map((each) => getComputedStyle(each).backgroundColor)"
    )
    assert len(set(shades)) > 1
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()


def test_tokens_are_coloured_by_weight_or_by_what_training_changed_and_stand_in_a_table(entered, workbench):
    page = entered.page
    page.goto(workbench.at("trace", "id=trace-000007&by=moved"))
    section = page.get_by_role("region", name="Tokens")
    section.get_by_text("Each token with its weight").click()
    section.get_by_text("notes no model").wait_for()  # the simulated run has none: ids in place of texts
    tokens = section.locator(".token")
    assert tokens.count() == 24 and "log-probability" in tokens.first.get_attribute("title")
    by_weight = shades_of(tokens)
    section.get_by_role("button", name="by what training changed").click()
    assert len(set(by_weight)) > 1 and len(set(shades_of(tokens))) > 4 and shades_of(tokens) != by_weight
    section.get_by_text("As a table").click()
    section.get_by_role("table").wait_for()
    assert section.get_by_role("table").get_by_role("row").count() == 25
    assert len(set(shades_of(page.locator(".by-moved .segment > .model")))) > 1
    texts = page.evaluate(TEXT_CONTRAST, LEAST_CONTRAST)
    assert texts["count"] > 60 and not texts["found"]


def shades_of(elements):
    return elements.evaluate_all("all => all.map((each) => getComputedStyle(each).backgroundColor)")


def test_who_goes_on_takes_back_what_was_asked(entered, workbench):
    page, taken_back = entered.page, []
    page.on("requestfailed", lambda request: taken_back.append((request.url, request.failure)))
    page.route("**/api/moves?*", lambda route: None)  # never answered
    page.get_by_role("link", name="Moves").click()
    page.locator("main[aria-busy]").wait_for()
    page.get_by_role("link", name="Answers", exact=True).click()
    heading(page, "Answers").wait_for()
    assert [failure for url, failure in taken_back if "/api/moves" in url] == ["net::ERR_ABORTED"]
    page.get_by_text("Where thinking and answer part").click()
    page.get_by_role("combobox", name="gold answer in the thinking").select_option("named_wrong")
    settled(page).get_by_text(" found, page 1").wait_for()
    assert query_of(page)["ending"] == "named_wrong"
    assert page.get_by_role("spinbutton", name="last mention from, %").is_visible()  # what is asked for is not folded


def test_hostile_text_stays_text(entered, workbench):
    page = entered.page
    page.goto(workbench.at("trace", "id=trace-000011"))
    heading(page, HOSTILE).wait_for()
    page.goto(workbench.at("traces", "text=onerror"))
    page.get_by_text("1 found").wait_for()
    assert page.locator("article a").first.text_content() == HOSTILE and page.locator("main img").count() == 0


@pytest.mark.parametrize(("viewport", "scheme"), [(TELEPHONE, "dark"), (DESK, "light")], ids=["telephone", "desk"])
def test_every_view_can_be_read_and_does_not_scroll_sideways(watched_page, workbench, viewport, scheme):
    with watched_page(workbench.own, viewport=viewport, color_scheme=scheme) as watched:
        page = watched.page
        page.goto(workbench.link)
        heading(page, "Overview").wait_for()
        for view in VIEWS:
            page.goto(workbench.at(view, QUERIES.get(view, "")))
            page.locator("main h1").wait_for()
            for button in page.locator(".segment-head").all()[:2]:
                button.click()
            texts = page.evaluate(TEXT_CONTRAST, LEAST_CONTRAST)
            assert texts["count"] > 20 and not texts["found"], view
            assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"], view
            unnamed = page.evaluate(UNNAMED)
            assert not unnamed, view
        assert not watched.errors


UNNAMED = """() => [...document.querySelectorAll("main a, main button, main input, main select, main [role]")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.textContent.trim() || each.ariaLabel || each.labels?.length || each.title))
  .map((each) => each.outerHTML.slice(0, 120))"""


def test_a_list_is_saved_as_a_file_though_its_reader_goes_on(entered, workbench):
    page = entered.page
    page.goto(workbench.at("traces", "polarity=negative"))
    held = []
    page.route("**/traces.jsonl*", lambda route: held.append(route))
    with page.expect_download(timeout=10_000) as download:
        with page.expect_request("**/traces.jsonl*"):
            page.get_by_role("button", name="Save all").click()
        page.get_by_role("link", name="Overview").click()
        heading(page, "Overview").wait_for()
        held[0].continue_()
    lines = Path(download.value.path()).read_text().splitlines()
    name = download.value.suggested_filename
    assert name.startswith(f"traces_{NAME}-run-of-") and name.endswith("_polarity=negative.jsonl") and len(lines) == 60


def test_a_page_of_another_site_can_not_link_to_it(watched_page, workbench):
    with watched_page(workbench.own) as watched:
        page = watched.page
        page.goto(f"data:text/html,<a href='{workbench.at('traces')}'>here</a>")
        with page.expect_response(lambda reply: reply.url.startswith(workbench.site)) as reply:
            page.get_by_role("link").click()
        assert reply.value.status == 403


def test_while_a_list_is_searched_the_one_before_can_not_be_taken_for_it(entered, workbench):
    page, held = entered.page, []
    page.goto(workbench.at("traces"))
    settled(page).get_by_text("120 found").wait_for()
    page.route("**/api/traces?*ending=*", lambda route: held.append(route))  # a first use of an analysis takes seconds
    page.get_by_text("Where thinking and answer part").click()
    page.get_by_role("combobox", name="gold answer in the thinking").select_option("named_wrong")
    page.get_by_text("Searching…", exact=True).first.wait_for()
    assert query_of(page)["ending"] == "named_wrong" and page.get_by_text("120 found").count() == 0
    assert page.locator("[inert] a[data-item]").count() == 50 == page.locator("a[data-item]").count()
    assert page.locator("[inert] button").count() == 1, "Save all"
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert "page" not in query_of(page) and "/traces" in page.url
    held[0].continue_()
    settled(page).get_by_text(" found, page 1").wait_for()
    assert page.locator("[inert]").count() == 0


@pytest.mark.parametrize(("view", "query"), [("", ""), ("question", "id=eval-000003"), ("question", "id=train-000003")])
def test_of_what_a_run_lacks_nothing_is_written(entered, workbench, view, query):
    entered.page.goto(workbench.at(view, query))
    entered.page.locator("main h1 ~ *").first.wait_for()
    assert "null" not in settled(entered.page).locator("main").inner_text()
