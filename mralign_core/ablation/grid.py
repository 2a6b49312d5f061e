"""The grid of an ablation: the config of every arm, world and seed, and the pairs of arms to compare.

An alignment seed changes what comes after the labels: the bootstrap of P, placebos, training, and the random numbers of
the evaluation, which all arms of a seed share. Traces and labels are those of the run's own ``seed``, once a world.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from mralign_core.config import EstimateConfig, RunConfig, Variant, overridden
from mralign_core.errors import ConfigError
from mralign_core.method.benchmarks import SCORINGS
from mralign_core.questions.locating import locate_sets

logger = logging.getLogger("mralign_core.ablation")
BASELINE = "on"
"""Think-on, the untrained model: what every arm is compared with."""


class GridArm(NamedTuple):
    """An arm of this run: its name in tables, the variant that is trained, where it differs, and its whole config."""

    title: str
    variant: Variant
    overrides: Mapping[str, Any]
    config: RunConfig

    @property
    def is_placebo(self) -> bool:
        """Whether its weights are not what they pretend to be."""
        return self.variant == "mr_align" and self.config != _without_placebo(self.config)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for arms that would train the same adapter."""
        weighted = (self.config.estimate, self.config.reward) if self.variant == "mr_align" else ()
        return (self.variant, tuple(self.config.train.settings_of(self.variant).items()), *weighted)


def arms_of(config: RunConfig) -> dict[str, GridArm]:
    """The chosen arms by name, each with its config.

    Raises:
        ConfigError: an arm's fields are not valid beside the run's, two arms come to the same, or there is nothing to
            score them on.
    """
    if not config.questions.eval:
        raise ConfigError("questions.eval names no set: arms are compared on held-out questions")
    arms: dict[str, GridArm] = {}
    for name in config.ablate.arms:
        title, variant, overrides = config.ablate.known_arms[name]
        fields = {**overrides, "train.variants": [variant]}
        arm = GridArm(title, variant, overrides, overridden(config, fields, origin=f"arm {name!r}"))
        if same := [other for other in arms if arms[other].identity == arm.identity]:
            raise ConfigError(
                f"ablate.arms: {name!r} would train the same adapter as {same[0]!r} under this config; take one out, "
                "or take back the field of this config that makes them equal"
            )
        arms[name] = arm
    return arms


def require_comparable_sets(config: RunConfig) -> None:
    """Refuse held-out sets of which none is scored by comparing texts, and warn of what arms are not evaluated with.

    Raises:
        ConfigError: only a judge could score them.
    """
    held_out = [one for one in locate_sets(config.questions) if one.role == "eval"]
    if not any(SCORINGS[one.scoring].is_right for one in held_out):
        raise ConfigError(
            f"questions.eval: {', '.join(one.name for one in held_out)} can only be scored by a judge, and arms are "
            "compared by gold answers: add a set that has them, such as nq_open"
        )
    section = config.evaluate
    unused = {
        "evaluate.self_refine": section.self_refine.rounds is not None,
        "evaluate.retrieval": section.retrieval.corpus,
        "judge": config.judge.endpoints,
    }
    if names := [name for name, is_set in unused.items() if is_set]:
        logger.warning("an ablation compares arms on bare questions, by gold answers: %s not used", ", ".join(names))


def arm_comparisons(arms: Mapping[str, GridArm]) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs to compare.

    Every arm with think-on and with KTO; an arm with its placebos; and any other weighted arm with MR-ALIGN.
    """
    weighted = [name for name, arm in arms.items() if arm.variant == "mr_align"]
    placebos = [name for name in weighted if arms[name].is_placebo]
    with_on = [(name, BASELINE) for name in arms]
    with_kto = [(name, "kto") for name in arms if "kto" in arms and name != "kto"]
    with_placebo = [(name, placebo) for placebo in placebos for name in weighted if _is_real(arms[name], arms[placebo])]
    others = [name for name in weighted if name not in placebos and name != "mr_align"]
    with_ours = [(name, "mr_align") for name in others if "mr_align" in arms]
    return [*with_on, *with_kto, *with_placebo, *with_ours]


def oracle_pairs(arms: Mapping[str, GridArm]) -> list[tuple[str, str]]:
    """Each weighted arm with the arm, if there is one, that makes weights in the same way of the oracle's matrices."""
    weighted = {name: arm for name, arm in arms.items() if arm.variant == "mr_align" and not arm.is_placebo}
    oracles = {name: arm for name, arm in weighted.items() if arm.config.estimate.estimator == "oracle"}
    return [
        (name, oracle)
        for name, arm in weighted.items()
        for oracle, truth in oracles.items()
        if name not in oracles and _but_for_estimate(arm.config) == _but_for_estimate(truth.config)
    ]


def seeds_of(config: RunConfig) -> list[RunConfig]:
    """The config of each alignment seed."""
    return [config.model_copy(update={"seed": config.seed + number}) for number in range(config.ablate.num_seeds)]


def worlds_of(config: RunConfig) -> dict[int, RunConfig]:
    """World → its config: those wanted, then those that may replace refused ones; 0 where the model is no pocket's.

    Each has a name of its own, so that what it makes does not pass for the run's last.
    """
    ablate, pocket = config.ablate, config.model.pocket
    inline = ablate.model_copy(update={"where": "inline"})
    if config.model.source != "pocket":
        return {0: config.model_copy(update={"name": _name(config, "ablation"), "ablate": inline})}
    first, past = ablate.first_world, ablate.first_world + ablate.num_worlds + ablate.max_refused_worlds
    return {
        world: config.model_copy(
            update={
                "name": _name(config, f"world-{world}"),
                "ablate": inline,
                "model": config.model.model_copy(
                    update={"pocket": pocket.model_copy(update={"world_seed": world})},
                ),
            }
        )
        for world in range(first, past)
    }


def _name(config: RunConfig, suffix: str) -> str:
    return f"{config.name[: 63 - len(suffix)]}-{suffix}"


def _is_real(arm: GridArm, placebo: GridArm) -> bool:
    """Whether the placebo is this very arm but for its weights' meaning."""
    return not arm.is_placebo and arm.config == _without_placebo(placebo.config)


def _but_for_estimate(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"estimate": EstimateConfig()})


def _without_placebo(config: RunConfig) -> RunConfig:
    off: dict[str, Any] = {
        "reward": config.reward.model_copy(update={"placebo": "none"}),
        "estimate": config.estimate.model_copy(update={"permute_polarity": False}),
    }
    return config.model_copy(update=off)
