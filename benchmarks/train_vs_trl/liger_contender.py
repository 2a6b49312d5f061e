"""TRL's ``KTOTrainer`` with Liger's fused loss (``LigerFusedLinearKTOLoss``, 0.8.5) in place of its own head and loss.

TRL 1.16 no longer calls that loss: its ``use_liger_kernel`` only puts Liger's Triton kernels into the model's layers,
and those need a GPU. The loss is plain torch and runs on a CPU. It takes hidden states and the head, and computes the
gradient in the forward pass, a row at a time; prompts and padding have logits too. It has no weights of the classes,
makes no KL pass, and knows the reference as hidden states only. All three come in from outside here, a call a row: the
class's weight as a factor, z0 and the row's precomputed reference as its ``kl``, which it subtracts from the row's
log-probability. Compiling it, its default, was tried: see benchmarks/README.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss
from torch import Tensor
from transformers import PreTrainedModel
from trl import KTOTrainer

from benchmarks.train_vs_trl import trl_contender
from benchmarks.train_vs_trl.measurement import Run, Stopwatch
from benchmarks.train_vs_trl.workload import Row, Workload

IGNORED = -100
PLAIN: dict[str, Any] = {"compiled": False}


def run(workload: Workload, model: PreTrainedModel, rows: list[Row], watch: Stopwatch, settings: dict[str, Any]) -> Run:
    """Train on the rows.

    Args:
        workload: batch, epochs and the like.
        model: the base model; changed in place.
        rows: what to train on.
        watch: takes the times.
        settings: arguments of Liger's loss; TRL's are its best.
    """

    class Trainer(LigerKTOTrainer):
        loss_settings = settings

    return trl_contender.run(workload, model, rows, watch, trl_contender.BEST, trainer_class=Trainer)


class LigerKTOTrainer(KTOTrainer):
    """Reference and KL passes are TRL's, the rows' pass ends in Liger's loss."""

    loss_settings: ClassVar[dict[str, Any]] = {}

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        gain = self._compute_kl_logps(model, inputs) - inputs["ref_KL_logps"]
        kl_baseline = gain.mean().clamp(min=0)
        causal = self.accelerator.unwrap_model(model).get_base_model()
        masks = {"attention_mask": inputs["attention_mask"], "use_cache": False}
        hidden = causal.base_model(input_ids=inputs["input_ids"], **masks).last_hidden_state[:, :-1]
        targets = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)[:, 1:]
        is_positive = inputs["label"].bool()
        fused_loss = LigerFusedLinearKTOLoss(ignore_index=IGNORED, beta=self.beta, **self.loss_settings)
        losses = [
            fused_loss(
                hidden[row : row + 1],
                causal.get_output_embeddings().weight,
                targets[row : row + 1],
                preference_labels=is_positive[row : row + 1],
                kl=kl_baseline + inputs["ref_logps"][row],
            )[0]
            for row in range(len(hidden))
        ]
        weights = torch.where(is_positive, self.desirable_weight, self.undesirable_weight)
        return (weights * torch.stack(losses)).mean()
