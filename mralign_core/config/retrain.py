"""Section ``retrain``: what a retraining trains, and when its model takes the champion's place."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mralign_core.config.base import Section, refuse_ignored
from mralign_core.config.registry import RegistryConfig
from mralign_core.config.train import Variant


class GateConfig(Section):
    """What a challenger must show against the champion, on the same questions with the same random numbers."""

    min_gain: float = Field(0.02, ge=0, lt=1)
    """The least gain worth a promotion, as a share: in Mis, or where no set has it, in the main metric."""
    max_loss: float = Field(0.01, ge=0, lt=1)
    """Acc must be shown to be worse by no more than this share; what is shown worse, and is so by more, rejects."""
    max_part_loss: float = Field(0.05, ge=0, lt=1)
    """A set or stratum that is shown to be worse, and is so by more than this share, rejects: in its main metric, also
    a judge's, or in Mis."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """1 − the chance to promote an equal model once in all comparisons."""
    comparisons: int = Field(52, ge=1, le=100_000)
    """Comparisons that the held-out questions may decide, of all configs on the store: each uses its share of that
    chance. After them the gate promotes nothing until nine tenths of the questions are others."""
    max_unlabelled: float = Field(0.1, ge=0, le=1)
    """Refuse a model that was trained where more than this share of the segments got no label, or of the traces none
    because annotators failed."""
    min_agreement: float = Field(0.4, ge=0, le=1)
    """Refuse one where the two annotators agreed on less than this share of the labelled segments."""


class RetrainConfig(Section):
    """A retraining: when it has something to do, and what becomes of the model it trains."""

    variant: Variant = "mr_align"
    """What the champion is; it must be among train.variants."""
    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    """The alias that names the champion, on the whole store: configs that train different models need different ones.
    """
    mode: Literal["auto", "ask"] = "auto"
    """Move the alias when the gate says so, or let the run wait for a person first."""
    ask_timeout_h: float = Field(24.0, gt=0, le=720)
    """Hours that a run waits for the person; after them the champion stays."""
    train_on: Literal["all", "new", "replay"] = "all"
    """Which traces the next champion is trained on: all; those of questions that are new to the champion; or these and
    a share of the others. Labels and matrices are of all traces either way, and before there is a champion it is
    trained on all."""
    replay_share: float = Field(0.2, gt=0, lt=1)
    """Share of the questions that the champion knows whose traces are trained on again, where train_on is 'replay'."""
    beyond: str = Field("", pattern=r"^([a-z_]+-[0-9a-f]{64})?$")
    """Version to which questions are new, by its full id; empty for the one that the alias names when a retraining
    begins, which is put here."""
    gate: GateConfig = GateConfig()
    budget_usd_a_month: float | None = Field(None, gt=0)
    """Dollars that all runs on this store may have paid in a calendar month (UTC) when a retraining starts; empty for
    no ceiling. annotate.budget_usd bounds what is paid for one set of traces."""
    clears_store: bool = False
    """Remove from the store, at the end of a retraining, what storage.retention does not keep. All versions stay, with
    what they were made from, unless storage.retention.unnamed_versions says how many."""
    quiet_runs: int = Field(4, ge=1, le=1000)
    """Retrainings without new questions after which an event says so."""
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> RetrainConfig:
        if self.mode == "auto":
            refuse_ignored(self, "retrain", ("ask_timeout_h",), "when retrain.mode is 'auto'")
        if self.registry.aliases and self.alias not in self.registry.aliases:
            raise ValueError(
                f"retrain.registry.aliases leaves out {self.alias!r}, the alias that the retraining moves: add it"
            )
        if self.train_on != "replay":
            refuse_ignored(self, "retrain", ("replay_share",), f"when retrain.train_on is {self.train_on!r}")
        if self.train_on == "all":
            refuse_ignored(self, "retrain", ("beyond",), "when retrain.train_on is 'all'")
        return self
