"""What the report's analyses say of each trace and answer, as tables that lists filter by.

They are the report's own functions (:mod:`mralign_core.evaluation.mentions`, ``thinking_habits`` beside it,
:mod:`mralign_core.judging.verdicts`). A table is made when it is first asked for, some thousand texts at a time, and
kept as a Parquet file as long as the server runs: what it is made from never changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq

from mralign_core.config import MatchConfig
from mralign_core.errors import ArtifactError
from mralign_core.evaluation.mentions import (
    answer_mentions,
    describe_mentions,
    ending_of,
    labelled_tails,
    trace_paths,
)
from mralign_core.evaluation.thinking_habits import answer_habits, find_cycle, repeats_itself
from mralign_core.judging.verdicts import CELL, VERDICTS, judged_metrics, weigh_verdicts
from mralign_core.method.matching import DEFAULT_RULES, MatchRules
from mralign_core.method.traces import Span
from mralign_core.storage import key_of
from mralign_core.workbench.interruption import stop_if_left
from mralign_core.workbench.kept_files import KeptFiles
from mralign_core.workbench.tables import RunTables

TEXTS_AT_ONCE = 2_000
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

    Raises:
        ArtifactError: they have no labels yet.
    """
    labels, rules = LABELS_OF[of], _rules(tables)
    files = {"traces": tables.file(of), "labels": tables.file(labels)}

    def rows() -> Iterator[dict[str, Any]]:
        columns = ["trace_id", "question_id", "question", "answers", "answer", "polarity", "completion", "segments"]
        for traces in _frames(files["traces"], [*columns, "reasoning_tokens"]):
            yield from _of_traces(traces, _of_ids(files["labels"], traces["trace_id"]), rules)

    return _kept(TRACE_THINKING, rows, tables, of, labels, rules=rules)


def _of_traces(traces: pd.DataFrame, labels: pd.DataFrame, rules: MatchRules) -> Iterator[dict[str, Any]]:
    is_right = traces["polarity"] == "positive"
    tails = labelled_tails(traces, labels, is_right, rules).set_index("trace_id")
    paths = trace_paths(labels)
    for row, right in zip(traces.to_dict("records"), is_right, strict=True):
        spans = [Span(each["start"], each["end"]) for each in row["segments"]]
        texts = [row["completion"][slice(*span)] for span in spans]
        if row["trace_id"] in tails.index:
            places = tails.loc[row["trace_id"]].to_dict()
        else:  # it names none, or has no label: its thinking alone says which
            places = describe_mentions(row["completion"], spans, row["answers"], rules)
        yield {
            "trace_id": row["trace_id"],
            "ending": ending_of(is_named=not math.isnan(places["last"]), is_right=bool(right)),
            **_of_labels(row["trace_id"], tails, paths),
            **{name: places[name] for name in ("first", "last", "segments_after")},
            "repeats": repeats_itself(texts),
            "num_segments": len(texts),
            "num_tokens": row["reasoning_tokens"],
        }


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

    def rows() -> Iterator[dict[str, Any]]:
        for answers in _frames(tables.file(scores)):
            mentions = answer_mentions(answers, by_question, rules)
            habits = answer_habits(answers)
            told = _of_held_out(tables, variant, answers["question_id"], rules) if len(labelled) == 2 else {}
            for place, row in enumerate(mentions.to_dict("records")):
                yield {str(name): value for name, value in row.items() if name in ANSWER_THINKING.names} | {
                    "repeats": bool(habits["repeats"].iat[place]),
                    **told.get((row["question_id"], row["draw"]), {}),
                }

    return _kept(ANSWER_THINKING, rows, tables, scores, "evaluation-questions", *labelled, rules=rules)


def _of_held_out(
    tables: RunTables, variant: str, questions: Sequence[str], rules: MatchRules
) -> dict[tuple[str, int], dict[str, Any]]:
    """Question and draw → what the labels of that thinking say."""
    dataset = arrow_dataset.dataset(tables.file("held-out-traces"))
    field = arrow_dataset.field
    chosen = (field("variant") == variant) & field("question_id").isin(list(dict.fromkeys(questions)))
    traces = pd.DataFrame(dataset.to_table(filter=chosen).to_pylist(), columns=dataset.schema.names)
    labels = _of_ids(tables.file("held-out-annotations"), traces["trace_id"])
    tails = labelled_tails(traces, labels, traces["is_right"], rules).set_index("trace_id")
    paths = trace_paths(labels)
    return {(row.question_id, row.draw): _of_labels(row.trace_id, tails, paths) for row in traces.itertuples()}


def _of_labels(trace_id: str, tails: pd.DataFrame, paths: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    if trace_id not in paths:
        return {"behind": None, "loops": None}
    steps = tails.at[trace_id, "after"] if trace_id in tails.index else None
    behind = None if steps is None else "".join(f"{each};" for each in ("<start>", *steps, "<stop>"))
    return {"behind": behind and behind.replace(" + ", "+"), "loops": bool(find_cycle(paths[trace_id]))}


def verdicts(tables: RunTables) -> str:
    """The file of :data:`VOTED` of all answers that every judge of their kind judged in every variant.

    Raises:
        ArtifactError: the run asked no judge, or has no results yet, which know whose vote decides a tie.
    """
    names = [name for name in tables.artifacts if name.startswith("judgements:")]
    if not names or not tables.has("results"):
        raise ArtifactError(f"{tables.title} has no verdicts of judges")
    judges = tables.store.manifest(tables.artifacts["results"]).fingerprint["judges"]

    def rows() -> Iterator[dict[str, Any]]:
        read = [_frame(tables.file(name), SAID_BY_JUDGES) for name in names]
        answers = pd.concat(
            [_frame(tables.file(f"scores:{name.partition(':')[2]}"), SETS_OF_ANSWERS) for name in names]
        )
        voted = weigh_verdicts(read, [], answers, judges).verdicts
        for kind, of_kind in voted.groupby("kind"):
            is_graded = kind == "grade"
            right = of_kind["grade"] == "correct" if is_graded else judged_metrics(of_kind)["truthful_informative"] == 1
            yield from of_kind.assign(is_right=right)[VOTED.names].to_dict("records")

    return _kept(VOTED, rows, tables, *names, "results")


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


def _frames(file: str, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """The rows of a table, some at a time, their cells as Python has them."""
    with pq.ParquetFile(file) as rows:
        for batch in rows.iter_batches(TEXTS_AT_ONCE, columns=columns and list(columns)):
            stop_if_left()
            yield pd.DataFrame(batch.to_pylist(), columns=batch.schema.names)


def _of_ids(file: str, trace_ids: pd.Series) -> pd.DataFrame:
    """The labels of some traces."""
    columns = ["trace_id", "segment", "step", "labels"]
    chosen = arrow_dataset.field("trace_id").isin(pa.array(trace_ids, pa.string()))
    return pd.DataFrame(arrow_dataset.dataset(file).to_table(columns, filter=chosen).to_pylist(), columns=columns)


_TABLES = KeptFiles()


def _kept(
    schema: pa.Schema, rows: Callable[[], Iterator[dict[str, Any]]], tables: RunTables, *names: str, **more: Any
) -> str:
    """The file of what a run's artifacts say, made where nobody has asked for it before."""
    refs = {name: tables.artifacts[name].sha256 for name in names}
    key = key_of(columns=schema.names, store=tables.store.root_uri, of=refs, **more)
    return _TABLES.file(f"{key}.parquet", lambda path: _write(path, schema, rows()))


def _write(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> None:
    some: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as file:
        for row in rows:
            some.append({name: None if value != value else value for name, value in row.items()})
            if len(some) == TEXTS_AT_ONCE:
                file.write_table(pa.Table.from_pylist(some, schema))
                some = []
        file.write_table(pa.Table.from_pylist(some, schema))
