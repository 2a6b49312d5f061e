"""What retrainings keep in the store: their ends, what held-out questions decided, a month's dollars."""

import asyncio
from datetime import UTC, datetime

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import BudgetError, DataError
from mralign_core.llm.ledger import Ledger, month_of
from mralign_core.retraining.history import Retraining, Retrainings
from mralign_core.retraining.promotion import HeldOutUse
from mralign_core.retraining.spending import check_month, paid_by_month_usd
from mralign_core.storage import ArtifactStore, LedgerRecords

NOW = datetime(2026, 11, 29, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


def ended(run, outcome, version="", compared_with="", day=1):
    at = datetime(2026, 11, day, tzinfo=UTC)
    return Retraining(run=run, at=at, outcome=outcome, version=version, compared_with=compared_with)


def test_ends_are_listed_in_order_and_quiet_ones_counted_from_the_last(store):
    history = Retrainings(store, "weekly")
    assert (history.all(), history.num_quiet()) == ([], 0)
    history.add(ended("b", "nothing-new", day=2))
    history.add(ended("a", "promoted", "v1", day=1))
    history.add(ended("c", "nothing-new", day=3))
    assert [one.run for one in history.all()] == ["a", "b", "c"]
    assert history.num_quiet() == 2
    assert [one.run for one in history.decided_on("v1")] == ["a"]
    assert Retrainings(store, "other").all() == []


def test_a_damaged_record_is_passed_over(store, caplog):
    history = Retrainings(store, "weekly")
    history.add(ended("a", "held"))
    store.put_json("retrainings/weekly/b", {"run": 3})
    assert [one.run for one in history.all()] == ["a"]
    assert "retraining b" in caplog.text


def test_a_comparison_counts_once_however_often_it_is_made(store):
    use = HeldOutUse(store, ["a", "b"])
    for _ in range(2):
        assert use.others("1.2") == 0
        use.note("1.2")
    assert use.others("3.2") == 1
    store.files.write("records/comparisons/4.2.json", b"{half")
    assert use.others("3.2") == 2, "what can't be read may have been one"


def test_questions_are_as_fresh_as_what_they_do_not_share(store):
    first = [f"q{number}" for number in range(20)]
    HeldOutUse(store, first).note("1.2")
    assert HeldOutUse(store, [*first, "one more"]).others("3.2") == 1
    assert HeldOutUse(store, [*first[:2], *map(str, range(18))]).others("3.2") == 1
    assert HeldOutUse(store, [*first[:1], *map(str, range(19))]).others("3.2") == 0


def test_what_requests_cost_is_found_in_the_month_that_they_were_paid_in(store):
    async def pay(run, usd):
        ledger = Ledger(LedgerRecords(store, "annotate/some"), run)
        await ledger.set_aside("m", 1.0)
        await ledger.settle("m", 1.0, {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": usd}, lost_usd=0.25)

    for run, usd in (("one", 2.0), ("two", 3.0), ("one", 1.0)):  # a run that goes on adds to its own account
        asyncio.run(pay(run, usd))
    assert paid_by_month_usd(store)[month_of(datetime.now(UTC))] == pytest.approx(6.75)
    asyncio.run(Ledger(LedgerRecords(store, "annotate/some"), "killed").set_aside("m", 40.0))
    assert paid_by_month_usd(store)[month_of(datetime.now(UTC))] == pytest.approx(46.75)
    asyncio.run(pay("killed", 1.0))  # it goes on: what it had set aside is still not known to be free
    assert paid_by_month_usd(store)[month_of(datetime.now(UTC))] == pytest.approx(48.0)
    assert paid_by_month_usd(store)[month_of(datetime(2020, 1, 1, tzinfo=UTC))] == 0


def test_a_ceiling_that_is_reached_is_named_with_what_was_paid(store):
    store.put_json("ledgers/judge/a/one", {"m": {"cost_usd": 4.0}, "by_month": {"2026-11": 4.0, "2026-10": 9.0}})
    store.put_json("ledgers/judge/a/two", {"by_month": "nonsense"})
    check_month(store, None, NOW)
    check_month(store, 4.01, NOW)
    with pytest.raises(BudgetError, match=r"4\.00 dollars were paid in 2026-11 .* retrain\.budget_usd_a_month is 4"):
        check_month(store, 4.0, NOW)
    store.files.write("records/ledgers/judge/a/three.json", b"{half")
    with pytest.raises(DataError, match=r"three\.json .* is damaged"):
        check_month(store, 100.0, NOW)


def test_versions_since_a_champion_are_those_that_were_compared_with_it(store):
    history = Retrainings(store, "weekly")
    for day, (outcome, version, champion) in enumerate(
        [("promoted", "v-a", ""), ("rejected", "v-b", "v-a"), ("nothing-new", "v-b", ""), ("held", "v-c", "v-a")], 1
    ):
        history.add(ended(f"r{day}", outcome, version, champion, day))
    history.add(ended("r5", "held", "v-b", "v-a", 5))  # decided again
    assert history.versions_since("v-a") == ["v-b", "v-c"]
