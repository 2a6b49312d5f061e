"""Import of existing reasoning traces, in place of sampling.

Departures from the paper, because a file of traces has no draws without thinking: a trace is positive where
its answer is right and negative where it is wrong, unless the file says which; and polarity belongs to the
trace, so that one question may have traces of both kinds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from mralign_core.config import GenerateConfig
from mralign_core.errors import DataError
from mralign_core.generation.control_tokens import (
    KNOWN_END_TOKENS,
    clean_trace,
    text_control_tokens,
    without_end_tokens,
)
from mralign_core.generation.funnel import Funnel, require_both_polarities
from mralign_core.generation.prompts import opened_by_prompt, render_prompt
from mralign_core.generation.segmenting import encode_completion
from mralign_core.generation.select_traces import DrawRow, as_candidate, keep_traces
from mralign_core.method.benchmarks import Gold, judge_reply
from mralign_core.method.blanks import is_blank, strip_blanks
from mralign_core.method.matching import MatchRules
from mralign_core.method.traces import parse_completion
from mralign_core.models.families import GENERIC, Family
from mralign_core.questions.columns import answers_in, id_in, read_cell
from mralign_core.questions.jsonl import Line, read_jsonl, refuse, shown
from mralign_core.questions.loading import repeated_ids, warn_of_gold_answers
from mralign_core.questions.overlap import question_key, question_keys, refuse_overlap
from mralign_core.schemas.candidates import CANDIDATES, POLARITIES
from mralign_core.schemas.questions import QUESTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("mralign_core.generation")
FIELD = "generate.traces_path"
LINES_REMEDY = "correct these lines or take them out"
MOST_LOST, SOME_LOST = 0.1, 0.8
"""Of the answers that name a gold answer, the share that equals one, below which the run stops, or warns."""
ENOUGH_TO_STOP = 5
ANSWERS_SHOWN = 3
IMPORT_REMEDY = (
    "What can help: a file with right and with wrong answers, or with the field 'polarity'; "
    "generate.answer_match 'contains'; wider generate.min_segments, max_segments, "
    "min_reasoning_tokens, max_reasoning_tokens; "
    "generate.traces_per_question 'all_distinct'."
)


class ImportedTraces(NamedTuple):
    """Kept traces (``CANDIDATES``), the yield of each step, and the questions of the file (``QUESTIONS``)."""

    candidates: pd.DataFrame
    funnel: pd.DataFrame
    questions: pd.DataFrame


def import_traces(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    section: GenerateConfig,
    family: Family,
    rules: MatchRules,
    held_out: pd.DataFrame,
    on_overlap: Literal["refuse", "drop"],
) -> ImportedTraces:
    """Read traces and keep those of allowed length, of no question that is evaluated on.

    The filters are those of sampled traces.

    Each line has ``id``, ``question``, ``gold`` (or ``answers``), ``thinking``, ``answer``, and may have
    ``polarity`` (``positive`` or ``negative``) and ``finished`` (false where the thinking was cut off).
    Traces of the same question share the id of its first trace as question_id.

    Args:
        path: JSONL file.
        tokenizer: tokenizer of the model to align, which need not be the one that wrote the traces.
        section: instruction of the prompt, answer match, length bounds, traces per question.
        family: how the model thinks.
        rules: how answers are compared.
        held_out: the questions that are evaluated on, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        on_overlap: ``drop`` leaves traces of such questions out, ``refuse`` refuses them.

    Raises:
        DataError: the file can't be read, or rows are malformed; names file, line, field and remedy for all
            at once. Or a question of the file is evaluated on.
        NoCandidatesError: no trace is left, or none of one polarity; shows the yield of each step.
    """
    read = _read_all(path, family, tokenizer)
    problems: list[str] = []
    numbered = _number_draws(read)
    funnel = Funnel()
    in_file = funnel.keep("traces in the file", numbered, [""] * len(read))
    with_gold = funnel.keep("traces with a gold answer", in_file, _without_gold(in_file))
    if on_overlap == "drop" and len(held_out):
        keys = set(chain.from_iterable(question_keys(held_out)))
        also_evaluated = ["evaluated on too" if question_key(row["question"]) in keys else "" for row in with_gold]
        with_gold = funnel.keep("traces of questions to align on", with_gold, also_evaluated)
    drawn = [_as_draw(row, tokenizer, section, family, rules, problems) for row in with_gold]
    refuse(path, FIELD, problems, "use a tokenizer that knows these texts, or take the traces out")
    _refuse_lost_answers(path, drawn, section)
    kept = map(as_candidate, keep_traces(drawn, funnel, section, tokenizer, family))
    candidates = CANDIDATES.frame(kept)
    require_both_polarities(candidates["polarity"].value_counts(), funnel, IMPORT_REMEDY)
    questions = _questions(with_gold, Path(path).stem)
    refuse_overlap(questions, held_out)
    return ImportedTraces(candidates, funnel.frame(), questions)


def check_traces(path: str | Path, section: GenerateConfig, rules: MatchRules, family: Family | None = None) -> None:
    """Refuse a file of traces that :func:`import_traces` would refuse, as far as can be told without a tokenizer.

    Args:
        path: JSONL file.
        section: which match counts as right.
        rules: how answers are compared.
        family: how the model thinks; None where only its tokenizer tells.

    Raises:
        DataError: as :func:`import_traces`.
    """
    tags = (family or GENERIC).tags
    rows = [_without_known_ends(row) for row in _read_all(path, family) if row["answers"]]
    answers = [parse_completion(row["answer"], tags, thinking_mode="off").answer for row in rows]
    judged = [{**row, "is_right": _judge(answer, row, rules)} for row, answer in zip(rows, answers, strict=True)]
    _refuse_lost_answers(path, judged, section)


def _read_all(
    path: str | Path, family: Family | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[DrawRow]:
    lines = read_jsonl(path, FIELD)
    problems: list[str] = []
    read = [_read(line, family, problems) for line in lines]
    if tokenizer and family:
        read = [
            clean_trace(row, line.number, tokenizer, family, problems) for row, line in zip(read, lines, strict=True)
        ]
    problems += repeated_ids(lines, [row["trace_id"] for row in read], "id")
    refuse(path, FIELD, problems, LINES_REMEDY)
    golds = [(row["trace_id"], row["answers"]) for row in read]
    warn_of_gold_answers(f"{FIELD}: {path}", golds)
    return read


def _without_known_ends(row: DrawRow) -> DrawRow:
    """A row as :func:`clean_trace` leaves it, as far as can be told without a tokenizer."""
    golds = [without_end_tokens(gold, KNOWN_END_TOKENS) for gold in row["answers"]]
    return {**row, "answer": without_end_tokens(row["answer"], KNOWN_END_TOKENS), "answers": golds}


def _judge(answer: str | None, row: DrawRow, rules: MatchRules) -> dict[str, bool]:
    """Whether an answer is right, by each generate.answer_match."""
    judgement = judge_reply(answer, None, Gold(row["answers"]), rules)
    return {"exact": bool(judgement.em_answer), "contains": bool(judgement.contains_answer)}


def _refuse_lost_answers(path: str | Path, rows: Sequence[DrawRow], section: GenerateConfig) -> None:
    """Refuse, or warn, where answers in sentences would be wrong because they don't equal a gold answer.

    Args:
        path: the file of traces.
        rows: traces with ``is_right``; those that say their polarity are not judged.
        section: which match counts as right.

    Raises:
        DataError: nearly all answers that name a gold answer would be wrong.
    """
    judged = [row for row in rows if not row["polarity_told"]]
    named = [row for row in judged if row["is_right"]["contains"]]
    lost = [row for row in named if not row["is_right"]["exact"]]
    num_right = len(named) - len(lost)
    if section.answer_match == "contains" or num_right >= SOME_LOST * len(named):
        return
    examples = "\n  ".join(
        f"{row['trace_id']!r}: {row['answer']!r:.80} (gold {', '.join(map(repr, row['answers'])):.60})"
        for row in lost[:ANSWERS_SHOWN]
    )
    message = (
        f"{FIELD}: of {len(judged)} traces in {path}, {num_right} are right by generate.answer_match 'exact', by which "
        f"the whole answer must equal a gold answer, and {len(named)} by 'contains', by which it must name one. If "
        "these answers are right, set generate.answer_match to contains (--set generate.answer_match=contains), or put "
        "only the answer itself into the field 'answer', or say each trace's polarity in the file. Such as:\n  "
        f"{examples}"
    )
    has_positive = num_right or any(row["polarity_told"] == POLARITIES[0] for row in rows)
    if not has_positive or (len(named) >= ENOUGH_TO_STOP and num_right < MOST_LOST * len(named)):
        raise DataError(message)
    logger.warning("%s", message)


def _read(line: Line, family: Family | None, problems: list[str]) -> DrawRow:
    values = line.values
    row: DrawRow = {name: _text(line, name, problems) for name in ("question", "thinking", "answer")}
    row["trace_id"] = read_cell(id_in, line, "id", problems) or ""
    golds = "answers" if "answers" in values and "gold" not in values else "gold"
    row["answers"] = [] if values.get(golds) in ([], "[]") else read_cell(answers_in, line, golds, problems) or []
    row["polarity_told"] = values.get("polarity")
    if row["polarity_told"] not in (None, *POLARITIES):
        problems.append(
            f"{line.place}: field 'polarity' must be {' or '.join(POLARITIES)}, got {shown(row['polarity_told'])}"
        )
    row["finished"] = values.get("finished", True)
    if not isinstance(row["finished"], bool):
        problems.append(f"{line.place}: field 'finished' must be true or false, got {shown(row['finished'])}")
    for tag in filter(None, (family.think_open, family.think_close, family.reply_open) if family else ()):
        if tag in row["thinking"] + row["answer"]:
            problems.append(f"{line.place}: fields 'thinking' and 'answer' must not hold {tag!r}: take the tags out")
    return row


def _text(line: Line, name: str, problems: list[str]) -> str:
    value = line.values.get(name)
    if isinstance(value, str) and not (name == "question" and is_blank(value)):
        return strip_blanks(value)
    is_invisible = isinstance(value, str) and bool(value.strip())
    seen = "text that can be seen" if is_invisible else "text"
    problems.append(f"{line.place}: field {name!r} must be {seen}, got {shown(value)}")
    return ""


def _number_draws(rows: Sequence[DrawRow]) -> list[DrawRow]:
    """Give traces of the same question one question_id, and count them."""
    ids: dict[str, str] = {}
    counts: dict[str, int] = {}
    numbered = []
    for row in rows:
        own = ids.setdefault(question_key(row["question"]), row["trace_id"])
        counts[own] = counts.get(own, -1) + 1
        numbered.append({**row, "question_id": own, "draw": counts[own]})
    return numbered


def _without_gold(rows: Sequence[DrawRow]) -> list[str]:
    return ["" if row["answers"] else "no gold answer" for row in rows]


def _as_draw(
    row: DrawRow,
    tokenizer: PreTrainedTokenizerBase,
    section: GenerateConfig,
    family: Family,
    rules: MatchRules,
    problems: list[str],
) -> DrawRow:
    """The trace as if the model had been asked the question and had written it."""
    prompt = render_prompt(tokenizer, row["question"], "on", family, section.instruction)
    opened = opened_by_prompt(prompt.text, family)
    written = family.write_completion(row["thinking"], row["answer"], opened_by_prompt=opened)
    try:
        completion_ids, completion = encode_completion(tokenizer, written, text_control_tokens(tokenizer, family))
    except DataError as error:
        problems.append(f"trace {row['trace_id']!r}: {error}")
        return row
    parse = partial(
        parse_completion,
        tags=family.tags,
        thinking_mode="on",
        opened_by_prompt=opened,
    )
    parsed = parse(completion)
    # Judged on the file's own text, so that no tokenizer can turn a right answer into a wrong one.
    is_right = _judge(parse(written).answer, row, rules)
    return {
        **row,
        "prompt": prompt.text,
        "prompt_ids": prompt.ids,
        "completion": completion,
        "completion_ids": completion_ids,
        "end_token_id": None,
        "answer": parsed.answer,
        "outcome": parsed.outcome if row["finished"] else "unclosed_thinking",
        "is_right": is_right,
        "polarity": row["polarity_told"] or POLARITIES[0 if is_right[section.answer_match] else 1],
        "stratum": "",
    }


def _questions(rows: Sequence[DrawRow], source: str) -> pd.DataFrame:
    of_file: dict[str, Any] = {"source": source, "split": "train", "stratum": "", "scoring": "exact_match"}
    of_file |= {"options": [], "incorrect_answers": []}
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["question_id"], {**row, **of_file})
    return QUESTIONS.frame(first.values())
