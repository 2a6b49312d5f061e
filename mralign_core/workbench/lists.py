"""Lists of traces, draws and answers: which rows an address asks for, page by page, and all of them as JSON lines.

Each list is asked in two steps: which rows, by the few columns that decide it, and then all about the rows of a page.
So texts are read for a page only, unless a text is searched.

Of an answer and of a draw, right is what its set's match says (``em_answer``); a flip goes by Acc, thinking and answer
both, where both variants think and the set has EM_t, as the report's flips do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from mralign_core.errors import ConfigError
from mralign_core.evaluation.mentions import UNLABELLED
from mralign_core.method.benchmarks import SCORINGS
from mralign_core.workbench.analyses import answer_thinking, trace_thinking, verdicts
from mralign_core.workbench.database import Database, TableRow
from mralign_core.workbench.filters import (
    EXACTLY,
    AnswerFilter,
    DrawFilter,
    Filter,
    Hit,
    ThinkingFilter,
    TraceFilter,
    exact_steps,
    pattern_regex,
    text_regex,
)
from mralign_core.workbench.tables import RunTables

ROWS_A_PAGE = 50
EXPORT_AT_ONCE = 5_000
"""Rows that are described at a time."""
Values = dict[str, Any]
ASKED_BOTH = "rule <> 'distilled'"
"""Whether annotator B was asked about a segment, and not a distilled annotator alone."""
DIFFERS = f"({ASKED_BOTH} AND NOT (labels_a = labels_b OR labels_a = list_reverse(labels_b)))"
"""Whether the annotators gave a segment different labels."""
_HITS: Mapping[Hit, str] = {
    "both": "{thought} AND {answered}",
    "thinking": "{thought} AND NOT {answered}",
    "answer": "NOT {thought} AND {answered}",
    "neither": "NOT {thought} AND NOT {answered}",
    "gap": "{thinks} AND {thought} <> {answered}",
    "named": "{thought}",
    "right": "{answered}",
    "wrong": "NOT {answered}",
}
_FLIPS = {
    "any": "{before} <> {after}",
    "wrong to right": "NOT {before} AND {after}",
    "right to wrong": "{before} AND NOT {after}",
    "both right": "{before} AND {after}",
    "both wrong": "NOT {before} AND NOT {after}",
}


class Page(NamedTuple):
    """A page of a list."""

    rows: list[TableRow]
    total: int
    """Rows on all pages."""
    page: int
    num_pages: int


class Chosen(NamedTuple):
    """A query for the keys of the rows that are asked for, in their order, and its values."""

    sql: str
    values: Values


class Listing(NamedTuple):
    """A kind of list: which rows a filter chooses, and all about some of them, in their order."""

    filter: type[Filter]
    find: Callable[[RunTables, Any], Chosen]
    show: Callable[[Database, RunTables, Any, Sequence[TableRow]], list[TableRow]]
    save: Callable[[Database, RunTables, Any, Sequence[TableRow]], list[TableRow]]
    """The same with what is too long for a page."""


def read_page(database: Database, tables: RunTables, listing: Listing, wanted: Filter) -> Page:
    """One page of a list."""
    chosen = listing.find(tables, wanted)
    bounds = {"limit": ROWS_A_PAGE, "offset": (wanted.page - 1) * ROWS_A_PAGE}
    counted = f"SELECT *, count(*) OVER () AS total FROM ({chosen.sql})"  # texts are searched once, not to count too
    keys = database.rows(f"{counted} {_order(wanted)} LIMIT $limit OFFSET $offset", chosen.values | bounds)
    total = int(keys[0]["total"]) if keys else _count(database, chosen) if wanted.page > 1 else 0
    return Page(listing.show(database, tables, wanted, keys), total, wanted.page, -(-total // ROWS_A_PAGE))


def _count(database: Database, chosen: Chosen) -> int:
    return int(database.rows(f"SELECT count(*) AS total FROM ({chosen.sql})", chosen.values)[0]["total"])


def stream_all(database: Database, tables: RunTables, listing: Listing, wanted: Filter) -> Iterator[TableRow]:
    """All rows of a list, a few in memory at a time."""
    chosen = listing.find(tables, wanted)
    keys = database.stream(f"{chosen.sql} {_order(wanted)}", chosen.values)
    while some := list(islice(keys, EXPORT_AT_ONCE)):
        yield from listing.save(database, tables, wanted, some)


def _order(wanted: Any) -> str:
    if wanted.reverse and not wanted.sort:
        raise ConfigError("reverse=yes: there is no order to turn round; name one with sort=…")
    return f"ORDER BY {f'rank {REVERSED[wanted.reverse]} NULLS LAST, ' if wanted.sort else ''}place"


REVERSED = {"": "ASC", "yes": "DESC"}
BY_MENTIONS = {"first": "first", "last": "last", "after": "-segments_after"}
"""Orders by what the analyses say of a thinking → the column."""


def find_traces(tables: RunTables, wanted: TraceFilter) -> Chosen:
    """The traces of a filter."""
    labels = "annotations" if wanted.of == "candidates" else "draw-annotations"
    values: Values = {"traces": tables.file(wanted.of)}
    where = _of_question(tables, wanted, values, "questions")
    if wanted.polarity:
        where.append("polarity = $polarity")
        values["polarity"] = wanted.polarity
    if wanted.text:
        where.append(_has_text("question", "completion"))
        values["text"] = text_regex(wanted.text)
    if of_segment := _of_segment(tables, wanted, labels, values):
        where.append(f"trace_id IN ({of_segment})")
    if _given(wanted, *BY_LABELS):
        tables.file(labels)  # else they would be asked of traces without labels, and find none
    if of_thinking := _of_thinking(wanted, tables, values):
        values["thinking"] = trace_thinking(tables, wanted.of)
        where.append(f"trace_id IN (SELECT trace_id FROM read_parquet($thinking){_all_of(of_thinking)})")
    if pattern := pattern_regex(wanted.pattern, tables.taxonomy):
        values |= {"labels": tables.file(labels), "pattern": pattern}
        where.append(f"trace_id IN (SELECT trace_id FROM ({SEQUENCES}) WHERE regexp_matches(sequence, $pattern))")
    ranks, join = _rank_traces(tables, wanted, labels, values)
    columns = f"trace_id, file_row_number AS place{ranks}"
    source = f"read_parquet($traces, file_row_number = true) {join}"
    return Chosen(f"SELECT {columns} FROM {source}{_all_of(where)}", values)


SEQUENCES = """
SELECT trace_id, '<start>;' || list_aggregate(list_transform(
    list_filter(rows, lambda row, place: place = 1 OR row.step <> rows[place - 1].step), lambda row: row.labels || ';'
  ), 'string_agg', '') || '<stop>;' AS sequence
FROM (SELECT trace_id, list_sort(list({segment: segment, step: step, labels: array_to_string(labels, '+')})) AS rows
      FROM read_parquet($labels) WHERE len(labels) > 0 GROUP BY trace_id)"""
"""The steps of each trace that have a label, as text; segments of one step are one. An aggregate that sorts by itself
(``ORDER BY`` in it) takes four times as long."""


def _of_segment(tables: RunTables, wanted: TraceFilter, labels: str, values: Values) -> str:
    """A query for the traces that have a segment like that; empty where any will do."""
    of_labels = []
    if wanted.label:
        of_labels.append("list_contains(labels, $label)")
        values["label"] = _known(wanted.label, tables)
    if wanted.rule:
        of_labels.append("rule = $rule")
        values["rule"] = wanted.rule
    if wanted.disputed == "any":
        of_labels.append(DIFFERS)
    elif wanted.disputed:
        of_labels += [ASKED_BOTH, "list_contains(labels_a, $disputed) <> list_contains(labels_b, $disputed)"]
        values["disputed"] = _known(wanted.disputed, tables)
    of_weights = _in_range(wanted, "weight", "weight", values)
    of_moves = _in_range(wanted, "moved", "(policy_logp - reference_logp) / num_tokens", values)
    parts = []
    if of_labels:
        values["labels"] = tables.file(labels)
        parts.append(f"SELECT trace_id, segment FROM read_parquet($labels){_all_of(of_labels)}")
    if of_weights:
        values["weights"] = tables.file("weights")
        parts.append(f"SELECT trace_id, segment FROM read_parquet($weights){_all_of(of_weights)}")
    if of_moves:
        values["policy"] = policy_file(tables, wanted)
        parts.append(f"SELECT trace_id, segment FROM ({MOVED_SEGMENTS}){_all_of([*of_moves, 'num_tokens > 0'])}")
    return f"SELECT trace_id FROM ({' INTERSECT '.join(parts)})" if parts else ""


MOVED_SEGMENTS = """
SELECT trace_id, unnest(range(len(segments))) AS segment, unnest(segments, recursive := true)
FROM read_parquet($policy)"""


def _in_range(wanted: Filter, name: str, what: str, values: Values) -> list[str]:
    """Conditions that ``name_min`` and ``name_max`` of a filter put on something."""
    bounds = {f"{name}_{end}": sign for end, sign in (("min", ">="), ("max", "<="))}
    given = {bound: sign for bound, sign in bounds.items() if getattr(wanted, bound) is not None}
    values |= {bound: getattr(wanted, bound) for bound in given}
    return [f"{what} {sign} ${bound}" for bound, sign in given.items()]


def policy_file(tables: RunTables, wanted: TraceFilter) -> str:
    """The log-probabilities after training that a filter is about.

    Raises:
        ConfigError: the run has none, or none of that variant.
    """
    variant = wanted.trained or next(reversed(tables.looked_at), "")
    if variant not in tables.looked_at:
        known = ", ".join(tables.looked_at) or "none: run the train stage with train.trace_logps"
        raise ConfigError(f"trained={variant}: no traces were looked at after training it; there are {known}")
    return tables.file(f"policy-logps:{variant}")


def _rank_traces(tables: RunTables, wanted: TraceFilter, labels: str, values: Values) -> tuple[str, str]:
    """The column to sort by, and what it is joined from."""
    by = {
        "weight": ("weights", "min([-weight, -coalesce(ratio, 'infinity'::DOUBLE)])"),
        "weight_low": ("weights", "min([weight, coalesce(ratio, 'infinity'::DOUBLE)])"),
        "disagreement": ("labels", f"-avg(CAST({DIFFERS} AS INTEGER))"),
        "raised": ("policy", "-max(implicit_reward)"),
        "lowered": ("policy", "min(implicit_reward)"),
        "kl": ("policy", "-max(kl / num_tokens)"),
    }
    if measure := {"length": "-len(segments)", "tokens": "-reasoning_tokens"}.get(wanted.sort):
        return f", {measure} AS rank", ""
    if measure := BY_MENTIONS.get(wanted.sort):
        values["thinking"] = trace_thinking(tables, wanted.of)
        return ", rank", f"LEFT JOIN (SELECT trace_id, {measure} AS rank FROM read_parquet($thinking)) USING (trace_id)"
    if not wanted.sort:
        return "", ""
    table, measure = by[wanted.sort]  # of weights that the clip made equal, the ratio decides
    is_policy = table == "policy"
    values[table] = policy_file(tables, wanted) if is_policy else tables.file({"labels": labels}.get(table, table))
    ranked = f"SELECT trace_id, {measure} AS rank FROM read_parquet(${table}) GROUP BY trace_id"
    return ", rank", f"LEFT JOIN ({ranked}) USING (trace_id)"


def show_traces(database: Database, tables: RunTables, wanted: TraceFilter, keys: Sequence[TableRow]) -> list[TableRow]:
    """What a list shows of traces."""
    labels = "annotations" if wanted.of == "candidates" else "draw-annotations"
    files = {"traces": tables.file(wanted.of), "ids": [row["trace_id"] for row in keys]}
    found = _by_trace(database, TRACE_ROWS, files)
    if tables.has(labels):
        found = _joined(found, _by_trace(database, LABEL_ROWS, files | {"labels": tables.file(labels)}))
    if tables.has("weights") and wanted.of == "candidates":
        found = _joined(found, _by_trace(database, WEIGHT_ROWS, files | {"weights": tables.file("weights")}))
    if tables.looked_at and wanted.of == "candidates":
        found = _joined(found, _by_trace(database, MOVED_ROWS, files | {"policy": policy_file(tables, wanted)}))
    rows = [found[row["trace_id"]] for row in keys]
    if wanted.sort in BY_MENTIONS:
        _add_trace_mentions(database, tables, wanted, rows)
    return rows


def save_traces(database: Database, tables: RunTables, wanted: TraceFilter, keys: Sequence[TableRow]) -> list[TableRow]:
    """What a list shows of traces, the texts of their thinking, a segment each, as labels and weights are, and where
    these name a gold answer.
    """
    rows = show_traces(database, tables, wanted, keys)
    files = {"traces": tables.file(wanted.of), "ids": [row["trace_id"] for row in rows]}
    texts = _by_trace(database, TEXT_ROWS, files)
    for row in rows:
        text = texts[row["trace_id"]]
        row["thinking"] = [text["completion"][span["start"] : span["end"]] for span in text["segments"]]
    if wanted.sort not in BY_MENTIONS:
        _add_trace_mentions(database, tables, wanted, rows)
    return rows


def _add_trace_mentions(database: Database, tables: RunTables, wanted: TraceFilter, rows: Sequence[TableRow]) -> None:
    """Where the thinking of each trace names a gold answer, in a new field of its row."""
    files = {"thinking": trace_thinking(tables, wanted.of), "ids": [row["trace_id"] for row in rows]}
    found = _by_trace(database, f"SELECT * {OF_ANALYSES} WHERE trace_id IN (SELECT unnest($ids))", files)
    for row in rows:
        row["mentions"] = _mentions(found[row["trace_id"]])


OF_ANALYSES = "FROM read_parquet($thinking)"
MENTIONS = ("ending", "first", "last", "segments_after", "loops", "repeats")


def _mentions(row: TableRow) -> TableRow:
    """What the analyses say of a thinking, as it is saved; ``behind``: labels of each step behind the last mention."""
    steps = row["behind"] and row["behind"].split(";")[1:-2]  # between <start> and <stop>
    behind = steps and [[] if step == UNLABELLED else step.split("+") for step in steps]
    return {**{name: row[name] for name in MENTIONS}, "behind": behind}


TEXT_ROWS = """
SELECT trace_id, completion, segments FROM read_parquet($traces) WHERE trace_id IN (SELECT unnest($ids))"""
MOVED_ROWS = """
SELECT trace_id, implicit_reward, kl, policy_logp - reference_logp AS moved, num_tokens AS num_completion_tokens,
  list_transform(segments, lambda each: (each.policy_logp - each.reference_logp) / each.num_tokens) AS segments_moved
FROM read_parquet($policy) WHERE trace_id IN (SELECT unnest($ids))"""
TRACE_ROWS = """
SELECT trace_id, question_id, question, answers, answer, stratum, polarity, draw, len(segments) AS num_segments,
  reasoning_tokens
FROM read_parquet($traces) WHERE trace_id IN (SELECT unnest($ids))"""
LABEL_ROWS = f"""
SELECT trace_id, list(labels ORDER BY segment) AS labels, list(rule ORDER BY segment) AS rules,
  list({DIFFERS} ORDER BY segment) AS disputed
FROM read_parquet($labels) WHERE trace_id IN (SELECT unnest($ids)) GROUP BY trace_id"""
WEIGHT_ROWS = """
SELECT trace_id, list(weight ORDER BY segment) AS weights, list(clipped ORDER BY segment) AS clipped,
  list(ratio ORDER BY segment) AS ratios
FROM read_parquet($weights) WHERE trace_id IN (SELECT unnest($ids)) GROUP BY trace_id"""


def find_draws(tables: RunTables, wanted: DrawFilter) -> Chosen:
    """The draws of a filter."""
    values: Values = {"draws": tables.file("generations")}
    where = _of_question(tables, wanted, values, "questions")
    if wanted.mode:
        where.append("thinking_mode = $mode")
        values["mode"] = wanted.mode
    if wanted.text:
        questions = "SELECT question_id FROM read_parquet($questions) WHERE " + _has_text("question")
        where.append(f"({_has_text('completion')} OR question_id IN ({questions}))")
        values |= {"text": text_regex(wanted.text), "questions": tables.file("questions")}
    where += _of_draw(wanted, wanted.hit, "", values)
    rank = ", -len(completion_ids) AS rank" if wanted.sort else ""
    columns = f"question_id, thinking_mode, draw, file_row_number AS place{rank}"
    return Chosen(f"SELECT {columns} FROM read_parquet($draws, file_row_number = true){_all_of(where)}", values)


def show_draws(database: Database, tables: RunTables, _: DrawFilter, keys: Sequence[TableRow]) -> list[TableRow]:
    """What a list shows of draws."""
    files = {"draws": tables.file("generations"), "questions": tables.file("questions")}
    found = database.rows(DRAW_ROWS, files | {"places": [row["place"] for row in keys]})
    by_place = {row.pop("place"): row for row in found}
    return [by_place[row["place"]] for row in keys]


DRAW_ROWS = """
SELECT d.question_id, q.question, q.answers, q.source, q.stratum, d.thinking_mode, d.draw, d.outcome, d.em_thought,
  d.em_answer, d.answer, d.thinking, len(d.completion_ids) AS num_tokens, d.file_row_number AS place
FROM read_parquet($draws, file_row_number = true) d LEFT JOIN read_parquet($questions) q USING (question_id)
WHERE d.file_row_number IN (SELECT unnest($places))"""


def find_answers(tables: RunTables, wanted: AnswerFilter) -> Chosen:
    """The answers of a filter."""
    values: Values = {"after": tables.file(f"scores:{variant_of(tables, wanted)}"), "named": _scorings_with_thought()}
    where = _of_question(tables, wanted, values, "evaluation-questions", "a.")
    if wanted.text:
        questions = "SELECT question_id FROM read_parquet($questions) WHERE " + _has_text("question")
        where.append(f"({_has_text('a.completion')} OR a.question_id IN ({questions}))")
        values |= {"text": text_regex(wanted.text), "questions": tables.file("evaluation-questions")}
    where += _of_draw(wanted, wanted.hit, "a.", values)
    join = ""
    if wanted.against:
        values["before"] = tables.file(f"scores:{_scored(wanted.against, tables)}")
        join = " JOIN read_parquet($before) b ON a.question_id = b.question_id AND a.draw = b.draw"
        where += _hits(wanted.hit_before, "b.")
    elif wanted.flip or wanted.hit_before or wanted.judged_flip:
        raise ConfigError(
            "flip, judged_flip, hit_before: they compare with another variant; name it with against=VARIANT"
        )
    if wanted.flip:
        where.append(_FLIPS[wanted.flip].format(before=_is_right("b"), after=_is_right("a")))
    where += _of_verdicts(wanted, tables, values)
    if by_labels := _given(wanted, *BY_LABELS):
        check_labelled(tables, variant_of(tables, wanted), by_labels)
    if of_thinking := _of_thinking(wanted, tables, values):
        values["thinking"] = answer_thinking(tables, variant_of(tables, wanted))
        chosen = f"SELECT question_id, draw FROM read_parquet($thinking){_all_of(of_thinking)}"
        where.append(f"(a.question_id, a.draw) IN ({chosen})")
    if pattern := pattern_regex(wanted.pattern, tables.taxonomy):
        values |= {name: tables.file(f"held-out-{kind}") for name, kind in HELD_OUT.items()}
        values |= {"pattern": pattern, "variant": variant_of(tables, wanted)}
        where.append(f"(a.question_id, a.draw) IN ({THINKINGS_IN_A_ROW})")
    rank = ", -a.num_tokens AS rank" if wanted.sort else ""
    if measure := BY_MENTIONS.get(wanted.sort):
        values["thinking"] = answer_thinking(tables, variant_of(tables, wanted))
        rank = f", {measure} AS rank"
        join += " LEFT JOIN read_parquet($thinking) t ON a.question_id = t.question_id AND a.draw = t.draw"
    columns = f"a.question_id, a.draw, a.file_row_number AS place{rank}"
    source = f"read_parquet($after, file_row_number = true) a{join}"
    return Chosen(f"SELECT {columns} FROM {source}{_all_of(where)}", values)


HELD_OUT = {"thinkings": "traces", "labels": "annotations"}
"""What queries call the held-out thinkings and their labels → what their artifacts are called, behind ``held-out-``."""
THINKINGS_IN_A_ROW = f"""
SELECT question_id, draw FROM read_parquet($thinkings) WHERE variant = $variant
  AND trace_id IN (SELECT trace_id FROM ({SEQUENCES}) WHERE regexp_matches(sequence, $pattern))"""


def show_answers(
    database: Database, tables: RunTables, wanted: AnswerFilter, keys: Sequence[TableRow]
) -> list[TableRow]:
    """What a list shows of answers: that of the variant, and beside it that of the one it is compared with."""
    cells = {"ids": list(dict.fromkeys(row["question_id"] for row in keys))}
    questions = database.rows(QUESTION_ROWS, cells | {"questions": tables.file("evaluation-questions")})
    by_question = {row["question_id"]: row for row in questions}
    variants = [variant_of(tables, wanted), *([wanted.against] if wanted.against else [])]
    given = {
        name: {
            (row["question_id"], row["draw"]): row
            for row in database.rows(ANSWER_ROWS, cells | {"scores": tables.file(f"scores:{name}")})
        }
        for name in variants
    }
    told = held_out_labels(database, tables, cells["ids"])
    if wanted.verdict or wanted.judged_flip:
        told += database.rows(VOTED_ROWS, cells | {"verdicts": verdicts(tables)})
    for row in told:
        answer = given.get(row.pop("variant"), {}).get((row.pop("question_id"), row.pop("draw")))
        if answer:
            answer |= row
    rows = [
        {
            "question_id": row["question_id"],
            "draw": row["draw"],
            **by_question.get(row["question_id"], {}),
            "answers_by_variant": {
                name: answers.get((row["question_id"], row["draw"])) for name, answers in given.items()
            },
        }
        for row in keys
    ]
    if wanted.sort in BY_MENTIONS:
        _add_answer_mentions(database, tables, wanted, rows)
    return rows


def save_answers(
    database: Database, tables: RunTables, wanted: AnswerFilter, keys: Sequence[TableRow]
) -> list[TableRow]:
    """What a list shows of answers, and where each thinking whose set has EM_t names a gold answer."""
    rows = show_answers(database, tables, wanted, keys)
    if wanted.sort not in BY_MENTIONS:
        _add_answer_mentions(database, tables, wanted, rows)
    return rows


def _add_answer_mentions(database: Database, tables: RunTables, wanted: AnswerFilter, rows: Sequence[TableRow]) -> None:
    cells = {"ids": list(dict.fromkeys(row["question_id"] for row in rows))}
    sql = f"SELECT * {OF_ANALYSES} WHERE question_id IN (SELECT unnest($ids))"
    for variant in [variant_of(tables, wanted), *([wanted.against] if wanted.against else [])]:
        found = database.rows(sql, cells | {"thinking": answer_thinking(tables, variant)})
        by_cell = {(row["question_id"], row["draw"]): _mentions(row) for row in found}
        for row in rows:
            if answer := row["answers_by_variant"][variant]:
                answer["mentions"] = by_cell.get((row["question_id"], row["draw"]))


QUESTION_ROWS = """
SELECT question_id, question, answers, source, stratum FROM read_parquet($questions)
WHERE question_id IN (SELECT unnest($ids))"""
ANSWER_ROWS = """
SELECT question_id, draw, outcome, em_thought, em_answer, answer, thinking, num_tokens FROM read_parquet($scores)
WHERE question_id IN (SELECT unnest($ids))"""


VOTED_ROWS = """
SELECT variant, question_id, draw, is_right AS judged_right FROM read_parquet($verdicts)
WHERE question_id IN (SELECT unnest($ids))"""


HELD_OUT_LABELS = """
SELECT variant, question_id, draw, list(labels ORDER BY segment) AS labels
FROM read_parquet($thinkings) JOIN read_parquet($labels) USING (trace_id)
WHERE question_id IN (SELECT unnest($ids)) GROUP BY variant, question_id, draw"""


def held_out_labels(database: Database, tables: RunTables, questions: Sequence[str]) -> list[TableRow]:
    """The labels of each segment of the answers to some questions whose thinking is labelled.

    Args:
        database: to ask.
        tables: of the run.
        questions: their ids.
    """
    if not tables.labelled:
        return []
    files = {name: tables.file(f"held-out-{kind}") for name, kind in HELD_OUT.items()}
    return database.rows(HELD_OUT_LABELS, files | {"ids": list(questions)})


def variant_of(tables: RunTables, wanted: AnswerFilter) -> str:
    """The variant whose answers a filter is of.

    Raises:
        ConfigError: there is none of that name.
    """
    if not tables.variants:
        raise ConfigError(f"{tables.title} has no answers of an evaluation")
    return _scored(wanted.variant or tables.variants[-1], tables)


BY_LABELS = ("pattern", "behind", "loops")
"""Filters that go by the labels of a whole thinking."""


def _given(wanted: Filter, *names: str) -> str:
    """Those of some filters that are set, as an error names them."""
    return ", ".join(f"{name}={value}" for name in names if (value := getattr(wanted, name)))


def check_labelled(tables: RunTables, variant: str, asked: str) -> None:
    """See that a variant's held-out thinkings are labelled.

    Args:
        tables: of the run.
        variant: whose.
        asked: what goes by their labels.

    Raises:
        ConfigError: they are not.
    """
    if variant not in tables.labelled:
        known = ", ".join(tables.labelled) or "no variant"
        raise ConfigError(
            f"{asked}: the held-out thinkings of {variant!r} are not labelled; those of {known} are "
            "(evaluate.label_thinking says whose)"
        )


def _scored(variant: str, tables: RunTables) -> str:
    if variant not in tables.variants:
        raise ConfigError(f"variant {variant!r} has no answers; there are {', '.join(tables.variants) or 'none'}")
    return variant


def _known(label: str, tables: RunTables) -> str:
    if label not in tables.taxonomy.labels:
        raise ConfigError(f"{label!r} is no label; there are {', '.join(tables.taxonomy.labels)}")
    return label


def _scorings_with_thought() -> list[str]:
    return [name for name, scoring in SCORINGS.items() if "em_thought" in scoring.metrics]


def _is_right(side: str) -> str:
    """Whether an answer is right by the metric of a comparison."""
    thinks = "a.em_thought IS NOT NULL AND b.em_thought IS NOT NULL AND list_contains($named, a.scoring)"
    return f"(CASE WHEN {thinks} THEN {side}.em_thought AND {side}.em_answer ELSE {side}.em_answer END)"


def _of_verdicts(wanted: AnswerFilter, tables: RunTables, values: Values) -> list[str]:
    """Conditions on what judges say of an answer, and of the one that it is compared with."""
    if not (wanted.verdict or wanted.judged_flip):
        return []
    values |= {"verdicts": verdicts(tables), "variant": variant_of(tables, wanted), "against": wanted.against}
    said = ["a.variant = $variant"]
    if wanted.verdict:
        said.append(f"a.is_right = {'true' if wanted.verdict == 'right' else 'false'}")
    join = ""
    if wanted.judged_flip:
        join = " JOIN read_parquet($verdicts) b USING (question_id, draw)"
        said += ["b.variant = $against", _FLIPS[wanted.judged_flip].format(before="b.is_right", after="a.is_right")]
    chosen = f"SELECT question_id, draw FROM read_parquet($verdicts) a{join}{_all_of(said)}"
    return [f"(a.question_id, a.draw) IN ({chosen})"]


def _of_thinking(wanted: ThinkingFilter, tables: RunTables, values: Values) -> list[str]:
    """Conditions on what the analyses say of a thinking."""
    where: list[str] = []

    def add(name: str, condition: str) -> None:
        if (value := getattr(wanted, name)) not in (None, ""):
            where.append(condition)
            values[name] = value

    for name in ("first", "last"):
        add(f"{name}_from", f"{name} >= ${name}_from / 100")
        add(f"{name}_to", f"({name} < ${name}_to / 100 OR ({name} <= 1 AND ${name}_to = 100))")
    for name, column in (("after", "segments_after"), ("segments", "num_segments"), ("tokens", "num_tokens")):
        add(f"{name}_from", f"{column} >= ${name}_from")
        add(f"{name}_to", f"{column} <= ${name}_to")
    for name in ("loops", "repeats"):
        add(name, f"{name} = (${name} = 'yes')")
    add("ending", "ending = $ending")
    if wanted.behind.startswith(EXACTLY):
        values["behind"], values["not_behind"] = exact_steps(wanted.behind)
        where.append("starts_with(behind, $behind) AND NOT ($not_behind <> '' AND starts_with(behind, $not_behind))")
    elif pattern := pattern_regex(wanted.behind, tables.taxonomy):
        where.append("regexp_matches(behind, $behind)")
        values["behind"] = pattern
    return where


def _of_draw(wanted: DrawFilter | AnswerFilter, hit: Hit, prefix: str, values: Values) -> list[str]:
    where = _hits(hit, prefix)
    if wanted.outcome:
        where.append(f"{prefix}outcome = $outcome")
        values["outcome"] = wanted.outcome
    return where


def _hits(hit: Hit, prefix: str) -> list[str]:
    if not hit:
        return []
    parts = {
        "thinks": f"{prefix}em_thought IS NOT NULL",  # else there is no gap between thinking and answer
        "thought": f"coalesce({prefix}em_thought, false)",
        "answered": f"{prefix}em_answer",  # null where nothing but a judge could say: neither right nor wrong
    }
    return [f"({_HITS[hit].format(**parts)})"]


def _of_question(tables: RunTables, wanted: Filter, values: Values, questions: str, prefix: str = "") -> list[str]:
    """Conditions on the question of a row."""
    where, of_question = [], []
    if wanted.question:
        where.append(f"{prefix}question_id = $question")
        values["question"] = wanted.question
    for name in ("source", "stratum"):
        if value := getattr(wanted, name):
            of_question.append(f"{name} = ${name}")
            values |= {name: value, "questions": tables.file(questions)}
    if of_question:
        where.append(f"{prefix}question_id IN (SELECT question_id FROM read_parquet($questions){_all_of(of_question)})")
    return where


def _has_text(*columns: str) -> str:
    found = " OR ".join(f"regexp_matches({column}, $text)" for column in columns)
    return f"({found})"


def _all_of(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _by_trace(database: Database, sql: str, values: Values) -> dict[str, TableRow]:
    return {row["trace_id"]: row for row in database.rows(sql, values)}


def _joined(rows: dict[str, TableRow], others: dict[str, TableRow]) -> dict[str, TableRow]:
    return {trace_id: row | others.get(trace_id, {}) for trace_id, row in rows.items()}


LISTINGS: Mapping[str, Listing] = {
    "traces": Listing(TraceFilter, find_traces, show_traces, save_traces),
    "draws": Listing(DrawFilter, find_draws, show_draws, show_draws),
    "answers": Listing(AnswerFilter, find_answers, show_answers, save_answers),
}
"""The lists, by the names that addresses have for them."""
