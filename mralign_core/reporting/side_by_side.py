"""Versions side by side: scores, what each moved against the model before training, and where their configs differ."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mralign_core.evaluation.metrics import metrics_of
from mralign_core.reporting.result_table import BOLD, ResultCell, ResultTable
from mralign_core.reporting.titles import UNDEFINED, metric_title
from mralign_core.reporting.version_tables import difference_cell, level_text
from mralign_core.versions.differences import leaves
from mralign_core.versions.version import Version

LONGEST_VALUE = 40
"""Of a config's value in a cell; there is a column a version."""


def side_by_side_markdown(versions: Sequence[Version], aliases: Mapping[str, str]) -> str:
    """The page of some versions.

    Args:
        versions: the columns, in order.
        aliases: alias → id of the version that it names.
    """
    told = [ResultTable.to_markdown(table) for table in side_by_side(versions, aliases)]
    return "\n\n".join([*told, side_by_side_note(versions)])


def side_by_side_note(versions: Sequence[Version]) -> str:
    """What is to be said below the tables, or in their place where there is no version."""
    if not versions:
        return "There is no version in this store yet: a run of the pipeline makes one of each variant that it trains."
    sets = {version.record.held_out.sha256 for version in versions}
    return BOLD + ("" if len(sets) == 1 else " They were not all measured on the same questions: see *measured on*.")


def side_by_side(versions: Sequence[Version], aliases: Mapping[str, str]) -> list[ResultTable]:
    """The tables of that page; those without rows are left out, and all of them without a version."""
    if not versions:
        return []
    columns = [version.name for version in versions]
    levels, moved = _score_rows(versions)
    tables = [
        ResultTable(["version", *columns], _fact_rows(versions, aliases), columns),
        ResultTable(["%, by questions and metric", *columns], levels),
        ResultTable(["over think on, points", *columns], moved, columns),
        ResultTable(["config", *columns], differing_fields([version.record.config for version in versions]), columns),
        ResultTable(["made from another", *columns], _origin_rows(versions), columns),
    ]
    return [table for table in tables if table.rows]


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The fields that do not have one value in all configs: dotted name, and the value in each.

    >>> differing_fields([{"seed": 0, "train": {"beta": 0.1}}, {"seed": 0, "train": {"beta": 0.2}}])
    [['train.beta', '0.1', '0.2']]
    """
    flat = [dict(leaves(config)) for config in configs]
    fields = dict.fromkeys(field for each in flat for field in each)
    values = {field: [_value(each.get(field)) for each in flat] for field in fields}
    return [[field, *_shortened(of_field)] for field, of_field in values.items() if len(set(of_field)) > 1]


def _fact_rows(versions: Sequence[Version], aliases: Mapping[str, str]) -> list[list[str]]:
    rows = {
        "made (UTC)": [f"{version.made_at:%Y-%m-%d %H:%M}" for version in versions],
        "named by": [
            ", ".join(name for name, named in aliases.items() if named == version.id) or UNDEFINED
            for version in versions
        ],
        "base model": [version.record.base_model for version in versions],
        "trained on, questions": [f"{version.record.trained_on.number:,}" for version in versions],
        "measured on, questions": [
            f"{version.record.held_out.number:,} ({version.record.held_out.sha256[:6]})" for version in versions
        ],
        "labels and verdicts, $": [f"{version.record.cost_usd:.2f}" for version in versions],
    }
    return [[name, *cells] for name, cells in rows.items()]


def _score_rows(versions: Sequence[Version]) -> tuple[list[list[str]], list[list[str | ResultCell]]]:
    """Levels in %, and differences from think-on in points, by stratum and metric."""
    own = [
        {row["stratum"]: row for row in version.record.scores if row["variant"] == version.record.variant}
        for version in versions
    ]
    kinds = {stratum: row["scoring"] for rows in own for stratum, row in rows.items()}
    named = [
        (f"{stratum} · {metric_title(metric, metrics_of(scoring))}", stratum, metric)
        for stratum, scoring in kinds.items()
        for metric in metrics_of(scoring)
    ]
    levels = [[title, *(level_text(rows.get(stratum, {}), metric) for rows in own)] for title, stratum, metric in named]
    moved: list[list[str | ResultCell]] = [
        [title, *(difference_cell(version.record, stratum, metric) for version in versions)]
        for title, stratum, metric in named
    ]
    return levels, [row for row in moved if any(cell != UNDEFINED for cell in row[1:])]


def _origin_rows(versions: Sequence[Version]) -> list[list[str]]:
    """The kinds of artifact that are not the same for all, by content."""
    kinds = dict.fromkeys(kind for version in versions for kind in version.record.made_from)
    rows = [
        [kind, *(_digest(version.record.made_from.get(kind, "")) for version in versions)]
        for kind in kinds
        if kind != "adapter"
    ]
    return [row for row in rows if len(set(row[1:])) > 1]


def _digest(path: str) -> str:
    return path.rpartition("/")[2][:8] or UNDEFINED


def _value(value: Any) -> str:
    return UNDEFINED if value is None else json.dumps(value, ensure_ascii=False)


def _shortened(values: Sequence[str]) -> list[str]:
    """Long values without what they have in common at their beginning, so that what differs is seen, then cut."""
    if max(map(len, values)) > LONGEST_VALUE:
        same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*values, strict=False))
        common = max(0, sum(1 for _ in same) - LONGEST_VALUE // 2)
        values = [f"…{value[common:]}" if common else value for value in values]
    return [value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}…" for value in values]
