"""What is in a run, in numbers that each lead to the cases behind them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mralign_core.evaluation.metrics import comparisons
from mralign_core.method.segment_weights import neutral_weight
from mralign_core.reporting.matrix_figures import WEIGHT_COLOURS
from mralign_core.reporting.run_findings import composition
from mralign_core.reporting.style import POLARITY_COLOURS, macro_colours
from mralign_core.reporting.titles import variant_title
from mralign_core.schemas.annotations import RULES
from mralign_core.schemas.outcomes import DRAW_OUTCOMES
from mralign_core.workbench.analyses import verdicts
from mralign_core.workbench.database import Database, TableRow
from mralign_core.workbench.lists import ASKED_BOTH, DIFFERS, check_labelled
from mralign_core.workbench.tables import RunTables

FEWEST_FOR_A_SHARE = 30
"""Segments with a label below which its share of disputed ones is not compared with those of others."""


def describe_run(database: Database, tables: RunTables) -> TableRow:
    """What can be looked at and by what it can be filtered."""
    taxonomy, colours = tables.taxonomy, macro_colours(tables.taxonomy)
    return {
        "title": tables.title,
        "store": tables.store.root_uri,
        "has": sorted({name.partition(":")[0] for name in tables.artifacts}),
        "report": tables.artifacts["report"].path.removeprefix("artifacts/") if tables.has("report") else "",
        "variants": [{"name": name, "title": variant_title(name)} for name in tables.variants],
        "looked_at": [{"name": name, "title": variant_title(name)} for name in tables.looked_at],
        "labelled": [{"name": name, "title": variant_title(name)} for name in tables.labelled],
        "labels": [
            {
                "name": label,
                "macro": taxonomy.macro_of(label),
                "colour": colours[taxonomy.macro_of(label)],
                "definition": taxonomy.definitions[label],
            }
            for label in taxonomy.labels
        ],
        "polarities": POLARITY_COLOURS,
        "weight_scale": weight_scale(tables),
        "rules": list(RULES),
        "outcomes": list(DRAW_OUTCOMES),
        "aligned": _strata(database, tables, "questions"),
        "evaluated": _strata(database, tables, "evaluation-questions"),
        "rows": {name: ref.rows for name, ref in tables.artifacts.items() if ref.rows is not None},
    }


def weight_scale(tables: RunTables) -> TableRow:
    """How weights are coloured: by their logarithm, or in forms that allow a sign by how far they are from neutral;
    and what their ratios are over.
    """
    form = tables.weighing.get("form", "ratio")
    return {
        "colours": WEIGHT_COLOURS,
        "is_log": form in ("ratio", "power"),
        "neutral": neutral_weight(form),
        "reference": tables.weighing.get("reference", "all"),
    }


def _strata(database: Database, tables: RunTables, name: str) -> list[TableRow]:
    """The sets of questions, each with its strata."""
    if not tables.has(name):
        return []
    sql = """SELECT source, list(DISTINCT stratum ORDER BY stratum) AS strata, count(*) AS num_questions
      FROM read_parquet($file) GROUP BY source ORDER BY source"""
    return database.rows(sql, {"file": tables.file(name)})


def summarize_run(database: Database, tables: RunTables) -> dict[str, Any]:
    """How often each label was given and disputed, what decided it, and where answers have a gold answer."""
    labels = _label_table(database, tables)
    return {
        "composition": _composition(database, tables),
        "labels": labels,
        "most_disputed": most_disputed(labels),
        "rules": _rule_table(database, tables),
        "answers": [_answer_row(database, tables, name) for name in tables.variants],
        "flips": _flip_table(database, tables),
    }


def _composition(database: Database, tables: RunTables) -> str:
    """The report's sentence on which strata traces are of, which warns where weights could tell those apart instead."""
    if not tables.has("candidates"):
        return ""
    sql = "SELECT coalesce(stratum, '') AS stratum, polarity FROM read_parquet($file)"
    traces = pd.DataFrame(database.columns(sql, {"file": tables.file("candidates")}))
    return composition(traces, are_estimated_from=not tables.has("thinking-draws")) if len(traces) else ""


def _label_table(database: Database, tables: RunTables) -> list[TableRow]:
    if not tables.has("annotations"):
        return []
    found = database.rows(LABEL_TABLE, {"file": tables.file("annotations")})
    by_label = {row["label"]: row for row in found}
    weights: dict[str, TableRow] = {}
    if tables.has("weights"):
        files = {"file": tables.file("annotations"), "weights": tables.file("weights")}
        weights = {row["label"]: row for row in database.rows(WEIGHTS_BY_LABEL, files)}
    rows = [by_label[name] | weights.get(name, {}) for name in tables.taxonomy.labels if name in by_label]
    return sorted(rows, key=lambda row: -row["by_one"])


def most_disputed(labels: list[TableRow]) -> TableRow:
    """The label that the annotators differ on in most segments, and the one where they do in the largest share.

    Args:
        labels: with ``by_one``, how many segments only one annotator gave it, and ``by_any``, how many either did.

    Returns:
        ``segments`` and ``share``, each a row or None; ``share`` is of labels that either gave at least ``fewest``
        segments: of three segments all may be disputed by chance.
    """
    disputed = [row for row in labels if row["by_one"]]
    common = [row for row in disputed if row["by_any"] >= FEWEST_FOR_A_SHARE]
    return {
        "segments": max(disputed, key=lambda row: row["by_one"], default=None),
        "share": max(common, key=lambda row: (row["by_one"] / row["by_any"], row["by_one"]), default=None),
        "fewest": FEWEST_FOR_A_SHARE,
    }


LABEL_TABLE = f"""
WITH given AS (SELECT labels, CASE WHEN {ASKED_BOTH} THEN labels_a ELSE [] END AS labels_a, labels_b,
  count(*) AS number FROM read_parquet($file) GROUP BY ALL),
said AS (SELECT *, unnest(list_distinct(list_concat(labels, labels_a, labels_b))) AS label FROM given),
told AS (SELECT label, number, list_contains(labels, label) AS is_given, list_contains(labels_a, label) AS by_a,
  list_contains(labels_b, label) AS by_b FROM said)
SELECT label, CAST(sum(number * is_given::INT) AS BIGINT) AS segments,
  CAST(sum(number * (by_a AND NOT by_b)::INT) AS BIGINT) AS only_a,
  CAST(sum(number * (by_b AND NOT by_a)::INT) AS BIGINT) AS only_b,
  CAST(sum(number * (by_a AND by_b)::INT) AS BIGINT) AS both,
  CAST(sum(number * (by_a <> by_b)::INT) AS BIGINT) AS by_one,
  CAST(sum(number * (by_a OR by_b)::INT) AS BIGINT) AS by_any
FROM told GROUP BY label"""
"""Equal segments are counted first: there are few ways to be labelled, whatever the number of traces."""
WEIGHTS_BY_LABEL = """
WITH labelled AS (SELECT trace_id, segment, unnest(labels) AS label FROM read_parquet($file))
SELECT label, avg(weight) AS weight_mean, min(weight) AS weight_min, max(weight) AS weight_max
FROM labelled JOIN read_parquet($weights) USING (trace_id, segment) GROUP BY label"""


def _rule_table(database: Database, tables: RunTables) -> list[TableRow]:
    if not tables.has("annotations"):
        return []
    sql = f"""SELECT rule, count(*) AS segments, count(*) FILTER ({DIFFERS}) AS disputed
      FROM read_parquet($file) GROUP BY rule"""
    by_rule = {row["rule"]: row for row in database.rows(sql, {"file": tables.file("annotations")})}
    return [by_rule[rule] for rule in RULES if rule in by_rule]


def _answer_row(database: Database, tables: RunTables, variant: str) -> TableRow:
    sql = """SELECT count(*) AS answers, bool_or(em_thought IS NOT NULL) AS thinks,
        count(*) FILTER (em_thought AND em_answer) AS "both",
        count(*) FILTER (em_thought AND NOT em_answer) AS thinking,
        count(*) FILTER (NOT coalesce(em_thought, false) AND em_answer) AS answer,
        count(*) FILTER (NOT coalesce(em_thought, false) AND NOT em_answer) AS neither
      FROM read_parquet($file)"""
    row = database.row(sql, {"file": tables.file(f"scores:{variant}")}) or {}
    return {"variant": variant, "title": variant_title(variant), **row}


def _flip_table(database: Database, tables: RunTables) -> list[TableRow]:
    """The flips that the evaluation found, by comparison."""
    if not tables.has_file("results"):
        return []
    sql = """SELECT variant, baseline, count(*) FILTER (flip = 'wrong to right') AS better,
        count(*) FILTER (flip = 'right to wrong') AS worse
      FROM read_parquet($file) GROUP BY variant, baseline ORDER BY variant, baseline"""
    return database.rows(sql, {"file": tables.file("results")})


def count_judged_flips(database: Database, tables: RunTables) -> list[TableRow]:
    """The flips by what most judges say, by comparison.

    Raises:
        ArtifactError: the run asked no judge.
    """
    sql = """SELECT count(*) FILTER (NOT b.is_right AND a.is_right) AS better,
        count(*) FILTER (b.is_right AND NOT a.is_right) AS worse
      FROM read_parquet($file) a JOIN read_parquet($file) b USING (question_id, draw)
      WHERE a.variant = $variant AND b.variant = $baseline"""
    file = verdicts(tables)
    pairs = ({"variant": variant, "baseline": baseline} for variant, baseline in comparisons(tables.variants))
    return [{**pair, **(database.row(sql, {"file": file, **pair}) or {})} for pair in pairs]


def count_moves(database: Database, tables: RunTables) -> list[TableRow]:
    """How often each label follows each, by polarity: each pair of labels of two labelled steps in a row counts; and
    the mean weight of the steps that it leads to, null before weights are made and of ``<stop>``, which has none.
    """
    files = {"labels": tables.file("annotations"), "traces": tables.file("candidates")}
    if not tables.has("weights"):
        return database.rows(MOVES.format(group="polarity", weight=NO_WEIGHT, weights=""), files)
    weights = "LEFT JOIN read_parquet($weights) AS own USING (trace_id, segment)"
    sql = MOVES.format(group="polarity", weight="weight", weights=weights)
    return database.rows(sql, files | {"weights": tables.file("weights")})


def count_held_out_moves(database: Database, tables: RunTables, variant: str = "") -> list[TableRow]:
    """The same of the held-out thinkings that are labelled, by variant.

    Args:
        database: to ask.
        tables: of the run.
        variant: one that must be among them.

    Raises:
        ConfigError: it is not.
    """
    if variant:
        check_labelled(tables, variant, "moves")
    files = {"labels": tables.file("held-out-annotations"), "traces": tables.file("held-out-traces")}
    return database.rows(MOVES.format(group="variant", weight=NO_WEIGHT, weights=""), files)


NO_WEIGHT = "NULL::DOUBLE AS weight"
MOVES = """
WITH numbered AS (SELECT trace_id, file_row_number AS trace, {group}
  FROM read_parquet($traces, file_row_number = true)),
segments AS (SELECT trace, {group}, segment, step, array_to_string(labels, '+') AS labels, {weight}
  FROM read_parquet($labels) JOIN numbered USING (trace_id) {weights} WHERE len(labels) > 0),
steps AS (SELECT trace, {group}, labels, weight, lag(labels) OVER own AS before,
  lead(step) OVER own IS NULL AS is_last, step IS DISTINCT FROM lag(step) OVER own AS is_new
  FROM segments WINDOW own AS (PARTITION BY trace ORDER BY segment)),
moved AS (
  SELECT trace, {group}, coalesce(before, '<start>') AS left_, labels AS entered, weight FROM steps WHERE is_new
  UNION ALL SELECT trace, {group}, labels, '<stop>', NULL FROM steps WHERE is_last),
by_labels AS (SELECT {group}, left_, entered, count(*) AS moves, list(trace) AS traces, sum(weight) AS weight,
  count(weight) AS weighed FROM moved GROUP BY {group}, left_, entered)
SELECT {group}, a.label AS source, b.label AS target, CAST(sum(moves) AS BIGINT) AS moves,
  len(list_distinct(flatten(list(traces)))) AS traces, sum(weight) / nullif(sum(weighed), 0) AS weight
FROM by_labels, unnest(string_split(left_, '+')) AS a(label), unnest(string_split(entered, '+')) AS b(label)
GROUP BY {group}, source, target"""
"""Moves between equal sets of labels are counted first, and traces by number: half as long as label by label."""
