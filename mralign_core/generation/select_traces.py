"""Selection of training traces from sampled draws (§3.1.1, App. D.2).

Decisions where the paper is silent: questions that differ only in case, spacing or closing punctuation are
duplicates, the first is kept; a draw without a well-formed thinking and answer is never a trace, though it
counts as a wrong answer; one that the server failed to make counts as neither, and its question is not selected. With
``generate.cut_off: left_out`` this holds too for a draw that was cut off before it gave an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pandas as pd

from mralign_core.config import GenerateConfig
from mralign_core.generation.funnel import Funnel
from mralign_core.generation.prompts import opened_by_prompt
from mralign_core.generation.segmenting import segment_trace
from mralign_core.method.selection import (
    UNDECIDED,
    LengthBounds,
    Verdict,
    choose_draws,
    judge_question,
    length_problem,
)
from mralign_core.method.traces import WELL_FORMED, parse_completion
from mralign_core.models.families import Family
from mralign_core.questions.overlap import question_key
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.outcomes import FAILED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DrawRow = dict[str, Any]

STEPS = (
    "questions",
    "distinct questions",
    "questions with a polarity",
    "think-on draws of these",
    "well-formed draws",
    "draws of allowed length",
    "traces",
)
SELECTION_REMEDY = (
    "What can help: more questions; fewer generate.num_draws, which must all agree; "
    "generate.answer_match 'contains'; wider generate.min_segments, max_segments, "
    "min_reasoning_tokens, max_reasoning_tokens; "
    "a larger generate.max_new_tokens where thinking was left unclosed; another run where draws failed, which asks "
    "for them again."
)


def distinct_questions(questions: pd.DataFrame) -> pd.DataFrame:
    """The questions, the first of those that have one :func:`~mralign_core.questions.overlap.question_key`."""
    keys = questions["question"].map(question_key)
    return questions[~keys.duplicated()].reset_index(drop=True)


def select(
    draws: Iterable[DrawRow],
    questions: pd.DataFrame,
    section: GenerateConfig,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    funnel: Funnel,
) -> Iterator[DrawRow]:
    """Keep the think-on traces of questions that thinking makes right in every draw, or wrong in every draw.

    Implements the data selection of §3.1.1 and App. D.2 of arXiv 2510.24794. Draws that did not have to be made
    (:func:`~mralign_core.method.selection.next_draw`) change neither the traces nor the funnel. Holds the draws of
    one question at a time.

    Args:
        draws: rows of :data:`~mralign_core.schemas.generations.GENERATIONS`, those of a question side by side.
        questions: all training questions, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        section: which match counts as right, length bounds, traces per question.
        tokenizer: tokenizer of the model that sampled.
        family: how the model thinks.
        funnel: records the yield of each step (``STEPS``).

    Yields:
        Rows of :data:`~mralign_core.schemas.candidates.CANDIDATES`.
    """
    funnel.keep(STEPS[0], range(len(questions)), [""] * len(questions))
    distinct = distinct_questions(questions)
    repeated = ["same as another question"] * (len(questions) - len(distinct))
    funnel.keep(STEPS[1], questions["question_id"], [""] * len(distinct) + repeated)
    asked = {str(row["question_id"]): row for row in distinct.to_dict("records")}
    for question_id, group in groupby(draws, key=itemgetter("question_id")):
        by_mode: dict[str, list[DrawRow]] = {"on": [], "off": []}
        for row in sorted(group, key=itemgetter("draw")):
            by_mode[row["thinking_mode"]].append(row)
        question = {str(name): value for name, value in asked.pop(question_id).items()}
        right_off, right_on = ([is_right(row, section) for row in by_mode[mode]] for mode in ("off", "on"))
        verdict = judge_question(right_off, right_on, section.num_draws)
        polar = funnel.keep(STEPS[2], [{**question, "polarity": verdict.polarity}], [_reason(verdict, by_mode)])
        drawn = [{**row, **draw} for row in polar for draw in by_mode["on"]]
        drawn = funnel.keep(STEPS[3], drawn, [""] * len(drawn))
        yield from map(as_candidate, keep_traces(drawn, funnel, section, tokenizer, family))
    funnel.keep(STEPS[2], asked, ["draws are missing"] * len(asked))


def is_right(row: DrawRow, section: GenerateConfig) -> bool | None:
    """Whether a draw's answer counts as right for the selection; None where it counts as neither."""
    is_cut_off = row["finish_reason"] == "length" and row["answer"] is None
    if row["outcome"] == FAILED or (is_cut_off and section.cut_off == "left_out"):
        return None
    return bool(row["em_answer" if section.answer_match == "exact" else "contains_answer"])


def _reason(verdict: Verdict, draws: Mapping[str, Sequence[DrawRow]]) -> str:
    """Why a question has no polarity; it may wait for a draw that failed, or for one that was cut off."""
    has_failed = any(row["outcome"] == FAILED for rows in draws.values() for row in rows)
    return "a draw was cut off" if verdict.reason == UNDECIDED and not has_failed else verdict.reason


def keep_traces(
    drawn: Sequence[DrawRow],
    funnel: Funnel,
    section: GenerateConfig,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
) -> list[DrawRow]:
    """Segment draws; keep well-formed ones of allowed length, per question as many as the section says.

    Args:
        drawn: draws in order, with the columns of a candidate but for segments and reasoning_tokens, and an
            outcome.
        funnel: records each step.
        section: length bounds, traces per question.
        tokenizer: tokenizer of the model.
        family: how the model thinks.
    """
    malformed = ["" if row["outcome"] in WELL_FORMED else row["outcome"].replace("_", " ") for row in drawn]
    formed = funnel.keep(STEPS[4], drawn, malformed)
    segmented = [{**row, **_segmented(row, tokenizer, family)} for row in formed]
    bounds = LengthBounds(
        section.min_segments, section.max_segments, section.min_reasoning_tokens, section.max_reasoning_tokens
    )
    problems = [length_problem(len(row["segments"]), row["reasoning_tokens"], bounds) for row in segmented]
    fitting = funnel.keep(STEPS[5], segmented, problems)
    return funnel.keep(STEPS[6], fitting, _surplus(fitting, section))


def as_candidate(trace: DrawRow) -> DrawRow:
    """A kept trace as a row of ``CANDIDATES``; without an id it is named question_id/draw."""
    named = {"trace_id": f"{trace['question_id']}/{trace['draw']}", **trace}
    return {name: named[name] for name in CANDIDATES.columns}


def _segmented(row: DrawRow, tokenizer: PreTrainedTokenizerBase, family: Family) -> DrawRow:
    parsed = parse_completion(
        row["completion"],
        family.tags,
        thinking_mode="on",
        opened_by_prompt=opened_by_prompt(row["prompt"], family),
    )
    return segment_trace(row["completion"], row["completion_ids"], parsed, tokenizer)._asdict()


def _surplus(traces: Sequence[DrawRow], section: GenerateConfig) -> list[str]:
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
