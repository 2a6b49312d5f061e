"""The gate after pretraining: whether the pocket model knows its world well enough to be aligned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mralign_core.config import PocketConfig
from mralign_core.errors import QualityGateError
from mralign_core.generation import Decoding, Sampler, SampleRequest, sample_all
from mralign_core.method.matching import exact_match, thought_match
from mralign_core.method.traces import ParsedCompletion, Tags, parse_completion
from mralign_core.pocket.world import FactQuestion, World

logger = logging.getLogger("mralign_core.pocket")

GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=192, seed=0)
"""What the model knows, without the luck of a draw."""


def check_quality(world: World, sampler: Sampler, config: PocketConfig) -> dict[str, float]:
    """Measure the model on the dev questions, which serve nothing else, and refuse it below the limits.

    Args:
        world: the world that the model was taught.
        sampler: draws from the model, with no instruction in its prompts.
        config: holds the limits.

    Returns:
        ``one_hop_accuracy``, of greedy answers without thinking where no misconception is taught, and ``em_thought``,
        the share of greedy traces that name the gold answer; both in [0, 1].

    Raises:
        QualityGateError: a value is below its limit.
    """
    dev = world.split("dev")
    one_hop = [question for question in dev if question.stratum == "one_hop" and not question.misconceived]
    values = {
        "one_hop_accuracy": _share(_answered, one_hop, _ask(sampler, one_hop, "off")),
        "em_thought": _share(_thought_of, dev, _ask(sampler, dev, "on")),
    }
    limits = {"one_hop_accuracy": config.min_one_hop_accuracy, "em_thought": config.min_em_thought}
    logger.info("quality of the pocket model on dev questions: %s", values)
    failed = [
        f"{name} {value:.3f} is below model.pocket.min_{name} {limits[name]}"
        for name, value in values.items()
        if value < limits[name]
    ]
    if failed:
        raise QualityGateError(
            f"the pocket model of world_seed {config.world_seed} ({config.architecture}, {config.num_layers} layers), "
            f"after {config.pretrain_steps} steps, "
            f"is refused: on dev questions {' and '.join(failed)}. "
            "Raise model.pocket.pretrain_steps, or take another model.pocket.world_seed"
        )
    return values


def _ask(sampler: Sampler, questions: Sequence[FactQuestion], thinking_mode: str) -> list[ParsedCompletion]:
    requests = [SampleRequest(question.question_id, question.text, thinking_mode, 0) for question in questions]
    return [
        parse_completion(sample.completion, Tags(), thinking_mode=thinking_mode)
        for sample in sample_all(sampler, requests, GREEDY)
    ]


def _answered(question: FactQuestion, completion: ParsedCompletion) -> bool:
    return exact_match(completion.answer, [question.answer])


def _thought_of(question: FactQuestion, completion: ParsedCompletion) -> bool:
    return thought_match(completion.thinking, [question.answer])


def _share(
    test: Callable[[FactQuestion, ParsedCompletion], bool],
    questions: Sequence[FactQuestion],
    completions: Sequence[ParsedCompletion],
) -> float:
    return sum(map(test, questions, completions)) / len(questions)
