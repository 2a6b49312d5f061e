"""Matrices from think-on draws, through the flows on the pocket world: a run, the same again, an ablation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.ablate import ablate
from flows.commands.server import wait_for_records
from flows.pipeline import pipeline
from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.estimation.matrices import TransitionMatrices, estimate_transitions
from mralign_core.estimation.traces import labelled_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.label_sets import label_set_of
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.last_run import LastRun
from tasks.engine.one_task import run_one
from tasks.engine.plan import plan
from tasks.estimate import estimate_transitions as estimate_task
from tasks.estimate import read_diagnostics, sensitivity_of
from tasks.generate import select_thinking_draws
from tasks.reward import weigh_segments as weigh_task
from tests.pocket_store import copy_store, small_config
from tests.prefect_api import reporting_to

pytestmark = pytest.mark.server

FEW = {
    "questions__train": {"name": "pocket", "limit": 200, "pick": "random"},
    "questions__eval": {"name": "pocket", "limit": 20},
    "generate__draws": "exhaustive",
    "generate__temperature": 0.8,
    "estimate__traces": "matched",
    "estimate__num_resamples": 20,
    "train__lora_r": 4,
    "train__lora_alpha": 8,
}


def config_of(root, **fields) -> RunConfig:
    return small_config(root, **{**FEW, "train__variants": ["mr_align"], **fields})


def published(config: RunConfig) -> dict[str, int]:
    """What a store holds: manifest → when it was written."""
    root = Path(config.storage.root)
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob("artifacts/**/manifest.json")}


def made(config: RunConfig, name: str) -> int:
    return sum(path.startswith(f"artifacts/{name}/") for path in published(config))


@pytest.fixture(scope="module")
def finished(pocket_store, prefect_url, tmp_path_factory):
    """A run that completed: its config, and the artifacts that it made by name."""
    root = copy_store(pocket_store, tmp_path_factory.mktemp("matched") / "store")
    with reporting_to(prefect_url):
        config = config_of(root)
        wait_for_records(pipeline(config, return_state=True))
        record = LastRun(config).record
        assert record
        return config, record.artifacts


def tables(config: RunConfig, artifacts: dict[str, ArtifactRef], *names: str) -> list[pd.DataFrame]:
    store = ArtifactStore(config.storage)
    files = {name: f"{'annotations' if 'annotations' in name else 'candidates'}.parquet" for name in names}
    return [store.read_table(artifacts[name], file) for name, file in files.items()]


def test_both_sides_have_the_same_questions_in_the_same_numbers(finished):
    draws, candidates, labels = tables(*finished, "thinking-draws", "candidates", "draw-annotations")
    counts = pd.crosstab(draws["question_id"], draws["polarity"])
    assert len(counts) > 3 and (counts["positive"] == counts["negative"]).all()
    # A selected question ends one way in every draw, so that none of its draws is matched.
    assert not set(draws["question_id"]) & set(candidates["question_id"])
    assert set(labels["trace_id"]) == set(draws["trace_id"])


def test_matrices_are_of_the_draws_and_weights_of_the_candidates(finished):
    config, artifacts = finished
    store, taxonomy = ArtifactStore(config.storage), label_set_of(config).taxonomy
    draws = labelled_traces(*tables(*finished, "thinking-draws", "draw-annotations"), taxonomy=taxonomy)
    traces = labelled_traces(*tables(*finished, "candidates", "annotations"), taxonomy=taxonomy)
    expected = estimate_transitions(draws, config.estimate, taxonomy, rng=np.random.default_rng(config.seed))
    found = TransitionMatrices.load(store.open_file(artifacts["transitions"], "transitions.npz"))
    for name, estimate in expected.estimates.items():
        np.testing.assert_array_equal(found.estimates[name].p, estimate.p)
    weights = store.read_table(artifacts["weights"], "weights.parquet")
    by_core = weigh_segments(traces, expected, config.reward, confidence=config.estimate.confidence)
    pd.testing.assert_frame_equal(weights, by_core, check_dtype=False)


def test_diagnostics_are_of_the_draws_and_the_report_says_so(finished):
    config, artifacts = finished
    draws, candidates = tables(*finished, "thinking-draws", "candidates")
    diagnostics = read_diagnostics(ArtifactStore(config.storage), artifacts["diagnostics"])
    assert {row.matrix: row.traces for row in diagnostics.yields}["all"] == len(draws) > len(candidates)
    page = ArtifactStore(config.storage).open_file(artifacts["report"], "report.html").read_text(encoding="utf-8")
    assert "Estimated from think-on draws that end right" in page and "its question ends one way only" in page
    sensitivity = sensitivity_of(config, artifacts["thinking-draws"], artifacts["draw-annotations"])
    assert sensitivity == diagnostics.sensitivity


def test_leaving_the_own_question_out_goes_by_the_draws(finished):
    config, artifacts = finished
    store, given = ArtifactStore(config.storage), [artifacts[name] for name in ("candidates", "annotations")]
    draws = [artifacts[name] for name in ("thinking-draws", "draw-annotations")]
    reward = config.reward.model_copy(update={"leave_own_question_out": True})
    other = config.model_copy(update={"reward": reward})
    left_out = weigh_task.run_here(other, *given, artifacts["transitions"], *draws)
    tables_of = (store.read_table(ref, "weights.parquet") for ref in (artifacts["weights"], left_out))
    with_own, without = (table["weight"].to_numpy(float) for table in tables_of)
    np.testing.assert_allclose(with_own, without, atol=1e-12)  # no question of theirs is among matched draws


def test_the_polarity_placebo_deals_out_the_polarities_of_the_draws(finished):
    config, artifacts = finished
    draws = [artifacts[name] for name in ("thinking-draws", "draw-annotations")]
    permuted = config.model_copy(update={"estimate": config.estimate.model_copy(update={"permute_polarity": True})})
    ref, store = estimate_task.run_here(permuted, None, None, *draws), ArtifactStore(config.storage)
    truly, dealt = (
        TransitionMatrices.load(store.open_file(one, "transitions.npz")).estimates
        for one in (artifacts["transitions"], ref)
    )
    np.testing.assert_allclose(dealt["all"].p, truly["all"].p)
    assert not np.allclose(dealt["plus"].p, truly["plus"].p)


def test_traces_of_another_choice_than_the_configs_are_refused_by_whatever_reads_them(finished):
    config, artifacts = finished
    store = ArtifactStore(config.storage)
    drawn = [artifacts[name] for name in ("thinking-draws", "draw-annotations")]
    selected = [artifacts[name] for name in ("candidates", "annotations")]
    of_all = config_of(config.storage.root, estimate__traces="all_draws")
    of_selected = config_of(config.storage.root, estimate__traces="selected")
    with pytest.raises(
        ConfigError, match=r"'all_draws', but thinking-draws [0-9a-f]{12} is of 'matched': run the stages"
    ):
        estimate_task.run_here(of_all, None, None, *drawn)
    with pytest.raises(ConfigError, match=r"'all_draws', but thinking-draws [0-9a-f]{12} is of 'matched'"):
        sensitivity_of(of_all, *drawn)
    with pytest.raises(ConfigError, match=r"'selected', but transitions [0-9a-f]{12} is of 'matched'"):
        weigh_task.run_here(of_selected, *selected, artifacts["transitions"])
    weighed = weigh_task.run_here(config, *selected, artifacts["transitions"])
    assert store.manifest(weighed).key == artifacts["weights"].key


def test_draws_that_no_run_under_this_config_makes_are_no_task_of_it(finished):
    config, _ = finished
    selected = config_of(config.storage.root, estimate__traces="selected")
    with pytest.raises(ConfigError, match="thinking-draws is not made under this config"):
        run_one(selected, "thinking-draws", shard=0, variant="", named={})


@pytest.mark.usefixtures("prefect_api")
def test_a_second_run_finds_everything_and_the_plan_knows(finished):
    config, _ = finished
    names = {each.name: each.status for each in plan(config).everything}
    assert names["thinking-draws"] == names["draw-annotations"] == "cached" and set(names.values()) == {"cached"}
    selected = config_of(config.storage.root, estimate__traces="selected")
    assert not {"thinking-draws", "draw-annotations"} & {each.name for each in plan(selected).everything}
    before = published(config)
    pipeline(config)
    assert published(config) == before


@pytest.mark.usefixtures("prefect_api")
def test_arms_share_draws_and_labels_and_each_choice_is_labelled_once(finished):
    config, artifacts = finished
    arms = ["mr_align", "matched", "all_draws"]
    grid = config_of(
        config.storage.root, estimate__traces="selected", ablate__arms=arms, ablate__num_seeds=2, train__lora_r=2
    )
    ablate(grid)
    # Of world 0, whose draws the run before has made and labelled in part.
    assert made(grid, "generations") == made(grid, "candidates") == made(grid, "annotations") == 1
    assert made(grid, "thinking-draws") == made(grid, "draw-annotations") == 2
    every = config_of(config.storage.root, estimate__traces="all_draws")
    drawn = [artifacts[name] for name in ("questions", "model", "generations")]
    all_draws = select_thinking_draws.work(every, *drawn).find(ArtifactStore(grid.storage))
    store = ArtifactStore(grid.storage)
    assert all_draws
    table = store.read_table(all_draws, "candidates.parquet").set_index("trace_id")
    for part in tables(*finished, "thinking-draws", "candidates"):
        pd.testing.assert_frame_equal(table.loc[part["trace_id"]], part.set_index("trace_id"))
    labelled = [
        name
        for key in store.keys("annotations-shard")
        if (shard := store.find("annotations-shard", key))
        for name in store.read_table(shard, "annotations.parquet")["trace_id"].unique()
    ]
    assert sorted(labelled) == sorted(table.index)
    assert made(grid, "transitions") == 1 + 3 * 2  # the run's, and each arm's under each seed
