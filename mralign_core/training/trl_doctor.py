"""The training doctor as a callback of any TRL trainer of KTO or SFT: warnings in the log while it trains."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import TrainerCallback

from mralign_core.training.doctor import Fault, TrainingRecord, find_faults
from mralign_core.training.trl_kto import ID_COLUMNS, WEIGHT_COLUMN

logger = logging.getLogger("mralign_core.training")

LOOKS = 10
"""How often it looks, over the training; from its middle on, since a warm-up looks like a fault."""


class TrainingDoctor(TrainerCallback):
    """Warns once of each thing that is wrong, and says what to try.

    Each row of the log is a step to it: ``logging_steps=1`` lets it see most. With ``trl.KTOTrainer`` it does not know
    z0 before the clamp, nor how implicit rewards go with length, which ``MRAlignKTOTrainer`` logs.

    Args:
        variant: ``kto`` where weights of 1 are meant; else rows with weights are taken for MR-ALIGN's.
        rows: numbers of those that are trained on; all unless said otherwise.
    """

    def __init__(self, variant: str = "", rows: Sequence[int] | None = None) -> None:
        self.faults: list[Fault] = []
        self._variant = variant
        self._rows = rows
        self._known = TrainingRecord(variant, pd.DataFrame())

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Note what is trained on."""
        rows = getattr(train_dataloader, "dataset", None)
        beta = getattr(args, "beta", None)
        if beta is None or not isinstance(rows, Dataset) or "label" not in rows.column_names:
            self._known = TrainingRecord("sft" if beta is None else "kto", pd.DataFrame(), beta or 1.0)
        else:
            self._known = self._facts(args, rows if self._rows is None else rows.select(self._rows))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, now and then."""
        every = max(1, state.max_steps // LOOKS)
        if state.global_step >= state.max_steps / 2 and state.global_step % every == 0:
            self._look(args, state.log_history)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the whole."""
        self._look(args, state.log_history)

    def _look(self, args: Any, history: Sequence[Mapping[str, float]]) -> None:
        known = {fault.name for fault in self.faults}
        steps = pd.DataFrame([row_of_metrics(logs, self._known.beta) for logs in history if "loss" in logs])
        if args.fp16 and len(steps):
            steps["grad_norm"] = math.nan  # infinite while the loss is scaled too much, which its scaler sees to
        for fault in find_faults(self._known._replace(metrics=steps)):
            if fault.name not in known:
                self.faults.append(fault)
                logger.warning("training doctor: %s: %s", fault.name, fault.sentence())

    def _facts(self, args: Any, rows: Dataset) -> TrainingRecord:
        """What is known of a training by KTO before it starts."""
        is_positive = np.array(rows["label"][:], dtype=bool)
        columns = set(rows.column_names)
        lengths = np.array([len(ids) for ids in rows[ID_COLUMNS[1]]]) if ID_COLUMNS[1] in columns else None
        is_weighted = WEIGHT_COLUMN in columns
        return TrainingRecord(
            self._variant or ("mr_align" if is_weighted else "kto"),
            pd.DataFrame(),
            beta=args.beta,
            desirable_weight=args.desirable_weight,
            undesirable_weight=args.undesirable_weight,
            num_positive=int(is_positive.sum()),
            num_negative=int((~is_positive).sum()),
            weights=np.concatenate([_of_reasoning(row) for row in rows[WEIGHT_COLUMN]]) if is_weighted else None,
            positive_lengths=None if lengths is None else lengths[is_positive],
            negative_lengths=None if lengths is None else lengths[~is_positive],
        )


def _of_reasoning(weights: Sequence[float]) -> np.ndarray:
    """A row's weights up to its last segment; the answer behind it has 1 throughout and would outnumber them."""
    values = np.array(weights, dtype=float)
    weighted = np.flatnonzero(values != 1)
    return values[: weighted[-1] + 1] if len(weighted) else values


def row_of_metrics(logs: Mapping[str, float], beta: float) -> dict[str, float]:
    """A row of TRL's log as one of table ``training_metrics``, with ``length_correlation`` beside.

    Args:
        logs: of a step, with ``loss``.
        beta: which TRL's implicit rewards are multiplied by.
    """
    return {
        "step": logs["step"],
        "epoch": logs["epoch"],
        "loss": logs["loss"],
        "implicit_reward_positive": logs.get("rewards/chosen", math.nan) / beta,
        "implicit_reward_negative": logs.get("rewards/rejected", math.nan) / beta,
        "kl_baseline": logs.get("kl", math.nan),
        "kl_raw": logs.get("kl_raw", math.nan),
        "grad_norm": logs.get("grad_norm", math.nan),
        "learning_rate": logs["learning_rate"],
        "length_correlation": logs.get("rewards/length_correlation", math.nan),
    }
