"""Section ``ablate``: arms, compared on the same questions."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from mralign_core.config.arms import ARMS, GROUND_FIELDS, OF_ACCOUNTS, ONLY, Arm
from mralign_core.config.base import OPERATIONAL, Section
from mralign_core.config.train import Variant
from mralign_core.reporting.titles import VARIANT_TITLES


class ArmConfig(Section):
    """An arm of your own in an ablation: what it trains, and where it differs from the run's config."""

    title: str = Field("", max_length=40)
    """What tables and figures call it; empty takes its name."""
    variant: Variant = "mr_align"
    """What is trained."""
    set: dict[str, Any] = Field({})
    """Dotted field → value, such as `reward.clip_max: 4`: fields of `estimate`, `reward` and `train`, and what gives an
    arm a model or traces of its own, such as `model.path`, `questions.train` or `generate.traces_path`
    (docs/ablations.md lists them). All arms share the evaluation."""

    @model_validator(mode="after")
    def _fields_have_effect(self) -> ArmConfig:
        sections = ("estimate.", "reward.", "train.") if self.variant == "mr_align" else ("train.",)
        for name in self.set:
            if name not in GROUND_FIELDS and (not name.startswith(sections) or name == "train.variants"):
                allowed = ", ".join([*(f"{section}*" for section in sections), *GROUND_FIELDS])
                raise ValueError(f"set {name!r}: an arm of variant {self.variant!r} may differ only in {allowed}")
        return self


class AblateConfig(Section):
    """An ablation: arms compared in pairs over worlds, or over seeds, on the same questions (`mralign ablate`)."""

    arms: tuple[str, ...] = (
        "sft",
        "kto",
        "mr_align",
        "contrast",
        "mean_one",
        "placebo_within",
        "placebo_others",
        "placebo_polarity",
    )
    """Which arms to train (docs/ablations.md lists them); think-off and think-on are always scored too. `only_NAME`
    trains on that set of `questions.train` alone."""
    extra_arms: dict[str, ArmConfig] = Field({})
    """Arms of your own, by name; to be named in `arms` too."""
    num_worlds: int = Field(1, ge=1, le=1000)
    """Pocket worlds, each with a model of its own: the units that intervals are over. Other models have one world."""
    first_world: int = Field(0, ge=0)
    """`model.pocket.world_seed` of the first world; the others follow it."""
    max_refused_worlds: int = Field(4, ge=0, le=1000)
    """Worlds whose model may fail the quality gate; each is named and replaced by the next. One more ends the run."""
    num_seeds: int = Field(1, ge=1, le=100)
    """Alignment seeds in each world, from the run's `seed` on; they share its traces and labels."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    smallest_effect: float = Field(0.005, gt=0, lt=1)
    """Difference in Acc or Mis, as a share, that would be worth having: an interval within ± this rules one out."""
    where: Literal["inline", "deployment"] = Field("inline", json_schema_extra=OPERATIONAL)
    """Worlds run one after another in this process, or as child runs of deployment `share-ablate-world`."""

    @property
    def known_arms(self) -> dict[str, Arm]:
        """Every arm that can be chosen, by name, but for those of single question sets."""
        own = {name: Arm(arm.title or name, arm.variant, arm.set) for name, arm in self.extra_arms.items()}
        return {**ARMS, **own}

    @property
    def num_accounts(self) -> int:
        """How many pairs of a model and a file of traces the chosen arms have: ceilings of dollars hold for each."""
        accounts = set()
        for name in self.arms:
            arm = self.known_arms.get(name)  # none of one that has a set of its own, and spends from the run's
            of_its_own = {
                field: value for field, value in (arm.overrides if arm else {}).items() if field in OF_ACCOUNTS
            }
            accounts.add(repr(sorted(of_its_own.items())))
        return len(accounts)

    @model_validator(mode="after")
    def _arms_are_known(self) -> AblateConfig:
        for name in self.extra_arms:
            taken = name in {**ARMS, **VARIANT_TITLES} or name.startswith(ONLY)
            if taken or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", name):
                raise ValueError(
                    f"ablate.extra_arms.{name}: take another name, of lower-case letters, digits, _ . -, that does not "
                    f"begin with {ONLY}, and none of {', '.join({**ARMS, **VARIANT_TITLES})}"
                )
        if unknown := [name for name in self.arms if name not in self.known_arms and not name.startswith(ONLY)]:
            raise ValueError(
                f"ablate.arms: unknown arm {unknown[0]!r}; there are "
                f"{', '.join(self.known_arms)}, and {ONLY}NAME for each of several sets of questions.train"
            )
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError("ablate.arms must name at least one arm, each once")
        return self
