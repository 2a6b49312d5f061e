"""Train one adapter on kept traces: from tables and a base model to a PEFT directory with its model card.

Decisions:

* SFT sees the positive traces only, and runs through them until it has taken as many optimiser steps as KTO
  takes on all traces: the two differ in the objective, its rows, and (as in the paper) the learning rate.
* The base model stays in ``model.dtype``; adapter, optimiser and objective are float32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from mralign_core.config import ModelConfig, TrainConfig, Variant
from mralign_core.errors import ConfigError, NoCandidatesError
from mralign_core.models.locate import model_name
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.training.base import load_base
from mralign_core.training.card import card_facts, write_card
from mralign_core.training.checkpoints import Checkpoints
from mralign_core.training.curves import Curves, Meter
from mralign_core.training.examples import Examples, TrainingExample, build_examples, num_tokens
from mralign_core.training.footprint import Job, fit
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.reference import read_reference, reference_table
from mralign_core.training.trainer import Progress, Trainer
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")


class TrainingResult(NamedTuple):
    """Rows of table ``training_metrics``, and counts of what was trained on and what was left out."""

    metrics: pd.DataFrame
    counts: dict[str, int]


class Watch(NamedTuple):
    """Who looks on while training runs, and where it is kept meanwhile.

    Rows of metrics come about once a second, in bursts, the first of each with ``tokens_per_second`` and, on a GPU,
    ``gpu_memory_mib``.
    """

    checkpoints: Checkpoints | None = None
    curves: Curves | None = None
    on_progress: Progress | None = None

    def report(self, step: int, steps: int, row: dict[str, float]) -> None:
        """Show a row of metrics to all who look on."""
        if self.curves:
            self.curves.log(step, row)
        if self.on_progress:
            self.on_progress(step, steps, row)


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
    reference: pd.DataFrame | None = None,
    workers: Workers | None = None,
    watch: Watch | None = None,
    revision: str = "",
) -> TrainingResult:
    """Train a LoRA adapter and write its weights, its config and a model card (``README.md``, ``card.json``).

    On one CPU the same arguments give the same bytes, also where a training stopped and went on from a checkpoint.

    Args:
        model_path: folder or hub id of the base model.
        candidates: rows of table ``candidates``.
        rewards: rows of table ``rewards``; for ``mr_align`` only, the baselines ignore weights.
        variant: ``sft``, ``kto`` or ``mr_align``.
        section: the train section of the config.
        model_section: the model section; its name, not ``model_path``, is recorded as the base model.
        seed: seed of the adapter's initial weights, the order of the rows, and dropout.
        directory: where the adapter goes; only the main process writes.
        card: facts for the model card by name, such as the yield of the earlier stages: plain values.
        reference: rows of table ``reference_logps``; computed here when None. SFT needs none.
        workers: the processes that train together.
        watch: checkpoints, curves and progress.
        revision: hub revision of the base model.

    Raises:
        ConfigError: ``mr_align`` without rewards, a precision or a target module that can't be trained, or a job that
            does not fit the device.
        NoCandidatesError: no trace to train on, or none of one polarity.
        DataError: see :func:`~mralign_core.training.examples.build_examples` and
            :func:`~mralign_core.training.reference.read_reference`.
    """
    if variant == "mr_align" and rewards is None:
        raise ConfigError("variant 'mr_align' needs the table 'rewards'; without weights it would be plain KTO")
    workers, watch = workers or Workers(), watch or Watch()
    model, end_token_id = load_base(model_path, section, model_section, workers=workers, revision=revision)
    examples = build_examples(
        candidates,
        rewards if variant == "mr_align" else None,
        end_token_id=end_token_id,
        max_length=section.max_length,
    )
    rows = _rows_of(variant, examples, section)
    peft_model = attach_lora(model, section, seed=seed)
    policy = CompletionLogps(peft_model, workers)
    if reference is None and variant != "sft":
        budget = section.tokens_per_forward
        reference = reference_table(policy, examples.kept, tokens_per_forward=budget, workers=workers)
    trainer = Trainer(
        policy,
        examples.kept,
        rows=rows,
        reference=None if variant == "sft" or reference is None else read_reference(reference, examples.kept),
        section=section,
        learning_rate=section.sft_learning_rate if variant == "sft" else section.learning_rate,
        rows_per_epoch=len(examples.kept),
        seed=seed,
        workers=workers,
    )
    if not any(trainer.rate_at(step) for step in range(trainer.num_steps)):
        logger.warning(
            "training has %d step(s), all in the warm-up at rate 0: nothing is learnt; lower train.global_batch_size, "
            "or set train.warmup_ratio to 0",
            trainer.num_steps,
        )
    _make_fit(trainer, peft_model)
    _run(trainer, watch)
    chosen = [examples.kept[row] for row in rows]
    counts = _counts(examples, chosen)
    if workers.is_main:
        base_model = model_name(model_section)
        save_adapter(peft_model, directory, base_model=base_model)
        facts = card_facts(variant, section, seed=seed, rows=chosen, counts=counts, facts=card, metrics=trainer.metrics)
        write_card(directory, base_model, variant, facts)
    frame = pd.DataFrame(trainer.metrics, columns=list(TRAINING_METRICS.columns))
    return TrainingResult(TRAINING_METRICS.require(frame), counts)


def _make_fit(trainer: Trainer, peft_model: Any) -> None:
    """Choose tokens a pass and recomputation, for all processes alike, so that the job fits its device."""
    job = Job(
        lengths={
            example.trace_id: num_tokens(example.row) for example in (trainer.examples[row] for row in trainer.rows)
        },
        device=trainer.policy.device,
        rows_per_epoch=trainer.rows_per_epoch,
        is_kto=trainer.reference is not None,
        num_processes=trainer.workers.size,
        is_sharded=trainer.workers.is_sharded,
    )
    plan = fit(trainer.section, peft_model, job, trainer.policy.made_up_pass)
    trainer.tokens_per_forward, can_keep_activations = trainer.workers.lowest(
        plan.tokens_per_forward, int(not plan.recompute)
    )
    if not can_keep_activations:
        trainer.recompute()


def _run(trainer: Trainer, watch: Watch) -> None:
    """Train from the newest checkpoint to the end, writing others on the way."""
    state = watch.checkpoints.latest() if watch.checkpoints else None
    step = state.step if state else 0
    if trainer.workers.lowest(step, -step) != [step, -step]:
        raise ConnectionError("the processes found different checkpoints: is the store the same for all, and whole?")
    if state:
        trainer.restore(state)
        logger.info("going on from the checkpoint after step %d of %d", trainer.step, trainer.num_steps)
    last, meter = time.monotonic(), Meter(trainer.policy.device)

    def after_step(_: Trainer) -> None:
        nonlocal last
        meter.count(trainer.tokens_of_last_step)
        every_s = 60 * trainer.section.checkpoint_minutes
        if watch.checkpoints and every_s and time.monotonic() - last >= every_s and trainer.workers.is_main:
            watch.checkpoints.save(trainer.state())
            last = time.monotonic()

    device = trainer.policy.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer.run(lambda step, steps, row: watch.report(step, steps, {**row, **meter.read()}), after_step)


def _rows_of(variant: Variant, examples: Examples, section: TrainConfig) -> list[int]:
    positives = [row for row, example in enumerate(examples.kept) if example.is_positive]
    only_positives = variant == "sft" or section.positives_only
    if not positives or (not only_positives and len(positives) == len(examples.kept)):
        raise NoCandidatesError(_no_rows(variant, examples, section))
    return positives if only_positives else list(range(len(examples.kept)))


def _no_rows(variant: Variant, examples: Examples, section: TrainConfig) -> str:
    num_positive = sum(example.is_positive for example in examples.kept)
    wanted = "positive" if variant == "sft" or section.positives_only else "positive and negative"
    return (
        f"variant {variant!r} needs {wanted} traces, got {num_positive} positive and "
        f"{len(examples.kept) - num_positive} negative; {examples.left_out['too_long']} exceed train.max_length "
        f"{section.max_length}. Draw on more questions, or widen the selection's bounds"
    )


def _counts(examples: Examples, rows: Sequence[TrainingExample]) -> dict[str, int]:
    num_positive = sum(example.is_positive for example in rows)
    return {
        "rows": len(rows),
        "positive": num_positive,
        "negative": len(rows) - num_positive,
        "completion_tokens": sum(len(example.completion_ids) for example in rows),
        **examples.left_out,
    }
