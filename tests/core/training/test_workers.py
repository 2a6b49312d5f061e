"""Two real processes (gloo, on the CPU) against one, on the same rows."""

import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from mralign_core.config import TrainConfig
from mralign_core.models.lora import attach_lora, enable_recomputation, save_adapter
from mralign_core.training.checkpoints import StoredCheckpoints, TrainingState
from mralign_core.training.fit import Watch, _make_fit, _run
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.reference import read_reference, reference_table
from mralign_core.training.trainer import Trainer
from mralign_core.training.workers import Workers
from tests.core.training.test_trainer import make_examples
from tests.core.training.tiny import CONFIGS, make_model, randomise_adapter
from tests.ports import free_port

EXPERTS = "qwen3_moe with experts"
NUM_ROWS, BATCH = 9, 8
"""The second step has one row: of one class only, and none for one of the processes."""
CASES = [
    (architecture, objective, is_sharded, recompute)
    for architecture in (*sorted(CONFIGS), EXPERTS)
    for objective in ("weighted", "sft")
    for is_sharded in (False, True)
    for recompute in (False, True)
    if not recompute or (is_sharded and objective == "weighted" and architecture in ("qwen3", EXPERTS))
]


def make_trainer(architecture, objective, workers, recompute=False, budget=40):
    section = TrainConfig(
        lora_r=4,
        lora_alpha=8,
        target_modules="all-linear, experts" if architecture == EXPERTS else "all-linear",
        global_batch_size=BATCH,
        num_epochs=1,
        max_length=64,
        tokens_per_forward=budget,
    )
    examples = make_examples(NUM_ROWS, num_questions=5)
    model = attach_lora(make_model(architecture.split()[0]), section, seed=0)
    randomise_adapter(model)
    policy = CompletionLogps(model, workers)
    reference = reference_table(policy, examples, tokens_per_forward=budget, workers=workers)
    if recompute:
        enable_recomputation(model)
    trainer = Trainer(
        policy,
        examples,
        rows=range(NUM_ROWS) if objective == "weighted" else range(0, NUM_ROWS, 2),
        reference=read_reference(reference, examples) if objective == "weighted" else None,
        section=section,
        learning_rate=1e-2,
        rows_per_epoch=NUM_ROWS,
        seed=0,
        workers=workers,
    )
    return trainer, reference


def train(architecture, objective, workers, recompute=False, **options):
    """What a training leaves behind, in plain values."""
    trainer, reference = make_trainer(architecture, objective, workers, recompute, **options)
    gradients = []
    trainer.run(on_step=lambda _: gradients.append({name: p.grad.clone() for name, p in trainer.parameters.items()}))
    frozen = [each for each in trainer.policy.layers[0].parameters() if not each.requires_grad]
    return {
        "metrics": trainer.metrics,
        "gradients": gradients,
        "adapter": {name: each.detach().clone() for name, each in trainer.parameters.items()},
        "reference": reference[["trace_id", "partner_trace_id", "kl_logp"]].to_dict("list"),
        "logps": torch.tensor(reference["logps"].sum()),
        "all_sharded": all(isinstance(each, DTensor) for each in frozen),
        "numel_here": sum(each.to_local().numel() if isinstance(each, DTensor) else each.numel() for each in frozen),
        "numel": sum(each.numel() for each in frozen),
    }


class _OfRank(StoredCheckpoints):
    """Checkpoints that only the main process finds."""

    def __init__(self, rank):
        self.rank = rank

    def latest(self):
        return None if self.rank else TrainingState(3, {}, {"metrics": []})

    def save(self, state):
        raise AssertionError("processes that disagree train nothing")

    def clear(self):
        raise AssertionError("processes that disagree publish nothing")


def in_process(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true")
    torch.set_num_threads(1)
    sharded = Workers.from_environment()
    whole = replace(sharded, is_sharded=False)
    found: dict[Any, Any] = {"workers": (sharded.rank, sharded.size, sharded.is_main, sharded.is_sharded)}
    for case in CASES:
        architecture, objective, is_sharded, recompute = case
        found[case] = train(architecture, objective, sharded if is_sharded else whole, recompute)
    found["lowest"] = whole.lowest(3 + rank, 5 - rank)
    found["plan"] = plan_of(sharded)
    trainer, _ = make_trainer("qwen3", "weighted", sharded)
    if rank == 0:
        save_adapter(trainer.policy.model, folder / "adapter", base_model="base")
    try:
        _run(trainer, _OfRank(rank), Watch())
    except ConnectionError as error:
        found["refusal"] = str(error)
    torch.save(found, folder / f"{rank}.pt")


def plan_of(workers):
    """What is chosen where the processes would choose differently: here by the budget of tokens."""
    trainer, _ = make_trainer("qwen3", "weighted", workers, budget=300 + workers.rank)
    _make_fit(trainer)
    return tuple(trainer.pass_size)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("two")
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for both: that takes much of the time
    processes = [context.Process(target=in_process, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)], folder


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4 * scale, msg=name)


def test_workers_come_from_the_environment(two):
    assert [found["workers"] for found in two[0]] == [(0, 2, True, True), (1, 2, False, True)]


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert Workers.from_environment() == Workers()
    assert Workers().lowest(3, 4) == [3, 4]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_take_the_steps_of_one(two, case):
    architecture, objective, _, recompute = case
    expected = train(architecture, objective, Workers(), recompute)
    assert len(expected["metrics"]) == 2
    for found in two[0]:
        for row, wanted in zip(found[case]["metrics"], expected["metrics"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6, nan_ok=True)
        for gradients, wanted in zip(found[case]["gradients"], expected["gradients"], strict=True):
            assert any(each.abs().max() > 0 for each in wanted.values())
            assert_close(gradients, wanted)
        assert_close(found[case]["adapter"], expected["adapter"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_processes_end_with_the_same_bits(two, case):
    first, second = (found[case] for found in two[0])
    assert repr(first["metrics"]) == repr(second["metrics"])
    assert all(torch.equal(first["adapter"][name], second["adapter"][name]) for name in first["adapter"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_shared_out_and_whole_in_each_process(two, case):
    expected = train(case[0], case[1], Workers(), budget=10_000)
    for found in two[0]:
        assert found[case]["reference"]["partner_trace_id"] == expected["reference"]["partner_trace_id"]
        assert found[case]["reference"]["kl_logp"] == pytest.approx(expected["reference"]["kl_logp"], rel=1e-4)
        torch.testing.assert_close(found[case]["logps"], expected["logps"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sharded_weights_are_shared_out_and_whole_ones_are_not(two, case):
    for found in two[0]:
        assert found[case]["all_sharded"] == case[2]
        assert found[case]["numel_here"] == found[case]["numel"] / (2 if case[2] else 1)


def test_the_adapter_of_a_sharded_model_is_written_whole(two):
    trainer, _ = make_trainer("qwen3", "weighted", Workers())
    written = load_file(two[1] / "adapter" / "adapter_model.safetensors")
    expected = {name.replace(".default", "").removeprefix("model."): each for name, each in trainer.parameters.items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in written)


def test_the_processes_decide_alike(two):
    for found in two[0]:
        assert found["lowest"] == [3, 4]
        assert found["plan"] == (300, False)
        assert "different checkpoints" in found["refusal"]
