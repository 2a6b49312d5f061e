"""What the report's analyses say of each trace and answer, as tables that lists filter by.

They are the report's own functions (:mod:`mralign_core.evaluation.mentions`, ``thinking_habits`` beside it,
:mod:`mralign_core.judging.verdicts`). A table is made when it is first asked for, some thousand texts at a time, and
kept on this machine (:mod:`~mralign_core.workbench.kept_tables`): what it is made from never changes.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq

from mralign_core.config import MatchConfig
from mralign_core.errors import ArtifactError
from mralign_core.evaluation.mentions import (
    UNLABELLED,
    answer_mentions,
    at_and_behind,
    describe_mentions,
    ending_of,
)
from mralign_core.evaluation.thinking_habits import answer_habits, find_cycle, repeats_itself
from mralign_core.judging.verdicts import CELL, VERDICTS, judged_metrics, weigh_verdicts
from mralign_core.method.matching import DEFAULT_RULES, MatchRules
from mralign_core.method.traces import Span
from mralign_core.storage import key_of
from mralign_core.storage.digests import source_digest
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.interruption import stop_if_left
from mralign_core.workbench.kept_tables import KeptTables, Rows, Work
from mralign_core.workbench.tables import RunTables

TEXTS_AT_ONCE = 2_000
"""Those that are lost at most when nobody waits for them any more; labels are looked up for as many at a time."""
LABELS_OF = {"candidates": "annotations", "thinking-draws": "draw-annotations"}
"""Traces → the artifact of their labels."""
_THINKING = [
    ("ending", pa.string()),
    ("first", pa.float64()),
    ("last", pa.float64()),
    ("segments_after", pa.float64()),
    ("behind", pa.string()),
    ("loops", pa.bool_()),
    ("repeats", pa.bool_()),
    ("num_segments", pa.int64()),
    ("num_tokens", pa.int64()),
]
TRACE_THINKING = pa.schema([("trace_id", pa.string()), *_THINKING])
"""``ending`` of :data:`~mralign_core.evaluation.mentions.ENDINGS`; ``first`` and ``last`` mention as shares of the
thinking; ``behind`` the last one: the steps up to the answer as ``<start>;analogy;retrieval+chaining;<stop>;``, null
where there is no mention or no label; ``loops`` is null where there is no label. No other goes by labels."""
ANSWER_THINKING = pa.schema([("question_id", pa.string()), ("draw", pa.int64()), *_THINKING])
"""The same of answers whose set has EM_t."""
VOTED = pa.schema(
    [("variant", pa.string()), ("question_id", pa.string()), ("draw", pa.int64()), ("is_right", pa.bool_())]
)
"""What most judges say of an answer: truthful and informative, or of a graded one correct."""


def trace_thinking(tables: RunTables, of: str) -> str:
    """The file of :data:`TRACE_THINKING` of a run's traces.

    Args:
        tables: of the run.
        of: ``candidates`` or ``thinking-draws``.
    """
    rules = _rules(tables)
    labels = [name for name in (LABELS_OF[of],) if tables.has(name)]
    files = {"traces": tables.file(of), "labels": tables.file(labels[0]) if labels else ""}
    columns = ["trace_id", "answers", "completion", "segments", "polarity", "reasoning_tokens"]

    def rows(traces: pa.Table) -> Iterator[dict[str, Any]]:
        more = zip(*(traces[name].to_pylist() for name in columns[-2:]), strict=True)
        for (polarity, num_tokens), thinking in zip(more, _thinkings(traces, files["labels"], rules), strict=True):
            yield {
                "trace_id": thinking.trace_id,
                "ending": ending_of(is_named=thinking.is_named, is_right=polarity == "positive"),
                **thinking.of_labels(),
                **_known({name: thinking.places[name] for name in ("first", "last", "segments_after")}),
                "repeats": repeats_itself(thinking.segments),
                "num_segments": len(thinking.segments),
                "num_tokens": num_tokens,
            }

    return _kept(TRACE_THINKING, _by_slice(files["traces"], columns, rows), tables, of, *labels, rules=rules)


class _Thinking(NamedTuple):
    """A labelled trace's thinking; ``steps`` are empty where it has no label."""

    trace_id: str
    segments: list[str]
    places: dict[str, float]
    steps: Mapping[int, tuple[int, str]]

    @property
    def is_named(self) -> bool:
        """Whether it names a gold answer."""
        return not math.isnan(self.places["last"])

    def of_labels(self) -> dict[str, Any]:
        """What its labels say: the columns ``behind`` and ``loops``."""
        if not self.steps:
            return {"behind": None, "loops": None}
        loops = bool(find_cycle(at_and_behind(self.steps, -1)[1]))
        if not self.is_named:
            return {"behind": None, "loops": loops}
        _, behind = at_and_behind(self.steps, int(self.places["last_segment"]))
        return {"behind": "".join(f"{each};" for each in ("<start>", *behind, "<stop>")), "loops": loops}


def _thinkings(traces: pa.Table, labels: str, rules: MatchRules) -> Iterator[_Thinking]:
    """Of some traces, where they name a gold answer and what their labels are.

    Args:
        traces: columns ``trace_id``, ``answers``, ``completion`` and ``segments``.
        labels: file of their annotations; empty before there are any.
        rules: what counts as naming a gold answer.
    """
    ids = traces["trace_id"].to_pylist()
    steps = _steps_of(labels, ids) if labels else {}
    texts, answers = traces["completion"].to_pylist(), traces["answers"].to_pylist()
    for trace_id, text, golds, spans in zip(ids, texts, answers, _spans(traces["segments"]), strict=True):
        places = describe_mentions(text, spans, golds, rules)
        yield _Thinking(trace_id, [text[slice(*span)] for span in spans], places, steps.get(trace_id, {}))


def _spans(segments: pa.ChunkedArray) -> Iterator[list[Span]]:
    """The characters of each trace's segments; of a million, objects of Arrow's take most of the time."""
    for chunk in segments.chunks:
        of_all = chunk.flatten()
        spans = list(map(Span, of_all.field("start").to_pylist(), of_all.field("end").to_pylist()))
        ends = np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False)).tolist()
        yield from (spans[start:end] for start, end in pairwise([0, *ends]))


def _steps_of(labels: str, trace_ids: Sequence[str]) -> dict[str, dict[int, tuple[int, str]]]:
    """Of each labelled trace, the step and the labels of each segment."""
    found = shared_database().columns(STEPS_OF_TRACES, {"labels": labels, "ids": trace_ids})
    steps: dict[str, dict[int, tuple[int, str]]] = {}
    for trace_id, segment, step, text in zip(*(found[name].tolist() for name in found), strict=True):
        steps.setdefault(trace_id, {})[segment] = (step, text or UNLABELLED)
    return steps


STEPS_OF_TRACES = """
SELECT trace_id, segment, step, array_to_string(labels, '+') AS labels FROM read_parquet($labels)
WHERE trace_id IN (SELECT unnest($ids))"""


def answer_thinking(tables: RunTables, variant: str) -> str:
    """The file of :data:`ANSWER_THINKING` of a variant's answers, with labels where its thinking is labelled.

    Args:
        tables: of the run.
        variant: one that was scored.
    """
    scores, rules = f"scores:{variant}", _rules(tables)
    golds = pq.read_table(tables.file("evaluation-questions"), columns=["question_id", "answers"]).to_pydict()
    by_question = dict(zip(golds["question_id"], golds["answers"], strict=True))
    labelled = [name for name in ("held-out-traces", "held-out-annotations") if tables.has(name)]
    columns = ["variant", "question_id", "stratum", "draw", "thinking", "em_thought", "em_answer", "num_tokens"]

    def rows(answers: pa.Table) -> Iterator[dict[str, Any]]:
        read = pd.DataFrame(answers.to_pylist(), columns=columns)
        mentions, habits = answer_mentions(read, by_question, rules), answer_habits(read)
        told = _of_held_out(tables, variant, read["question_id"], rules) if len(labelled) == 2 else {}
        for row, repeats in zip(mentions.to_dict("records"), habits["repeats"], strict=True):
            yield _known({str(name): value for name, value in row.items() if name in ANSWER_THINKING.names}) | {
                "repeats": bool(repeats),
                **told.get((row["question_id"], row["draw"]), {}),
            }

    parts = _by_slice(tables.file(scores), columns, rows)
    return _kept(ANSWER_THINKING, parts, tables, scores, "evaluation-questions", *labelled, rules=rules)


def _of_held_out(
    tables: RunTables, variant: str, questions: Sequence[str], rules: MatchRules
) -> dict[tuple[str, int], dict[str, Any]]:
    """Question and draw → what the labels of that thinking say."""
    field = arrow_dataset.field
    chosen = (field("variant") == variant) & field("question_id").isin(list(dict.fromkeys(questions)))
    columns = ["trace_id", "question_id", "draw", "answers", "completion", "segments"]
    traces = arrow_dataset.dataset(tables.file("held-out-traces")).to_table(columns, filter=chosen)
    cells = zip(traces["question_id"].to_pylist(), traces["draw"].to_pylist(), strict=True)
    thinkings = _thinkings(traces, tables.file("held-out-annotations"), rules)
    return {cell: thinking.of_labels() for cell, thinking in zip(cells, thinkings, strict=True)}


def verdicts(tables: RunTables) -> str:
    """The file of :data:`VOTED` of all answers that every judge of their kind judged in every variant.

    Raises:
        ArtifactError: the run asked no judge, or has no results yet, which know whose vote decides a tie.
    """
    names = [name for name in tables.artifacts if name.startswith("judgements:")]
    if not names or not tables.has("results"):
        raise ArtifactError(f"{tables.title} has no verdicts of judges")
    judges = tables.store.manifest(tables.artifacts["results"]).fingerprint["judges"]

    scores = [f"scores:{name.partition(':')[2]}" for name in names]

    def rows() -> Iterator[dict[str, Any]]:
        read = [_frame(tables.file(name), SAID_BY_JUDGES) for name in names]
        answers = pd.concat([_frame(tables.file(name), SETS_OF_ANSWERS) for name in scores])
        voted = weigh_verdicts(read, [], answers, judges).verdicts
        for kind, of_kind in voted.groupby("kind"):
            is_graded = kind == "grade"
            right = of_kind["grade"] == "correct" if is_graded else judged_metrics(of_kind)["truthful_informative"] == 1
            yield from of_kind.assign(is_right=right)[VOTED.names].to_dict("records")

    return _kept(VOTED, [rows], tables, *names, *scores, judges=judges)


SAID_BY_JUDGES = ["variant", *CELL, "judge", "kind", "answered", *VERDICTS, "num_claims", "num_supported"]
SETS_OF_ANSWERS = ["question_id", "source"]


def _rules(tables: RunTables) -> MatchRules:
    """What counts as naming a gold answer in this run."""
    for name in ("generations", "candidates", *(f"scores:{variant}" for variant in tables.variants)):
        if tables.has(name) and (match := tables.store.manifest(tables.artifacts[name]).fingerprint.get("match")):
            return MatchConfig.model_validate(match).rules
    return DEFAULT_RULES


def _frame(file: str, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table, their cells as Python has them."""
    stop_if_left()
    return pd.DataFrame(pq.read_table(file, columns=list(columns)).to_pylist())


def _by_slice(file: str, columns: Sequence[str], rows: Callable[[pa.Table], Rows]) -> list[Callable[[], Rows]]:
    """What is said of some rows of a file each, read when it is asked for; those of a row group are few."""

    @functools.lru_cache(maxsize=1)
    def read(group: int) -> pa.Table:
        with pq.ParquetFile(file) as whole:
            return whole.read_row_group(group, columns=list(columns))

    def of(group: int, start: int) -> Rows:
        return rows(read(group).slice(start, TEXTS_AT_ONCE))

    described = pq.read_metadata(file)
    sizes = (described.row_group(group).num_rows for group in range(described.num_row_groups))
    return [partial(of, group, start) for group, size in enumerate(sizes) for start in range(0, size, TEXTS_AT_ONCE)]


def _known(numbers: dict[str, Any]) -> dict[str, Any]:
    """Null for what is NaN: DuckDB takes that for the largest number there is."""
    return {name: None if value != value else value for name, value in numbers.items()}


_TABLES = KeptTables()


def _kept(schema: pa.Schema, parts: Sequence[Callable[[], Rows]], tables: RunTables, *names: str, **more: Any) -> str:
    """The file of what a run's artifacts say, worked out where nobody has asked for it before.

    Args:
        schema: of the table.
        parts: as :meth:`KeptTables.file` takes them.
        tables: of the run.
        names: of the artifacts; the table has as many rows as those of the first's kind, at most.
        more: that decides it.
    """
    refs = {name: tables.artifacts[name] for name in names}
    digests = {name: ref.sha256 for name, ref in refs.items()}
    code = {"source": source_digest(__name__), "unicode": unicodedata.unidata_version}  # matching goes by it
    key = key_of(columns=schema.names, code=code, of=digests, **more)
    first = names[0].partition(":")[0]
    rows = sum(ref.rows or 0 for name, ref in refs.items() if name.partition(":")[0] == first)
    work = Work(frozenset(digests.values()), rows)
    return _TABLES.file(key, schema, parts, work)


def under_way(tables: RunTables) -> list[Work]:
    """The tables of a run that are being worked out."""
    known = {ref.sha256 for ref in tables.artifacts.values()}
    return [work for work in _TABLES.under_way() if work.of <= known]
