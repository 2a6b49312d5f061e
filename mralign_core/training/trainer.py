"""The weighted KTO objective, and supervised fine-tuning, on the loop of ``transformers.Trainer``.

Departures from the paper and from TRL 1.16:

* Reduction is over all rows of an optimiser step, and so is z0: how a step is split into forward batches
  changes nothing. TRL estimates z0 in each forward batch, which is the same without accumulation.
* Reference log-probabilities come from the same weights with the adapter switched off, in evaluation mode.
* Rewards are reported as Eq. 9 has them, in nats; TRL reports them times β.

Shape suffixes: B rows of the forward batch, T columns (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.method.objective import implicit_reward, kl_baseline, kto_loss
from mralign_core.training.collator import IGNORED, TrainingRows, collate
from mralign_core.training.examples import TrainingExample
from mralign_core.training.sampler import EpochSampler

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each optimiser step with the step, the number of steps and the row of ``training_metrics``."""


def token_logps(model: Any, batch: dict[str, Any], prefix: str = "") -> Tensor:
    """Log-probability of every completion token given what stands before it.

    Logits are computed only for the columns that hold completion tokens, and in float32.

    Args:
        model: a causal language model.
        batch: what :func:`mralign_core.training.collator.collate` returns.
        prefix: ``kl_`` for the mismatched sequences.

    Returns:
        float32 of shape (B, T), 0 wherever the label is ignored.
    """
    input_ids_BT, labels_BT = batch[f"{prefix}input_ids"], batch[f"{prefix}labels"]
    num_scored = batch[f"{prefix}num_scored"]
    logits = model(
        input_ids=input_ids_BT,
        attention_mask=batch[f"{prefix}attention_mask"],
        logits_to_keep=num_scored + 1,
        use_cache=False,
    ).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels_BT[:, -num_scored:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    logps = -losses.view(len(input_ids_BT), num_scored)
    return functional.pad(logps, (input_ids_BT.shape[1] - num_scored, 0))


class AdapterTrainer(Trainer):
    """What KTO and SFT share: the order of rows, reduction over an optimiser step, a metrics row a step.

    Args:
        model: a model with an adapter, which alone is trained.
        args: see :func:`training_arguments`.
        section: the train section of the config.
        examples: rows to train on.
        rows_per_epoch: rows seen in an epoch; more than there are examples means that they come again.
        seed: decides the order of the rows.
        on_progress: called after each optimiser step.

    Raises:
        ConfigError: several processes or several visible GPUs.
    """

    loss_is_scaled_for_ga = True
    paired = False

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments,
        *,
        section: TrainConfig,
        examples: Sequence[TrainingExample],
        rows_per_epoch: int,
        seed: int,
        on_progress: Progress | None = None,
    ) -> None:
        if args.world_size > 1 or args.n_gpu > 1:
            raise ConfigError(
                f"training runs on one device, got {args.world_size} process(es) with {args.n_gpu} GPU(s); "
                "make one visible with CUDA_VISIBLE_DEVICES and raise train.gradient_accumulation instead"
            )
        self.section = section
        self.peft_model = model
        self.examples = examples
        self.rows_per_epoch = rows_per_epoch
        self.order_seed = seed
        self.on_progress = on_progress
        self.metrics: list[dict[str, float]] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=TrainingRows(examples),
            data_collator=collate,
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(
            self.examples,
            rows_per_epoch=self.rows_per_epoch,
            rows_per_step=self.section.batch_size * self.section.gradient_accumulation,
            seed=self.order_seed,
            paired=self.paired,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Fetch the forward batches of one optimiser step, and work out what they share."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._prepare_inputs(batch) for batch in batches]
        self.peft_model.eval()
        with torch.no_grad():
            self.begin_step(batches)
        return batches, None

    def begin_step(self, batches: list[dict[str, Any]]) -> None:
        """Compute what all forward batches of a step need, in evaluation mode and without gradient."""
        raise NotImplementedError

    def step_metrics(self) -> dict[str, float]:
        """The objective's own metrics of the step that just ended."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a row to ``metrics`` and report it; the summary at the end of training is not a step."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        step = self.state.global_step
        names = ("epoch", "loss", "grad_norm", "learning_rate")
        row = {"step": step, **{name: float(logs[name]) for name in names}, **self.step_metrics()}
        self.metrics.append(row)
        if self.on_progress is not None:
            self.on_progress(step, self.state.max_steps, row)


class StepState(NamedTuple):
    """What the forward batches of a KTO step share, and the rewards they leave behind for the metrics."""

    num_rows: int
    kl_raw: Tensor
    kl_clamped: Tensor
    rewards: list[Tensor]
    is_positive: list[Tensor]


class WeightedKTOTrainer(AdapterTrainer):
    """KTO on weighted log-ratios: MR-ALIGN, and with all weights 1 plain KTO.

    Implements Eq. 2–4, 9, 11 and 12 of arXiv 2510.24794.
    """

    paired = True
    step: StepState

    def begin_step(self, batches: list[dict[str, Any]]) -> None:
        """Estimate z0 from all mismatched pairs of the step, and add ``reference_logps`` to each batch."""
        policy = [token_logps(self.peft_model, batch, "kl_").sum(-1) for batch in batches]
        with self.peft_model.disable_adapter():
            reference = [token_logps(self.peft_model, batch, "kl_").sum(-1) for batch in batches]
            for batch in batches:
                batch["reference_logps"] = token_logps(self.peft_model, batch)
        baseline = kl_baseline(torch.cat(policy), torch.cat(reference))
        num_rows = sum(len(batch["input_ids"]) for batch in batches)
        self.step = StepState(num_rows, baseline.raw, baseline.clamped, [], [])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This batch's share of the mean loss over the step's rows."""
        rewards_B = implicit_reward(
            token_logps(model, inputs),
            inputs["reference_logps"],
            inputs["weights"],
            inputs["labels"] != IGNORED,
        )
        losses_B = kto_loss(
            rewards_B,
            self.step.kl_clamped,
            inputs["is_positive"],
            beta=self.section.beta,
            desirable_weight=self.section.desirable_weight,
            undesirable_weight=self.section.undesirable_weight,
        )
        self.step.rewards.append(rewards_B.detach())
        self.step.is_positive.append(inputs["is_positive"])
        return losses_B.sum() / self.step.num_rows

    def step_metrics(self) -> dict[str, float]:
        """Mean reward of each class (NaN where the step has none), and z0 raw and clamped."""
        rewards, is_positive = torch.cat(self.step.rewards), torch.cat(self.step.is_positive)
        return {
            "reward_positive": rewards[is_positive].mean().item(),
            "reward_negative": rewards[~is_positive].mean().item(),
            "kl_baseline": self.step.kl_clamped.item(),
            "kl_raw": self.step.kl_raw.item(),
        }


class SupervisedTrainer(AdapterTrainer):
    """Supervised fine-tuning: mean cross-entropy over the completion tokens of an optimiser step."""

    num_tokens: Tensor

    def begin_step(self, batches: list[dict[str, Any]]) -> None:
        """Count the completion tokens of the step."""
        self.num_tokens = torch.stack([(batch["labels"] != IGNORED).sum() for batch in batches]).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This batch's share of the mean loss over the step's completion tokens."""
        return -token_logps(model, inputs).sum() / self.num_tokens

    def step_metrics(self) -> dict[str, float]:
        """SFT has neither rewards nor a KL baseline."""
        return dict.fromkeys(("reward_positive", "reward_negative", "kl_baseline", "kl_raw"), float("nan"))


def training_arguments(
    section: TrainConfig, *, learning_rate: float, seed: int, output_dir: str, on_cpu: bool
) -> TrainingArguments:
    """Loop settings: linear warm-up and decay, Adam (AdamW without decay), a log a step, no files, no output.

    Args:
        section: the train section of the config.
        learning_rate: peak learning rate.
        seed: seed of dropout.
        output_dir: an existing folder; nothing is written there.
        on_cpu: train on the CPU even where there is a GPU.
    """
    return TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        num_train_epochs=section.num_epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=section.warmup_ratio,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=section.max_grad_norm,
        activation_checkpointing=section.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        use_cpu=on_cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu,
    )
