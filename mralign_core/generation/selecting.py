"""Selection of training traces from sampled draws (§3.1.1, App. D.2).

Decisions where the paper is silent: questions that differ only in case, spacing or closing punctuation are
duplicates, the first is kept; a draw without a well-formed thinking and answer is never a trace, though it
counts as a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.generation.funnel import Funnel, require_both_polarities
from mralign_core.generation.prompts import opened_by_prompt
from mralign_core.generation.segmenting import segment_trace
from mralign_core.method.selection import LengthBounds, choose_draws, length_problem, question_polarity
from mralign_core.method.traces import parse_completion
from mralign_core.questions.loading import question_key
from mralign_core.schemas import CANDIDATES

Row = dict[str, Any]

REMEDY = (
    "What can help: more questions; fewer generate.num_draws, which must all agree; "
    "generate.answer_match 'contains'; wider generate.min_segments, max_segments, "
    "min_reasoning_tokens, max_reasoning_tokens; "
    "a larger generate.max_new_tokens where thinking was left unclosed."
)


class Selection(NamedTuple):
    """Kept traces (rows of :data:`~mralign_core.schemas.CANDIDATES`), and the yield of each step.

    ``funnel`` has the columns step, kept, dropped, reason; a step with several reasons has a row for each.
    """

    candidates: pd.DataFrame
    funnel: pd.DataFrame


def select(
    generations: pd.DataFrame,
    questions: pd.DataFrame,
    section: GenerateConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
) -> Selection:
    """Keep the think-on traces of questions that thinking makes right in every draw, or wrong in every draw.

    Implements the data selection of §3.1.1 and App. D.2 of arXiv 2510.24794.

    Args:
        generations: the draws of both modes, rows of :data:`~mralign_core.schemas.GENERATIONS`.
        questions: their questions, rows of :data:`~mralign_core.schemas.QUESTIONS`.
        section: which match counts as right, length bounds, traces per question.
        tokenizer: tokenizer of the model that sampled.
        model: think tags.

    Raises:
        NoCandidatesError: no trace is left, or none of one polarity; shows the yield of each step.
    """
    funnel = Funnel()
    draws = _draws_by_question(generations)
    asked = [row for row in _rows(questions) if row["question_id"] in draws]
    asked = funnel.keep("questions", asked, [""] * len(asked))
    asked = funnel.keep("distinct questions", asked, _repeated(asked))
    right = "em_answer" if section.answer_match == "exact" else "contains_answer"
    judged = [(question, *_judge(draws[question["question_id"]], right)) for question in asked]
    polar = funnel.keep("questions with a polarity", judged, [reason for *_, reason in judged])
    drawn = [
        {**question, **draw, "polarity": polarity}
        for question, polarity, _ in polar
        for draw in draws[question["question_id"]]["on"]
    ]
    drawn = funnel.keep("think-on draws of these", drawn, [""] * len(drawn))
    traces = keep_traces(drawn, funnel, section, tokenizer, model)
    candidates = candidates_frame(traces)
    require_both_polarities(candidates, funnel, REMEDY)
    return Selection(candidates, funnel.frame())


def keep_traces(
    drawn: Sequence[Row],
    funnel: Funnel,
    section: GenerateConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
) -> list[Row]:
    """Segment draws; keep well-formed ones of allowed length, per question as many as the section says.

    Args:
        drawn: draws in order, with the columns of a candidate but for segments and reasoning_tokens, and an
            outcome.
        funnel: records each step.
        section: length bounds, traces per question.
        tokenizer: tokenizer of the model.
        model: think tags.
    """
    malformed = ["" if row["outcome"] == "ok" else row["outcome"].replace("_", " ") for row in drawn]
    formed = funnel.keep("well-formed draws", drawn, malformed)
    segmented = [{**row, **_segmented(row, tokenizer, model)} for row in formed]
    bounds = LengthBounds(
        section.min_segments, section.max_segments, section.min_reasoning_tokens, section.max_reasoning_tokens
    )
    problems = [length_problem(len(row["segments"]), row["reasoning_tokens"], bounds) for row in segmented]
    fitting = funnel.keep("draws of allowed length", segmented, problems)
    return funnel.keep("traces", fitting, _surplus(fitting, section))


def candidates_frame(traces: Sequence[Row]) -> pd.DataFrame:
    """Traces as rows of ``CANDIDATES``; a trace without an id is named question_id/draw."""
    rows = [{"trace_id": f"{row['question_id']}/{row['draw']}", **row} for row in traces]
    return pd.DataFrame(rows, columns=list(CANDIDATES.columns)).astype(object)


def _rows(frame: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _draws_by_question(generations: pd.DataFrame) -> dict[str, dict[str, list[Row]]]:
    """Draws of each question and mode, in the order of their numbers."""
    draws: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(_rows(generations), key=lambda row: row["draw"]):
        draws.setdefault(row["question_id"], {"on": [], "off": []})[row["thinking_mode"]].append(row)
    return draws


def _repeated(questions: Sequence[Row]) -> list[str]:
    """For each question, why it is dropped as a duplicate; empty for the first of its kind."""
    keys = [question_key(row["question"]) for row in questions]
    first: dict[str, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    return ["" if first[key] == position else "same as another question" for position, key in enumerate(keys)]


def _judge(draws: dict[str, list[Row]], right: str) -> tuple[str | None, str]:
    """Polarity of a question, or why it has none."""
    right_on, right_off = ([bool(row[right]) for row in draws[mode]] for mode in ("on", "off"))
    polarity = question_polarity(right_on, right_off)
    if polarity:
        return polarity, ""
    outcomes = {*right_on, *right_off}
    if len(outcomes) > 1:
        return None, "answered now right, now wrong"
    return None, "right with and without thinking" if outcomes == {True} else "wrong with and without thinking"


def _segmented(row: Row, tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> Row:
    parsed = parse_completion(
        row["completion"],
        think_open=model.think_open,
        think_close=model.think_close,
        thinking_mode="on",
        opened_by_prompt=opened_by_prompt(row["prompt"], model.think_open),
    )
    return segment_trace(row["completion"], row["completion_ids"], parsed, tokenizer)._asdict()


def _surplus(traces: Sequence[Row], section: GenerateConfig) -> list[str]:
    """For each trace, why its question has no use for it; empty for those that are kept."""
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(traces):
        positions.setdefault(row["question_id"], []).append(position)
    first = section.traces_per_question == "first"
    reasons = ["not the first of its question" if first else "same as an earlier draw"] * len(traces)
    for own in positions.values():
        completions = [traces[position]["completion_ids"] for position in own]
        for index in choose_draws(completions, [True] * len(own), section.traces_per_question):
            reasons[own[index]] = ""
    return reasons
