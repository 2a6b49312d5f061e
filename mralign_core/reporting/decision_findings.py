"""What paired comparisons decide, in words and in a table, and the answers that flipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.evaluation.metrics import ALL_QUESTIONS, MACRO
from mralign_core.reporting.case_addresses import case_address
from mralign_core.reporting.report_block import LinkedTable
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import headline_stratum, in_sentence, points
from mralign_core.reporting.titles import ACCURACY, METRIC_TITLES, UNDEFINED, variant_title
from mralign_core.schemas.checks import is_null
from mralign_core.schemas.flips import FLIP_KINDS, FLIPS
from mralign_core.storage.tables import read_table

DECISIONS_FILE = "decisions.json"
FLIPS_FILE = "flips.parquet"
DECISION_TITLES = {"shown": "shown", "edge": "on the edge", "equivalent": "equivalent", "open": "not shown"}
"""What a decision is called in a table."""
FLIPS_GO_BY = ("acc", "em_answer")
"""Metrics whose flips the workbench lists."""
MOST_FLIPS = 10
"""Flips of one comparison and kind that a page lists; all are in the artifact."""
MOST_TEXT = 300
"""Characters of a question or an answer that a page lists."""


class Decisions(NamedTuple):
    """What ``decisions.decide`` and ``decisions.list_flips`` returned, as the results' artifact keeps them."""

    decisions: pd.DataFrame
    flips: pd.DataFrame


class FlipGroup(NamedTuple):
    """The flips of one comparison that a page lists, of all that there are."""

    title: str
    rows: list[dict[str, Any]]
    num_flips: int


def read_decisions(results: Path) -> Decisions | None:
    """The decisions in the folder of a results artifact; None where nothing was scored or compared."""
    if not (results / DECISIONS_FILE).exists():
        return None
    decisions = pd.DataFrame(json.loads((results / DECISIONS_FILE).read_text(encoding="utf-8")))
    return None if decisions.empty else Decisions(decisions, read_table(results / FLIPS_FILE))


def decision_sentences(decisions: pd.DataFrame, stratum: str = "") -> list[str]:
    """What each comparison decides, a sentence each on its main metric; by default on what the headline speaks of.

    Args:
        decisions: what ``decisions.decide`` returns.
        stratum: the part of the results.
    """
    rows = _of_stratum(decisions, stratum)
    return [_sentence(row) for row in rows.drop_duplicates(["variant", "baseline"]).to_dict("records")]


def decision_tables(decisions: pd.DataFrame) -> list[LinkedTable]:
    """A row a comparison and metric: what moved either way, the test, what it decides, and what it could have shown."""
    columns = ["comparison", "metric", "points", "better", "worse", "p", "decision", "could have shown", "would need"]
    tables = []
    for stratum, members in decisions.groupby("stratum", sort=False):
        rows = members.to_dict("records")
        title = "" if stratum == ALL_QUESTIONS else str(stratum)
        table = ResultTable(columns, [_table_row(row) for row in rows], ["metric", "decision"], title)
        tables.append(LinkedTable.of(table, [_flips_address(row) for row in rows]))
    return tables


def _flips_address(row: dict[str, Any]) -> str:
    """Where the answers that flipped are, by the metrics that the workbench's flips go by; empty of others."""
    if row["metric"] not in FLIPS_GO_BY:
        return ""
    is_set = row["stratum"] != ALL_QUESTIONS and not row["stratum"].startswith(MACRO)
    source = row["stratum"] if is_set else ""
    return case_address("answers", variant=row["variant"], against=row["baseline"], flip="any", source=source)


def flip_groups(flips: pd.DataFrame) -> list[FlipGroup]:
    """Of each comparison the first flips of either kind, by set and question, with texts cut to :data:`MOST_TEXT`."""
    groups = []
    for (variant, baseline), members in flips.groupby(["variant", "baseline"], sort=False):
        rows = [
            row for kind in FLIP_KINDS for row in members[members["flip"] == kind].head(MOST_FLIPS).to_dict("records")
        ]
        title = f"{variant_title(str(variant))} against {variant_title(str(baseline))}"
        groups.append(FlipGroup(title, [dict(_shown(row)) for row in rows], len(members)))
    return groups


def p_text(p_value: float) -> str:
    """A p-value as a sentence gives it.

    >>> p_text(0.2134), p_text(0.034), p_text(0.00002), p_text(1.0), p_text(float("nan"))
    ('.21', '.034', '< .0001', '1', '–')
    """
    if pd.isna(p_value):
        return UNDEFINED
    if p_value < 1e-4:
        return "< .0001"
    text = f"{p_value:.2g}" if p_value >= 1e-3 else f"{p_value:.4f}"
    return text.removeprefix("0")


def _of_stratum(decisions: pd.DataFrame, stratum: str) -> pd.DataFrame:
    return decisions[decisions["stratum"] == (stratum or headline_stratum(decisions))]


def _sentence(row: dict[str, Any]) -> str:
    name = f"{variant_title(row['variant'])} against {variant_title(row['baseline'])}"
    on = "" if row["stratum"] == ALL_QUESTIONS else f" on {in_sentence(row['stratum'])}"
    return f"{name}, {_metric(row)}{on}: {_decided(row)} {_moved_answers(row)}{_could_have_shown(row)}"


def _decided(row: dict[str, Any]) -> str:
    size, margin = points(row["difference"], signed=True), _margin(row)
    p_value = f"p {text}" if (text := p_text(row["p_value"])).startswith("<") else f"p = {text}"
    excludes = "excludes" if row["low"] > 0 or row["high"] < 0 else "includes"
    texts = {
        "shown": f"a difference of {size} points is shown ({p_value})"
        + (f", and it is within {margin}." if row["is_equivalent"] else "."),
        "edge": f"{size} points are on the edge: the interval {excludes} 0, and the test has {p_value}.",
        "equivalent": f"equivalent within {margin} (p = {p_text(row['equivalence_p'])}).",
        "open": f"no difference is shown ({size} points, {p_value}), nor that it is within {margin}.",
    }
    return texts[row["decision"]].replace("p = < ", "p < ")


def _moved_answers(row: dict[str, Any]) -> str:
    if not row["better"] + row["worse"]:
        return f"None of {row['num_answers']:,} answers flipped."
    if row["metric"] == "f1_at_k":
        return f"Of {row['num_answers']:,} answers {row['better']:,} have a higher one, {row['worse']:,} a lower one."
    return f"{row['better']:,} of {row['num_answers']:,} answers became right, {row['worse']:,} wrong."


def _could_have_shown(row: dict[str, Any]) -> str:
    """What these questions could have shown; not said of what they have shown."""
    if row["decision"] == "shown":
        return ""
    questions = f"{row['num_questions']:,} question{'s' if row['num_questions'] > 1 else ''}"
    if pd.isna(row["smallest_difference"]):
        return f" No difference could have been shown with {questions}."
    return f" These {questions} could have shown {points(row['smallest_difference'])} points."


def _metric(row: dict[str, Any]) -> str:
    """EM_a is decided on only where there is no Acc, and then it is the accuracy."""
    return ACCURACY if row["metric"] == "em_answer" else METRIC_TITLES[row["metric"]]


def _margin(row: dict[str, Any]) -> str:
    return f"±{100 * row['margin']:.3g} points"


def _table_row(row: dict[str, Any]) -> list[str]:
    decision = DECISION_TITLES[row["decision"]]
    if row["decision"] == "equivalent" or (row["decision"] == "shown" and row["is_equivalent"]):
        decision = f"{decision}{',' if row['decision'] == 'shown' else ''} within {_margin(row)}"
    needed = UNDEFINED if pd.isna(row["questions_needed"]) else f"{row['questions_needed']:,.0f} questions"
    return [
        f"{variant_title(row['variant'])} − {variant_title(row['baseline'])}",
        _metric(row),
        points(row["difference"], signed=True),
        f"{row['better']:,}",
        f"{row['worse']:,}",
        p_text(row["p_value"]),
        decision,
        points(row["smallest_difference"]),
        needed,
    ]


def _shown(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in FLIPS.columns:
        value = row[name]
        if name == "answers":
            yield name, cut_text(" / ".join(value))
        elif name in ("question", "answer_before", "answer_after"):
            yield name, "" if is_null(value) else cut_text(value)
        else:
            yield name, value


def cut_text(text: str) -> str:
    """A text cut to :data:`MOST_TEXT`."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} […]"
