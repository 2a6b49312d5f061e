"""Import of existing reasoning traces, in place of sampling.

Departures from the paper, because a file of traces has no draws without thinking: a trace is positive where
its answer is right and negative where it is wrong, unless the file says which; and polarity belongs to the
trace, so that one question may have traces of both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase

from mralign_core.config import GenerateConfig
from mralign_core.errors import DataError
from mralign_core.generation.control_tokens import clean_trace, text_control_tokens
from mralign_core.generation.families import Family
from mralign_core.generation.funnel import Funnel, require_both_polarities
from mralign_core.generation.prompts import opened_by_prompt, render_prompt
from mralign_core.generation.segmenting import encode_completion
from mralign_core.generation.selecting import Row, as_candidate, keep_traces
from mralign_core.method.matching import MatchRules, contains_match, exact_match
from mralign_core.method.traces import parse_completion
from mralign_core.questions.jsonl import Line, read_jsonl, refuse
from mralign_core.questions.loading import answers_of, question_key, repeated_ids
from mralign_core.schemas import CANDIDATES, POLARITIES, QUESTIONS

FIELD = "generate.traces_path"
REMEDY = (
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
    held_out: Collection[str] = (),
) -> ImportedTraces:
    """Read traces and keep those of allowed length; the filters are those of sampled traces.

    Each line has ``id``, ``question``, ``gold`` (or ``answers``), ``thinking``, ``answer``, and may have
    ``polarity`` (``positive`` or ``negative``) and ``finished`` (false where the thinking was cut off).
    Traces of the same question share the id of its first trace as question_id.

    Args:
        path: JSONL file.
        tokenizer: tokenizer of the model to align, which need not be the one that wrote the traces.
        section: instruction of the prompt, answer match, length bounds, traces per question.
        family: how the model thinks.
        rules: how answers are compared.
        held_out: keys (:func:`~mralign_core.questions.loading.question_key`) of questions whose traces are left out,
            because they are evaluated on.

    Raises:
        DataError: the file can't be read, or rows are malformed; names file, line, field and remedy for all
            at once.
        NoCandidatesError: no trace is left, or none of one polarity; shows the yield of each step.
    """
    lines = read_jsonl(path, FIELD)
    problems: list[str] = []
    read = [clean_trace(_read(line, family, problems), line.number, tokenizer, family, problems) for line in lines]
    problems += repeated_ids(lines, [row["trace_id"] for row in read], "id")
    refuse(path, FIELD, problems, "correct these lines or take them out")
    numbered = _number_draws(read)
    funnel = Funnel()
    in_file = funnel.keep("traces in the file", numbered, [""] * len(read))
    with_gold = funnel.keep("traces with a gold answer", in_file, _without_gold(in_file))
    if held_out:
        also_evaluated = ["evaluated on too" if question_key(row["question"]) in held_out else "" for row in with_gold]
        with_gold = funnel.keep("traces of questions to align on", with_gold, also_evaluated)
    judge = partial(exact_match if section.answer_match == "exact" else contains_match, rules=rules)
    drawn = [_as_draw(row, tokenizer, section.instruction, family, judge, problems) for row in with_gold]
    refuse(path, FIELD, problems, "use a tokenizer that knows these texts, or take the traces out")
    kept = map(as_candidate, keep_traces(drawn, funnel, section, tokenizer, family))
    candidates = pd.DataFrame(kept, columns=list(CANDIDATES.columns)).astype(object)
    require_both_polarities(candidates["polarity"].value_counts(), funnel, REMEDY)
    return ImportedTraces(candidates, funnel.frame(), _questions(with_gold, Path(path).stem))


def _read(line: Line, family: Family, problems: list[str]) -> Row:
    values = line.values
    row: Row = {name: _text(line, name, problems) for name in ("question", "thinking", "answer")}
    row["trace_id"] = str(values.get("id", "")).strip()
    if not row["trace_id"]:
        problems.append(f"line {line.number}: field 'id' must be a non-empty id, got {values.get('id')!r:.60}")
    golds = "answers" if "answers" in values and "gold" not in values else "gold"
    row["answers"] = [] if values.get(golds) == [] else answers_of(line, golds, problems)
    row["polarity"] = values.get("polarity")
    if row["polarity"] not in (None, *POLARITIES):
        problems.append(
            f"line {line.number}: field 'polarity' must be {' or '.join(POLARITIES)}, got {row['polarity']!r:.60}"
        )
    row["finished"] = values.get("finished", True)
    if not isinstance(row["finished"], bool):
        problems.append(f"line {line.number}: field 'finished' must be true or false, got {row['finished']!r:.60}")
    for tag in filter(None, (family.think_open, family.think_close, family.reply_open)):
        if tag in row["thinking"] + row["answer"]:
            problems.append(
                f"line {line.number}: fields 'thinking' and 'answer' must not hold {tag!r}: take the tags out"
            )
    return row


def _text(line: Line, name: str, problems: list[str]) -> str:
    value = line.values.get(name)
    if isinstance(value, str) and (value.strip() or name != "question"):
        return value.strip()
    problems.append(f"line {line.number}: field {name!r} must be text, got {value!r:.60}")
    return ""


def _number_draws(rows: Sequence[Row]) -> list[Row]:
    """Give traces of the same question one question_id, and count them."""
    ids: dict[str, str] = {}
    counts: dict[str, int] = {}
    numbered = []
    for row in rows:
        own = ids.setdefault(question_key(row["question"]), row["trace_id"])
        counts[own] = counts.get(own, -1) + 1
        numbered.append({**row, "question_id": own, "draw": counts[own]})
    return numbered


def _without_gold(rows: Sequence[Row]) -> list[str]:
    return ["" if row["answers"] else "no gold answer" for row in rows]


def _as_draw(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    family: Family,
    judge: Callable[[str | None, Sequence[str]], bool],
    problems: list[str],
) -> Row:
    """The trace as if the model had been asked the question and had written it."""
    prompt = render_prompt(tokenizer, row["question"], "on", family, instruction)
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
    is_right = judge(parse(written).answer, row["answers"])
    return {
        **row,
        "prompt": prompt.text,
        "prompt_ids": prompt.ids,
        "completion": completion,
        "completion_ids": completion_ids,
        "end_token_id": None,
        "answer": parsed.answer,
        "outcome": parsed.outcome if row["finished"] else "unclosed_thinking",
        "polarity": row["polarity"] or POLARITIES[0 if is_right else 1],
        "stratum": "",
    }


def _questions(rows: Sequence[Row], source: str) -> pd.DataFrame:
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["question_id"], {**row, "source": source, "split": "train", "stratum": ""})
    return pd.DataFrame(list(first.values()), columns=list(QUESTIONS.columns)).astype(object)
