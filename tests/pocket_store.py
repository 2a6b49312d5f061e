"""A store that holds the trained pocket model, for tests that run the pipeline.

The model is trained once, in about 100 s of one core, and kept in pytest's cache folder: a store is
content-addressed, so a later session finds it there, and trains anew when the code that makes it has changed.
Workers of one session share it: one makes it, while the others wait.
Its fixtures are those of ``tests/conftest.py``.
"""

import fcntl
import shutil
from pathlib import Path

import pytest

from mralign_core.config import RunConfig, load_config

POCKET = Path(__file__).resolve().parent.parent / "deployments" / "configs" / "pocket.yaml"
SMALL: dict[str, object] = {
    "train.variants": ["kto", "mr_align"],
    "train.num_epochs": 1,
    "train.report_to": "none",
    "evaluate.num_draws": 1,
    "evaluate.num_resamples": 100,
    "evaluate.label_thinking": "none",
    "annotate.shard_size": 50,
}
"""The pocket config on fewer epochs and draws: every stage does real work, in seconds."""


def small_config(root: Path | str, **overrides: object) -> RunConfig:
    """The pocket config, made small, on a store; overrides are ``section__field=value``."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(POCKET, {**SMALL, "storage.root": str(root), **named})


@pytest.fixture(scope="session")
def pocket_store(pytestconfig) -> Path:
    """The folder of a store with the questions and the model of the pocket world; don't write to it."""
    from tasks.prepare import load_evaluation_questions, load_questions, prepare_model

    root = pytestconfig.cache.mkdir("pocket_store")
    config = small_config(root)
    # Artifacts that a worker copies stay: the next one to get here finds the same, and removes none.
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = [task.run_here(config) for task in (load_questions, load_evaluation_questions, prepare_model)]
        fresh = {Path(root, ref.path).parent for ref in made}
        for key_folder in root.glob("artifacts/*/*"):
            if key_folder not in fresh:
                shutil.rmtree(key_folder)
    return Path(root)


def copy_store(pocket_store: Path, root: Path) -> Path:
    """A copy of that store to write to: its artifacts, and nothing of the runs that made them."""
    shutil.copytree(pocket_store / "artifacts", root / "artifacts")
    return root


@pytest.fixture
def store_root(pocket_store, tmp_path) -> Path:
    """A copy of that store of the test's own."""
    return copy_store(pocket_store, tmp_path / "store")
