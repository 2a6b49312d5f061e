"""The train task with ``train.accelerate_config``, and with ``train.engine: trl``, on the CPU."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mralign_core.config import RunConfig, TrainConfig
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from mralign_core.training.checkpoints import StoredCheckpoints
from tasks.train import reference_logps, train_adapter
from tests.core.training.tiny import make_candidates, make_model, make_tokenizer

CPU = Path(__file__).parents[2] / "deployments" / "accelerate" / "cpu-2proc.yaml"


@pytest.fixture
def published(tmp_path):
    """A config, and the artifacts that training reads."""
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    config = RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "questions": {"train": "nq_open"},
            "model": {"path": str(tmp_path / "model"), "dtype": "float32", "cpu_threads": 1},
            "train": {"lora_r": 2, "lora_alpha": 4, "num_epochs": 2, "global_batch_size": 4, "max_length": 64},
        }
    )
    store, candidates = ArtifactStore(config.storage), make_candidates(7)
    label = {"step": 0, "labels": ["Plan"], "confidences": [1.0], "rule": "agree"}
    votes = {f"{name}_{side}": label[name] for name in ("labels", "confidences") for side in "ab"}
    annotations = pd.DataFrame(
        [{"trace_id": name, "segment": 0, **label, **votes} for name in candidates["trace_id"][1:]]
    )
    pointer = json.dumps({"path": str(tmp_path / "model"), "revision": ""})

    def publish(stage, write):
        folder = tmp_path / stage
        folder.mkdir(exist_ok=True)
        write(folder)
        return store.publish(stage, "0" * 64, folder, parents=[], fingerprint={})

    (tmp_path / "pointer").mkdir()
    model = publish("pointer", lambda folder: (folder / "model.json").write_text(pointer))
    inputs = (
        model,
        publish("candidates", lambda folder: write_table(folder, "candidates.parquet", candidates, CANDIDATES)),
        publish("annotations", lambda folder: write_table(folder, "annotations.parquet", annotations, ANNOTATIONS)),
    )
    return config, inputs


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
