"""An ablation as a flow on the pocket world: shared parts are made once, a second run makes nothing, refused worlds."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from flows.ablate import ablate, ablate_world
from flows.commands.server import wait_for_records
from mralign_core.ablation.grid import grounds_of, worlds_of
from mralign_core.config import RunConfig
from mralign_core.errors import QualityGateError
from mralign_core.storage import ArtifactStore
from tasks.ablate import read_ablation, refusal, remember_refusal, write_ablation
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tests.pocket_store import copy_store, small_config
from tests.prefect_api import reporting_to

pytestmark = pytest.mark.server

FEW = {
    "questions__train": {"name": "pocket", "limit": 150, "pick": "random"},
    "questions__eval": {"name": "pocket", "limit": 30},
    "train__lora_r": 4,
    "train__lora_alpha": 8,
    "train__report_to": "none",
}


def config_of(root, **fields) -> RunConfig:
    return small_config(root, **FEW, ablate__arms=["mr_align", "placebo_within"], ablate__num_seeds=2, **fields)


def published(root: Path) -> dict[str, int]:
    """What a store holds: manifest → when it was written."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob("artifacts/**/manifest.json")}


def made(root: Path, name: str) -> int:
    return len(list(root.glob(f"artifacts/{name}/*/*/manifest.json")))


@pytest.fixture(scope="module")
def finished(pocket_store, prefect_url, tmp_path_factory):
    """The config of an ablation that completed, and its artifact."""
    root = copy_store(pocket_store, tmp_path_factory.mktemp("ablated") / "store")
    with reporting_to(prefect_url):
        config = config_of(root)
        state = ablate(config, return_state=True)
        wait_for_records(state)
        return config, state.result()


def test_shared_parts_are_made_once_and_each_arm_has_its_own(finished):
    root = Path(finished[0].storage.root)
    # Two seeds share traces, labels and reference.
    assert [made(root, name) for name in ("generations", "annotations", "reference-logps")] == [1, 1, 1]
    assert made(root, "adapter") == 2 * 2
    assert made(root, "scores") == 2 * 4
    # P is estimated under each seed; so few questions have no bootstrap, so that it comes out alike, and with it the
    # weights. The placebo's go by the seed.
    assert (made(root, "transitions"), made(root, "weights")) == (2, 1 + 2)


def test_every_arm_is_scored_on_the_same_questions_under_every_seed(finished):
    found = read_ablation(*finished)
    arms = ["off", "on", "mr_align", "placebo_within"]
    assert found.results.groupby("seed")["arm"].agg(list).to_dict() == {0: arms, 1: arms}
    assert set(found.results["num_answers"]) == {30}
    assert (found.unit, found.num_units) == ("world", 1)
    of_mis = found.results.groupby("arm")["mis"].mean()
    rows = found.differences.set_index(["arm", "baseline", "metric"])
    expected = of_mis["mr_align"] - of_mis["placebo_within"]
    assert rows.loc[("mr_align", "placebo_within", "mis"), "difference"] == pytest.approx(expected)
    assert rows["low"].isna().all()


def test_the_placebo_trains_on_the_weights_of_mr_align_in_another_order(finished):
    config, _ = finished
    store = ArtifactStore(config.storage)
    weights: dict[str, list[pd.DataFrame]] = {"none": [], "within_trace": []}
    for path in Path(config.storage.root).glob("artifacts/weights/*"):
        ref = store.find("weights", path.name)
        assert ref
        frame = store.read_table(ref, "weights.parquet")
        weights[store.manifest(ref).fingerprint["placebo"]].append(frame[["trace_id", "weight"]])
    ours, placebos = weights["none"][0], weights["within_trace"]
    assert len(placebos) == 2
    for placebo in placebos:
        same = [frame.sort_values(["trace_id", "weight"], ignore_index=True) for frame in (placebo, ours)]
        pd.testing.assert_frame_equal(*same)
        assert (placebo["weight"] != ours["weight"]).any()
    assert (placebos[0]["weight"] != placebos[1]["weight"]).any(), "a seed of its own"


def test_the_page_and_the_figure_are_beside_the_tables(finished):
    page = write_ablation.run_here(*finished)
    folder = ArtifactStore(finished[0].storage).open_directory(page)
    assert "there is no interval" in (folder / "ablation.md").read_text(encoding="utf-8")
    assert (folder / "forest.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("prefect_api")
def test_a_second_run_makes_nothing(finished):
    config, ref = finished
    before = published(Path(config.storage.root))
    assert ablate(config) == ref
    assert published(Path(config.storage.root)) == before


def copy_artifact(config: RunConfig, task, source: RunConfig, target: RunConfig) -> None:
    """Publish what a task made under one config under another too."""
    store = ArtifactStore(config.storage)
    ref = task.work(source).find(store)
    assert ref
    key = task.work(target).key
    store.publish(ref.stage, key, store.open_directory(ref), parents=[], fingerprint={}, table=ref.table)


@pytest.mark.usefixtures("prefect_api")
def test_arms_of_other_traces_and_models_share_draws_and_stand_beside_their_own_model(finished, tmp_path):
    root = shutil.copytree(finished[0].storage.root, tmp_path / "store")
    strata = {"two_hop": 70, "one_hop": 10}  # fewer than were drawn of each
    sets = [{"name": "pocket", "subset": name, "limit": limit, "pick": "random"} for name, limit in strata.items()]
    arms = ["only_pocket-two_hop", "backbone_llama"]
    config = small_config(root, **FEW | {"questions__train": sets}, ablate__arms=arms)
    world = worlds_of(config)[0]
    # The other model is a copy of the run's under a key of its own, so that nothing is pretrained.
    copy_artifact(config, prepare_model, world, grounds_of(world)[1].config)
    num_draws = made(root, "generations-shard")
    found = read_ablation(config, ablate(config))
    assert made(root, "generations-shard") == num_draws, "draws of a question are those that it had among other sets"
    assert list(found.results["arm"]) == [
        *("off", "on", "only_pocket-two_hop"),
        *("off@backbone_llama", "on@backbone_llama", "backbone_llama"),
    ]
    pairs = found.differences[["arm", "baseline"]].drop_duplicates()
    assert set(pairs.itertuples(index=False, name=None)) == {
        ("only_pocket-two_hop", "on"),
        ("backbone_llama", "on@backbone_llama"),
    }
    asked = [set(pd.read_parquet(path)["source"]) for path in root.glob("artifacts/questions/**/questions.parquet")]
    assert {"pocket-two_hop"} in asked and {"pocket-one_hop", "pocket-two_hop"} in asked


@pytest.mark.usefixtures("prefect_api")
class TestRefusedWorlds:
    def gated(self, root, **fields):
        # No model answers every question, so every world's is refused, in a few steps.
        gate = {"model__pocket__pretrain_steps": 1, "model__pocket__min_one_hop_accuracy": 1.0}
        return config_of(root, **gate, **fields)

    def test_a_model_that_fails_the_gate_is_remembered_and_not_trained_again(self, tmp_path, monkeypatch):
        config = self.gated(tmp_path / "store")
        assert ablate_world(config) == {}
        assert "is refused: on dev questions one_hop_accuracy" in refusal(config)
        monkeypatch.setattr("flows.ablate.prepare", lambda _: pytest.fail("prepared again"))
        assert ablate_world(config) == {}

    def test_more_than_allowed_end_the_run_and_are_all_named(self, tmp_path):
        config = self.gated(tmp_path / "store", ablate__first_world=3, ablate__max_refused_worlds=1)
        with pytest.raises(QualityGateError, match=r"world_seed 3(.|\n)*world_seed 4"):
            ablate(config)

    def test_a_refused_world_is_named_and_replaced_by_the_next(self, finished, tmp_path):
        root = shutil.copytree(finished[0].storage.root, tmp_path / "store")
        config = config_of(root)
        worlds = worlds_of(config)
        remember_refusal(worlds[0], QualityGateError("knows too little"))
        # World 1 is a copy of world 0, so that all that comes after its model is there.
        for task in (load_questions, load_evaluation_questions, prepare_model):
            copy_artifact(config, task, worlds[0], worlds[1])
        before = made(root, "adapter")
        found = read_ablation(config, ablate(config))
        assert set(found.results["world"]) == {1}
        assert found.refused == {0: "knows too little"}
        assert made(root, "adapter") == before
