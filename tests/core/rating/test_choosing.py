"""Which traces and answers are rated: by disagreement, by pull, at random from a seed."""

from typing import Any

import numpy as np
import pytest

from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.rating.choosing import choose_traces_to_rate, make_round
from mralign_core.rating.records import Choice
from mralign_core.workbench.tables import RunTables


@pytest.fixture(scope="module")
def frames(run):
    return {name: run.store.read_table(run.artifacts[name], f"{name}.parquet") for name in ("annotations", "weights")}


def test_by_disagreement_come_the_traces_whose_annotators_differ_most(database, run, frames):
    rows = frames["annotations"]
    differs = [set(a) != set(b) for a, b in zip(rows["labels_a"], rows["labels_b"], strict=True)]
    share = rows.assign(differs=differs).groupby("trace_id")["differs"].mean()
    chosen = choose_traces_to_rate(database, run, Choice(by="disagreement", num=6))
    assert len(set(chosen)) == 6
    assert min(share[chosen]) >= max(share.drop(chosen)) and share.nunique() > 1


def test_by_pull_come_those_whose_weights_move_the_loss_most(database, run, frames):
    traces = run.store.read_table(run.artifacts["candidates"], "candidates.parquet").set_index("trace_id")["segments"]
    tokens = [
        traces[row.trace_id][row.segment]["token_end"] - traces[row.trace_id][row.segment]["token_start"]
        for row in frames["weights"].itertuples()
    ]
    pull = np.abs(np.log(frames["weights"]["weight"].astype(float))) * tokens
    by_trace = pull.groupby(frames["weights"]["trace_id"]).sum().sort_values(ascending=False)
    chosen = choose_traces_to_rate(database, run, Choice(by="pull", num=5))
    assert set(chosen) == set(by_trace.index[:5])


def test_a_seed_says_which_come_at_random_and_in_which_order(database, run):
    one, again, other = (choose_traces_to_rate(database, run, Choice(num=10, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other and len(set(one)) == 10
    assert sorted(choose_traces_to_rate(database, run, Choice(num=500))) == [f"trace-{i:06d}" for i in range(24)]


class NoRows:
    """A database of tables that have no rows."""

    def rows(self, *_):
        return []

    def columns(self, *_):
        return {name: np.array([]) for name in ("trace_id", "rank")}


def test_what_a_choice_needs_and_is_not_there_is_named(database, run):
    empty: Any = NoRows()
    bare = RunTables(run.store, "a bare run", {"candidates": run.artifacts["candidates"]})
    assert make_round(database, bare, "labels", Choice(num=2)).artifacts.keys() == {"candidates"}
    with pytest.raises(ArtifactError, match="a bare run has no weights"):
        make_round(database, bare, "labels", Choice(by="pull"))
    with pytest.raises(ArtifactError, match="no answers to judge"):
        make_round(database, bare, "verdicts", Choice())
    with pytest.raises(ArtifactError, match=r"a bare run has no segment to rate .*run stage generate"):
        make_round(empty, bare, "labels", Choice())
    with pytest.raises(ConfigError, match="answers are not chosen by pull"):
        make_round(database, run, "verdicts", Choice(by="pull"))
