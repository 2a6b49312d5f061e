"""The train task with ``train.accelerate_config``, on the CPU."""

from pathlib import Path

from mralign_core.storage import ArtifactStore
from mralign_core.training.checkpoints import StoredCheckpoints
from tasks.train import train_adapter

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
