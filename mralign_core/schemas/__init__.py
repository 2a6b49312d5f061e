"""The tables that cross a stage boundary: their columns, Arrow types and pandera checks, each stated once.

Every stage validates what it reads and what it writes. Validation is lazy: all bad rows are found at once, moved to a
quarantine table with the reason, and counted, while the good rows go on (:meth:`Table.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
from pandera.errors import SchemaErrors

from mralign_core.errors import DataError

QUARANTINE_COLUMNS = ["row", "row_id", "column", "reason", "value"]
THINKING_MODES = ("on", "off")
POLARITIES = ("positive", "negative")
RULES = ("agree", "merge", "adjudicate", "unlabelled")
MOST_CONFIDENT = 10
OUTCOMES = (
    "ok",
    "untagged_answer",
    "no_answer",
    "no_thinking",
    "unasked_thinking",
    "answer_in_thinking",
    "several_think_blocks",
    "unclosed_thinking",
)
"""What a completion can be; :data:`~mralign_core.method.traces.Outcome` says what each means."""
FAILED = "failed"
DRAW_OUTCOMES = (*OUTCOMES, FAILED)
"""What a draw can be: a completion, or ``failed``, where the server that samples did not answer though it answers
others. What the model would have said is unknown then."""


class Column(NamedTuple):
    """One column: Arrow type, element checks as (reason, predicate), whether null or repeated values are allowed."""

    type: pa.DataType
    checks: Sequence[tuple[str, Callable[[Any], bool]]] = ()
    nullable: bool = False
    unique: bool = False


class Validated(NamedTuple):
    """Rows that keep the contract, and a table of those that don't (``QUARANTINE_COLUMNS``), one row a problem."""

    good: pd.DataFrame
    quarantined: pd.DataFrame


@dataclass(frozen=True)
class Table:
    """A named, versioned table contract."""

    name: str
    columns: dict[str, Column]
    row_checks: Sequence[tuple[str, Callable[[Any], bool]]] = ()
    unique_together: Sequence[str] = ()
    version: int = 1
    row_id: str = field(default="")

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema rows are written with, so that the same rows always give the same file."""
        return pa.schema([pa.field(name, column.type) for name, column in self.columns.items()])

    def validate(self, frame: pd.DataFrame) -> Validated:
        """Split rows into good and quarantined ones.

        Raises:
            DataError: a column is missing, so no row can be judged.
        """
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise DataError(
                f"table {self.name!r} lacks column(s) {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
            )
        frame = frame[list(self.columns)].reset_index(drop=True)
        try:
            self._pandera_schema().validate(frame, lazy=True)
        except SchemaErrors as error:
            quarantined = self._quarantine(frame, error.failure_cases)
            good = frame.drop(index=quarantined["row"].unique()).reset_index(drop=True)
            return Validated(good, quarantined)
        return Validated(frame, pd.DataFrame(columns=QUARANTINE_COLUMNS))

    def require(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame when every row keeps the contract.

        Raises:
            DataError: at least one row breaks it; the message names the first ones.
        """
        good, quarantined = self.validate(frame)
        if len(quarantined):
            first = quarantined.head(5).to_dict("records")
            lines = [f"row {p['row']} ({p['row_id']}): {p['column']} {p['reason']}, got {p['value']}" for p in first]
            raise DataError(f"table {self.name!r}: {quarantined['row'].nunique()} bad row(s)\n  " + "\n  ".join(lines))
        return good

    def to_arrow(self, frame: pd.DataFrame) -> pa.Table:
        """Rows as an Arrow table with exactly the contract's columns and types."""
        arrays = [
            pa.array([None if _is_null(value) else value for value in frame[name]], type=column.type)
            for name, column in self.columns.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.arrow_schema)

    def from_arrow(self, table: pa.Table) -> pd.DataFrame:
        """Rows of an Arrow table as a frame whose list columns hold Python lists."""
        return pd.DataFrame(table.to_pylist(), columns=list(self.columns)).astype(object)

    def _pandera_schema(self) -> pandera.DataFrameSchema:
        columns = {
            name: pandera.Column(
                None,
                [pandera.Check(_elementwise(test, column.nullable), name=reason) for reason, test in column.checks],
                nullable=column.nullable,
                unique=column.unique,
            )
            for name, column in self.columns.items()
        }
        checks = [pandera.Check(_rowwise(test), name=reason) for reason, test in self.row_checks]
        return pandera.DataFrameSchema(columns, checks=checks, unique=list(self.unique_together) or None)

    def _quarantine(self, frame: pd.DataFrame, failures: pd.DataFrame) -> pd.DataFrame:
        rows = failures.dropna(subset=["index"])
        if rows.empty:
            raise DataError(f"table {self.name!r}: {failures['check'].iloc[0]}")
        id_column = self.row_id or next(iter(self.columns))
        table = pd.DataFrame(
            {
                "row": rows["index"].astype(int),
                "row_id": [str(frame[id_column].iloc[int(index)]) for index in rows["index"]],
                "column": [
                    "(row)" if context == "DataFrameSchema" else str(column)
                    for context, column in zip(rows["schema_context"], rows["column"], strict=True)
                ],
                "reason": [_reason(str(check)) for check in rows["check"]],
                "value": [repr(value)[:120] for value in rows["failure_case"]],
            }
        )
        return table.drop_duplicates(["row", "column", "reason"]).sort_values(["row", "column"], ignore_index=True)


def _elementwise(test: Callable[[Any], bool], nullable: bool) -> Callable[[pd.Series], pd.Series]:
    def check(series: pd.Series) -> pd.Series:
        return series.map(lambda value: (nullable and _is_null(value)) or bool(test(value))).astype(bool)

    return check


def _rowwise(test: Callable[[Any], bool]) -> Callable[[pd.DataFrame], pd.Series]:
    def check(frame: pd.DataFrame) -> pd.Series:
        return pd.Series([bool(test(row)) for row in frame.itertuples(index=False)], index=frame.index, dtype=bool)

    return check


def _reason(check: str) -> str:
    return {"not_nullable": "must not be empty", "field_uniqueness": "must be unique"}.get(check, check)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(_is_text(item) for item in value)


def _is_texts(value: Any) -> bool:
    return _are_texts(value) and len(value) > 0


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(int(item) >= 0 for item in value)


def _are_confidences(value: Any) -> bool:
    return all(isinstance(item, (int, float)) and 0 <= item <= MOST_CONFIDENT for item in value)


def _are_logps(values: Any) -> bool:
    return bool(np.isfinite(np.asarray(values, dtype=float)).all())


def _is_natural(value: Any) -> bool:
    return float(value) == int(value) and int(value) >= 0


def _one_of(choices: Sequence[str]) -> tuple[str, Callable[[Any], bool]]:
    return f"must be one of {', '.join(choices)}", lambda value: value in choices


TEXT = ("must be non-empty text", _is_text)
STRING = ("must be text", lambda value: isinstance(value, str))
NATURAL = ("must be a whole number of at least 0", _is_natural)
SHARE = ("must be a share from 0 to 1", lambda value: 0 <= value <= 1)
IDS = ("must be a list of token ids", _is_ids)
TEXTS = ("must be a non-empty list of non-empty texts", _is_texts)
TEXTS_OR_NONE = ("must be a list of non-empty texts", _are_texts)
LABELS = ("must be at most two distinct labels", lambda value: len(value) == len(set(value)) <= 2)
LOGPS = ("must be a non-empty list of finite log-probabilities", lambda value: len(value) > 0 and _are_logps(value))
CONFIDENCES = (f"must be numbers from 0 to {MOST_CONFIDENT}", _are_confidences)

_SEGMENTS = pa.list_(
    pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("token_start", pa.int64()),
            ("token_end", pa.int64()),
        ]
    )
)


def _segments_are_ordered(row: Any) -> bool:
    """Character and token spans don't overlap, don't go back, and stay inside the completion."""
    spans = [(s["start"], s["end"], s["token_start"], s["token_end"]) for s in row.segments]
    inside = all(0 <= a < b <= len(row.completion) and 0 <= c <= d <= len(row.completion_ids) for a, b, c, d in spans)
    return bool(spans) and inside and all(x[1] <= y[0] and x[3] <= y[2] for x, y in pairwise(spans))


QUESTIONS = Table(
    name="questions",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT], unique=True),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string()), [TEXTS_OR_NONE]),
        "source": Column(pa.string(), [TEXT]),
        "split": Column(pa.string(), [_one_of(("train", "eval"))]),
        "stratum": Column(pa.string(), [STRING]),
    },
    row_checks=[
        ("a question to align on needs an answer", lambda row: row.split != "train" or _is_texts(row.answers)),
    ],
)
"""A row a question. ``answers`` is empty where a set has no gold answers, for evaluation only; ``source`` is the name
of its set; ``stratum`` is a free grouping for the report ("" where there is none)."""

GENERATIONS = Table(
    name="generations",
    row_id="question_id",
    columns={
        "question_id": Column(pa.string(), [TEXT]),
        "thinking_mode": Column(pa.string(), [_one_of(THINKING_MODES)]),
        "draw": Column(pa.int64(), [NATURAL]),
        "prompt": Column(pa.string(), [STRING]),
        "completion": Column(pa.string(), [STRING]),
        "prompt_ids": Column(pa.list_(pa.int64()), [IDS]),
        "completion_ids": Column(pa.list_(pa.int64()), [IDS]),
        "thinking": Column(pa.string(), [STRING], nullable=True),
        "answer": Column(pa.string(), [STRING], nullable=True),
        "finish_reason": Column(pa.string(), [_one_of(("stop", "length", FAILED))]),
        "token_source": Column(pa.string(), [_one_of(("sampled", "encoded"))]),
        "end_token_id": Column(pa.int64(), [NATURAL], nullable=True),
        "thinking_closed": Column(pa.bool_()),
        "outcome": Column(pa.string(), [_one_of(DRAW_OUTCOMES)]),
        "em_thought": Column(pa.bool_(), nullable=True),
        "em_answer": Column(pa.bool_(), nullable=True),
        "contains_answer": Column(pa.bool_(), nullable=True),
    },
    row_checks=[
        (
            "a draw has answers that are right or wrong unless it failed",
            lambda row: [row.outcome == FAILED] * 2 == [_is_null(row.em_answer), _is_null(row.contains_answer)],
        ),
    ],
    unique_together=("question_id", "thinking_mode", "draw"),
    version=3,
)
"""A row a draw. ``em_thought`` is null where the mode has no thinking; ``contains_answer`` is the looser answer match
(a gold answer is contained in the answer). A draw that ``failed`` has no completion, and is neither right nor wrong:
all three are null. ``completion`` is the decoded text of ``completion_ids``; ``token_source`` says whether the model
drew these, or they encode the text that an engine gave. ``end_token_id`` is the end token behind them, null where none
was drawn, as where the answer's closing tag ended it. The draws of a question stand side by side; not all need have
been made (``generate.draws``)."""

CANDIDATES = Table(
    name="candidates",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "question_id": Column(pa.string(), [TEXT]),
        "question": Column(pa.string(), [TEXT]),
        "answers": Column(pa.list_(pa.string()), [TEXTS]),
        "stratum": Column(pa.string(), [STRING]),
        "polarity": Column(pa.string(), [_one_of(POLARITIES)]),
        "draw": Column(pa.int64(), [NATURAL]),
        "prompt": Column(pa.string(), [STRING]),
        "completion": Column(pa.string(), [TEXT]),
        "prompt_ids": Column(pa.list_(pa.int64()), [IDS]),
        "completion_ids": Column(pa.list_(pa.int64()), [IDS]),
        "end_token_id": Column(pa.int64(), [NATURAL], nullable=True),
        "answer": Column(pa.string(), [STRING]),
        "segments": Column(_SEGMENTS),
        "reasoning_tokens": Column(pa.int64(), [NATURAL]),
    },
    row_checks=[("segments must be ordered spans inside the completion", _segments_are_ordered)],
    version=2,
)
"""A row a kept trace. ``segments``: character span (start, end) of each segment's own text in ``completion``, without
delimiter or tag, and the half-open token span (token_start, token_end) in ``completion_ids`` that carries its weight
(with the think tag for the first segment, and with the delimiter behind it). ``end_token_id`` is the end token that the
model drew behind the completion; null where that is not known."""

RAW_ANNOTATIONS = Table(
    name="raw_annotations",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "role": Column(pa.string(), [_one_of(("annotator_a", "annotator_b", "adjudicator"))]),
        "model": Column(pa.string(), [TEXT]),
        "attempt": Column(pa.int64(), [NATURAL]),
        "request_digest": Column(pa.string(), [TEXT]),
        "prompt_digest": Column(pa.string(), [TEXT]),
        "reply": Column(pa.string(), [STRING]),
        "problem": Column(pa.string(), [STRING]),
        "prompt_tokens": Column(pa.int64(), [NATURAL]),
        "completion_tokens": Column(pa.int64(), [NATURAL]),
        "cost_usd": Column(pa.float64()),
    },
    version=2,
)
"""A row an LLM reply. ``problem`` is "" for a reply that was used, else why it was not; ``attempt`` is 0, or 1 for the
reply to the repair turn. The store keeps each reply whole under its ``request_digest``, with its latency."""

ANNOTATIONS = Table(
    name="annotations",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "segment": Column(pa.int64(), [NATURAL]),
        "step": Column(pa.int64(), [NATURAL]),
        "labels": Column(pa.list_(pa.string()), [LABELS]),
        "confidences": Column(pa.list_(pa.float64()), [CONFIDENCES]),
        "rule": Column(pa.string(), [_one_of(RULES)]),
        "labels_a": Column(pa.list_(pa.string()), [LABELS]),
        "confidences_a": Column(pa.list_(pa.float64()), [CONFIDENCES]),
        "labels_b": Column(pa.list_(pa.string()), [LABELS]),
        "confidences_b": Column(pa.list_(pa.float64()), [CONFIDENCES]),
    },
    row_checks=[("labels and confidences must pair up", lambda row: len(row.labels) == len(row.confidences))],
    unique_together=("trace_id", "segment"),
)
"""A row a segment. Segments with the same ``step`` were merged by the annotators and count as one state."""

REWARDS = Table(
    name="rewards",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT]),
        "segment": Column(pa.int64(), [NATURAL]),
        "weight": Column(pa.float64(), [("must be positive", lambda value: 0 < value < float("inf"))]),
        "ratio": Column(pa.float64(), [("must be positive", lambda value: value > 0)]),
        "clipped": Column(pa.bool_()),
        "support": Column(pa.float64(), [("must be at least 0", lambda value: value >= 0)]),
        "weight_low": Column(pa.float64(), nullable=True),
        "weight_high": Column(pa.float64(), nullable=True),
    },
    unique_together=("trace_id", "segment"),
    version=2,
)
"""A row a segment: the weight its tokens carry (Eq. 10), the ratio before shrinkage and clipping, whether the clip
moved it, the soft counts behind the ratio's numerator, and the weight's bootstrap interval (null without bootstrap)."""

REFERENCE_LOGPS = Table(
    name="reference_logps",
    row_id="trace_id",
    columns={
        "trace_id": Column(pa.string(), [TEXT], unique=True),
        "partner_trace_id": Column(pa.string(), [TEXT]),
        "logps": Column(pa.list_(pa.float32()), [LOGPS]),
        "kl_logp": Column(pa.float64(), [("must be a finite log-probability", lambda value: _are_logps([value]))]),
    },
    row_checks=[("a trace can't be its own partner", lambda row: row.trace_id != row.partner_trace_id)],
)
"""A row a trace to train on, under the model without adapter: the log-probability of each completion token, and, summed
over its tokens, of the partner's completion behind this trace's prompt (the KL pair)."""

TRAINING_METRICS = Table(
    name="training_metrics",
    row_id="step",
    columns={
        "step": Column(pa.int64(), [NATURAL], unique=True),
        "epoch": Column(pa.float64()),
        "loss": Column(pa.float64()),
        "reward_positive": Column(pa.float64(), nullable=True),
        "reward_negative": Column(pa.float64(), nullable=True),
        "kl_baseline": Column(pa.float64(), nullable=True),
        "kl_raw": Column(pa.float64(), nullable=True),
        "grad_norm": Column(pa.float64()),
        "learning_rate": Column(pa.float64()),
    },
)
"""A row an optimiser step; rewards and KL are null for SFT, or where the batch had none of the class."""

SCORES = Table(
    name="scores",
    row_id="question_id",
    columns={
        "variant": Column(pa.string(), [TEXT]),
        "question_id": Column(pa.string(), [TEXT]),
        "stratum": Column(pa.string(), [STRING]),
        "draw": Column(pa.int64(), [NATURAL]),
        "completion": Column(pa.string(), [STRING]),
        "thinking": Column(pa.string(), [STRING], nullable=True),
        "answer": Column(pa.string(), [STRING], nullable=True),
        "outcome": Column(pa.string(), [_one_of(OUTCOMES)]),
        "em_thought": Column(pa.bool_(), nullable=True),
        "em_answer": Column(pa.bool_(), nullable=True),
        "contains_answer": Column(pa.bool_(), nullable=True),
    },
    unique_together=("variant", "question_id", "draw"),
    version=2,
)
"""A row an answer of the evaluation. Variants: ``off``, ``on``, and one for each trained adapter. The matches are null
where the question has no gold answer."""

ABLATION_RESULTS = Table(
    name="ablation_results",
    row_id="arm",
    columns={
        "world": Column(pa.int64(), [NATURAL]),
        "seed": Column(pa.int64(), [NATURAL]),
        "arm": Column(pa.string(), [TEXT]),
        "num_questions": Column(pa.int64(), [NATURAL]),
        "num_answers": Column(pa.int64(), [NATURAL]),
        "acc": Column(pa.float64(), [SHARE], nullable=True),
        "mis": Column(pa.float64(), [SHARE], nullable=True),
        "em_thought": Column(pa.float64(), [SHARE], nullable=True),
        "em_answer": Column(pa.float64(), [SHARE]),
    },
    unique_together=("world", "seed", "arm"),
)
"""A row a world, alignment seed and arm of an ablation; ``off`` and ``on`` are arms too. Acc, Mis and EM_t are null for
an arm that does not think."""

ABLATION_DIFFERENCES = Table(
    name="ablation_differences",
    row_id="arm",
    columns={
        "arm": Column(pa.string(), [TEXT]),
        "baseline": Column(pa.string(), [TEXT]),
        "metric": Column(pa.string(), [_one_of(("acc", "mis", "em_thought", "em_answer"))]),
        "difference": Column(pa.float64()),
        "std_error": Column(pa.float64(), nullable=True),
        "low": Column(pa.float64(), nullable=True),
        "high": Column(pa.float64(), nullable=True),
        "p_value": Column(pa.float64(), [SHARE], nullable=True),
        "num_units": Column(pa.int64(), [NATURAL]),
        "num_agreeing": Column(pa.int64(), [NATURAL]),
    },
    unique_together=("arm", "baseline", "metric"),
)
"""A row a comparison and metric of an ablation: arm minus baseline, the mean over units (worlds, or seeds) with its
standard error, t interval and p-value (null where there is none), and how many units have the mean's sign."""

TABLES = {
    table.name: table
    for table in (
        QUESTIONS,
        GENERATIONS,
        CANDIDATES,
        RAW_ANNOTATIONS,
        ANNOTATIONS,
        REWARDS,
        REFERENCE_LOGPS,
        TRAINING_METRICS,
        SCORES,
        ABLATION_RESULTS,
        ABLATION_DIFFERENCES,
    )
}
