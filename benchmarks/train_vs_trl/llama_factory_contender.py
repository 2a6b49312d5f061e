"""LLaMA-Factory's KTO (0.9.5), by the function that its command line ends in, ``run_kto``.

It runs in an environment of its own (it takes TRL up to 0.24), so nothing here imports ours. The objective is TRL's,
and so are the adapter's first weights. What differs: rows come shuffled, and a row's KL partner is the one before it in
the file, so that z0, the mean over the batch, is of other pairs than TRL's; the reference is computed in every step, on
rows and on KL pairs; rows are padded to a multiple of 8; the logits of whole batches are made, in float32, and summed
for the log.

Its best settings: no recomputation. It can't compute the reference beforehand, and its faster kernels (Liger's,
Unsloth's, FlashAttention's) need a GPU. Grouping rows by length (``train_sampling_strategy``) would spare padding, but
transformers groups within rows / (4 × batch) batches, which is one for the 24 rows of the default workload; tried, it
made no step faster. Model and rows are read from files, and that is in its job.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from llamafactory.hparams import get_train_args
from llamafactory.train.kto import run_kto
from transformers import PreTrainedModel

from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.trl_contender import StepClock, as_text, build_tokenizer, shared_settings
from benchmarks.train_vs_trl.workload import ALPHA_PER_RANK, UNDESIRABLE_WEIGHT, Row, Workload

BEST: dict[str, Any] = {"disable_gradient_checkpointing": True}
TRL_ONLY = ("max_length", "undesirable_weight")
"""Settings that have another name here."""


def run(workload: Workload, model: PreTrainedModel, rows: list[Row], watch: Stopwatch, settings: dict[str, Any]) -> Run:
    """Train on the rows.

    Args:
        workload: batch, epochs and the like.
        model: the base model; its weights go to a file and are given up here.
        rows: what to train on.
        watch: takes the times.
        settings: LLaMA-Factory's arguments beside those that all contenders share.
    """
    with tempfile.TemporaryDirectory(prefix="train-vs-trl-") as name:
        scratch = Path(name)
        model.save_pretrained(scratch / "model")
        model.to("meta")  # so that its memory is not counted beside that of the model that is read
        build_tokenizer(workload.vocabulary).save_pretrained(scratch / "model")
        _write_rows(rows, scratch)
        clock = _Clock(watch)
        watch.start()
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(
            _arguments(workload, scratch) | settings
        )
        run_kto(model_args, data_args, training_args, finetuning_args, callbacks=[clock])
    return clock.run


def _arguments(workload: Workload, scratch: Path) -> dict[str, Any]:
    """What the command line would read from its YAML file."""
    shared = {
        name: value for name, value in shared_settings(workload, str(scratch / "out")).items() if name not in TRL_ONLY
    }
    return shared | {
        "stage": "kto",
        "do_train": True,
        "model_name_or_path": str(scratch / "model"),
        "cache_dir": str(scratch / "cache"),
        "dataset_dir": str(scratch),
        "dataset": "rows",
        "template": "empty",
        "cutoff_len": workload.longest_row,
        "finetuning_type": "lora",
        "lora_rank": workload.lora_r,
        "lora_alpha": ALPHA_PER_RANK * workload.lora_r,
        "lora_target": "all",
        "kto_rejected_weight": UNDESIRABLE_WEIGHT,
    }


def _write_rows(rows: list[Row], folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps(as_text(rows)))
    columns = {"prompt": "prompt", "query": "", "response": "completion", "kto_tag": "label"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json", "columns": columns}}))


class _Clock(StepClock):
    """Takes the run's end too: what follows is its report."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.prepared()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run = self.watch.finish([float(row["loss"]) for row in state.log_history if "loss" in row])
