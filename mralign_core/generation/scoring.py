"""From samples to rows: the parts of each completion, and whether they name a gold answer (App. A.2).

How they are compared is for each set to say (:mod:`mralign_core.method.benchmarks`). Decision: a question without a
gold answer, as those of LongFact, and one that only a judge can score, as TruthfulQA's, is answered and not compared;
its matches are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.prompts import opened_by_prompt
from mralign_core.method.benchmarks import Gold, gold_of, judge_reply
from mralign_core.method.matching import MatchRules
from mralign_core.method.traces import ParsedCompletion, parse_completion
from mralign_core.models.families import Family
from mralign_core.schemas.outcomes import FAILED
from mralign_core.schemas.scores import SCORES

UNKNOWN = {
    "thinking": None,
    "answer": None,
    "thinking_closed": True,
    "outcome": FAILED,
    "em_thought": None,
    "em_answer": None,
    "contains_answer": None,
}
"""Of a draw that failed: neither right nor wrong."""


def score_sample(
    request: SampleRequest, sample: Sample, gold: Gold, family: Family, rules: MatchRules
) -> dict[str, Any]:
    """A row of :data:`~mralign_core.schemas.generations.GENERATIONS`.

    Args:
        request: what was asked for.
        sample: what the sampler returned for it.
        gold: what its answer is compared with.
        family: how the model thinks.
        rules: how answers are compared.
    """
    if sample.finish_reason == FAILED:
        return {**request._asdict(), **sample._asdict(), **UNKNOWN}
    parsed = parse_sample(sample, request.thinking_mode, family)
    return {**request._asdict(), **sample._asdict(), **_scores(parsed, request.thinking_mode, gold, rules)}


def score_answers(
    requests: Sequence[SampleRequest],
    samples: Sequence[Sample],
    questions: pd.DataFrame,
    family: Family,
    rules: MatchRules,
) -> pd.DataFrame:
    """Rows of :data:`~mralign_core.schemas.scores.SCORES`, in the order of the requests, but for the variant.

    Args:
        requests: what was asked for.
        samples: what the sampler returned for each.
        questions: the questions of the requests, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        family: how the model thinks.
        rules: how answers are compared.
    """
    asked = {row["question_id"]: row for row in questions.to_dict("records")}
    rows = [
        {
            **{name: asked[request.question_id][name] for name in ("stratum", "source", "scoring")},
            **score_sample(request, sample, gold_of(asked[request.question_id]), family, rules),
            "num_prompt_tokens": len(sample.prompt_ids),
            "num_tokens": len(sample.completion_ids),
        }
        for request, sample in zip(requests, samples, strict=True)
    ]
    names = [name for name in SCORES.columns if name != "variant"]
    return pd.DataFrame(rows, columns=names).astype(object)


def parse_sample(sample: Sample, thinking_mode: str, family: Family) -> ParsedCompletion:
    """The parts of a sample's completion."""
    return parse_completion(
        sample.completion,
        family.tags,
        thinking_mode=thinking_mode,
        opened_by_prompt=opened_by_prompt(sample.prompt, family),
    )


def _scores(
    parsed: ParsedCompletion, thinking_mode: str, gold: Gold, rules: MatchRules
) -> dict[str, bool | str | None]:
    judgement = judge_reply(parsed.answer, parsed.thinking, gold, rules, thinks=thinking_mode == "on")
    return {
        "thinking": parsed.thinking,
        "answer": parsed.answer,
        "thinking_closed": parsed.thinking_closed,
        "outcome": parsed.outcome,
        **judgement._asdict(),
    }
