"""How much a pass of training may hold, and what to do where it was too much."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from mralign_core.config import TrainConfig
from mralign_core.errors import OutOfMemory

logger = logging.getLogger("mralign_core.training")


class PassSize(NamedTuple):
    """The size of forward passes. It changes no result beyond rounding."""

    tokens: int
    """Most tokens in one pass; a longer row has a pass of its own."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass, rather than kept."""

    def smaller(self, longest: int, *, may_recompute: bool) -> PassSize | None:
        """Half as many tokens down to the longest row, which costs no operations; then recomputation; then None.

        Args:
            longest: tokens of the longest row.
            may_recompute: whether there is a backward pass, and the config lets it recompute.

        Example:
            >>> size = PassSize(100)
            >>> while size:
            ...     size = print(tuple(size)) or size.smaller(60, may_recompute=True)
            (100, False)
            (60, False)
            (60, True)
        """
        if self.tokens > longest:
            return self._replace(tokens=max(longest, self.tokens // 2))
        return self._replace(recompute=True) if may_recompute and not self.recompute else None

    def fields(self, other: PassSize | None) -> dict[str, Any]:
        """The fields of the train section that ask for another size rather than for this one."""
        if other is None:
            return {}
        changes: dict[str, Any] = {"tokens_per_forward": other.tokens} if other.tokens != self.tokens else {}
        return changes | ({"gradient_checkpointing": "always"} if other.recompute and not self.recompute else {})


def smaller_passes(
    size: PassSize,
    error: Exception,
    section: TrainConfig,
    *,
    longest: int,
    in_pass: Mapping[str, int],
    num_processes: int = 1,
) -> PassSize:
    """The passes that an optimiser step is tried in once more, after some of this size took too much memory.

    Args:
        size: of the passes that failed.
        error: what PyTorch raised.
        section: the train section of the config.
        longest: tokens of the longest row of the step.
        in_pass: tokens of each row of the pass that failed, by trace id.
        num_processes: how many train together.

    Raises:
        OutOfMemory: there are no smaller ones, or several processes have to start again together, by what started them.
    """
    smaller = None
    if section.on_out_of_memory == "accumulate":
        smaller = size.smaller(longest, may_recompute=section.gradient_checkpointing != "never")
    if smaller is None or num_processes > 1:
        raise OutOfMemory(out_of_memory_message(error, in_pass, section, size), size.fields(smaller)) from error
    logger.warning(
        "out of memory in a training step: going on with %d tokens in a forward pass%s",
        smaller.tokens,
        ", recomputing activations" * smaller.recompute,
    )
    return smaller


def out_of_memory_message(
    error: BaseException, lengths: Mapping[str, int], section: TrainConfig, size: PassSize
) -> str:
    """Say which pass ran out of memory and what to change.

    Args:
        error: what PyTorch raised.
        lengths: tokens of each row of the pass, by trace id.
        section: the train section of the config.
        size: in force, which may be below the config's.
    """
    longest = max(lengths.values())
    ways = ["set train.on_out_of_memory to 'accumulate'"] if section.on_out_of_memory == "stop" else []
    if len(lengths) > 1:
        ways.append(f"lower train.tokens_per_forward below {sum(lengths.values())}")
    ways += ways_to_smaller_passes(section, size.recompute, longest)
    return (
        f"out of memory in a pass of {len(lengths)} row(s), {sum(lengths.values())} tokens, the longest {longest} "
        f"(traces {', '.join(lengths)}; tokens_per_forward {size.tokens}, activations "
        f"{'' if size.recompute else 'not '}recomputed): {'; or '.join(ways)}. {str(error).splitlines()[0]}"
    )


def ways_to_smaller_passes(section: TrainConfig, recompute: bool, longest: int) -> list[str]:
    """What a user can do where a pass of one row is too large.

    Args:
        section: the train section of the config.
        recompute: whether activations are recomputed.
        longest: tokens of the longest row.
    """
    ways = [] if recompute else ["set train.gradient_checkpointing to 'always'"]
    ways.append(f"set train.max_length below {longest} to leave out the longest rows")
    return [*ways, ways_to_smaller_weights(section.load_in_4bit)]


def ways_to_smaller_weights(load_in_4bit: bool) -> str:
    """What a user can do where the weights are too large."""
    quantise = "" if load_in_4bit else "set train.load_in_4bit; or "
    return f"{quantise}name an FSDP file in train.accelerate_config (train.engine 'own'); or take a smaller model"
