"""The benchmark against TRL: the contenders do the same work, and the floor is what a step really computes."""

import ast
import dataclasses
import doctest
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_vs_trl import __main__ as command
from benchmarks.train_vs_trl import floor, measurement, our_contender, profiling, tables, trl_contender
from benchmarks.train_vs_trl.workload import AGREEMENT, Workload, build_model, build_rows

TINY = Workload(
    layers=3,
    width=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    intermediate=64,
    vocabulary=100,
    lora_r=3,
    prompt_tokens=(3, 6),
    completion_tokens=(8, 12),
    rows=8,
    batch=4,
)


@pytest.mark.parametrize("module", [floor, measurement, profiling, tables])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_trl_tokenises_the_text_of_a_row_to_its_ids():
    rows = build_rows(TINY)
    tokenizer = trl_contender.build_tokenizer(TINY.vocabulary)
    for row, text in zip(rows, trl_contender.as_text(rows), strict=True):
        assert tokenizer(text["prompt"])["input_ids"] == row.prompt_ids
        assert tokenizer(text["prompt"] + text["completion"])["input_ids"] == row.prompt_ids + row.completion_ids


ONE_BATCH = dataclasses.replace(AGREEMENT, layers=1, epochs=4, completion_tokens=(20, 40))
"""In which all contenders must find the same losses."""


def losses_of(module, settings):
    watch = measurement.Stopwatch(ONE_BATCH)
    return module.run(ONE_BATCH, build_model(ONE_BATCH), build_rows(ONE_BATCH), watch, settings).losses


@pytest.fixture(scope="module")
def trl_losses():
    losses = losses_of(trl_contender, trl_contender.BEST)
    assert losses[-1] < losses[0] - 0.01, "nothing was learnt, so equal losses show nothing"
    return losses


def test_both_trainers_find_the_same_losses(trl_losses):
    assert losses_of(our_contender, our_contender.EXACT) == pytest.approx(trl_losses, abs=1e-5)


def test_ligers_loss_is_trls_loss(trl_losses):
    pytest.importorskip(
        "liger_kernel", reason="liger-kernel would bring Triton with it, so it is not among the packages"
    )
    from benchmarks.train_vs_trl import liger_contender

    assert losses_of(liger_contender, liger_contender.PLAIN) == pytest.approx(trl_losses, abs=1e-5)


def test_contenders_that_cannot_take_part_are_left_out_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert list(command.taking_part(command.DEFAULT, None)) == ["trl", "trl-best", "ours", "ours-average"]
    told = capsys.readouterr().err
    assert "pip install --no-deps liger-kernel" in told and "--llama-factory PYTHON was not given" in told
    with pytest.raises(ValueError, match="all of them are left out"):
        command.taking_part(["llama-factory"], None)


def test_llama_factory_runs_in_the_interpreter_that_is_named():
    assert command.taking_part(["ours", "llama-factory"], "/bin/sh") == {
        "ours": sys.executable,
        "llama-factory": "/bin/sh",
    }
    with pytest.raises(ValueError, match="--llama-factory /no/python: no such program"):
        command.taking_part(["llama-factory"], "/no/python")


def test_what_llama_factorys_job_imports_of_ours_is_the_benchmark_only():
    """Its environment has other versions, and not this project."""
    folder = Path(command.__file__).parent
    modules = ["__main__", "floor", "measurement", "tables", "trl_contender", "llama_factory_contender", "workload"]
    for name in modules:
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {module for module in imported if module.split(".")[0] in ("benchmarks", "mralign_core", "tasks")}
        assert ours <= {f"benchmarks.train_vs_trl.{each}" for each in modules}, name


def test_a_step_multiplies_no_more_than_the_floor_says():
    """All but the gradient to the first layer's input, which nothing needs."""

    def added(_, left, right, **options):
        return 2 * left[0] * left[1] * right[1]

    rows = build_rows(TINY)
    section = our_contender.train_section(TINY, rows, our_contender.EXACT)
    trainer = our_contender.build_trainer(build_model(TINY), our_contender.as_candidates(rows), section)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        for _ in range(TINY.steps_per_epoch):
            trainer.train_step()
    counts = counter.get_flop_counts()["Global"]
    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
    counted = sum(counts[product] for product in products) / TINY.steps_per_epoch
    needed = floor.operations(TINY, rows)
    tokens = floor.num_tokens(rows) / TINY.steps_per_epoch
    first = floor.LayerShape.of(TINY).projections[:3]
    first_inputs = 2 * tokens * sum(inputs * outputs for inputs, outputs in first)
    first_inputs += TINY.accumulation * floor.adding_up(TINY, first)
    assert counted == pytest.approx(sum(needed.values()) - needed["attention"] - first_inputs)


def test_rows_that_do_not_fill_the_steps_are_refused():
    with pytest.raises(ValueError, match="multiple of batch"):
        dataclasses.replace(TINY, rows=9)
    with pytest.raises(ValueError, match="warm-up"):
        dataclasses.replace(TINY, epochs=1)


def test_a_workload_survives_the_way_to_its_process():
    assert Workload.from_json(TINY.to_json()) == TINY
