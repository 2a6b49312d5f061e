"""Two real processes (gloo, on the CPU) that meet with jobs which differ, or do not."""

import multiprocessing
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.processes import same_job
from mralign_core.processes.job_folder import write_job
from mralign_core.processes.same_job import require_same_job, with_common_passes
from mralign_core.processes.worker import _work
from mralign_core.training.job import ReferenceJob
from mralign_core.training.workers import Workers
from tests.core.processes.small_job import small_job
from tests.core.training.tiny import make_candidates
from tests.ports import free_port

TIMEOUT_S = 300


class Case(NamedTuple):
    """What the second process comes with that the first does not."""

    changes: dict
    of_reference: tuple[bool, bool] = (False, False)
    code: str = ""
    differing: str = ""
    values: tuple[str, str] = ("", "")


MACHINE = {"accelerate_config": "/home/other/two.yaml", "log_folder": "/home/other/curves", "checkpoint_minutes": 3.0}
CASES = {
    "another machine's paths": Case({"directory": Path("/home/other/adapter"), "train": MACHINE}),
    "another machine's paths, reference": Case({"train": {**MACHINE, "beta": 0.5}}, of_reference=(True, True)),
    "variant": Case({"variant": "kto"}, differing="job", values=("adapter mr_align", "adapter kto")),
    "key": Case({"key": "b" * 64}, differing="adapter's key", values=("aaaaaaaaaaaa", "bbbbbbbbbbbb")),
    "seed": Case({"seed": 1}, differing="seed", values=("seed 0", "seed 1")),
    "setting": Case({"train": {"lora_r": 5}}, differing="train.lora_r", values=("train.lora_r 4", "train.lora_r 5")),
    "length, reference": Case(
        {"train": {"max_length": 32}}, (True, True), differing="train.max_length", values=("64", "32")
    ),
    "table": Case({"candidates": make_candidates(9, num_questions=5, seed=1)}, differing="table candidates"),
    "a table less": Case({"segment_weights": None}, differing="table segment_weights", values=("", "none")),
    "model": Case({"model_path": "another"}, differing="base model"),
    "code": Case({}, code="c" * 64, differing="code", values=("", "code cccccccccccc")),
    "adapter and reference": Case(
        {}, (False, True), differing="job", values=("adapter mr_align", "reference log-probabilities")
    ),
}


def job_of(case, rank, models):
    job = small_job(models / "model", models / "adapter", {}, key="a" * 64)
    if rank:
        changes = {**case.changes, "train": job.train.model_copy(update=case.changes.get("train", {}))}
        if "model_path" in changes:
            changes["model_path"] = str(models / changes["model_path"])
        job = job.model_copy(update=changes)
    if case.of_reference[rank]:
        return ReferenceJob(**{name: getattr(job, name) for name in ReferenceJob.model_fields})
    return job


def in_process(rank, port, folder, said):
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    workers = Workers.from_environment()
    module: Any = same_job
    digest_of = module.source_digest
    lifeline: Any = None  # nothing is reported before the jobs are compared
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        job_folder = folder / f"{name}-{rank}"
        job_folder.mkdir()
        write_job(job_of(case, rank, folder), job_folder)
        module.source_digest = (lambda _, code=case.code: code) if case.code and rank else digest_of
        try:
            if case.differing:
                _work(job_folder, workers, lifeline)  # as all of a process's work: nothing of it may come first
            else:
                require_same_job(job_of(case, rank, folder), job_folder, workers)
        except ConfigError as error:
            found[name] = str(error)
    section = TrainConfig(tokens_per_forward=(200, 100)[rank], gradient_checkpointing=("auto", "never")[rank])
    passes = with_common_passes(section, workers)
    found["passes"] = (passes.tokens_per_forward, passes.gradient_checkpointing)
    said.put((rank, found))
    workers.leave()


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What each of two processes was told, case by case."""
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("model", "another"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(f'{{"name": "{name}"}}')
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for both: that takes most of the time
    said, port = context.Queue(), free_port()
    processes = [context.Process(target=in_process, args=(rank, port, folder, said)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(said.get(timeout=TIMEOUT_S) for _ in processes)
    for process in processes:
        process.join(TIMEOUT_S)
    assert [process.exitcode for process in processes] == [0, 0]
    return found


@pytest.mark.parametrize("name", CASES)
def test_processes_that_come_with_different_jobs_are_refused_on_both_sides(refusals, name):
    case = CASES[name]
    for rank in range(2):
        if not case.differing:
            assert name not in refusals[rank]
            continue
        text = refusals[rank][name]
        first, second = text.partition("; process 1 has ")[::2]
        assert "process 0 has" in first and case.values[0] in first
        assert case.values[1] in second.partition(". They differ in ")[0]
        assert case.differing in second.partition(". They differ in ")[2].partition(";")[0].split(", ")
        assert "MRALIGN_MACHINE_RANK=1" in text


def test_what_differs_is_named_and_nothing_else(refusals):
    assert "They differ in seed; nothing was trained" in refusals[0]["seed"]
    assert "They differ in train.lora_r; nothing was trained" in refusals[1]["setting"]


def test_processes_that_ask_for_different_passes_take_the_smallest(refusals):
    """As after one machine ran out of memory; who computes which row of the reference follows from the size."""
    assert [refusals[rank]["passes"] for rank in range(2)] == [(100, "auto")] * 2


def test_a_process_alone_is_compared_with_none(tmp_path):
    require_same_job(job_of(CASES["code"], 0, tmp_path), tmp_path, Workers())
