"""Runs, one after another, in one process; and what a training reads, of a tiny model."""

import contextlib
import json

import pandas as pd
import pytest

from mralign_core.config import RunConfig
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.engine.session import session
from tests.core.training.tiny import make_candidates, make_model, make_tokenizer


@pytest.fixture
def next_run():
    """Ends the run that this process is in and starts another, which knows nothing of the clients of the first."""
    with contextlib.ExitStack() as run:
        run.enter_context(session())

        def start():
            run.close()
            run.enter_context(session())

        yield start


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
