"""The train task with ``train.accelerate_config``, and with ``train.engine: trl``, on the CPU."""

from pathlib import Path

import pytest

from mralign_core.config import TrainConfig
from mralign_core.storage import ArtifactStore
from mralign_core.training.checkpoints import StoredCheckpoints
from tasks.train import reference_logps, train_adapter

CPU = Path(__file__).parents[2] / "deployments" / "accelerate" / "cpu-2proc.yaml"


def test_the_task_trains_in_processes_and_shows_their_progress(published, caplog):
    config, inputs = published
    launched = config.model_copy(update={"train": config.train.model_copy(update={"accelerate_config": str(CPU)})})
    with caplog.at_level("INFO"):
        adapter = train_adapter.run_here(launched, *inputs, variant="sft")

    store = ArtifactStore(config.storage)
    assert (
        adapter.key == train_adapter.work(config, *inputs, variant="sft").key
    )  # where it was trained changes no artifact
    assert {"adapter_model.safetensors", "README.md", "metrics.parquet"} <= set(store.manifest(adapter).files)
    metrics = store.read_table(adapter, "metrics.parquet")
    assert metrics["step"].tolist() == [1, 2, 3, 4]
    assert store.manifest(adapter).counts["rows"] == 3
    assert "training in 2 processes" in caplog.text
    assert "training sft: 4 of 4 · loss" in caplog.text
    assert StoredCheckpoints(store, adapter.key).latest() is None


def test_the_task_trains_by_trl_an_artifact_of_its_own_that_is_our_own_loops_but_for_rounding(published, caplog):
    config, inputs = published
    settings = {**config.train.model_dump(exclude_unset=True), "engine": "trl", "rows_per_forward": 4}
    by_trl = config.model_copy(update={"train": TrainConfig.model_validate(settings)})
    reference = reference_logps.run_here(config, *inputs)
    assert reference_logps.work(by_trl, *inputs).key == reference.key
    with caplog.at_level("INFO"):
        own, trl = (
            train_adapter.run_here(each, *inputs, reference_logps=reference, variant="kto") for each in (config, by_trl)
        )
    assert own.key != trl.key and "training kto by TRL: 4 of 4 · loss" in caplog.text
    store = ArtifactStore(config.storage)
    assert set(store.manifest(trl).files) == set(store.manifest(own).files)
    assert store.manifest(trl).counts == store.manifest(own).counts
    losses = [store.read_table(each, "metrics.parquet")["loss"].tolist() for each in (own, trl)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
