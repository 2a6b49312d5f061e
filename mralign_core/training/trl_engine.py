"""Training by TRL's trainers, from the same job to the same files as :mod:`.fit`: KTO and MR-ALIGN by
:class:`~mralign_core.training.trl_kto.MRAlignKTOTrainer`, SFT by :class:`trl.SFTTrainer`.

Rows, their order, KL pairs, reference log-probabilities, initial adapter, optimiser and learning rate are those of our
own loop, so that both engines train the same adapter but for rounding, where a step is one forward pass. Departures
where it is several (``rows_per_forward`` below ``global_batch_size``): z0 and the loss are means over each forward
pass, then over passes. A base model in 4 bits has its adapter in bfloat16 while it trains, as TRL wants it.
"""

from __future__ import annotations

import gc
import logging
import math
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import KTOConfig, SFTConfig, SFTTrainer

from mralign_core.errors import ArtifactError, ConfigError, OutOfMemory, StorageError
from mralign_core.models.load import load_tokenizer
from mralign_core.models.locate import model_name
from mralign_core.models.lora import save_adapter, target_modules, target_parameters
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage import ArtifactStore, scratch_folder
from mralign_core.training.base import load_base
from mralign_core.training.card import model_card
from mralign_core.training.checkpoints import StoredCheckpoints
from mralign_core.training.curves import Meter
from mralign_core.training.examples import Examples, TrainingExample, build_examples

# These two keep their names: another would change the code of `fit`, and with it the key of every adapter.
from mralign_core.training.fit import TrainingResult, Watch, _counts, _rows_of
from mralign_core.training.job import TrainingJob
from mralign_core.training.order import step_rows, steps_per_epoch
from mralign_core.training.reference import read_reference
from mralign_core.training.trl_doctor import TrainingDoctor, row_of_metrics
from mralign_core.training.trl_kto import MRAlignKTOTrainer, rows_for_trl
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")

STATE = "trainer"
"""Folder of a stored checkpoint that has the trainer's own."""


def train_by_trl(job: TrainingJob, watch: Watch | None = None) -> TrainingResult:
    """Train a LoRA adapter by TRL, and write its weights, its config and a model card (``README.md``).

    Args:
        job: what to train, and where it goes.
        watch: curves and progress.

    Raises:
        ConfigError: see :func:`~mralign_core.training.fit.train_adapter`; or the loss is not finite.
        NoCandidatesError: no trace to train on, or none of one polarity.
        DataError: the tables do not belong to each other.
        OutOfMemory: a forward pass did not fit the device.
    """
    if job.variant == "mr_align" and job.segment_weights is None:
        raise ConfigError("variant 'mr_align' needs the table 'segment_weights'; without weights it would be plain KTO")
    try:
        return _train(job, watch or Watch())
    except BaseException as error:
        _forget_frames(error)
        raise
    finally:
        # Trainer and model hold each other, and would hold the device beside the next variant's.
        gc.collect()
        torch.cuda.empty_cache()


def _forget_frames(error: BaseException) -> None:
    """Drop what the functions behind an error held, model and all; who keeps the error keeps no more than its text."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _train(job: TrainingJob, watch: Watch) -> TrainingResult:
    model, end_token_id = load_base(job, Workers())
    segment_weights = job.segment_weights if job.variant == "mr_align" else None
    examples = build_examples(
        job.candidates, segment_weights, end_token_id=end_token_id, max_length=job.train.max_length
    )
    numbers = _rows_of(job.variant, examples, job.train)
    device = [model.device] if model.device.type == "cuda" else []
    with scratch_folder() as folder, torch.random.fork_rng(device), warnings.catch_warnings():
        # transformers 5.23 renamed it, 5.20 has this name only; may go with the lower bound.
        warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
        trainer = _trainer(job, model, examples, folder)
        trainer.row_order = RowOrder(numbers, len(examples.kept), job.train.global_batch_size, job.seed)
        rows = _run(job, trainer, watch, folder)
    kept = [examples.kept[number] for number in numbers]
    counts = _counts(examples, kept)
    base_model = model_name(job.model)
    save_adapter(trainer.model, job.directory, base_model=base_model)
    card = model_card(
        base_model, job.variant, job.train, seed=job.seed, rows=kept, counts=counts, facts=job.facts, metrics=rows
    )
    (job.directory / "README.md").write_text(card.render(), encoding="utf-8")
    frame = pd.DataFrame(rows, columns=list(TRAINING_METRICS.columns))
    return TrainingResult(TRAINING_METRICS.require(frame), counts)


class RowOrder(Sampler[int]):
    """The rows of an epoch in the order in which our own loop takes them.

    Args:
        numbers: of the rows to train on.
        rows_per_epoch: rows in an epoch.
        batch_size: rows of an optimiser step.
        seed: decides the order.
    """

    def __init__(self, numbers: Sequence[int], rows_per_epoch: int, batch_size: int, seed: int) -> None:
        self.numbers = numbers
        self._rows_per_epoch = rows_per_epoch
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; accelerate calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows_per_epoch

    def __iter__(self) -> Iterator[int]:
        steps = steps_per_epoch(self._rows_per_epoch, self._batch_size)
        for step in range(self._epoch * steps, (self._epoch + 1) * steps):
            yield from step_rows(
                self.numbers,
                step=step,
                rows_per_epoch=self._rows_per_epoch,
                batch_size=self._batch_size,
                seed=self._seed,
            )


class _InOurOrder:
    """A trainer that takes rows in the order that it is given."""

    row_order: RowOrder

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RowOrder:
        return self.row_order


class _AlignTrainer(_InOurOrder, MRAlignKTOTrainer):
    pass


class _SupervisedTrainer(_InOurOrder, SFTTrainer):
    pass


def _trainer(job: TrainingJob, model: PreTrainedModel, examples: Examples, folder: Path) -> Any:
    """The trainer of a variant; all of its rows, of which it takes those of its order."""
    datasets.disable_progress_bars()
    section, common = job.train, _common_settings(job, model, folder)
    tokenizer = load_tokenizer(job.model_path, job.revision)
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=target_modules(model, section.target_modules),
        target_parameters=target_parameters(model, section.target_modules) or None,
    )
    shared: dict[str, Any] = {"processing_class": tokenizer, "peft_config": lora}
    if job.variant == "sft":
        args = SFTConfig(**common, learning_rate=section.sft_learning_rate, completion_only_loss=True)
        rows = Dataset.from_list([_supervised_row(example) for example in examples.kept])
        return _SupervisedTrainer(model, args, train_dataset=rows, **shared)
    reference = None if job.reference is None else read_reference(job.reference, examples.kept)
    kto = KTOConfig(
        **common,
        learning_rate=section.learning_rate,
        beta=section.beta,
        desirable_weight=section.desirable_weight,
        undesirable_weight=section.undesirable_weight,
        precompute_ref_log_probs=True,
        disable_dropout=False,
    )
    return _AlignTrainer(model, args=kto, train_dataset=rows_for_trl(examples.kept, reference), **shared)


def _common_settings(job: TrainingJob, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """What both configs of TRL share."""
    section = job.train
    return {
        "output_dir": str(folder),
        "seed": job.seed,
        "per_device_train_batch_size": section.rows_per_forward,
        "gradient_accumulation_steps": section.global_batch_size // section.rows_per_forward,
        "num_train_epochs": section.num_epochs,
        "warmup_steps": section.warmup_ratio,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": section.max_grad_norm,
        "max_length": None,
        "router_aux_loss_coef": 0.0,
        "gradient_checkpointing": section.gradient_checkpointing != "never",
        "bf16": job.model.dtype == "bfloat16",
        "use_cpu": model.device.type == "cpu",
        "dataloader_pin_memory": model.device.type == "cuda",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _supervised_row(example: TrainingExample) -> dict[str, list[int]]:
    prompt, completion = example.row
    return {
        "input_ids": [*prompt, *completion],
        "completion_mask": [0] * len(prompt) + [1] * len(completion),
    }


def _run(job: TrainingJob, trainer: Any, watch: Watch, folder: Path) -> list[dict[str, float]]:
    """Train from the newest checkpoint to the end; rows of table ``training_metrics``."""
    checkpoints = TrlCheckpoints(ArtifactStore(job.storage), job.key) if job.storage else None
    trainer.remove_callback(PrinterCallback)
    report = _Report(job, watch, trainer.model.device)
    trainer.add_callback(report)
    trainer.add_callback(TrainingDoctor(job.variant, trainer.row_order.numbers))
    if checkpoints:
        trainer.add_callback(_Keep(checkpoints, job.train.checkpoint_minutes))
    start = checkpoints.latest(folder) if checkpoints else None
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"out of memory in a forward pass of {job.train.rows_per_forward} rows: lower train.rows_per_forward or "
            "train.max_length, set train.gradient_checkpointing to 'always', or train.load_in_4bit; train.engine 'own' "
            f"goes on by itself with smaller passes. {str(error).splitlines()[0]}",
            {},
        ) from error
    return report.rows(trainer.state.log_history)


class _Report(TrainerCallback):
    """Passes each step's metrics on, as rows of table ``training_metrics``."""

    def __init__(self, job: TrainingJob, watch: Watch, device: torch.device) -> None:
        self._job = job
        self._watch = watch
        self._meter = Meter(device)
        self._num_tokens = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """A step has been logged."""
        if not logs or "loss" not in logs:
            return
        row = row_of_metrics({**logs, "step": state.global_step}, self._job.train.beta)
        del row["length_correlation"]  # no column of the table
        if not math.isfinite(row["loss"] + row["grad_norm"]):
            field = "sft_learning_rate" if self._job.variant == "sft" else "learning_rate"
            raise ConfigError(
                f"training diverged at step {row['step']} of {state.max_steps}: loss {row['loss']}, gradient norm "
                f"{row['grad_norm']}; lower train.{field} or train.max_grad_norm"
            )
        self._meter.count(int(logs.get("num_tokens", 0) - self._num_tokens))
        self._num_tokens = logs.get("num_tokens", 0)
        self._watch.report(state.global_step, state.max_steps, {**row, **self._meter.read()})

    def rows(self, history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """The rows of a training, those of before a restart among them."""
        return [row_of_metrics(logs, self._job.train.beta) for logs in history if "loss" in logs]


class TrlCheckpoints:
    """Checkpoints of TRL's trainer in the artifact store, found and cleared as those of our own loop are.

    Args:
        store: the store.
        key: cache key of the adapter.
    """

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self._store = store
        self._key = key
        self._stage = f"checkpoint/{key}"

    def latest(self, folder: Path) -> Path | None:
        """The newest whole one, copied into a folder, from which the trainer goes on."""
        for key in reversed(self._store.keys(self._stage)):
            try:
                if ref := self._store.find(self._stage, key):
                    place = folder / f"checkpoint-{int(key.removeprefix('step-'))}"
                    shutil.copytree(self._store.open_directory(ref) / STATE, place)
                    logger.info("going on from the checkpoint after step %s", key.removeprefix("step-").lstrip("0"))
                    return place
            except ArtifactError as error:
                logger.warning("not going on from checkpoint %s: %s", key, error)
        return None

    def clear(self) -> None:
        """Remove every checkpoint of this adapter."""
        StoredCheckpoints(self._store, self._key).clear()

    def save(self, checkpoint: Path, step: int) -> None:
        """Keep a folder that the trainer wrote, and none before it; a store that is down costs only the checkpoint."""
        key = f"step-{step:09d}"
        try:
            with scratch_folder() as scratch:
                shutil.copytree(checkpoint, scratch / STATE)
                self._store.publish(self._stage, key, scratch, parents=[], fingerprint={})
            for old in self._store.keys(self._stage):
                if old != key:
                    self._store.remove(self._stage, old)
        except (StorageError, ArtifactError) as error:
            logger.warning("step %d is not in a checkpoint: %s", step, error)


class _Keep(TrainerCallback):
    """Has the trainer write a checkpoint every few minutes, and keeps it in the store."""

    def __init__(self, checkpoints: TrlCheckpoints, every_minutes: float) -> None:
        self._checkpoints = checkpoints
        self._every_s = 60 * every_minutes
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """A step is done."""
        is_due = bool(self._every_s) and time.monotonic() - self._last >= self._every_s
        control.should_save = is_due and state.global_step < state.max_steps
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        if written := get_last_checkpoint(args.output_dir):
            self._checkpoints.save(Path(written), state.global_step)
            shutil.rmtree(written)
            self._last = time.monotonic()
