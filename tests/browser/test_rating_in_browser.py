"""Rating in a real Chromium, by keyboard, with the server killed in the middle."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mralign_core.config import StorageConfig
from mralign_core.rating.choosing import make_round
from mralign_core.rating.records import Choice, RatedKind, Rating, RatingRecords, latest
from mralign_core.reporting.style import LEAST_CONTRAST
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.storage.tables import write_table
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.tables import find_run
from tests.ports import free_port
from tests.simulated_run import NAME, RUN, Size, publish_run, simulated_store
from tests.workbench_server import serving_workbench

START_TIMEOUT_S = 90
KEYS = "123456789qwerty"
HOSTILE = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>&amp;"


class RateCommand:
    """``mralign rate`` in a process of its own, which can be killed and started again."""

    def __init__(self, storage, folder, port):
        self.port = port
        self.environment = {**os.environ, "PREFECT_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        self.options = ["--set", f"storage.root={storage.root}", "--set", f"name={NAME}"]

    def start(self, rater):
        chosen = ["--rater", rater, "--choose", "disagreement", "--traces", "5", "--port", str(self.port)]
        command = [sys.executable, "-m", "flows.commands.cli", "rate", "--config", "pocket", *self.options, *chosen]
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"open (\S+)", line):
                return found[1]
        raise AssertionError("it ended without a link")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def storage(tmp_path, browser):  # made only where there is a browser
    return simulated_store(tmp_path, 20)


@pytest.fixture
def command(storage, tmp_path):
    command = RateCommand(storage, tmp_path, free_port())
    yield command
    command.kill()


def test_twenty_segments_by_keyboard_with_the_server_killed_in_the_middle(storage, command, watched_page):
    link = command.start("anna")
    with watched_page(f"127.0.0.1:{command.port}") as watched:
        page = watched.page
        page.goto(link)
        page.get_by_text("0 of 20 gone through", exact=True).wait_for()
        given = []

        def rate(number, *, key=None):
            key = key or KEYS[number % len(KEYS)]
            page.keyboard.press(key)
            pressed = page.locator("button[aria-pressed=true]").last
            given.append(pressed.text_content().split()[-1])
            page.keyboard.press("Enter")
            page.get_by_text(f"{number + 1} of 20 gone through", exact=True).wait_for()

        for number in range(8):
            rate(number)
        page.get_by_text("All saved", exact=True).wait_for()
        command.kill()
        for number in range(8, 14):  # the page goes on, and keeps what it said
            rate(number)
        page.get_by_text("6 not saved yet").wait_for()
        page.close()  # the page dies too

        link = command.start("anna")
        page = watched.page.context.new_page()
        page.goto(link)
        page.get_by_text("14 of 20 gone through", exact=True).wait_for()
        page.get_by_text("All saved", exact=True).wait_for()
        for number in range(14, 20):
            rate(number)
        page.get_by_role("link", name="Results").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("table", name="Agreement beyond chance").wait_for()

    records = RatingRecords(ArtifactStore(storage))
    (name,) = records.names()
    ratings, of = records.ratings(name, "anna"), records.round(name)
    assert [each.n for each in ratings] == list(range(1, 21)), "each is there, once"
    said = latest(ratings)
    assert [said[each.item].said["label_1"] for each in of.items] == given


@pytest.fixture
def hostile(tmp_path, browser):
    """A store with a round of four segments, whose question a page might take for HTML, that ben went through."""
    section = StorageConfig(root=str(tmp_path / "store"))
    made = publish_run(section, Size(8))
    store = ArtifactStore(section)
    table = store.read_table(made["candidates"], "candidates.parquet")
    table["question"] = HOSTILE
    write_table(tmp_path / "hostile", "candidates.parquet", table, CANDIDATES)
    made["candidates"] = store.publish("candidates", "hostile-key", tmp_path / "hostile", parents=[], fingerprint={})
    RunRecords(store, NAME).add(RUN, {}, made, goes_on=False)
    records = RatingRecords(store)
    kinds: dict[RatedKind, dict[str, str]] = {"labels": {"label_1": "analogy"}, "verdicts": {"verdict": "right"}}
    for kind, said in kinds.items():
        of = make_round(shared_database(), find_run(store, NAME), kind, Choice(num=1))
        name = records.begin(of)
        for n, shown in enumerate(of.items, start=1):
            records.add(name, "ben", Rating(n=n, item=shown.item, state="rated", said=said, note=HOSTILE))
    return section


TEXT_CONTRAST = Path(__file__).with_name("text_contrast.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_of_a_round_can_be_read_on_a_telephone(hostile, watched_page, scheme):
    records = RatingRecords(ArtifactStore(hostile))
    rounds = {records.round(name).kind: name for name in records.names()}
    size = {"width": 420, "height": 850}
    with serving_workbench(hostile, NAME) as served, watched_page(served.own, viewport=size, color_scheme=scheme) as it:
        it.page.goto(served.link)
        it.page.get_by_role("heading", name="Overview").wait_for()
        for kind, name in rounds.items():
            for view, rater, title in (("rate", "anna", "Rating"), ("rating-results", "ben", "What the ratings say")):
                it.page.goto(served.at(view, f"round={name}&rater={rater}"))
                it.page.locator("main h1", has_text=title).wait_for()
                texts = it.page.evaluate(TEXT_CONTRAST, LEAST_CONTRAST)
                assert texts["count"] > 10 and not texts["found"], (kind, view)
                assert it.page.evaluate("document.documentElement.scrollWidth") == size["width"], (kind, view)
        assert not it.errors


@pytest.fixture
def sheet(hostile, watched_page):
    """Opens pages of anna's in a round of labels that nobody of that name rated in; with its records and its name."""
    records = RatingRecords(ArtifactStore(hostile))
    (name,) = (name for name in records.names() if records.round(name).kind == "labels")
    with serving_workbench(hostile, NAME) as served, watched_page(served.own) as watched:
        watched.page.goto(served.link)
        watched.page.get_by_role("heading", name="Overview").wait_for()

        def open_page():
            page = watched.page.context.new_page()
            page.goto(served.at("rate", f"round={name}&rater=anna"))
            page.get_by_text(re.compile("of 4 gone through")).first.wait_for()
            return page

        yield open_page, records, name


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_of_two_pages_the_one_that_is_behind_goes_past_the_other(sheet):
    open_page, records, name = sheet
    ahead, behind = open_page(), open_page()
    press(ahead, "ArrowRight", "1", "Enter", "1", "Enter", "1", "Enter", "1", "Enter")  # the first item comes last
    ahead.get_by_role("link", name="Results").wait_for()
    press(behind, "2", "Enter", "Backspace", "3", "Enter")  # what it takes back has another number by then, too
    behind.get_by_text("1 of 4 gone through", exact=True).wait_for()
    behind.get_by_text("All saved", exact=True).wait_for()
    ratings, labels = records.ratings(name, "anna"), records.round(name).label_set.labels
    first = [each for each in ratings if each.item == records.round(name).items[0].item]
    assert [each.said.get("label_1") for each in first] == [labels[0], labels[1], None, labels[2]]
    assert first[2].undoes == first[1].n > 4


def test_what_the_server_refuses_is_set_aside_and_told(sheet):
    open_page, records, name = sheet
    page = open_page()
    refusal = {"status": 422, "content_type": "application/json", "body": '{"problem": "no such label"}'}
    page.route("**/rate/rating?*", lambda route: route.fulfill(**refusal), times=1)
    press(page, "1", "Enter", "2", "Enter")
    told = page.get_by_text(
        re.compile("1 refused, not saved, kept in this browser; number 1 of the items: no such label")
    )
    told.wait_for()
    page.get_by_text("2 of 4 gone through", exact=True).wait_for()
    while not (kept := records.ratings(name, "anna")):
        page.wait_for_timeout(100)
    assert [each.item for each in kept] == [records.round(name).items[1].item]
    page.reload()  # it is sent again
    page.get_by_text("All saved", exact=True).wait_for()
    assert [each.n for each in records.ratings(name, "anna")] == [1, 2]


def test_skip_undo_notes_and_results_by_keyboard_and_hostile_text_stays_text(hostile, watched_page):
    records = RatingRecords(ArtifactStore(hostile))
    rounds = {records.round(name).kind: name for name in records.names()}
    with serving_workbench(hostile, NAME) as served, watched_page(served.own) as watched:
        page = watched.page

        def gone_through(text):
            page.get_by_text(text, exact=True).wait_for()

        page.goto(served.link)
        page.get_by_role("link", name="Rating", exact=True).click()
        page.get_by_role("link", name="4 segments of 1 trace").click()
        page.get_by_label("your name").fill("anna")
        page.keyboard.press("Enter")
        gone_through("0 of 4 gone through")
        assert page.get_by_text(HOSTILE).count() == 1
        page.keyboard.press("Enter")
        page.get_by_text("Choose first.").wait_for()
        for key in "789":
            page.keyboard.press(key)
        page.get_by_text("Two labels at most").wait_for()
        page.keyboard.press(".")
        page.keyboard.type(HOSTILE)
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        gone_through("1 of 4 gone through")
        page.keyboard.press("7")
        page.keyboard.press("Backspace")
        page.get_by_text("What was chosen is dropped.").wait_for()
        gone_through("1 of 4 gone through")
        assert page.locator("button[aria-pressed=true]").count() == 0
        page.keyboard.press("-")
        gone_through("2 of 4 gone through, 1 skipped")
        page.keyboard.press("Backspace")
        gone_through("1 of 4 gone through")
        page.keyboard.press("Backspace")
        gone_through("0 of 4 gone through")
        page.reload()  # what was undone stays undone, and undo goes on from there
        gone_through("0 of 4 gone through")
        page.keyboard.press("Backspace")
        page.get_by_text("There is nothing to undo.").wait_for()
        for key in "789":
            page.keyboard.press(key)
            page.keyboard.press("Enter")
        page.keyboard.press("0")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Results").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Where raters differ: 3").wait_for()
        raters = page.get_by_role("region", name="Where raters differ")
        assert raters.get_by_text(HOSTILE).count() == 6, "three questions, and ben's note on each"
        pipeline = page.get_by_role("region", name="Where anna and the annotators or the pipeline differ")
        assert pipeline.get_by_text(HOSTILE).count() == pipeline.get_by_role("article").count() > 0
        page.get_by_role("button", name="Publish anna's labels").click()
        page.get_by_text("annotate.annotator_a: human/anna").wait_for()

        page.goto(served.at("rate", f"round={rounds['verdicts']}&rater=anna"))
        page.get_by_text("Is the answer right?").wait_for()
        while page.get_by_role("link", name="Results").count() == 0:
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            page.wait_for_timeout(150)
        page.keyboard.press("Enter")
        page.get_by_role("table", name="People and the judge: anna").first.wait_for()
        assert page.title().startswith("What the ratings say") and not watched.errors and not watched.elsewhere
    verdicts = latest(records.ratings(rounds["verdicts"], "anna")).values()
    assert {each.said["verdict"] for each in verdicts} == {"wrong"}
