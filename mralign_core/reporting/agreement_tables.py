"""What a comparison of annotation sets found, as files and as tables for the eye."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.comparison.agreement import LEVELS, Comparison
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL
from mralign_core.method.agreement import AGREEMENT_RULES
from mralign_core.reporting import agreement_figures
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.style import to_png, to_svg
from mralign_core.reporting.titles import UNDEFINED

COLUMNS = [(level, rule) for level in LEVELS for rule in AGREEMENT_RULES]
PAIR = ["a", "b"]
UNITS = (
    "Agreement in %; κ with its bootstrap interval over questions, or [–] where both sets share traces of fewer than "
    f"{MIN_QUESTIONS_FOR_INTERVAL}: resamples of so few repeat each other, and would show too much certainty. L1 "
    "of P: mean over states of Σ|P − Q|, in [0, 2]; TV: half of it, in %; per entry: L1 / number of states, in % (the "
    "paper's 1.0–1.3 % state no unit). |Δ log w|: mean over segments; crossing 1: segments that one set up-weights and "
    "the other down-weights. Steps: as the annotators merged segments, or one a segment in both sets where one of them "
    "merges nothing (a rater's sheet can't); rows with different steps are not comparable."
)


def write_comparison(directory: Path, comparison: Comparison, *, notes: Mapping[str, Any], rules: pd.DataFrame) -> None:
    """Write ``agreement.json``, ``per_label.csv``, ``agreement.md`` and the figures.

    Args:
        directory: an existing folder.
        comparison: what was found.
        notes: what a reader must know besides: sets left out, models, unrated items.
        rules: a row a panel and rule: ``panel, rule, segments, share``.
    """
    tables = {**comparison._asdict(), "rules": rules}
    found = {**{name: records(table) for name, table in tables.items()}, "notes": dict(notes)}
    text = json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False)
    (directory / "agreement.json").write_text(text, encoding="utf-8")
    comparison.per_label.to_csv(directory / "per_label.csv", index=False)
    (directory / "agreement.md").write_text(agreement_markdown(found), encoding="utf-8")
    if comparison.pairs.empty:
        return
    for name, figure in {
        "kappas": agreement_figures.kappa_matrices(comparison.pairs),
        "label_kappas": agreement_figures.label_kappas(comparison.per_label),
    }.items():
        (directory / f"{name}.svg").write_text(to_svg(figure, name.replace("_", "-")), encoding="utf-8")
        (directory / f"{name}.png").write_bytes(to_png(figure))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; what is not defined is null."""
    return [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def agreement_summary(found: Mapping[str, Any]) -> ResultTable:
    """A row a pair of annotation sets, for 80 columns.

    Args:
        found: what ``agreement.json`` holds.
    """
    names = [f"{'macro ' if level == 'macro' else ''}{rule} % / κ" for level, rule in COLUMNS]
    rows = []
    for pair in pair_rows(found):
        cells = [f"{_percent(each['agreement'])} / {number(each['kappa'])}" for each in pair["scores"]]
        effects = (number(pair["l1"].get("all")), number(pair["weights"].get("mean_abs_log_ratio")))
        rows.append([_name(pair), str(pair["segments"]), *cells, *effects])
    return ResultTable(["annotation sets", "segments", *names, "P: L1", "|Δ log w|"], rows)


def agreement_tables(found: Mapping[str, Any]) -> dict[str, ResultTable]:
    """Title → table: the sets, their agreement, what it does to matrices and weights, rules and labels.

    Args:
        found: what ``agreement.json`` holds.
    """
    return {
        "Annotation sets": _sets(found),
        "Agreement": _agreements(found),
        "Transition matrices and weights": _effects(found),
        "Share of segments decided by each rule": _rules(found),
        "κ by label": _labels(found),
    }


def agreement_notes(found: Mapping[str, Any]) -> dict[str, str]:
    """What a reader must know besides: by name the notes, then the pairs whose matrices are not compared, and why.

    Args:
        found: what ``agreement.json`` holds.
    """
    reasons: dict[str, list[str]] = {}
    for row in found["skipped"]:
        reasons.setdefault(row["reason"], []).append(_name(row))
    notes = {str(name): str(note) for name, note in found["notes"].items()}
    return notes | {f"P and w not compared for {', '.join(pairs)}": reason for reason, pairs in reasons.items()}


def agreement_markdown(found: Mapping[str, Any]) -> str:
    """The whole comparison as Markdown.

    Args:
        found: what ``agreement.json`` holds.
    """
    notes = [f"- {name}: {note}" for name, note in agreement_notes(found).items()]
    sections = [f"## {title}\n\n{_shown(table)}\n" for title, table in agreement_tables(found).items()]
    return "\n".join(["# Agreement of annotation sets\n", UNITS, "", *notes, "", *sections])


def pair_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row a pair: its scores in the order of ``COLUMNS``, its matrices' L1 by name and its weights' shift."""
    by_pair: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["pairs"]:
        start = {**{name: row[name] for name in (*PAIR, "segments", "only_a", "only_b")}, "l1": {}, "weights": {}}
        by_pair.setdefault((row["a"], row["b"]), {**start, "scores": []})["scores"].append(row)
    for row in found["matrices"]:
        by_pair[row["a"], row["b"]]["l1"][row["matrix"]] = row["mean_l1"]
    for row in found["weights"]:
        by_pair[row["a"], row["b"]]["weights"] = row
    yield from by_pair.values()


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash where it is not defined.

    >>> number(0.1234), number(-0.5), number(None)
    ('0.12', '−0.50', '–')
    """
    return UNDEFINED if value is None else f"{value:.{digits}f}".replace("-", "−")


def _percent(share: float | None) -> str:
    return UNDEFINED if share is None else f"{100 * share:.1f}"


def _shown(table: ResultTable) -> str:
    return table.to_markdown() if table.rows else "There is nothing to compare."


def _name(pair: Mapping[str, Any]) -> str:
    return f"{pair['a']} · {pair['b']}"


def _sets(found: Mapping[str, Any]) -> ResultTable:
    columns = ["set", "segments", "traces", "without a label, %", "labels a segment"]
    rows = [
        [s["name"], str(s["segments"]), str(s["traces"]), _percent(s["unlabelled"]), number(s["labels"])]
        for s in found["sets"]
    ]
    return ResultTable(columns, rows)


def _agreements(found: Mapping[str, Any]) -> ResultTable:
    names = [f"{level} {rule}" for level, rule in COLUMNS]
    columns = ["sets", "segments in both", "in one only", *(cell for name in names for cell in (f"{name}, %", "κ"))]
    rows = [
        [
            _name(pair),
            str(pair["segments"]),
            f"{pair['only_a']} + {pair['only_b']}",
            *(cell for each in pair["scores"] for cell in (_percent(each["agreement"]), _kappa(each))),
        ]
        for pair in pair_rows(found)
    ]
    return ResultTable(columns, rows)


def _kappa(row: Mapping[str, Any]) -> str:
    if row["kappa"] is None:
        return UNDEFINED
    ends = UNDEFINED if row["kappa_low"] is None else f"{number(row['kappa_low'])}, {number(row['kappa_high'])}"
    return f"{number(row['kappa'])} [{ends}]"


def _effects(found: Mapping[str, Any]) -> ResultTable:
    distances_of_p = ("L1 of P⁺", "P⁻", "P", "TV of P, %", "per entry, %")
    columns = ["sets", "traces", "steps", *distances_of_p, "|Δ log w|", "crossing 1, %", "ρ"]
    per_pair = {(row["a"], row["b"]): row for row in found["matrices"] if row["matrix"] == "all"}
    rows = []
    for pair in pair_rows(found):
        every, shift = per_pair.get((pair["a"], pair["b"])), pair["weights"]
        if every is None:
            continue
        distances = [number(pair["l1"].get(name), 3) for name in ("plus", "minus", "all")]
        shares = [_percent(every["total_variation"]), _percent(every["mean_entry"])]
        moved = (number(shift["mean_abs_log_ratio"], 3), _percent(shift["share_crossing"]))
        basis = (_name(pair), str(every["traces"]), every["steps"])
        rows.append([*basis, *distances, *shares, *moved, number(shift["rank_correlation"])])
    return ResultTable(columns, rows, text_columns=["steps"])


def _rules(found: Mapping[str, Any]) -> ResultTable:
    rows = [[r["panel"], r["rule"], str(r["segments"]), _percent(r["share"])] for r in found["rules"]]
    return ResultTable(["panel", "rule", "segments", "%"], rows, text_columns=["rule"])


def _labels(found: Mapping[str, Any]) -> ResultTable:
    """A row a label, a column a pair that is worth emphasis: all pairs are in ``per_label.csv``."""
    shown = agreement_figures.telling_pairs(pd.DataFrame(found["per_label"], columns=[*PAIR, "label"]))
    by_cell = {(row["a"], row["b"], row["label"]): row for row in found["per_label"]}
    labels = list(dict.fromkeys(row["label"] for row in found["per_label"]))
    rows = [[label, *(_label_cell(by_cell[*pair, label]) for pair in shown)] for label in labels]
    return ResultTable(["label", *(f"{a} · {b}" for a, b in shown)], rows)


def _label_cell(row: Mapping[str, Any]) -> str:
    return f"{number(row['kappa'])} ({row['num_a']}, {row['num_b']}, both {row['num_both']})"
