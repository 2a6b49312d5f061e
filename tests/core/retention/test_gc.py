"""Garbage collection: what is reachable stays, whatever the graph and wherever it is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.config import RetentionConfig, StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.retention import collect
from mralign_core.retention.collect import Collector
from mralign_core.retention.contents import read_contents
from mralign_core.retention.plan import CLAIM, NOTE_OF_SHARD, TEMPORARY, UNFINISHED, ShardKind
from mralign_core.retention.roots import pin_artifact, unpin_artifact
from mralign_core.storage import ArtifactRef
from mralign_core.storage.claims import Contest, Holder
from mralign_core.storage.filesystem import BegunUpload, StoreFiles
from mralign_core.storage.keeping import kept
from tests.core.retention.conftest import DAY_S, OLD_S, Shelf

SHARDS = {"scores-shard": ShardKind(frozenset({"scores"}), frozenset({"adapter"}))}
NOTHING_RECENT = RetentionConfig(runs=0, days=0, grace_hours=0)


def collector(shelf, **policy) -> Collector:
    return Collector(shelf.store, RetentionConfig(**{"runs": 0, "days": 0, "grace_hours": 1, **policy}), SHARDS)


def clear_up(shelf, **policy):
    gc = collector(shelf, **policy)
    return gc.carry_out(gc.plan())


class Killed(BaseException):
    pass


def kill_at_removal(monkeypatch, number):
    """The process dies as it is about to remove its n-th file."""
    seen, remove = iter(range(1, 1_000_000)), StoreFiles.remove

    def dying(self, path):
        if path.startswith("artifacts/") and next(seen) == number:
            raise Killed
        remove(self, path)

    monkeypatch.setattr(StoreFiles, "remove", dying)


def claim(shelf, name, *, age_s=0.0, **fields):
    holder = Holder(**{"run": "other", "host": socket.gethostname(), "pid": os.getpid(), "owner": "x", **fields})
    return shelf.write(f"claims/{name}.1", json.dumps({**asdict(holder), "beat": 1}).encode(), age_s=age_s)


@st.composite
def graphs(draw):
    """The parents of each artifact, by number, all earlier ones; roots, with what makes them so; where it is killed."""
    parents = [
        draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        for number in range(draw(st.integers(1, 8)))
    ]
    of_artifacts = st.integers(0, len(parents) - 1)
    roots = draw(
        st.dictionaries(of_artifacts, st.sampled_from(["pin", "run", "version", "young", "reads"]), max_size=3)
    )
    return parents, roots, draw(st.integers(1, 12))


def fill(shelf, parents, roots):
    """Write a graph; returns the artifacts."""
    made: list[ArtifactRef] = []
    for number, of_one in enumerate(parents):
        why = roots.get(number)
        stage = "version" if why == "version" else f"stage{number % 3}"
        age_s = 0.0 if why == "young" else OLD_S
        made.append(shelf.put(f"{stage}/key{number}", [made[each] for each in of_one], age_s=age_s))
        if why == "pin":
            pin_artifact(shelf.store, f"{stage}/key{number}", "")
        elif why == "run":
            shelf.note_run(f"run{number}", {"it": made[-1]}, config=f"config{number}")
        elif why == "reads":
            claim(shelf, f"other/{number}", reads=(made[-1].path,))
    return made


def reachable(parents, roots):
    found, todo = set(), list(roots)
    while todo:
        if (number := todo.pop()) not in found:
            found.add(number)
            todo += parents[number]
    return found


@settings(max_examples=40)
@given(graphs())
def test_nothing_reachable_is_removed_and_all_else_is_wherever_it_is_killed(graph):
    parents, roots, killed_at = graph
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        shelf = Shelf(StorageConfig(root=folder))
        made = fill(shelf, parents, roots)
        kept = {f"{made[number].stage}/{made[number].key}" for number in reachable(parents, roots)}
        gc = collector(shelf, runs=1)
        plan = gc.plan()
        assert {path.removeprefix("artifacts/").rpartition("/")[0] for path in plan.kept} == kept
        kill_at_removal(patch, killed_at)
        try:
            gc.carry_out(plan)
        except Killed:
            there = shelf.names
            assert kept <= there
            for number, ref in enumerate(made):  # what is there has what it was made from
                if f"{ref.stage}/{ref.key}" in there:
                    assert {f"{made[each].stage}/{made[each].key}" for each in parents[number]} <= there
        patch.undo()
        clear_up(shelf, runs=1)
        assert shelf.names == kept
        assert all(not shelf.store.find_damage(path) for path in read_contents(shelf.store).artifacts)
        left = {name for name in shelf.files if name.startswith("artifacts/")}
        assert len(left) == 2 * len(kept), left


KILLED = """
import os, signal, sys
from mralign_core.config import RetentionConfig, StorageConfig
from mralign_core.retention.collect import Collector
from mralign_core.storage import ArtifactStore
from mralign_core.storage.filesystem import StoreFiles

remove, seen = StoreFiles.remove, iter(range(1, 1000))

def dying(self, path):
    remove(self, path)
    if path.startswith("artifacts/") and next(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

StoreFiles.remove = dying
gc = Collector(ArtifactStore(StorageConfig.model_validate_json(sys.argv[1])), RetentionConfig(runs=1, days=0))
gc.carry_out(gc.plan())
"""


def test_a_second_collection_goes_on_where_the_first_was_killed(shelf):
    base = shelf.put("model/m")
    old = shelf.put("adapter/old", [base])
    shelf.put("scores/old", [old])
    shelf.note_run("r", {"adapter": shelf.put("adapter/new", [base])})
    done = subprocess.run(
        [sys.executable, "-c", KILLED, shelf.section.model_dump_json(), "1"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert shelf.names == {"model/m", "adapter/new", "adapter/old"}  # the manifest of what was made last
    assert any(name.startswith("claims/scores/old") for name in shelf.files)
    plan = collector(shelf, runs=1).plan()
    assert {kind: count for kind, (count, _) in plan.by_kind().items()} == {UNFINISHED: 1, "adapter": 1, CLAIM: 1}
    clear_up(shelf, runs=1)
    assert shelf.names == {"model/m", "adapter/new"}
    assert not [name for name in shelf.files if name.startswith("claims/") or "old" in name]


def test_a_plan_removes_nothing_and_says_how_much_of_what_goes(shelf):
    shelf.put("scores/a")
    shelf.put("scores/b")
    shelf.put("adapter/c", manifest=False)
    before = shelf.files
    plan = collector(shelf).plan()
    assert shelf.files == before
    size = sum(shelf.store.files.sizes("artifacts").values())
    assert plan.num_bytes == size
    assert {kind: count for kind, (count, _) in plan.by_kind().items()} == {"scores": 2, UNFINISHED: 1}


def test_of_runs_the_newest_of_each_name_stay_and_those_of_the_last_days(shelf):
    for number in range(4):
        at = datetime(2020, 1, number + 1, tzinfo=UTC)
        for config in ("nightly", "weekly"):
            shelf.note_run(f"r{number}", {"it": shelf.put(f"scores/{config}{number}")}, config=config, at=at)
    shelf.note_run("now", {"it": shelf.put("scores/now")}, config="other", at=datetime.now(UTC))
    clear_up(shelf, runs=2)
    assert shelf.names == {f"scores/{name}" for name in ("nightly2", "nightly3", "weekly2", "weekly3", "now")}


def test_what_is_younger_than_the_days_or_the_grace_stays_finished_or_not(shelf):
    for days in (0.01, 2, 20):
        shelf.put(f"scores/{days}", age_s=days * DAY_S)
        shelf.put(f"adapter/{days}", age_s=days * DAY_S, manifest=False)
    clear_up(shelf, days=10, grace_hours=24)
    assert shelf.names == {"scores/0.01", "scores/2"}
    assert {name.split("/")[2] for name in shelf.files if "adapter" in name} == {"0.01"}
    clear_up(shelf, grace_hours=24)
    assert shelf.names == {"scores/0.01"}


def test_a_pin_keeps_what_it_names_until_it_is_taken_away(shelf):
    shelf.put("adapter/precious", [shelf.put("model/m")])
    pin_artifact(shelf.store, "precious", "the paper's")
    assert "pinned: the paper's" in collector(shelf).plan().kept.values()
    clear_up(shelf)
    assert shelf.names == {"adapter/precious", "model/m"}
    with pytest.raises(ArtifactError, match="0 pins fit 'other'"):
        unpin_artifact(shelf.store, "other")
    assert unpin_artifact(shelf.store, "adapter/prec").why == "the paper's"
    clear_up(shelf)
    assert not shelf.names


def test_versions_stay_and_with_a_limit_the_newest_and_all_that_an_alias_ever_named(shelf):
    keys = [f"{number}abcdef{number}" + 56 * "0" for number in range(7)]
    for number, key in enumerate(keys):
        shelf.put(f"version/{key}", [shelf.put(f"adapter/a{number}")], age_s=OLD_S - number * DAY_S)
    names = [f"mr_align-{keys[number]}" for number in range(4)]
    for number, name in enumerate(names[:3], 1):
        shelf.alias("champion", number, name, names[number - 2] if number > 1 else None)
    shelf.alias("champion", 4, names[1], names[2])  # a rollback: the next one goes to the first
    shelf.write("aliases/champion/99.json", b"no entry: its number has other than eight digits")
    clear_up(shelf)
    assert len(shelf.names) == 14
    clear_up(shelf, unnamed_versions=1)
    assert {name for name in shelf.names if "adapter" in name} == {f"adapter/a{number}" for number in (0, 1, 2, 6)}


def test_question_files_that_were_taken_in_stay(shelf):
    shelf.put("arrivals/week-1")
    shelf.put("questions/old")
    clear_up(shelf)
    assert shelf.names == {"arrivals/week-1"}


def test_a_probe_of_a_host_whose_clock_was_ahead_makes_nothing_old(shelf):
    shelf.put("model/young", age_s=60)
    shelf.write("probes/left", b"clock", age_s=-40 * DAY_S)
    clear_up(shelf, grace_hours=1.0)
    assert shelf.names == {"model/young"}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("records/runs/nightly/r.json", b'{"run": "r", "artif'),
        ("records/runs/nightly.json", b'{"adapter": {}}'),
        ("records/pins/scores/a/0123456789abcdef.json", b"[]"),
        ("aliases/champion/00000001.json", b"{}"),
        ("aliases/champion/00000001.json", b"\xff"),
    ],
)
def test_a_record_that_cannot_be_read_stops_it(shelf, path, data):
    shelf.put("scores/a")
    gc = collector(shelf)
    plan = gc.plan()
    shelf.write(path, data)
    with pytest.raises(ArtifactError, match=rf"{path}.*nothing is removed"):
        collector(shelf).plan()
    with pytest.raises(ArtifactError, match="nothing is removed"):
        gc.carry_out(plan)
    assert shelf.names == {"scores/a"}


def test_a_damaged_manifest_stops_it_where_it_is_reached_and_goes_where_it_is_not(shelf):
    kept, lost = shelf.put("adapter/kept"), shelf.put("adapter/lost")
    shelf.note_run("r", {"adapter": kept})
    shelf.write(f"{lost.path}/manifest.json", b"{}")
    clear_up(shelf, runs=1)
    assert shelf.names == {"adapter/kept"}
    shelf.write(f"{kept.path}/manifest.json", b"{}")
    with pytest.raises(ArtifactError, match=r"adapter of run r of nightly.*remove that folder"):
        collector(shelf, runs=1).plan()


def test_checkpoints_go_when_the_adapter_is_there_and_nobody_trains_it(shelf):
    shelf.note_run("r", {"adapter": shelf.put("adapter/done")})
    for key in ("done", "killed", "training"):
        shelf.put(f"checkpoint/{key}/step-1", age_s=2 * DAY_S)
    claim(shelf, "adapter/training")
    clear_up(shelf, runs=1, days=10)
    assert shelf.names == {"adapter/done", "checkpoint/killed/step-1", "checkpoint/training/step-1"}
    clear_up(shelf, runs=1)
    assert shelf.names == {"adapter/done", "checkpoint/training/step-1"}


def test_a_live_claim_keeps_what_it_makes_and_reads_and_the_shards_beside_it(shelf):
    base = shelf.put("model/m")
    adapter = shelf.put("adapter/a", [base])
    shelf.put("adapter/other")
    shelf.put("scores-shard/mine", manifest=False)
    shelf.put("scores-shard/before", [adapter])
    claim(shelf, "scores-shard/mine", reads=(adapter.path,))
    clear_up(shelf)
    assert shelf.names == {"model/m", "adapter/a", "scores-shard/before"}
    assert any("scores-shard/mine" in name for name in shelf.files)


def test_claims_of_the_dead_go_and_those_of_the_living_stay(shelf):
    gone = claim(shelf, "adapter/gone", age_s=2 * DAY_S)
    alive = claim(shelf, "adapter/alive", age_s=60, reads=("nonsense", 3))
    kinds = clear_up(shelf).removed
    assert [(each.kind, each.path) for each in kinds] == [(CLAIM, gone)]
    assert alive in shelf.files


def test_shards_stay_with_what_is_joined_from_their_line_and_lose_their_notes_with_themselves(shelf):
    new, old = shelf.put("adapter/new"), shelf.put("adapter/old")
    questions = shelf.put("questions/before")
    fields = {"fingerprint": {"temperature": 1, "variant": "kto"}}
    shelf.put("scores-shard/mine", [new, questions], **fields)
    shelf.put("scores-shard/of-old", [old], **fields)
    shelf.put("scores-shard/cold", [new], fingerprint={"temperature": 0, "variant": "kto"})
    notes = {key: shelf.write(f"records/items/scores-shard/line/{key}.json", b"{}") for key in ("mine", "of-old")}
    shelf.note_run("r", {"scores": shelf.put("scores/s", [new], **fields)})
    done = clear_up(shelf, runs=1)
    assert shelf.names == {"adapter/new", "scores/s", "scores-shard/mine"}
    assert notes["mine"] in shelf.files and notes["of-old"] not in shelf.files
    assert [each.path for each in done.removed if each.kind == NOTE_OF_SHARD] == [notes["of-old"]]


def test_replies_and_ledgers_and_records_of_runs_stay(shelf):
    paid = {
        shelf.write(f"records/{name}.json", b"{}") for name in ("replies/ab/abc", "ledgers/annotate/x/r", "batches/b")
    }
    shelf.note_run("r", {"scores": shelf.put("scores/a")})
    clear_up(shelf)
    assert not shelf.names
    assert paid | {"records/runs/nightly.json", "records/runs/nightly/r.json"} == shelf.files


def test_half_written_files_of_dead_processes_go(shelf):
    shelf.put("scores/a", age_s=0)
    dead = shelf.write("tmp/0123abcd.0123456789abcdef0123456789abcdef", b"half")
    mine = shelf.write("tmp/notes-of-a-person", b"x")
    probe = shelf.write("probes/0123456789abcdef", b"x")
    assert {each.path for each in clear_up(shelf).removed if each.kind == TEMPORARY} == {dead, probe}
    assert mine in shelf.files


def test_what_becomes_reachable_while_it_removes_is_spared(shelf, monkeypatch):
    monkeypatch.setattr(collect, "LOOK_AGAIN_S", 0.0)
    parent = shelf.put("model/m")
    shelf.put("adapter/a", [parent])
    gc = collector(shelf)
    plan = gc.plan()
    assert [each.wave for each in plan.going] == [0, 1]
    shelf.put("version/v", [parent], age_s=0)  # made after the plan
    done = gc.carry_out(plan)
    assert [each.path for each in done.spared] == [parent.path]
    assert shelf.names == {"model/m", "version/v"}


def test_what_somebody_begins_to_make_meanwhile_is_spared(shelf):
    shelf.put("adapter/a")
    other = shelf.put("adapter/b", manifest=False)
    gc = collector(shelf)
    plan = gc.plan()
    shelf.write(f"{other.path}/data/part.json", b"new", age_s=0)
    with shelf.store.claims("other").hold("adapter/a", lambda: None):
        assert len(gc.carry_out(plan).spared) == 2
    assert shelf.names == {"adapter/a"}


def test_what_somebody_claims_at_the_last_moment_is_spared(shelf, monkeypatch):
    shelf.put("adapter/a")
    gc = collector(shelf)
    plan, still_going, claims = gc.plan(), gc._still_going, []

    def then_claimed():
        found = still_going()
        if claim := Contest(shelf.store.claims("other"), "adapter/a").attempt():
            claims.append(claim)
        return found

    monkeypatch.setattr(gc, "_still_going", then_claimed)
    assert [each.path for each in gc.carry_out(plan).spared] == [plan.going[0].path]
    claims[0].release()
    assert shelf.names == {"adapter/a"}


def test_what_somebody_worked_on_while_it_listed_stays(shelf, monkeypatch):
    adapter = shelf.put("adapter/a")
    at_work = shelf.store.claims("other").hold("scores/s", lambda: None, reads=[adapter.path])
    at_work.__enter__()

    def then_released(store, on_read):
        found = read_contents(store, on_read)
        shelf.put("scores/s", [adapter], age_s=0)
        at_work.__exit__(None, None, None)
        return found

    monkeypatch.setattr(collect, "read_contents", then_released)
    assert not clear_up(shelf).removed
    assert shelf.names == {"adapter/a", "scores/s"}


def test_what_a_long_listing_missed_leads_on_to_what_it_was_made_from(shelf, monkeypatch):
    parent = shelf.put("adapter/missed", [shelf.put("model/old")], age_s=0)
    shelf.put("scores/listed", [parent], age_s=0)
    shelf.put("scores/old")
    listed = StoreFiles.listed

    def too_early(self, path):
        found = listed(self, path)
        return {name: file for name, file in found.items() if path != "artifacts" or not name.startswith("adapter/")}

    monkeypatch.setattr(StoreFiles, "listed", too_early)
    clear_up(shelf)
    assert shelf.names == {"model/old", "adapter/missed", "scores/listed"}


def test_on_a_bucket_too(bucket):
    base = bucket.put("model/m")
    bucket.put("scores/old", [bucket.put("adapter/old", [base])])
    bucket.put("adapter/unfinished", manifest=False)
    bucket.put("version/v", [bucket.put("adapter/new", [base])])
    assert not clear_up(bucket).removed  # all of it is young
    bucket.write("records/items/scores-shard/line/gone.json", b"{}")
    gc = Collector(bucket.store, NOTHING_RECENT, SHARDS)
    plan = gc.plan()
    assert {kind: n for kind, (n, _) in plan.by_kind().items()} == {
        "scores": 1,
        "adapter": 1,
        UNFINISHED: 1,
        NOTE_OF_SHARD: 1,
    }
    assert len(gc.carry_out(plan).removed) == 4
    assert bucket.names == {"model/m", "adapter/new", "version/v"}
    assert len([name for name in bucket.files if name.startswith("artifacts/")]) == 6
    assert not [name for name in bucket.files if name.startswith(("claims/", "probes/"))]


def test_uploads_in_parts_that_killed_processes_began_go(bucket, s3_server):
    name, _, prefix = bucket.section.root.removeprefix("s3://").partition("/")
    client = s3_server.client()

    def begin(key):
        token = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        client.upload_part(Bucket=name, Key=key, PartNumber=1, UploadId=token, Body=b"half of it")

    begin(f"{prefix}/artifacts/adapter/a/0123456789abcdef/data/weights")
    begin(f"{prefix}-of-another/file")
    assert not clear_up(bucket).removed  # it is young
    gc = Collector(bucket.store, NOTHING_RECENT)
    plan = gc.plan()
    assert [(each.kind, each.num_bytes) for each in plan.going] == [(TEMPORARY, 10)]
    assert len(gc.carry_out(plan).removed) == 1
    left = client.list_multipart_uploads(Bucket=name, Prefix=prefix)["Uploads"]
    assert [each["Key"] for each in left] == [f"{prefix}-of-another/file"]


def test_an_upload_that_goes_on_stays_and_so_does_what_it_belongs_to(bucket, s3_server):
    name, _, prefix = bucket.section.root.removeprefix("s3://").partition("/")
    client, key = s3_server.client(), f"{prefix}/artifacts/adapter/a/0123456789abcdef/data/weights"
    token = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    (begun,) = bucket.store.files.begun_uploads()
    time.sleep(1.1)  # servers say it in whole seconds
    client.upload_part(Bucket=name, Key=key, PartNumber=1, UploadId=token, Body=b"half of it")
    (later,) = bucket.store.files.begun_uploads()
    assert (begun.size, later.size) == (0, 10) and later.active_at >= begun.active_at + 1
    with bucket.store.claims("other").hold("adapter/a", lambda: None):
        assert not Collector(bucket.store, NOTHING_RECENT).plan().going
    assert [each.kind for each in Collector(bucket.store, NOTHING_RECENT).plan().going] == [TEMPORARY]


def test_what_was_begun_stays_while_a_large_file_of_it_comes_in_parts(shelf, monkeypatch):
    begun = shelf.put("adapter/a", manifest=False)
    shelf.put("adapter/b", manifest=False)
    part = BegunUpload(f"{begun.path}/data/weights", "token", 10, time.time() - 60)
    monkeypatch.setattr(StoreFiles, "begun_uploads", lambda self: [part])
    plan = collector(shelf).plan()
    assert [each.path.rsplit("/", 2)[0] for each in plan.going] == ["artifacts/adapter"]
    assert [each.name for each in plan.going] == ["adapter/b"]


def test_what_was_decided_stays_as_long_as_the_version_it_is_about(shelf):
    keys = [letter + 63 * "0" for letter in "ab"]
    for number, key in enumerate(keys):
        version = shelf.put(f"version/{key}", [shelf.put(f"adapter/{number}")], age_s=OLD_S - number * DAY_S)
        shelf.put(f"promotion/{number}", [version, shelf.put(f"scores/of-the-champion-{number}")])
    shelf.alias("champion", 1, f"mr_align-{keys[0]}")
    clear_up(shelf)
    assert len(shelf.names) == 8
    clear_up(shelf, unnamed_versions=0)
    assert shelf.names == {f"version/{keys[0]}", "adapter/0", "promotion/0", "scores/of-the-champion-0"}


def test_a_version_that_a_person_is_asked_about_stays_with_what_was_decided(shelf):
    version = shelf.put(f"version/{64 * 'a'}", [shelf.put("adapter/a")])
    shelf.put("promotion/p", [version])
    with kept(shelf.store, "weekly-0123abcd", [version.path]):
        clear_up(shelf, unnamed_versions=0)
        assert len(shelf.names) == 3
    clear_up(shelf, unnamed_versions=0)
    assert not shelf.names
