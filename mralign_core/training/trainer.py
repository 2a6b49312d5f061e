"""The training loop: the weighted KTO objective (MR-ALIGN; with all weights 1, KTO) and supervised fine-tuning.

Departures from the paper and from TRL 1.16:

* Loss and z0 are means over all rows of an optimiser step. How a step is shared out over forward passes and devices
  changes nothing but rounding. TRL estimates z0 in each forward batch, which is the same without accumulation.
* Optionally z0 is a moving average that is renewed every few steps (``kl_every``, ``kl_decay``).
* Rewards are reported as Eq. 9 has them, in nats; TRL reports them times β.

The learning rate is transformers' linear schedule: from 0 up over the warm-up, then down to 0; the first step's is 0.
Everything random follows from (seed, step), so a restart needs no random state.

Shapes: C completion tokens of a forward pass, B rows of it, T completion tokens of its longest row.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError, OutOfMemory
from mralign_core.method.objective import implicit_reward, kl_baseline, kto_loss
from mralign_core.models.lora import enable_recomputation
from mralign_core.training.checkpoints import TrainingState
from mralign_core.training.examples import Row, TrainingExample, num_tokens
from mralign_core.training.footprint import out_of_memory_message
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.order import aligned_passes, step_rows, steps_per_epoch
from mralign_core.training.packing import Batch, send
from mralign_core.training.reference import Reference, matched_rows, mismatched_rows
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with the optimiser steps done, their number, and the last step's row of ``training_metrics``."""

REPORT_EVERY_S = 1.0
"""Metrics stay on the device that long: reading them makes the host wait for it."""
SUMS = ("loss", "reward_positive", "num_positive", "reward_negative", "num_negative")
"""What each process adds up over its rows of a step."""


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
        self.tokens_per_forward = section.tokens_per_forward
        self.is_recomputing = False
        self.step = 0
        self.tokens_of_last_step = 0
        self.metrics: list[dict[str, float]] = []
        self._unread: list[tuple[int, Tensor]] = []
        self._kl_average: Tensor | None = None
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
        """One optimiser step: z0, then the gradient of the loss over all rows, then Adam."""
        rows = step_rows(
            self.rows,
            step=self.step,
            rows_per_epoch=self.rows_per_epoch,
            batch_size=self.section.global_batch_size,
            seed=self.seed,
        )
        average, sums = self._gradients(rows)
        self._kl_average = average
        gradients = [self._gradient(parameter) for parameter in self.parameters.values()]
        self.workers.add_up([*gradients, sums])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.section.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(self.step)
        self.optimizer.step()
        self.step += 1
        self._unread.append((self.step, torch.cat([sums, norm[None], average[None]])))

    def recompute(self) -> None:
        """From now on keep few activations and compute the rest again in the backward pass."""
        self.is_recomputing = True
        enable_recomputation(self.policy.model)

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
        if self._unread:
            values = torch.stack([tensor for _, tensor in self._unread]).tolist()
            rows = [self._metrics_row(step, each) for (step, _), each in zip(self._unread, values, strict=True)]
            for row in rows:
                if not math.isfinite(row["loss"] + row["grad_norm"]):
                    raise ConfigError(self._diverged(row))
            self.metrics += rows
            self._unread.clear()

    def state(self) -> TrainingState:
        """All that a restart needs, between two steps."""
        self.read_metrics()
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter.detach().cpu().clone()
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].cpu().clone()
        if self._kl_average is not None:
            tensors["kl_average"] = self._kl_average.cpu().clone()
        return TrainingState(
            self.step, tensors, {"metrics": self.metrics, "tokens_per_forward": self.tokens_per_forward}
        )

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Go on from where a training on the same rows and settings was."""
        self.step, self.metrics = state.step, list(state.values["metrics"])
        # The same passes give the same bits; where there is less memory now, there are more of them.
        self.tokens_per_forward = min(self.tokens_per_forward, state.values["tokens_per_forward"])
        device = self.policy.device
        for name, parameter in self.parameters.items():
            parameter.copy_(state.tensors[f"parameter.{name}"])
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step), device=device if self.optimizer.defaults["fused"] else "cpu"),
                **{name_: state.tensors[f"{name_}.{name}"].to(device) for name_ in ("exp_avg", "exp_avg_sq")},
            }
        average = state.tensors.get("kl_average")
        self._kl_average = None if average is None else average.to(device)

    def _gradients(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """z0 before the clamp, and this process's :data:`SUMS`; its gradients are in the parameters.

        Raises:
            OutOfMemory: and there is no smaller way to compute the step.
        """
        while True:
            try:
                self.optimizer.zero_grad()
                average = self._kl_baseline(rows)
                return average, self._backward(rows, average.clamp(min=0))
            except torch.OutOfMemoryError as error:
                self._make_room(error, rows)
            # Only here are the tensors of the failed pass gone: the error's traceback held them.
            if self.policy.device.type == "cuda":
                torch.cuda.empty_cache()

    def _make_room(self, error: torch.OutOfMemoryError, rows: Sequence[int]) -> None:
        """Fewer tokens in a forward pass, then recomputation, for this step and those that follow; else give up."""
        longest = max(num_tokens(texts[row]) for texts in (self._matched, self._mismatched) if texts for row in rows)
        smaller = self._smaller(longest) if self.section.on_out_of_memory == "accumulate" else {}
        if not smaller or self.workers.size > 1:  # several processes start again together, by what started them
            names = {self.examples[row].trace_id: length for row, length in self._in_pass.items()}
            raise OutOfMemory(
                out_of_memory_message(
                    error,
                    names,
                    self.section,
                    tokens_per_forward=self.tokens_per_forward,
                    recompute=self.is_recomputing,
                ),
                smaller,
            ) from error
        self.tokens_per_forward = smaller.get("tokens_per_forward", self.tokens_per_forward)
        if "gradient_checkpointing" in smaller:
            self.recompute()
        logger.warning(
            "out of memory at step %d: going on with %d tokens in a forward pass%s",
            self.step + 1,
            self.tokens_per_forward,
            ", recomputing activations" * self.is_recomputing,
        )

    def _smaller(self, longest: int) -> dict[str, Any]:
        """Fields of the section that make the passes of a step smaller: fewer tokens, then recomputation, then none."""
        if self.tokens_per_forward > longest:
            return {"tokens_per_forward": max(longest, self.tokens_per_forward // 2)}
        may_recompute = not self.is_recomputing and self.section.gradient_checkpointing != "never"
        return {"gradient_checkpointing": "always"} if may_recompute else {}

    @torch.no_grad()
    def _kl_baseline(self, rows: Sequence[int]) -> Tensor:
        """z0 before the clamp, from the KL pairs of the step's rows or from their moving average; NaN for SFT.

        Implements z0 of Eq. 3 of arXiv 2510.24794; the moving average is ``kl_decay`` × old + (1 − ``kl_decay``) × new.
        """
        if self.reference is None:
            return torch.full((), math.nan, device=self.policy.device)
        old, decay = self._kl_average, self.section.kl_decay
        if old is not None and self.step % self.section.kl_every:
            return old
        new = kl_baseline(*self._kl_pairs(rows, self.reference)).raw
        return new if old is None or not decay else decay * old + (1 - decay) * new

    def _kl_pairs(self, rows: Sequence[int], reference: Reference) -> tuple[Tensor, Tensor]:
        """Summed log-probability of each KL pair's completion under policy and reference, of all processes.

        A row that comes twice in the step (few rows fill an epoch of many) has one pass and counts twice.
        """
        place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        summed = torch.zeros(len(place), device=self.policy.device)
        self.policy.eval()
        for members, is_filler in self._passes(list(place), self._mismatched):
            batch = self._batch(members, self._mismatched)
            logps = batch.by_row(self.policy(batch)).masked_fill(~batch.mask, 0.0).sum(-1)
            if not is_filler:
                summed.index_copy_(0, self._on_device([place[row] for row in members]), logps.to(summed.dtype))
        self.workers.add_up([summed])
        of_rows = summed[self._on_device([place[row] for row in rows])]
        return of_rows, self._on_device([reference.kl_logps[row] for row in rows])

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
                loss, found = self._supervised(logps, batch, num_completion_tokens)
            else:
                loss, found = self._weighted_kto(logps, batch, members, self.reference, clamped_baseline, len(rows))
            (loss * (not is_filler)).backward()
            sums += found * (not is_filler)
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
        """This pass's share of the mean loss over the step's rows (Eq. 2, 4, 9, 11, 12)."""
        is_positive = self._on_device([self.examples[row].is_positive for row in members])
        rewards = implicit_reward(
            logps,
            self._padded([reference.logps[row] for row in members]),
            self._padded([self._weights[row] for row in members]),
            batch.mask,
        )
        losses = kto_loss(
            rewards,
            clamped_baseline,
            is_positive,
            beta=self.section.beta,
            desirable_weight=self.section.desirable_weight,
            undesirable_weight=self.section.undesirable_weight,
        )
        loss = losses.sum() / num_rows
        found = rewards.detach()
        by_class = [sum_ for chosen in (is_positive, ~is_positive) for sum_ in ((found * chosen).sum(), chosen.sum())]
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
            rows, lengths, self.tokens_per_forward, self.workers.size, padded=not self.policy.is_packed
        )
        return [(each.rows, each.is_filler) for each in plans[self.workers.rank]]

    def _batch(self, members: Sequence[int], texts: Sequence[Row]) -> Batch:
        self._in_pass = {row: num_tokens(texts[row]) for row in members}
        return self.policy.batch([texts[row] for row in members])

    def _metrics_row(self, step: int, values: Sequence[float]) -> dict[str, float]:
        found = dict(zip((*SUMS, "grad_norm", "kl_raw"), values, strict=True))
        return {
            "step": step,
            "epoch": step / steps_per_epoch(self.rows_per_epoch, self.section.global_batch_size),
            "loss": found["loss"],
            "reward_positive": _mean(found["reward_positive"], found["num_positive"]),
            "reward_negative": _mean(found["reward_negative"], found["num_negative"]),
            "kl_baseline": max(found["kl_raw"], 0.0) if self.reference else math.nan,
            "kl_raw": found["kl_raw"],
            "grad_norm": found["grad_norm"],
            "learning_rate": self.rate_at(step - 1),
        }

    def _diverged(self, row: Mapping[str, float]) -> str:
        field = "learning_rate" if self.reference else "sft_learning_rate"
        return (
            f"training diverged at step {row['step']} of {self.num_steps}: loss {row['loss']}, gradient norm "
            f"{row['grad_norm']}; lower train.{field} ({self.learning_rate:g}) or train.max_grad_norm"
        )

    def _gradient(self, parameter: Tensor) -> Tensor:
        """The gradient, zero where no token of this process reached the parameter (an expert without tokens)."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def _on_device(self, values: Sequence[bool] | Sequence[int] | Sequence[float]) -> Tensor:
        found: Tensor = send(torch.tensor(values), self.policy.device)
        return found

    def _padded(self, rows: Sequence[Tensor]) -> Tensor:
        found: Tensor = send(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), self.policy.device)
        return found


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
