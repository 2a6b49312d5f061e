"""The training loop: the weighted KTO objective (MR-ALIGN; with all weights 1, KTO) and supervised fine-tuning.

Departures from the paper and from TRL 1.16:

* Loss and z0 are means over all rows of an optimiser step. How a step is shared out over forward passes and devices
  changes nothing but rounding. TRL estimates z0 in each forward batch, which is the same without accumulation.
* Optionally z0 is a moving average that is renewed every few steps (``kl_every``, ``kl_decay``).
* Implicit rewards are reported as Eq. 9 has them, in nats; TRL reports them times β.

The learning rate is transformers' linear schedule: from 0 up over the warm-up, then down to 0; the first step's is 0.
Everything random follows from (seed, step), so a restart needs no random state.

Shapes: C completion tokens of a forward pass, B rows of it, T completion tokens of its longest row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.method.objective import implicit_reward, kl_baseline, kto_loss
from mralign_core.models.lora import enable_recomputation
from mralign_core.models.out_of_memory import with_less_memory
from mralign_core.training.examples import Row, TrainingExample, num_tokens
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.memory import PassSize, smaller_passes
from mralign_core.training.order import aligned_passes, step_rows, steps_per_epoch
from mralign_core.training.packing import Batch, send
from mralign_core.training.reference import Reference, matched_rows, mismatched_rows
from mralign_core.training.step_metrics import SUMS, StepMetrics, read_metrics
from mralign_core.training.workers import Workers

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with the optimiser steps done, their number, and the last step's row of ``training_metrics``."""

REPORT_EVERY_S = 1.0
"""Metrics stay on the device that long: reading them makes the host wait for it."""


class Trainer:
    """Trains the adapter of a policy on rows, step by step.

    Args:
        policy: the model with its adapter, whose parameters alone require gradients.
        examples: the rows that KL partners come from; those trained on are among them.
        rows: numbers of the rows to train on.
        reference: log-probabilities under the reference; None trains supervised.
        section: the train section of the config.
        learning_rate: peak learning rate.
        rows_per_epoch: rows seen in an epoch; more than there are rows means that they come again.
        seed: decides the order of the rows, and dropout.
        workers: the processes that train together.
    """

    def __init__(
        self,
        policy: CompletionLogps,
        examples: Sequence[TrainingExample],
        *,
        rows: Sequence[int],
        reference: Reference | None,
        section: TrainConfig,
        learning_rate: float,
        rows_per_epoch: int,
        seed: int,
        workers: Workers | None = None,
    ) -> None:
        self.policy = policy
        self.examples = examples
        self.rows = rows
        self.reference = reference
        self.section = section
        self.learning_rate = learning_rate
        self.rows_per_epoch = rows_per_epoch
        self.seed = seed
        self.workers = workers or Workers()
        self.pass_size = PassSize(section.tokens_per_forward)
        self.step = 0
        self.tokens_of_last_step = 0
        self.metrics: list[dict[str, float]] = []
        self._unread: list[StepMetrics] = []
        self.kl_average: Tensor | None = None
        self._in_pass: dict[int, int] = {}
        self._matched = matched_rows(examples)
        self._weights = [torch.tensor(example.weights) for example in examples]
        self._mismatched = mismatched_rows(examples, reference.partners) if reference else []
        self.parameters = {name: each for name, each in policy.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=learning_rate, fused=policy.device.type == "cuda"
        )

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.section.num_epochs * steps_per_epoch(self.rows_per_epoch, self.section.global_batch_size)

    def run(
        self, on_progress: Progress | None = None, on_step: Callable[[Trainer], None] | None = None
    ) -> list[dict[str, float]]:
        """Train to the end, from the present step.

        Args:
            on_progress: called about once a second with each row of ``training_metrics`` since the last time.
            on_step: called after each step, such as to write a checkpoint.

        Returns:
            A row of ``training_metrics`` a step.

        Raises:
            ConfigError: see :meth:`read_metrics`.
            OutOfMemory: and there is no smaller way to compute a step.
        """
        last_report, num_reported = time.monotonic(), len(self.metrics)
        while self.step < self.num_steps:
            self.train_step()
            if on_step:
                on_step(self)
            if self.step == self.num_steps or time.monotonic() - last_report >= REPORT_EVERY_S:
                self.read_metrics()
                for row in self.metrics[num_reported:]:
                    if on_progress:
                        on_progress(int(row["step"]), self.num_steps, row)
                last_report, num_reported = time.monotonic(), len(self.metrics)
        return self.metrics

    def train_step(self) -> None:
        """One optimiser step: z0, then the gradient of the loss over all rows, then Adam.

        Raises:
            OutOfMemory: and there is no smaller way to compute the step.
        """
        rows = step_rows(
            self.rows,
            step=self.step,
            rows_per_epoch=self.rows_per_epoch,
            batch_size=self.section.global_batch_size,
            seed=self.seed,
        )
        self.kl_average, sums = with_less_memory(
            self.pass_size, partial(self._gradients, rows), partial(self._smaller_passes, rows)
        )
        self.workers.add_up([*map(_gradient, self.parameters.values()), sums])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.section.max_grad_norm)
        learning_rate = self.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.step += 1
        epoch = self.step / steps_per_epoch(self.rows_per_epoch, self.section.global_batch_size)
        self._unread.append(StepMetrics(self.step, epoch, learning_rate, sums, norm, self.kl_average))

    def _gradients(self, rows: Sequence[int], pass_size: PassSize) -> tuple[Tensor, Tensor]:
        """z0 before the clamp, and this process's :data:`SUMS`; its gradients are in the parameters."""
        self.use_passes(pass_size)
        self.optimizer.zero_grad()
        kl_raw = self._kl_baseline(rows)
        return kl_raw, self._backward(rows, kl_raw.clamp(min=0))

    @torch.no_grad()
    def _kl_baseline(self, rows: Sequence[int]) -> Tensor:
        """z0 before the clamp, from the KL pairs of the step's rows or from their moving average; NaN for SFT.

        Implements z0 of Eq. 3 of arXiv 2510.24794; the moving average is ``kl_decay`` × old + (1 − ``kl_decay``) × new.
        """
        if self.reference is None:
            return torch.full((), math.nan, device=self.policy.device)
        old, decay = self.kl_average, self.section.kl_decay
        if old is not None and self.step % self.section.kl_every:
            return old
        new = kl_baseline(*self._kl_pairs(rows, self.reference)).raw
        return new if old is None or not decay else decay * old + (1 - decay) * new

    def _kl_pairs(self, rows: Sequence[int], reference: Reference) -> tuple[Tensor, Tensor]:
        """Summed log-probability of each KL pair's completion under policy and reference, of all processes.

        A row that comes twice in the step (few rows fill an epoch of many) has one pass and counts twice.
        """
        index = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        summed = torch.zeros(len(index), device=self.policy.device)
        self.policy.eval()
        for members, is_filler in self._passes(list(index), self._mismatched):
            batch = self._batch(members, self._mismatched)
            logps = batch.by_row(self.policy(batch)).masked_fill(~batch.mask, 0.0).sum(-1)
            if not is_filler:
                summed.index_copy_(0, self._on_device([index[row] for row in members]), logps.to(summed.dtype))
        self.workers.add_up([summed])
        policy_logps = summed[self._on_device([index[row] for row in rows])]
        return policy_logps, self._on_device([reference.kl_logps[row] for row in rows])

    def _backward(self, rows: Sequence[int], clamped_baseline: Tensor) -> Tensor:
        """Add the gradient of the step's mean loss over this process's rows; returns their :data:`SUMS`."""
        self.policy.train()
        # For dropout of the adapter, and of a base model that has some.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.step, self.workers.rank]).generate_state(1)[0]))
        self.tokens_of_last_step = sum(num_tokens(self._matched[row]) for row in rows)
        num_completion_tokens = sum(len(self.examples[row].completion_ids) for row in rows)
        sums = torch.zeros(len(SUMS), device=self.policy.device)
        for members, is_filler in self._passes(rows, self._matched):
            batch = self._batch(members, self._matched)
            logps = batch.by_row(self.policy(batch))
            if self.reference is None:
                loss, parts = self._supervised(logps, batch, num_completion_tokens)
            else:
                loss, parts = self._weighted_kto(logps, batch, members, self.reference, clamped_baseline, len(rows))
            (loss * (not is_filler)).backward()
            sums += parts * (not is_filler)
        return sums

    def _weighted_kto(
        self,
        logps: Tensor,
        batch: Batch,
        members: Sequence[int],
        reference: Reference,
        clamped_baseline: Tensor,
        num_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """This pass's share of the mean loss over the step's rows (Eq. 2, 4, 9, 11, 12), and of :data:`SUMS`."""
        is_positive = self._on_device([self.examples[row].is_positive for row in members])
        implicit_rewards = implicit_reward(
            logps,
            self._padded([reference.logps[row] for row in members]),
            self._padded([self._weights[row] for row in members]),
            batch.mask,
        )
        losses = kto_loss(
            implicit_rewards,
            clamped_baseline,
            is_positive,
            beta=self.section.beta,
            desirable_weight=self.section.desirable_weight,
            undesirable_weight=self.section.undesirable_weight,
        )
        loss = losses.sum() / num_rows
        nats = implicit_rewards.detach()
        by_class = [sum_ for chosen in (is_positive, ~is_positive) for sum_ in ((nats * chosen).sum(), chosen.sum())]
        return loss, torch.stack([loss.detach(), *by_class])

    @staticmethod
    def _supervised(logps: Tensor, batch: Batch, num_completion_tokens: int) -> tuple[Tensor, Tensor]:
        """This pass's share of the mean cross-entropy over the step's completion tokens."""
        loss = -logps.masked_fill(~batch.mask, 0.0).sum() / num_completion_tokens
        return loss, torch.cat([loss.detach()[None], loss.new_zeros(len(SUMS) - 1)])

    def _passes(self, rows: Sequence[int], texts: Sequence[Row]) -> list[tuple[list[int], bool]]:
        """This process's forward passes over some rows."""
        lengths = {row: num_tokens(texts[row]) for row in rows}
        plans = aligned_passes(
            rows, lengths, self.pass_size.tokens, self.workers.size, padded=not self.policy.is_packed
        )
        return [(each.rows, each.is_filler) for each in plans[self.workers.rank]]

    def _batch(self, members: Sequence[int], texts: Sequence[Row]) -> Batch:
        self._in_pass = {row: num_tokens(texts[row]) for row in members}
        return self.policy.batch([texts[row] for row in members])

    def _on_device(self, values: Sequence[bool] | Sequence[int] | Sequence[float]) -> Tensor:
        tensor: Tensor = send(torch.tensor(values), self.policy.device)
        return tensor

    def _padded(self, rows: Sequence[Tensor]) -> Tensor:
        tensor: Tensor = send(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), self.policy.device)
        return tensor

    def use_passes(self, size: PassSize) -> None:
        """Make passes of this size from now on."""
        if size.recompute and not self.pass_size.recompute:
            enable_recomputation(self.policy.model)
        self.pass_size = size

    def _smaller_passes(self, rows: Sequence[int], size: PassSize, error: Exception) -> PassSize:
        lengths = [num_tokens(texts[row]) for texts in (self._matched, self._mismatched) if texts for row in rows]
        in_pass = {self.examples[row].trace_id: length for row, length in self._in_pass.items()}
        return smaller_passes(
            size, error, self.section, longest=max(lengths), in_pass=in_pass, num_processes=self.workers.size
        )

    def rate_at(self, step: int) -> float:
        """The learning rate after so many steps."""
        num_warmup = math.ceil(self.num_steps * self.section.warmup_ratio)
        if step < num_warmup:
            return self.learning_rate * step / num_warmup
        return self.learning_rate * (self.num_steps - step) / max(1, self.num_steps - num_warmup)

    def read_metrics(self) -> None:
        """Bring :attr:`metrics` up to date, which waits for the device.

        Raises:
            ConfigError: a step's loss or gradient was not finite, so that the adapter no longer is.
        """
        rows = read_metrics(self._unread)
        for row in rows:
            if not math.isfinite(row["loss"] + row["grad_norm"]):
                field = "learning_rate" if self.reference else "sft_learning_rate"
                raise ConfigError(
                    f"training diverged at step {row['step']} of {self.num_steps}: loss {row['loss']}, gradient norm "
                    f"{row['grad_norm']}; lower train.{field} ({self.learning_rate:g}) or train.max_grad_norm"
                )
        self.metrics += rows
        self._unread.clear()


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient, zero where no token of this process reached the parameter (an expert without tokens)."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
