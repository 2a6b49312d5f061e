"""From samples to rows: the parts of each completion, and whether they name a gold answer (App. A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mralign_core.config import ModelConfig
from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.prompts import opened_by_prompt
from mralign_core.method.matching import contains_match, exact_match, thought_match
from mralign_core.method.traces import ParsedCompletion, parse_completion
from mralign_core.schemas import GENERATIONS, SCORES


def score_samples(
    requests: Sequence[SampleRequest], samples: Sequence[Sample], questions: pd.DataFrame, model: ModelConfig
) -> pd.DataFrame:
    """Rows of :data:`~mralign_core.schemas.GENERATIONS`, one a sample, in the order of the requests.

    Args:
        requests: what was asked for.
        samples: what the sampler returned for it.
        questions: the questions of the requests, rows of :data:`~mralign_core.schemas.QUESTIONS`.
        model: think tags.
    """
    answers = questions.set_index("question_id")["answers"]
    rows = []
    for request, sample in zip(requests, samples, strict=True):
        parsed = parse_sample(sample, request.thinking_mode, model)
        scores = _scores(parsed, request.thinking_mode, answers[request.question_id])
        rows.append({**request._asdict(), **sample._asdict(), **scores})
    return pd.DataFrame(rows, columns=list(GENERATIONS.columns)).astype(object)


def score_answers(
    requests: Sequence[SampleRequest], samples: Sequence[Sample], questions: pd.DataFrame, model: ModelConfig
) -> pd.DataFrame:
    """Rows of :data:`~mralign_core.schemas.SCORES` but for the variant, which the caller knows; see above."""
    scored = score_samples(requests, samples, questions, model)
    strata = questions.set_index("question_id")["stratum"]
    scored["stratum"] = scored["question_id"].map(strata)
    return scored[[name for name in SCORES.columns if name != "variant"]]


def parse_sample(sample: Sample, thinking_mode: str, model: ModelConfig) -> ParsedCompletion:
    """The parts of a sample's completion."""
    return parse_completion(
        sample.completion,
        think_open=model.think_open,
        think_close=model.think_close,
        thinking_mode=thinking_mode,
        opened_by_prompt=opened_by_prompt(sample.prompt, model.think_open),
    )


def _scores(parsed: ParsedCompletion, thinking_mode: str, golds: Sequence[str]) -> dict[str, Any]:
    return {
        "thinking": parsed.thinking,
        "answer": parsed.answer,
        "thinking_closed": parsed.thinking_closed,
        "outcome": parsed.outcome,
        "em_thought": thought_match(parsed.thinking, golds) if thinking_mode == "on" else None,
        "em_answer": exact_match(parsed.answer, golds),
        "contains_answer": contains_match(parsed.answer, golds),
    }
