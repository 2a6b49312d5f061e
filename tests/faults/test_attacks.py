"""The attacks of ``benchmarks.faults``, each a few times: what it measures at length stays true."""

import random
import sys
from pathlib import Path

import pytest

from benchmarks.faults import annotators, moments, stores
from benchmarks.faults.runs import Place
from tests.llm_faults import names

SEED = 3
NUM_ANNOTATORS = 16
SHORTER = {"train.variants": "[mr_align]", "generate.shard_size": "80", "evaluate.shard_size": "60"}
"""Settings of a whole run, besides those of the attacks."""


def assert_survived(outcome):
    assert outcome.tried > 0
    assert (outcome.survived, list(outcome.lost)) == (outcome.tried, []), outcome


def test_operations_outlive_requests_that_go_wrong(s3_server):
    outcome = stores.spoil(sys.executable, s3_server, share=0.1, num=25, seed=SEED)
    assert_survived(outcome)
    assert not outcome.note.startswith("0 of")


def test_operations_of_every_kind_outlive_an_outage(s3_server):
    outcome = stores.refuse(sys.executable, s3_server, seconds=1.5)
    assert_survived(outcome)
    assert outcome.tried == 8


def test_annotators_servers_cost_no_more_than_the_account_says():
    assert_survived(annotators.annotate_with_each(sys.executable, random.Random(SEED).sample(names(), NUM_ANNOTATORS)))


@pytest.mark.soak
@pytest.mark.server
def test_whole_runs_outlive_kill_and_sigterm_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "END_WITHIN_S", 30.0)  # what is measured as 10 s, on a machine that is busy
    alone = Place(tmp_path / "alone", sys.executable, SHORTER)
    alone.run_alone()

    def strike(place, process):
        strikes.append(moments.kill if len(strikes) % 2 else moments.terminate)
        return strikes[-1](place, process)

    strikes = []
    for outcome in moments.strike_whole_runs(strike, "both", alone, num=2, seed=SEED):
        assert_survived(outcome)
    assert Path(alone.folder, "log").exists()
