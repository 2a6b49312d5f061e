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
from typing import Any, NamedTuple

import pandas as pd
import torch

from mralign_core.config import TrainConfig, Variant
from mralign_core.errors import ConfigError, NoCandidatesError
from mralign_core.models.locate import model_name
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage import ArtifactStore
from mralign_core.training.base import load_base
from mralign_core.training.card import model_card
from mralign_core.training.checkpoints import StoredCheckpoints, restore, state_of
from mralign_core.training.curves import Curves, Meter
from mralign_core.training.examples import Examples, TrainingExample, build_examples, num_tokens
from mralign_core.training.footprint import TrainingLoad, plan_passes
from mralign_core.training.job import TrainingJob
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.memory import PassSize
from mralign_core.training.reference import read_reference, reference_table
from mralign_core.training.trainer import Progress, Trainer
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")


class TrainingResult(NamedTuple):
    """Rows of table ``training_metrics``, and counts of what was trained on and what was left out."""

    metrics: pd.DataFrame
    counts: dict[str, int]


class Watch(NamedTuple):
    """Who looks on while training runs.

    Rows of metrics come about once a second, in bursts, the first of each with ``tokens_per_second`` and, on a GPU,
    ``gpu_memory_mib``.
    """

    curves: Curves | None = None
    on_progress: Progress | None = None

    def report(self, step: int, steps: int, row: dict[str, float]) -> None:
        """Show a row of metrics to all who look on."""
        if self.curves:
            self.curves.log(step, row)
        if self.on_progress:
            self.on_progress(step, steps, row)


def train_adapter(job: TrainingJob, watch: Watch | None = None, workers: Workers | None = None) -> TrainingResult:
    """Train a LoRA adapter and write its weights, its config and a model card (``README.md``).

    On one CPU the same job gives the same bytes, also where a training stopped and went on from a checkpoint.

    Args:
        job: what to train, and where it goes.
        watch: curves and progress.
        workers: the processes that train together.

    Raises:
        ConfigError: ``mr_align`` without weights, a precision or a target module that can't be trained, or a job that
            does not fit the device.
        NoCandidatesError: no trace to train on, or none of one polarity.
        DataError: see :func:`~mralign_core.training.examples.build_examples` and
            :func:`~mralign_core.training.reference.read_reference`.
    """
    if job.variant == "mr_align" and job.segment_weights is None:
        raise ConfigError("variant 'mr_align' needs the table 'segment_weights'; without weights it would be plain KTO")
    workers = workers or Workers()
    model, end_token_id = load_base(job, workers)
    segment_weights = job.segment_weights if job.variant == "mr_align" else None
    examples = build_examples(
        job.candidates, segment_weights, end_token_id=end_token_id, max_length=job.train.max_length
    )
    trainer = _trainer(job, model, examples, workers)
    _make_fit(trainer)
    _run(trainer, StoredCheckpoints(ArtifactStore(job.storage), job.key) if job.storage else None, watch or Watch())
    rows = [examples.kept[row] for row in trainer.rows]
    counts = _counts(examples, rows)
    if workers.is_main:
        _write(job, trainer, rows, counts)
    frame = pd.DataFrame(trainer.metrics, columns=list(TRAINING_METRICS.columns))
    return TrainingResult(TRAINING_METRICS.require(frame), counts)


def _trainer(job: TrainingJob, model: Any, examples: Examples, workers: Workers) -> Trainer:
    """The trainer of a job; where it brings no reference log-probabilities and needs them, they are computed."""
    is_supervised = job.variant == "sft"
    rows = _rows_of(job.variant, examples, job.train)
    policy = CompletionLogps(attach_lora(model, job.train, seed=job.seed), workers)
    table = None if is_supervised else job.reference
    if table is None and not is_supervised:
        tokens = job.train.tokens_per_forward
        table = reference_table(policy, examples.kept, tokens_per_forward=tokens, workers=workers)
    trainer = Trainer(
        policy,
        examples.kept,
        rows=rows,
        reference=None if table is None else read_reference(table, examples.kept),
        section=job.train,
        learning_rate=job.train.sft_learning_rate if is_supervised else job.train.learning_rate,
        rows_per_epoch=len(examples.kept),
        seed=job.seed,
        workers=workers,
    )
    if not any(trainer.rate_at(step) for step in range(trainer.num_steps)):
        logger.warning(
            "training has %d step(s), all in the warm-up at rate 0: nothing is learnt; lower train.global_batch_size, "
            "or set train.warmup_ratio to 0",
            trainer.num_steps,
        )
    return trainer


def _make_fit(trainer: Trainer) -> None:
    """Choose tokens a pass and recomputation, for all processes alike, so that the job fits its device."""
    load = TrainingLoad(
        lengths={
            example.trace_id: num_tokens(example.row) for example in (trainer.examples[row] for row in trainer.rows)
        },
        device=trainer.policy.device,
        rows_per_epoch=trainer.rows_per_epoch,
        is_kto=trainer.reference is not None,
        num_processes=trainer.workers.size,
        is_sharded=trainer.workers.is_sharded,
    )
    passes = plan_passes(trainer.section, trainer.policy.model, load, trainer.policy.made_up_pass).passes
    tokens, can_keep_activations = trainer.workers.lowest(passes.tokens, int(not passes.recompute))
    trainer.use_passes(PassSize(tokens, recompute=not can_keep_activations))


def _run(trainer: Trainer, checkpoints: StoredCheckpoints | None, watch: Watch) -> None:
    """Train from the newest checkpoint to the end, writing others on the way."""
    state = checkpoints.latest() if checkpoints else None
    step = state.step if state else 0
    if trainer.workers.lowest(step, -step) != [step, -step]:
        raise ConnectionError("the processes found different checkpoints: is the store the same for all, and whole?")
    if state:
        restore(trainer, state)
        logger.info("going on from the checkpoint after step %d of %d", trainer.step, trainer.num_steps)
    last, meter = time.monotonic(), Meter(trainer.policy.device)

    def after_step(_: Trainer) -> None:
        nonlocal last
        meter.count(trainer.tokens_of_last_step)
        every_s = 60 * trainer.section.checkpoint_minutes
        if checkpoints and every_s and time.monotonic() - last >= every_s and trainer.workers.is_main:
            checkpoints.save(state_of(trainer))
            last = time.monotonic()

    device = trainer.policy.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer.run(lambda step, steps, row: watch.report(step, steps, {**row, **meter.read()}), after_step)


def _write(job: TrainingJob, trainer: Trainer, rows: Sequence[TrainingExample], counts: Mapping[str, int]) -> None:
    """Write the adapter and its card."""
    base_model = model_name(job.model)
    model: Any = trainer.policy.model
    save_adapter(model, job.directory, base_model=base_model)
    card = model_card(
        base_model,
        job.variant,
        job.train,
        seed=job.seed,
        rows=rows,
        counts=counts,
        facts=job.facts,
        metrics=trainer.metrics,
    )
    (job.directory / "README.md").write_text(card.render(), encoding="utf-8")


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
