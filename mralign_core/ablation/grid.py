"""The grid of an ablation: the config of every arm, world and seed, and the pairs of arms to compare.

Arms that have the same model and train on the same traces stand on one ground; most stand on the run's own. What arms
of several grounds share, such as the draws of a question, is made once all the same, since keys go by content.

An alignment seed changes what comes after the labels: the bootstrap of P, placebos, training, and the random numbers of
the evaluation, which all arms of a seed share. Traces and labels are those of the run's own ``seed``, once a world.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mralign_core.config import EstimateConfig, EvaluateConfig, GenerateConfig, RunConfig, Variant, overridden
from mralign_core.config.arms import GROUND_FIELDS, ONLY, Arm
from mralign_core.errors import ConfigError
from mralign_core.method.benchmarks import SCORINGS
from mralign_core.questions.locating import locate_sets

logger = logging.getLogger("mralign_core.ablation")
BASELINE = "on"
"""Think-on, the untrained model: what every arm is compared with."""


class GridArm(NamedTuple):
    """An arm of this run.

    Args:
        title: its name in tables.
        variant: what is trained.
        overrides: where it differs from the run.
        config: its whole config.
        backbone: the first arm that has its model; empty for the run's own model.
    """

    title: str
    variant: Variant
    overrides: Mapping[str, Any]
    config: RunConfig
    backbone: str = ""

    @property
    def is_placebo(self) -> bool:
        """Whether its weights are not what they pretend to be."""
        return self.variant == "mr_align" and self.config != _without_placebo(self.config)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for arms that would train the same adapter."""
        weighted = (self.config.estimate, self.config.reward) if self.variant == "mr_align" else ()
        return (self.variant, self.ground, tuple(self.config.train.settings_of(self.variant).items()), *weighted)

    @property
    def ground(self) -> str:
        """Equal for arms that have the same model and train on the same traces."""
        return _ground(self.config)

    @property
    def differs_in_data(self) -> bool:
        """Whether it trains on other traces than the run, with the run's model."""
        return not self.backbone and any(name in GROUND_FIELDS for name in self.overrides)


class Ground(NamedTuple):
    """What arms share that have the same model and train on the same traces.

    Args:
        arms: their names.
        backbone: the first arm that has this model; empty for the run's own model.
        config: of the run, with this model and these traces.
    """

    arms: tuple[str, ...]
    backbone: str
    config: RunConfig


def arms_of(config: RunConfig) -> dict[str, GridArm]:
    """The chosen arms by name, each with its config.

    Raises:
        ConfigError: an arm's fields are not valid beside the run's, two arms come to the same, or there is nothing to
            score them on.
    """
    if not config.questions.eval:
        raise ConfigError("questions.eval names no set: arms are compared on held-out questions")
    arms: dict[str, GridArm] = {}
    backbones = {repr(config.model): ""}
    known = known_arms(config)
    for name in config.ablate.arms:
        title, variant, overrides = known[name]
        fields = {**_of_its_own_model(overrides), **overrides, "train.variants": [variant]}
        its_config = overridden(config, fields, origin=f"arm {name!r}")
        _check_ground(name, its_config, config)
        backbone = backbones.setdefault(repr(its_config.model), name)
        arm = GridArm(title, variant, overrides, its_config, backbone)
        if same := [other for other in arms if arms[other].identity == arm.identity]:
            raise ConfigError(
                f"ablate.arms: {name!r} would train the same adapter as {same[0]!r} under this config; take one out, "
                "or take back the field of this config that makes them equal"
            )
        arms[name] = arm
    return arms


def known_arms(config: RunConfig) -> dict[str, Arm]:
    """Every arm that can be chosen, by name; of several sets to align on each has one, that trains on it alone.

    Raises:
        ConfigError: an arm is named after a set of ``questions.train`` that is not there, or is the only one.
    """
    wanted = [name for name in config.ablate.arms if name.startswith(ONLY)]
    if not wanted:
        return config.ablate.known_arms
    sets = dict.fromkeys(one.name for one in locate_sets(config.questions) if one.role == "train")
    single = {
        f"{ONLY}{name}": Arm(f"{name} only", "mr_align", {"questions.train_on": [name]})
        for name in (sets if len(sets) > 1 else ())
    }
    if unknown := [name for name in wanted if name not in single]:
        there = f"there are {', '.join(single)}" if single else f"questions.train has {len(sets)} set(s): name several"
        raise ConfigError(f"ablate.arms: {unknown[0]!r} trains on one of several sets of questions.train; {there}")
    return {**config.ablate.known_arms, **single}


def grounds_of(config: RunConfig) -> list[Ground]:
    """The grounds of the chosen arms, each with its config.

    Those beside the run's own have a name of their own, so that what they make does not pass for the run's last.
    """
    grounds: dict[str, Ground] = {}
    for name, arm in arms_of(config).items():
        ground = grounds.get(arm.ground) or Ground((), arm.backbone, _on_ground(config, arm.config, name))
        grounds[arm.ground] = ground._replace(arms=(*ground.arms, name))
    return list(grounds.values())


def arms_on(ground: Ground, config: RunConfig) -> dict[str, GridArm]:
    """The arms of a ground under this config, such as one of another seed, with what its references were pinned to."""
    pinned = {name: getattr(ground.config, name) for name in ("name", "model", "questions", "generate")}
    return {
        name: arm._replace(config=arm.config.model_copy(update=pinned))
        for name, arm in arms_of(config).items()
        if name in ground.arms
    }


def untrained(variant: str, backbone: str) -> str:
    """What think-off or think-on is called among the arms: of another model, with the first arm that has it."""
    return f"{variant}@{backbone}" if backbone else variant


def _on_ground(config: RunConfig, its_config: RunConfig, name: str) -> RunConfig:
    if _ground(its_config) == _ground(config):
        return config
    own = {section: getattr(its_config, section) for section in ("model", "questions", "generate")}
    return config.model_copy(update={**own, "name": _name(config, name.lower())})


def _ground(config: RunConfig) -> str:
    questions = config.questions
    return repr((config.model, questions.train, questions.train_on, config.generate.traces_path))


def _of_its_own_model(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of the run's model, and not of another."""
    return {"model.revision": "", "model.family": "auto"} if {"model.path", "model.source"} & set(overrides) else {}


def _check_ground(name: str, its_config: RunConfig, config: RunConfig) -> None:
    """Refuse, before anything is made, an arm whose model is not sampled or whose traces are not there."""
    path = its_config.generate.traces_path
    if path and not Path(path).is_file():
        raise ConfigError(f"arm {name!r}: generate.traces_path {path} is not a file: name one, or take the arm out")
    if its_config.model == config.model:
        return
    sampling: dict[str, GenerateConfig | EvaluateConfig] = {"evaluate": its_config.evaluate}
    if its_config.generate.source == "sample":
        sampling["generate"] = its_config.generate
    for stage, section in sampling.items():
        if section.sampler == "endpoint" and not its_config.vllm.starts_for(section):
            raise ConfigError(
                f"arm {name!r} has another model, and {stage}.sampler 'endpoint' samples from the one that your server "
                f"serves: set {stage}.sampler to transformers or vllm, let the stage start the server "
                "(docs/samplers.md), or compare runs of their own"
            )


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

    Every arm with think-on of its model and with KTO on its model; an arm with its placebos; and any other weighted arm
    of the run's model with MR-ALIGN. Arms of different models are not compared: their difference is the models'.
    """
    weighted = [name for name, arm in arms.items() if arm.variant == "mr_align"]
    placebos = [name for name in weighted if arms[name].is_placebo]
    with_on = [(name, untrained(BASELINE, arm.backbone)) for name, arm in arms.items()]
    with_kto = [(name, kto) for name in arms if (kto := _kto_of(arms, name)) not in ("", name)]
    with_placebo = [(name, placebo) for placebo in placebos for name in weighted if _is_real(arms[name], arms[placebo])]
    others = [name for name in weighted if name not in (*placebos, "mr_align") and not arms[name].backbone]
    with_ours = [(name, "mr_align") for name in others if "mr_align" in arms]
    return [*with_on, *with_kto, *with_placebo, *with_ours]


def _kto_of(arms: Mapping[str, GridArm], name: str) -> str:
    """The KTO arm to compare an arm with: one on its ground, else the run's own for arms of its model, else none.

    Of several on a ground it is the one that differs least from the run's own, which is compared with none of them.
    """
    arm = arms[name]
    if arm.backbone or arm.differs_in_data:
        on_ground = [other for other, kto in arms.items() if kto.variant == "kto" and kto.ground == arm.ground]
        plain = min(on_ground, key=lambda other: len(set(arms[other].overrides) - set(GROUND_FIELDS)), default=name)
        if plain != name:
            return plain
    return "kto" if "kto" in arms and not arm.backbone else ""


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
