"""What all tests share: stores and servers that cost seconds, the order of the files, and what hypothesis does."""

import gc
import os
from typing import Any

# Workers share the cores: with a thread a core each, OpenMP's threads wait for one another in turns, and tests take a
# multiple of their time. Set before anything imports torch; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.pocket_store import pocket_store, store_root
from tests.prefect_api import prefect_api, prefect_url
from tests.seaweedfs import s3_root, s3_server, section

gc.disable()  # until the first test: see quick_collections()

# Here and nowhere else: a module that imports a fixture of the session has one of its own, and so another server.
__all__ = ["pocket_store", "prefect_api", "prefect_url", "s3_root", "s3_server", "section", "store_root"]

# A busy machine makes examples slow, which says nothing about the code. The same examples each time: a change is to
# blame for what fails. ``pytest --hypothesis-profile searching`` looks for others.
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeated", **PATIENT, derandomize=True)
settings.register_profile("searching", **PATIENT, max_examples=1000)
settings.load_profile("repeated")


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Leave what was imported before a module's tests out of their garbage collections.

    It is some million objects that stay, and a full collection looks at each of them: a quarter of a second, every
    second or so, and each time that a training gives back its memory.
    """
    gc.set_threshold(COLLECT_EVERY, 10, 10)
    gc.collect()
    gc.freeze()
    gc.enable()


COLLECT_EVERY = 20_000
"""Objects made, net of those gone, before a collection of the youngest."""
LONGEST_FIRST = (
    "flows/test_runs_on_one_store.py",
    "flows/test_deployments.py",  # does without the pocket model, which the worker of the first file may be training
    "core/evaluation/test_report.py",  # so do these, until it is trained
    "core/generation/test_transformers_sampler.py",
    "core/storage/test_claims.py",
    "flows/test_pipeline.py",
    "flows/test_training_on_news.py",
    "flows/test_thinking_draws_runs.py",
    "flows/test_signals.py",
    "tasks/test_at_once.py",
    "tasks/test_prepare_model.py",
    "core/llm/test_batch.py",
    "tasks/test_evaluation_on_a_server.py",
    "tasks/test_paid_once.py",
    "core/generation/test_checking.py",
    "core/estimation/test_diagnostics.py",
    "core/versions/test_aliases.py",
    "tasks/test_sequential_draws.py",
    "tasks/test_failed_draws.py",
    "tasks/test_train_in_processes.py",
    "flows/test_ablate.py",
    "core/storage/test_two_hosts.py",
    "core/storage/test_failures.py",
    "core/processes/test_launch.py",
    "core/training/test_fit.py",
    "core/llm/test_faults.py",
    "flows/test_cli.py",
    "flows/test_door.py",
    "core/generation/test_adapters_on_servers.py",
    "flows/test_lost_runs.py",
    "faults/test_attacks.py",
)
"""Files that take half a minute or more. Workers are given whole files: one that is left to the end is waited for."""


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}

    def place(item):
        name = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        return order.get(name, len(order)), name.startswith("core/")  # the core's others are the shortest

    items.sort(key=place)
