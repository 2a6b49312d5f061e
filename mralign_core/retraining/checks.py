"""What a retraining refuses before it begins."""

from __future__ import annotations

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.evaluation.decisions import NUM_FLIPS
from mralign_core.method.benchmarks import SCORINGS
from mralign_core.questions.locating import locate_sets
from mralign_core.retraining.gate import level_of
from mralign_core.versions.registry import check_registry


def check_retraining(config: RunConfig) -> None:
    """Refuse a config whose retraining could decide nothing.

    Raises:
        ConfigError: no question is held out; the variant is not trained; a comparison has so little of the error that
            the test can't show anything; or what speaks to the registry is not installed.
    """
    check_registry(config.retrain.registry)
    if not config.questions.eval:
        raise ConfigError("questions.eval names no set, so no model can be compared with the champion: name one")
    if config.retrain.variant not in config.train.variants:
        raise ConfigError(
            f"retrain.variant {config.retrain.variant!r} is not among train.variants "
            f"({', '.join(config.train.variants)}): add it, or name one of them"
        )
    if (level := level_of(config.retrain.gate)) < 1 / NUM_FLIPS:
        raise ConfigError(
            f"retrain.gate: (1 − confidence) / comparisons is {level:.2g}, and {NUM_FLIPS:,} sign flips show nothing "
            f"below {1 / NUM_FLIPS:.0e}: lower confidence or comparisons"
        )


def check_held_out(config: RunConfig) -> None:
    """Refuse held-out questions that nothing scores.

    Args:
        config: with every reference pinned.

    Raises:
        ConfigError: every set needs a judge, and none is named.
        DataError: a set is not there.
    """
    held_out = [one for one in locate_sets(config.questions) if one.role == "eval"]
    if not config.judge.endpoints and not any(SCORINGS[one.scoring].is_right for one in held_out):
        raise ConfigError(
            "every set of questions.eval needs a judge, and judge.endpoints names none, so no model can be compared "
            "with the champion: name a judge, or a set that is compared with gold answers"
        )
