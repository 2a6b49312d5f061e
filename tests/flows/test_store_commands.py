"""runs, gc, pin and verify as their user meets them."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from mralign_core.config import StorageConfig
from mralign_core.retention.runs import paid_by_run
from tests.core.retention.conftest import Shelf

RUN = "0123abcd-0000-4000-8000-000000000000"
SUMMARY = [
    {"variant": "off", "stratum": "(all)", "acc": None, "mis": None},
    {"variant": "kto", "stratum": "(all)", "acc": 0.83, "mis": 0.156},
    {"variant": "kto", "stratum": "popular", "acc": 0.1, "mis": 0.9},
]


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def mralign(mralign, shelf):
    """What a command on the shelf's store prints; its exit code must be the one that is named."""

    def run(*arguments, code=0):
        found, out, err = mralign(*arguments, "--set", f"storage.root={shelf.section.root}")
        assert found == code, out + err
        return out if code < 2 else err

    return run


@pytest.fixture
def evaluated(shelf, tmp_path):
    """A run that scored and paid, an hour ago."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "summary.json").write_text(json.dumps(SUMMARY))
    results = shelf.store.publish("results", "0" * 64, tmp_path / "made", parents=[], fingerprint={})
    shelf.note_run(RUN, {"results": results, "report": shelf.put("report/r")}, config="pocket", ago=timedelta(hours=1))
    account = {"gpt": {"requests": 3, "cost_usd": 1.25, "lost_usd": 0.5}}
    shelf.store.put_json("ledgers/annotate/x/brave-ferret-0123abcd-9f9f9f", account)
    shelf.store.put_json("ledgers/judge/y/brave-ferret-0123abcd-111111", {"gpt": {"cost_usd": 0.25}})
    shelf.store.put_json("ledgers/judge/y/other-run-99999999-111111", {"gpt": {"cost_usd": 7.0}})
    return results


def test_runs_are_listed_with_scores_cost_age_and_state(shelf, evaluated, mralign):
    shelf.note_run("77777777-x", {"candidates": shelf.put("candidates/c")}, config="nightly", ago=timedelta(days=2))
    lines = json.loads(mralign("runs", "--json"))
    assert [(line["run"], line["config"], line["state"]) for line in lines] == [
        (RUN, "pocket", "evaluated"),
        ("77777777-x", "nightly", "generated"),
    ]
    assert lines[0]["scores"] == {"kto": {"acc": 0.83, "mis": 0.156}}
    assert [line["cost_usd"] for line in lines] == [2.0, 0.0]
    assert [paid_by_run(shelf.store, line["run"]) for line in lines] == [2.0, 0.0]
    assert lines[0]["age_s"] == pytest.approx(3600, abs=60)
    table = mralign("runs")
    assert all(
        text in table for text in ("0123abcd", "1 h 0 min", "2 d 0 h", "2.00", "kto 83.0 / 15.6", "evaluated")
    ), table
    (only,) = json.loads(mralign("runs", "--config", "pocket", "--json"))
    assert only["run"] == RUN


def test_the_state_of_a_run_tells_of_work_and_of_removal(shelf, evaluated, mralign):
    from mralign_core.storage.claims import Contest

    claim = Contest(shelf.store.claims("brave-ferret-0123abcd"), "scores/x").attempt()
    assert claim is not None
    assert json.loads(mralign("runs", "--json"))[0]["state"] == "at work"
    claim.release()
    shelf.store.remove("report", "r")
    shelf.store.remove("results", evaluated.key)
    (line,) = json.loads(mralign("runs", "--json"))
    assert (line["state"], line["scores"]) == ("removed", {})


def test_a_run_that_was_lost_with_its_host_is_at_work_for_two_leases_and_no_longer(shelf, evaluated, mralign):
    for age_s, state in ((100.0, "at work"), (130.0, "evaluated")):
        holder = {"run": "brave-ferret-0123abcd", "host": "elsewhere", "pid": 1, "lease_s": 60.0, "owner": "x"}
        shelf.write("claims/scores/x.1", json.dumps({**holder, "place": ""}).encode(), age_s=age_s)
        assert json.loads(mralign("runs", "--json"))[0]["state"] == state


def test_an_empty_store_has_no_runs(mralign):
    assert "no run is noted" in mralign("runs")


def test_gc_shows_what_goes_and_removes_it_only_when_told_to(shelf, mralign):
    shelf.put("scores/old")
    shelf.put("adapter/pinned")
    mralign("pin", "adapter/pinned", "--why", "the paper's")
    assert "the paper's" in mralign("pin")
    shown = mralign("gc")
    assert "scores" in shown and "nothing is removed without --yes" in shown and "1 artifacts stay" in shown
    assert shelf.names == {"scores/old", "adapter/pinned"}
    plan = json.loads(mralign("gc", "--json"))
    assert plan["kinds"].keys() == {"scores"} and list(plan["kept"]["why"].values()) == ["pinned: the paper's"]
    assert "removed" in mralign("gc", "--yes")
    assert shelf.names == {"adapter/pinned"}
    assert "no longer pinned: adapter/pinned" in mralign("unpin", "adapter/pin")
    assert json.loads(mralign("gc", "--yes", "--json"))["removed"] == 1
    assert not shelf.names


def test_gc_keeps_by_options_and_by_the_config(shelf, mralign):
    for number in range(3):
        at = datetime(2020, 1, number + 1, tzinfo=UTC)
        shelf.note_run(f"r{number}", {"it": shelf.put(f"scores/s{number}", age_s=50 * 86_400)}, at=at)

    def going(*options):
        return {each["path"].split("/")[2] for each in json.loads(mralign("gc", "--json", *options))["going"]}

    assert going() == set()
    assert going("--set", "storage.retention.runs=2") == {"s0"}
    assert going("--runs", "1") == {"s0", "s1"}
    assert going("--runs", "0", "--days", "60") == set()


def test_gc_says_which_record_it_can_not_read(shelf, mralign):
    shelf.write("records/runs/nightly/r.json", b"{")
    assert "records/runs/nightly/r.json can't be read" in mralign("gc", "--yes", code=2)


def test_verify_exits_with_1_and_names_what_is_damaged(shelf, mralign):
    ref = shelf.put("scores/a")
    assert "all as they were written" in mralign("verify")
    shelf.write(f"{ref.path}/data/part.json", b"content of scores/b")
    out = mralign("verify", code=1)
    assert "part.json has other content" in out and "remedy: run again what makes scores/a" in out
    assert len(json.loads(mralign("verify", "--json", code=1))["damaged"]) == 1
