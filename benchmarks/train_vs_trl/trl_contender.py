"""TRL's ``KTOTrainer``: as it comes, and with its best settings.

What helps it was read from its source (1.16) and tried: the reference computed once, and no recomputation. Larger
batches in the reference pass did not help. What it refuses: grouping rows by length (its KL pairs need a fixed order).
What it does not have: packing. In both, ``max_length`` is raised, so that nothing is cut off, and on a CPU the
precision is that of the weights (its default there is bfloat16).
"""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from peft import LoraConfig, TaskType
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import KTOConfig, KTOTrainer

from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.workload import (
    ALPHA_PER_RANK,
    FIRST_WORD_ID,
    SEED,
    UNDESIRABLE_WEIGHT,
    WARMUP_RATIO,
    Row,
    Workload,
)

END, PAD = "<end>", "<pad>"

AS_IT_COMES: dict[str, Any] = {}
BEST: dict[str, Any] = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}


def run(
    workload: Workload,
    model: PreTrainedModel,
    rows: list[Row],
    watch: Stopwatch,
    settings: dict[str, Any],
    trainer_class: type[KTOTrainer] = KTOTrainer,
) -> Run:
    """Train on the rows.

    Args:
        workload: batch, epochs and the like.
        model: the base model; changed in place.
        rows: what to train on.
        watch: takes the times.
        settings: fields of ``KTOConfig`` beside those that all contenders share.
        trainer_class: ``KTOTrainer``, or what has its loss changed.
    """
    tokenizer = build_tokenizer(workload.vocabulary)
    table = as_text(rows)
    with tempfile.TemporaryDirectory(prefix="train-vs-trl-") as scratch:
        watch.start()
        trainer = trainer_class(
            model=model,
            args=KTOConfig(**shared_settings(workload, scratch), **settings),
            train_dataset=Dataset.from_list(table),
            processing_class=tokenizer,
            peft_config=_lora_config(workload),
            callbacks=[StepClock(watch)],
        )
        trainer.remove_callback(PrinterCallback)
        watch.prepared()
        trainer.train()
        return watch.finish([float(row["loss"]) for row in trainer.state.log_history if "loss" in row])


def shared_settings(workload: Workload, output_dir: str) -> dict[str, Any]:
    """What is no choice of the contender: batch, epochs, precision, schedule, and that it writes nothing."""
    return {
        "output_dir": output_dir,
        "max_length": workload.longest_row,
        "per_device_train_batch_size": workload.batch,
        "gradient_accumulation_steps": workload.accumulation,
        "num_train_epochs": workload.epochs,
        "learning_rate": workload.learning_rate,
        "warmup_steps": WARMUP_RATIO,
        "lr_scheduler_type": "linear",
        "bf16": workload.dtype == "bfloat16",
        "use_cpu": workload.device == "cpu",
        "undesirable_weight": UNDESIRABLE_WEIGHT,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": workload.device == "cuda",
        "seed": SEED,
    }


def as_text(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as TRL takes them: text, which it tokenises; word number n stands for token n."""

    def text(ids: list[int]) -> str:
        return " ".join(str(token) for token in ids)

    return [
        {
            "prompt": text(row.prompt_ids) + " ",
            "completion": f"{text(row.completion_ids[:-1])} {END}",
            "label": row.is_positive,
        }
        for row in rows
    ]


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer that gives a row's text its ids back."""
    words = [END, PAD, *map(str, range(FIRST_WORD_ID, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (END, PAD)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD)


def _lora_config(workload: Workload) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=workload.lora_r,
        lora_alpha=ALPHA_PER_RANK * workload.lora_r,
        target_modules="all-linear",
    )


class StepClock(TrainerCallback):
    """Tells the watch that a step ended."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        self.watch.step_ended()
