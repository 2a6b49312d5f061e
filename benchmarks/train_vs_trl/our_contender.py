"""This project's trainer, by the functions that the pipeline's training stage is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.workload import (
    ALPHA_PER_RANK,
    END_TOKEN_ID,
    SEED,
    UNDESIRABLE_WEIGHT,
    Row,
    Workload,
    num_tokens,
)
from mralign_core.config import TrainConfig
from mralign_core.models.lora import attach_lora
from mralign_core.training.examples import build_examples
from mralign_core.training.footprint import Footprint, TrainingLoad, plan_passes
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.packing import make_batch
from mralign_core.training.reference import read_reference, reference_table
from mralign_core.training.trainer import Trainer

EXACT: dict[str, Any] = {}
MOVING_AVERAGE: dict[str, Any] = {"kl_every": 4, "kl_decay": 0.5}


def run(workload: Workload, model: PreTrainedModel, rows: list[Row], watch: Stopwatch, settings: dict[str, Any]) -> Run:
    """Train on the rows.

    Args:
        workload: batch, epochs and the like.
        model: the base model; changed in place.
        rows: what to train on.
        watch: takes the times.
        settings: fields of the train section beside those that all contenders share.
    """
    section = train_section(workload, rows, settings)
    table = as_candidates(rows)
    watch.start()
    trainer = build_trainer(model, table, section)
    watch.prepared()
    trainer.run(on_step=lambda _: watch.step_ended())
    return watch.finish([row["loss"] for row in trainer.metrics])


class Prepared(NamedTuple):
    """A trainer before its first step, and what the job was estimated to take."""

    trainer: Trainer
    estimate: Footprint


def build_trainer(model: PreTrainedModel, table: pd.DataFrame, section: TrainConfig) -> Trainer:
    """The trainer of :func:`prepare`."""
    return prepare(model, table, section).trainer


def prepare(model: PreTrainedModel, table: pd.DataFrame, section: TrainConfig) -> Prepared:
    """All that comes before the first step: examples, adapter, reference pass, and whether the job fits."""
    examples = build_examples(table, None, end_token_id=END_TOKEN_ID, max_length=section.max_length).kept
    with torch.random.fork_rng():
        policy = CompletionLogps(attach_lora(model, section, seed=SEED))
    reference = reference_table(policy, examples, tokens_per_forward=section.tokens_per_forward)
    trainer = Trainer(
        policy,
        examples,
        rows=range(len(examples)),
        reference=read_reference(reference, examples),
        section=section,
        learning_rate=section.learning_rate,
        rows_per_epoch=len(examples),
        seed=SEED,
    )
    lengths = {example.trace_id: len(example.prompt_ids) + len(example.completion_ids) for example in examples}
    load = TrainingLoad(lengths=lengths, device=policy.device, rows_per_epoch=len(examples))
    plan = plan_passes(section, policy.model, load, policy.made_up_pass)
    trainer.use_passes(plan.passes)
    return Prepared(trainer, plan.footprint)


def train_section(workload: Workload, rows: list[Row], settings: dict[str, Any]) -> TrainConfig:
    """The train section for a workload: a forward pass holds at most what TRL's largest padded batch holds."""
    return TrainConfig(
        lora_r=workload.lora_r,
        lora_alpha=ALPHA_PER_RANK * workload.lora_r,
        undesirable_weight=UNDESIRABLE_WEIGHT,
        learning_rate=workload.learning_rate,
        num_epochs=workload.epochs,
        global_batch_size=workload.rows_per_step,
        max_length=workload.longest_row,
        tokens_per_forward=workload.batch * max(num_tokens([row]) for row in rows),
        gradient_checkpointing="never",
        **settings,
    )


def attention_options(row_lengths: Sequence[int], device: str | torch.device) -> dict[str, Any]:
    """What attention is told of packed rows of so many tokens."""
    rows = [([0], [0] * (length - 1)) for length in row_lengths]
    inputs = make_batch(rows, torch.device(device)).model_inputs
    return {name: each for name, each in inputs.items() if name not in ("input_ids", "position_ids")}


def as_candidates(rows: list[Row]) -> pd.DataFrame:
    """The columns of table ``candidates`` that training reads; every row asks another question."""
    return pd.DataFrame(
        [
            {
                "trace_id": f"t{number}",
                "question_id": f"q{number}",
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
                "end_token_id": None,
                "polarity": "positive" if row.is_positive else "negative",
                "segments": [],
            }
            for number, row in enumerate(rows)
        ]
    )
