"""Train one adapter on kept traces: from tables and a base model to a PEFT directory with its model card.

Decisions:

* SFT sees the positive traces only, and runs through them until it has taken as many optimiser steps as KTO
  takes on all traces: the two differ in the objective, its rows, and (as in the paper) the learning rate.
* The base model stays in ``model.dtype``; adapter, optimiser and objective are float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.config import ModelConfig, TrainConfig, Variant
from mralign_core.errors import ConfigError, NoCandidatesError
from mralign_core.generation.loading import load_model_and_tokenizer
from mralign_core.models import model_name
from mralign_core.schemas import TRAINING_METRICS
from mralign_core.training.card import model_card
from mralign_core.training.examples import Examples, TrainingExample, build_examples
from mralign_core.training.lora import attach_lora, save_adapter
from mralign_core.training.trainer import (
    AdapterTrainer,
    Progress,
    SupervisedTrainer,
    WeightedKTOTrainer,
    training_arguments,
)

logger = logging.getLogger("mralign_core.training")


class TrainingResult(NamedTuple):
    """Rows of table ``training_metrics``, and counts of what was trained on and what was left out."""

    metrics: pd.DataFrame
    counts: dict[str, int]


def train_adapter(
    model_path: str | Path,
    candidates: pd.DataFrame,
    rewards: pd.DataFrame | None,
    *,
    variant: Variant,
    section: TrainConfig,
    model_section: ModelConfig,
    seed: int,
    directory: Path,
    card: Mapping[str, Any],
    on_progress: Progress | None = None,
    revision: str = "",
) -> TrainingResult:
    """Train a LoRA adapter and write its weights, its config and a model card (``README.md``).

    On one CPU the same arguments give the same bytes.

    Args:
        model_path: folder or hub id of the base model.
        candidates: rows of table ``candidates``.
        rewards: rows of table ``rewards``; for ``mr_align`` only, the baselines ignore weights.
        variant: ``sft``, ``kto`` or ``mr_align``.
        section: the train section of the config.
        model_section: the model section; its name, not ``model_path``, is recorded as the base model.
        seed: seed of the adapter's initial weights, the order of the rows, and dropout.
        directory: where the adapter goes.
        card: facts for the model card by name, such as the yield of the earlier stages: plain values.
        on_progress: called after each optimiser step with (step, steps, metrics row).
        revision: hub revision of the base model.

    Raises:
        ConfigError: ``mr_align`` without rewards, a precision or a target module that can't be trained, or
            several devices.
        NoCandidatesError: no trace to train on, or none of one polarity.
        DataError: see :func:`~mralign_core.training.examples.build_examples`.
    """
    if variant == "mr_align" and rewards is None:
        raise ConfigError("variant 'mr_align' needs the table 'rewards'; without weights it would be plain KTO")
    if model_section.dtype == "float16":
        raise ConfigError("model.dtype 'float16' can't be trained without loss scaling: use 'bfloat16' or 'float32'")
    model, tokenizer = load_model_and_tokenizer(
        model_path, model_section.dtype, model_section.device, revision=revision
    )
    examples = build_examples(
        candidates,
        rewards if variant == "mr_align" else None,
        end_token_id=tokenizer.eos_token_id,
        max_length=section.max_length,
    )
    rows = _rows_of(variant, examples, section)
    peft_model = attach_lora(model, section, seed=seed)
    trainer = _train(peft_model, rows, len(examples.kept), variant, section, seed, on_progress)
    counts = _counts(examples, rows)
    base_model = model_name(model_section)
    save_adapter(peft_model, directory, base_model=base_model)
    text = model_card(base_model, variant, section, seed=seed, rows=rows, counts=counts, facts=card)
    (directory / "README.md").write_text(text, encoding="utf-8")
    metrics = pd.DataFrame(trainer.metrics, columns=list(TRAINING_METRICS.columns))
    return TrainingResult(TRAINING_METRICS.require(metrics), counts)


def _train(
    peft_model: Any,
    rows: Sequence[TrainingExample],
    rows_per_epoch: int,
    variant: Variant,
    section: TrainConfig,
    seed: int,
    on_progress: Progress | None,
) -> AdapterTrainer:
    kind = SupervisedTrainer if variant == "sft" else WeightedKTOTrainer
    learning_rate = section.sft_learning_rate if variant == "sft" else section.learning_rate
    on_cpu = peft_model.device.type == "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(section, learning_rate=learning_rate, seed=seed, output_dir=scratch, on_cpu=on_cpu)
        trainer = kind(
            peft_model,
            args,
            section=section,
            examples=rows,
            rows_per_epoch=rows_per_epoch,
            seed=seed,
            on_progress=on_progress,
        )
        trainer.train()
    return trainer


def _rows_of(variant: Variant, examples: Examples, section: TrainConfig) -> list[TrainingExample]:
    positives = [example for example in examples.kept if example.is_positive]
    num_negative = len(examples.kept) - len(positives)
    if not positives or (variant != "sft" and not num_negative):
        wanted = "positive" if variant == "sft" else "positive and negative"
        raise NoCandidatesError(
            f"variant {variant!r} needs {wanted} traces, got {len(positives)} positive and "
            f"{num_negative} negative; {examples.left_out['too_long']} exceed train.max_length "
            f"{section.max_length}. "
            "Draw on more questions, or widen the selection's bounds"
        )
    return positives if variant == "sft" else examples.kept


def _counts(examples: Examples, rows: Sequence[TrainingExample]) -> dict[str, int]:
    num_positive = sum(example.is_positive for example in rows)
    return {
        "rows": len(rows),
        "positive": num_positive,
        "negative": len(rows) - num_positive,
        "completion_tokens": sum(len(example.completion_ids) for example in rows),
        **examples.left_out,
    }
