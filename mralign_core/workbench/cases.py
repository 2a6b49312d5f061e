"""One trace with all that is known of it, and one question with all its draws and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from mralign_core.errors import ArtifactError
from mralign_core.method.traces import split_segments
from mralign_core.reporting.example_traces import mark_golds
from mralign_core.workbench.analyses import LABELS_OF
from mralign_core.workbench.database import Database, TableRow
from mralign_core.workbench.lists import DIFFERS, held_out_labels
from mralign_core.workbench.tables import RAW_FILE, RunTables


def read_trace(database: Database, tables: RunTables, trace_id: str) -> TableRow:
    """A trace whole: its segments with labels, who gave them, and weights; replies of annotators; log-probabilities.

    Raises:
        ArtifactError: the run has no such trace, or a table that tells of other segments of it.
    """
    kind, trace = _find_trace(database, tables, trace_id)
    golds = list(map(str, trace["answers"]))
    segments = [
        {**span, "text": mark_golds(trace["completion"][span["start"] : span["end"]], golds)}
        for span in trace.pop("segments")
    ]
    for name, sql in ((LABELS_OF[kind], SEGMENT_LABELS), ("weights", SEGMENT_WEIGHTS_OF)):
        if tables.has(name) and (name != "weights" or kind == "candidates"):
            for row in database.rows(sql, {"file": tables.file(name), "id": trace_id}):
                if not 0 <= row["segment"] < len(segments):
                    raise _damaged(tables, name, trace_id, f"segment {row['segment']}", segments)
                segments[row["segment"]] |= row
    return {
        **trace,
        "of": kind,
        "segments": segments,
        "marked_answer": mark_golds(trace["answer"] or "", golds),
        "replies": _replies(database, tables, LABELS_OF[kind], trace_id),
        "reference": _reference(database, tables, trace_id, segments),
        "trained": _trained(database, tables, trace_id, segments),
        "others": _other_draws(database, tables, trace["question_id"]),
        "traces": _traces_of(database, tables, trace["question_id"]),
    }


TRACE = """
SELECT trace_id, question_id, question, answers, stratum, polarity, draw, prompt, completion, answer, segments,
  reasoning_tokens, len(completion_ids) AS num_tokens
FROM read_parquet($file) WHERE trace_id = $id"""
SEGMENT_LABELS = f"""
SELECT segment, step, labels, confidences, rule, labels_a, confidences_a, labels_b, confidences_b,
  {DIFFERS} AS disputed
FROM read_parquet($file) WHERE trace_id = $id ORDER BY segment"""
SEGMENT_WEIGHTS_OF = """
SELECT segment, weight, ratio, clipped, support, weight_low, weight_high
FROM read_parquet($file) WHERE trace_id = $id ORDER BY segment"""


def _find_trace(database: Database, tables: RunTables, trace_id: str) -> tuple[str, TableRow]:
    for kind in LABELS_OF:
        if tables.has(kind) and (row := database.row(TRACE, {"file": tables.file(kind), "id": trace_id})):
            return kind, row
    raise ArtifactError(f"{tables.title} has no trace {trace_id!r}")


def _replies(database: Database, tables: RunTables, labels: str, trace_id: str) -> list[TableRow]:
    if not tables.has_file(labels, RAW_FILE):
        return []
    sql = """SELECT role, model, attempt, reply, problem, prompt_tokens, completion_tokens, cost_usd
      FROM read_parquet($file) WHERE trace_id = $id ORDER BY role = 'adjudicator', role, attempt"""
    return database.rows(sql, {"file": tables.file(labels, RAW_FILE), "id": trace_id})


def _reference(database: Database, tables: RunTables, trace_id: str, segments: Sequence[TableRow]) -> TableRow | None:
    """Log-probabilities under the model as it is, by token and summed over each segment, which gets its sum."""
    if not tables.has("reference-logps"):
        return None
    sql = "SELECT partner_trace_id, logps, kl_logp FROM read_parquet($file) WHERE trace_id = $id"
    row = database.row(sql, {"file": tables.file("reference-logps"), "id": trace_id})
    if row is None:
        return None
    for segment in segments:
        own = row["logps"][segment["token_start"] : segment["token_end"]]
        segment |= {"logps": own, "logp": sum(own)}
    return {"partner": row["partner_trace_id"], "kl_logp": row["kl_logp"], "logp": sum(row.pop("logps"))}


def _trained(database: Database, tables: RunTables, trace_id: str, segments: Sequence[TableRow]) -> TableRow:
    """Variant → what its training made of the trace; each segment gets its own part of it.

    Raises:
        ArtifactError: a table tells of more segments, or fewer.
    """
    found = {}
    sql = """SELECT num_tokens, reference_logp, policy_logp, implicit_reward, kl, segments
      FROM read_parquet($file) WHERE trace_id = $id"""
    for variant in tables.looked_at:
        row = database.row(sql, {"file": tables.file(f"policy-logps:{variant}"), "id": trace_id})
        if row:
            of_segments = row.pop("segments")
            if len(of_segments) != len(segments):
                raise _damaged(tables, f"policy-logps:{variant}", trace_id, f"{len(of_segments)} segments", segments)
            for segment, own in zip(segments, of_segments, strict=True):
                segment.setdefault("trained", {})[variant] = own
            found[variant] = row
    return found


def _damaged(tables: RunTables, name: str, trace_id: str, told: str, segments: Sequence[TableRow]) -> ArtifactError:
    artifact = f"{name} {tables.artifacts[name].key[:12]}"
    return ArtifactError(
        f"{artifact} tells of {told} of trace {trace_id!r}, which has {len(segments)}: it was made of other traces, or "
        "is damaged; `mralign verify` checks the store"
    )


def _other_draws(database: Database, tables: RunTables, question_id: str) -> list[TableRow]:
    if not tables.has("generations"):
        return []
    sql = """SELECT thinking_mode, draw, outcome, em_thought, em_answer, thinking, answer,
        len(completion_ids) AS num_tokens
      FROM read_parquet($file) WHERE question_id = $id ORDER BY thinking_mode DESC, draw"""
    return database.rows(sql, {"file": tables.file("generations"), "id": question_id})


def _traces_of(database: Database, tables: RunTables, question_id: str) -> list[TableRow]:
    sql = "SELECT trace_id, draw, polarity FROM read_parquet($file) WHERE question_id = $id ORDER BY draw"
    kinds = [kind for kind in LABELS_OF if tables.has(kind)]
    found = (row for kind in kinds for row in database.rows(sql, {"file": tables.file(kind), "id": question_id}))
    return list({row["trace_id"]: row for row in found}.values())


def read_question(database: Database, tables: RunTables, question_id: str) -> TableRow:
    """A question, its draws and traces where it is aligned on, and each variant's answers where it is evaluated on.

    Raises:
        ArtifactError: the run has no such question.
    """
    question = _find_question(database, tables, question_id)
    golds = list(map(str, question["answers"]))
    answers = {name: _answers(database, tables, name, question_id, golds) for name in tables.variants}
    for told in held_out_labels(database, tables, [question_id]):
        for row in answers.get(told["variant"], []):
            if row["draw"] == told["draw"]:
                row["labels"] = told["labels"]
    return {
        **question,
        "answers_by_variant": {name: rows for name, rows in answers.items() if rows},
        "draws": [_marked(row, golds) for row in _other_draws(database, tables, question_id)],
        "traces": _traces_of(database, tables, question_id),
    }


def _find_question(database: Database, tables: RunTables, question_id: str) -> TableRow:
    for kind in ("questions", "evaluation-questions"):
        sql = "SELECT * FROM read_parquet($file) WHERE question_id = $id"
        if tables.has(kind) and (row := database.row(sql, {"file": tables.file(kind), "id": question_id})):
            return row
    raise ArtifactError(f"{tables.title} has no question {question_id!r}")


def _answers(
    database: Database, tables: RunTables, variant: str, question_id: str, golds: Sequence[str]
) -> list[TableRow]:
    sql = """SELECT draw, outcome, scoring, em_thought, em_answer, contains_answer, thinking, answer, num_prompt_tokens,
        num_tokens FROM read_parquet($file) WHERE question_id = $id ORDER BY draw"""
    rows = database.rows(sql, {"file": tables.file(f"scores:{variant}"), "id": question_id})
    return [_marked(row, golds) for row in rows]


def _marked(row: TableRow, golds: Sequence[str]) -> TableRow:
    """A reply with its thinking in segments, and the gold answers in it marked."""
    thinking = row.pop("thinking") or ""
    spans = split_segments(thinking)
    return {
        **row,
        "segments": [mark_golds(thinking[span.start : span.end], golds) for span in spans],
        "marked_answer": mark_golds(row["answer"] or "", golds),
    }
