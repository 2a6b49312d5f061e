"""Section ``train``: the adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored

Variant = Literal["sft", "kto", "mr_align"]


class TrainConfig(Section):
    """LoRA training with the weighted KTO objective and its baselines (Eq. 2–4, 11, 12; Table 13)."""

    variants: tuple[Variant, ...] = ("sft", "kto", "mr_align")
    """What to train, all on the same traces: supervised, KTO (weights 1), MR-ALIGN (weighted)."""
    beta: float = Field(0.1, gt=0, le=10)
    """Scale of the implicit reward (β)."""
    desirable_weight: float = Field(1.0, ge=0)
    """λ_c, weight of positive traces in the loss."""
    undesirable_weight: float = Field(1.5, ge=0)
    """λ_r, weight of negative traces; above 1.5 the paper's training was unstable."""
    lora_r: int = Field(32, ge=1, le=1024)
    """LoRA rank."""
    lora_alpha: int = Field(64, ge=1)
    """LoRA scale."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the LoRA input."""
    target_modules: str = "all-linear"
    """`all-linear`, or module names separated by commas; `experts` stands for the stacked experts of a mixture."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of KTO and MR-ALIGN."""
    sft_learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of SFT."""
    num_epochs: int = Field(3, ge=1, le=1000)
    """Passes over the traces."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of steps over which the learning rate rises; it falls linearly afterwards."""
    global_batch_size: int = Field(64, ge=1, le=65_536)
    """Rows in one optimiser step, over all devices and forward passes (the paper's 2 × 8 on 4 GPUs)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping norm."""
    max_length: int = Field(4096, ge=8)
    """Longest prompt plus completion, in tokens; longer rows are left out and counted, never cut."""
    positives_only: bool = False
    """Leave the negative traces out of KTO and MR-ALIGN too (an ablation; SFT never sees them). The positive ones are
    gone through until as many optimiser steps are taken as with all."""
    kl_every: int = Field(1, ge=1, le=1000)
    """Optimiser steps between two estimates of the KL baseline z0; 1 is exact, more saves forward passes."""
    kl_decay: float = Field(0.0, ge=0, lt=1)
    """Share of the old value that a new estimate of z0 leaves in its moving average; 0 takes the estimate itself."""
    load_in_4bit: bool = False
    """Hold the frozen base model in 4 bits (NF4) while training; needs the package bitsandbytes."""
    engine: Literal["own", "trl"] = "own"
    """What trains: `own`, this project's loop, or `trl`, the trainers of TRL (docs/trl.md says what each can do)."""
    rows_per_forward: int = Field(8, ge=2, le=4096)
    """Rows of a forward pass of engine `trl`, of which it estimates z0; `global_batch_size` is a multiple of it."""
    trace_logps: bool = Field(False, json_schema_extra=OPERATIONAL)
    """After training, compute each variant's log-probabilities of all training traces, for `mralign view`: before and
    after, implicit reward and KL of every trace and segment. Costs one forward pass over the traces a variant, where an
    epoch costs about four; and the reference's, where only `sft` is trained. Off because training does not need it and
    it can be asked for later: a run with it on finds the adapters made, and adds this."""
    tokens_per_forward: int = Field(8192, ge=1, json_schema_extra=OPERATIONAL)
    """Most tokens in one forward pass of one device; the rows of a step that exceed it are accumulated. A single longer
    row makes a pass of its own. Of engine `trl` only those of the reference, and those behind `trace_logps`."""
    gradient_checkpointing: Literal["auto", "always", "never"] = Field("auto", json_schema_extra=OPERATIONAL)
    """Recompute activations in the backward pass to save memory; `auto` where they would not fit."""
    on_out_of_memory: Literal["accumulate", "stop"] = Field("accumulate", json_schema_extra=OPERATIONAL)
    """What to do when a device runs out of memory: halve `tokens_per_forward` and go on, or stop."""
    checkpoint_minutes: float = Field(10.0, ge=0, json_schema_extra=OPERATIONAL)
    """Minutes between two checkpoints in the store, from which a killed training goes on; 0 writes none."""
    accelerate_config: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """File for `accelerate launch --config_file`, such as `deployments/accelerate/ddp-4gpu.yaml`: train in the
    processes that it describes; empty trains in this process."""
    report_to: Literal["tensorboard", "wandb", "none"] = Field("tensorboard", json_schema_extra=OPERATIONAL)
    """Where the curves go while training runs; `wandb` needs that package and a login."""
    log_folder: LocalPath = Field(".mralign/tensorboard", min_length=1, json_schema_extra=OPERATIONAL)
    """Folder of TensorBoard's files: `tensorboard --logdir` shows it."""
    where: Literal["inline", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Train in the pipeline's own process, or as a child run of deployment `stage-train` on the GPU work pool."""

    @field_validator("variants")
    @classmethod
    def _distinct(cls, value: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("train.variants must name at least one variant, each once")
        return value

    @model_validator(mode="after")
    def _something_is_learnt(self) -> TrainConfig:
        weights = [self.desirable_weight] if self.positives_only else [self.desirable_weight, self.undesirable_weight]
        if not any(weights) and set(self.variants) != {"sft"}:
            which = "train.positives_only leaves only the positive traces, and train.desirable_weight (λ_c) is 0"
            both = "train.desirable_weight (λ_c) and train.undesirable_weight (λ_r) are both 0"
            raise ValueError(
                f"{which if self.positives_only else both}, so that KTO and MR-ALIGN would learn nothing: raise one, "
                "or train only sft"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_serves_it(self) -> TrainConfig:
        if self.engine == "own":
            refuse_ignored(self, "train", ["rows_per_forward"], "when train.engine is 'own'")
            return self
        ways = "when train.engine is 'trl', which has nothing like it (or set train.engine to 'own')"
        refuse_ignored(self, "train", ["kl_every", "kl_decay"], ways)
        if self.accelerate_config:
            raise ValueError(
                "train.accelerate_config has no effect when train.engine is 'trl', which trains in one process: remove "
                "it, set train.engine to 'own', or start a script of your own by accelerate launch (docs/trl.md)"
            )
        if self.global_batch_size % self.rows_per_forward:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of train.rows_per_forward "
                f"{self.rows_per_forward}, as train.engine 'trl' needs it: change one of them"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """The fields that can change an output; the engine's only where it is not our own, whose keys are older."""
        values = super().fingerprint()
        of_trl = () if self.engine == "trl" else ("engine", "rows_per_forward")
        return {name: value for name, value in values.items() if name not in of_trl}

    def settings_of(self, variant: Variant) -> dict[str, Any]:
        """The settings that can change the adapter of a variant."""
        kto = (
            "beta",
            "desirable_weight",
            "undesirable_weight",
            "learning_rate",
            "positives_only",
            "kl_every",
            "kl_decay",
        )
        without_effect = {"variants", *(kto if variant == "sft" else ("sft_learning_rate",))}
        return {name: value for name, value in self.fingerprint().items() if name not in without_effect}
