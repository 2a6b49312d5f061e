"""Rounds and ratings in a store: each is there once, whoever is killed and whatever is sent twice."""

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from mralign_core.config import RetentionConfig, StorageConfig
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.rating.records import (
    Choice,
    LabelNames,
    Rating,
    RatingConflictError,
    RatingError,
    RatingRecords,
    Round,
    Shown,
    check_rater,
    is_done,
    latest,
)
from mralign_core.retention.collect import Collector
from mralign_core.retention.verify import verify_store
from mralign_core.storage import ArtifactStore

NAMES = LabelNames(labels=("ask", "tell"), macro_strategies=("talk", "talk"), definitions=("asks", "tells"))
ITEMS = [letter * 12 for letter in "abc"]
ROUND = Round(
    kind="labels",
    choice=Choice(num=1),
    run="a run",
    artifacts={},
    label_set=NAMES,
    columns=("item", "trace", "segment", "question", "text", "label_1", "label_2", "comment"),
    items=tuple(
        Shown(item=item, about="t", cells={"trace": 1, "segment": number}, asked=("label_1", "label_2"))
        for number, item in enumerate(ITEMS, start=1)
    ),
)


def rated(n, item=ITEMS[0], label="ask", **more):
    return Rating(n=n, item=item, state="rated", said={"label_1": label}, **more)


@pytest.fixture
def records(tmp_path):
    records = RatingRecords(ArtifactStore(StorageConfig(root=str(tmp_path / "store"))))
    assert records.begin(ROUND) == ROUND.name
    return records


def test_what_is_sent_again_is_kept_once_and_another_rating_of_its_number_is_refused(section):
    store = ArtifactStore(section)
    records = RatingRecords(store)
    name = records.begin(ROUND)
    assert records.begin(ROUND.model_copy(update={"run": "the same, later"})) == name
    first = records.add(name, "anna", rated(1, note="sure"))
    assert records.add(name, "anna", rated(1, note="sure")) == first
    with pytest.raises(RatingConflictError, match="rating 1 says something else of it"):
        records.add(name, "anna", rated(1, label="tell"))
    assert records.add(name, "anna", rated(2, label="tell")).n == 2
    assert records.add(name, "ben", rated(1, label="tell")).n == 1
    fresh = RatingRecords(ArtifactStore(section))
    assert fresh.round(name) == ROUND and fresh.raters(name) == ["anna", "ben"] and fresh.names() == [name]
    assert [each.said["label_1"] for each in fresh.ratings(name, "anna")] == ["ask", "tell"]
    assert latest(fresh.ratings(name, "anna"))[ITEMS[0]].n == 2


def test_a_page_that_is_behind_is_told_how_far_to_go(records):
    name = ROUND.name
    for rating in (rated(1, item=ITEMS[1]), rated(2), rated(3, item=ITEMS[2])):
        records.add(name, "anna", rating)
    with pytest.raises(RatingConflictError, match=r"rating 1 .* since rating 2 .* with a number above 3"):
        records.add(name, "anna", rated(1, label="tell"))
    assert records.add(name, "anna", rated(4, label="tell")).n == 4
    assert latest(records.ratings(name, "anna"))[ITEMS[0]].said == {"label_1": "tell"}
    assert records.add(name, "anna", rated(2)).n == 2, "what is sent again is found, though more was said since"
    assert len(records.ratings(name, "anna")) == 4


def test_when_a_rating_came_is_the_servers_to_say(records):
    claimed = rated(1, at=datetime(2001, 1, 1), is_blind=False)  # naive, as a page might send it
    kept = records.add(ROUND.name, "anna", claimed)
    assert kept.is_blind and abs((datetime.now(UTC) - kept.at).total_seconds()) < 60


def test_pages_at_once_lose_nothing(records, tmp_path):
    name = ROUND.name
    outcomes: list[tuple[int, str | None]] = []

    def send(label):
        for n in range(1, 21):
            own = RatingRecords(ArtifactStore(StorageConfig(root=str(tmp_path / "store"))))
            try:
                outcomes.append((n, own.add(name, "anna", rated(n, label=label)).said["label_1"]))
            except RatingConflictError:
                outcomes.append((n, None))

    threads = [threading.Thread(target=send, args=[label]) for label in ("ask", "tell")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = records.ratings(name, "anna")
    assert [each.n for each in kept] == list(range(1, 21))
    assert sorted((n, label) for n, label in outcomes if label) == [(each.n, each.said["label_1"]) for each in kept]


WRITER = """
import itertools, sys
from mralign_core.config import StorageConfig
from mralign_core.rating.records import Rating, RatingRecords
from mralign_core.storage import ArtifactStore
records = RatingRecords(ArtifactStore(StorageConfig(root=sys.argv[1])))
for n in itertools.count(1):
    records.add(sys.argv[2], "anna", Rating(n=n, item=sys.argv[3], state="rated", said={"label_1": "ask"}))
    print(n, flush=True)
"""


def test_of_a_writer_that_is_killed_all_is_there_that_it_acknowledged(records, tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), ROUND.name, ITEMS[0]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = [int(process.stdout.readline()) for _ in range(15)]
    os.kill(process.pid, signal.SIGKILL)
    said += map(int, process.stdout.read().split())
    process.wait()
    kept = [each.n for each in records.ratings(ROUND.name, "anna")]
    assert kept[: len(said)] == said and len(kept) <= len(said) + 1, "one may be written and not yet acknowledged"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"label_1": "shout"}, "none of ask, tell"),
        ({}, "label_1: ''"),
        ({"label_1": "ask", "label_2": "ask"}, "no second label"),
        ({"label_1": "no label", "label_2": "ask"}, "no second label"),
        ({"verdict": "right"}, "'verdict' is not asked"),
    ],
)
def test_what_a_sheet_could_not_hold_is_refused(records, said, problem):
    with pytest.raises(RatingError, match=problem):
        records.add(ROUND.name, "anna", Rating(n=1, item=ITEMS[0], state="rated", said=said))


def test_other_items_long_notes_and_odd_names_are_refused(records):
    with pytest.raises(RatingError, match="is no item"):
        records.add(ROUND.name, "anna", rated(1, item="z" * 12))
    with pytest.raises(RatingError, match="says nothing"):
        records.add(ROUND.name, "anna", Rating(n=1, item=ITEMS[0], state="skipped", said={"label_1": "ask"}))
    with pytest.raises(ValidationError, match="at most 2000 characters"):
        rated(1, note="x" * 2001)
    for name in ("", "Anna", "../anna", "anna/ben", "a" * 33, "<b>", "anna\n"):
        with pytest.raises(ConfigError, match="no name for a rater"):
            check_rater(name)
    with pytest.raises(ArtifactError, match="no round of ratings"):
        records.round("../runs")
    assert not records.raters(ROUND.name)


def test_who_is_done_stays_done_and_is_blind_until_the_results_were_seen(records):
    for n, item in enumerate(ITEMS[:2], start=1):
        records.add(ROUND.name, "anna", rated(n, item=item))
    assert not is_done(ROUND, records.ratings(ROUND.name, "anna"))
    records.add(ROUND.name, "anna", Rating(n=3, item=ITEMS[2], state="skipped"))
    assert is_done(ROUND, records.ratings(ROUND.name, "anna"))
    records.add(ROUND.name, "anna", rated(4, item=ITEMS[2]))
    records.note_results_seen(ROUND.name, "anna")
    records.note_results_seen(ROUND.name, "anna")
    records.add(ROUND.name, "anna", rated(5, label="tell"))
    ratings = records.ratings(ROUND.name, "anna")
    assert [each.is_blind for each in ratings] == [True, True, True, True, False]
    assert records.add(ROUND.name, "ben", rated(1)).is_blind
    assert latest(ratings)[ITEMS[0]].said == {"label_1": "tell"}
    blind = latest(ratings, blind_only=True)
    assert [blind[item].said for item in (ITEMS[0], ITEMS[2])] == [{"label_1": "ask"}] * 2, "skipped, then rated"
    records.add(ROUND.name, "anna", Rating(n=6, item=ITEMS[0], state="cleared", undoes=5))
    assert is_done(ROUND, records.ratings(ROUND.name, "anna"))


def test_a_collection_leaves_ratings_and_a_check_reads_them(records, tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    records.add(ROUND.name, "anna", rated(1))
    records.note_results_seen(ROUND.name, "anna")
    gc = Collector(store, RetentionConfig(runs=0, days=0, grace_hours=0), {})
    gc.carry_out(gc.plan())
    assert len(RatingRecords(store).ratings(ROUND.name, "anna")) == 1
    found = verify_store(store)
    assert (found.num_records, found.damaged) == (3, [])
    path = tmp_path / "store" / "ratings" / ROUND.name / "anna" / f"00000001-{ITEMS[0]}.json"
    path.write_text(path.read_text().replace('"n":1', '"n":2'))
    (damage,) = verify_store(store).damaged
    assert "its name says otherwise" in damage.problem and "have anna rate that item again" in damage.remedy
    path.write_text("{")
    with pytest.raises(ArtifactError, match="rate that item again"):
        RatingRecords(store).ratings(ROUND.name, "anna")


def test_what_is_damaged_says_what_to_do_by_what_it_is(tmp_path, records):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    records.add(ROUND.name, "anna", rated(1))
    records.note_results_seen(ROUND.name, "anna")
    published = tmp_path / "store" / "ratings" / "published" / "anna" / f"00000001-{'a' * 16}.json"
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    for path in (tmp_path / "store" / "ratings").rglob("*.json"):
        path.write_text("{}" if path.name.startswith("0") else "[")
    remedies = {damage.path.rpartition("/")[2]: damage.remedy for damage in verify_store(store).damaged}
    assert "begin the round again by the same choice" in remedies["round.json"]
    assert "when anna was no longer blind" in remedies["results-seen.json"]
    assert "mralign rate --rater anna --publish" in remedies[published.name]
    # Once the damaged round is gone, the same choice makes it anew, with its ratings.
    (tmp_path / "store" / "ratings" / ROUND.name / "round.json").unlink()
    assert RatingRecords(store).rounds() == {}
    assert RatingRecords(store).begin(ROUND) == ROUND.name
