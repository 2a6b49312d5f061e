"""The benchmark against TRL: the contenders do the same work, and the floor is what a step really computes."""

import dataclasses
import doctest

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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


def test_both_trainers_find_the_same_losses():
    workload = dataclasses.replace(AGREEMENT, layers=1, epochs=4, completion_tokens=(20, 40))
    rows = build_rows(workload)
    losses = [
        module.run(workload, build_model(workload), rows, measurement.Stopwatch(workload), settings).losses
        for module, settings in ((trl_contender, trl_contender.BEST), (our_contender, our_contender.EXACT))
    ]
    assert losses[0][-1] < losses[0][0] - 0.01, "nothing was learnt, so equal losses show nothing"
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


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
    counted = (counts[torch.ops.aten.mm] + counts[torch.ops.aten.addmm_]) / TINY.steps_per_epoch
    needed = floor.operations(TINY, rows)
    tokens = floor.num_tokens(rows) / TINY.steps_per_epoch
    first_inputs = 2 * tokens * sum(inputs * outputs for inputs, outputs in floor.LayerShape.of(TINY).projections[:3])
    first_inputs += 2 * tokens * 3 * TINY.width * TINY.lora_r
    assert counted == pytest.approx(sum(needed.values()) - needed["attention"] - first_inputs)


def test_rows_that_do_not_fill_the_steps_are_refused():
    with pytest.raises(ValueError, match="multiple of batch"):
        dataclasses.replace(TINY, rows=9)
    with pytest.raises(ValueError, match="warm-up"):
        dataclasses.replace(TINY, epochs=1)


def test_a_workload_survives_the_way_to_its_process():
    assert Workload.from_json(TINY.to_json()) == TINY
