"""Versions as tables: the list of them, one of them, and what sets two apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mralign_core.evaluation.metrics import metrics_of
from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.result_table import ResultCell, ResultTable
from mralign_core.reporting.run_findings import Difference, points
from mralign_core.reporting.titles import UNDEFINED, metric_title, variant_title
from mralign_core.versions.aliases import AliasEntry, version_name
from mralign_core.versions.differences import VersionDifferences
from mralign_core.versions.record import VersionRecord
from mralign_core.versions.version import Version

LONGEST_VALUE = 60
"""Of a config's value in a table."""
MOST_FLIPS = 20
"""Answers of a table; more are counted."""


def version_list(versions: Sequence[Version], aliases: Mapping[str, str]) -> ResultTable:
    """A row a version: when it was made, what names it, and its first metric, with its interval against think-on.

    Args:
        versions: the rows, in order.
        aliases: alias → id of the version that it names.
    """
    rows = [
        [
            version.name,
            f"{version.made_at:%Y-%m-%d}",
            ", ".join(name for name, named in aliases.items() if named == version.id),
            *_headline(version.record),
            f"{version.record.cost_usd:.2f}",
        ]
        for version in versions
    ]
    texts = ("made", "aliases", "score, %", "over think on")
    return ResultTable(["version", *texts, "$"], rows, texts)


def score_table(record: VersionRecord) -> ResultTable:
    """Levels of a version and of think-on in %, and their difference in points, by stratum and metric."""
    levels = {(row["stratum"], row["variant"]): row for row in record.scores}
    rows = [
        [
            stratum,
            metric_title(metric, metrics),
            level_text(levels.get((stratum, "on"), {}), metric),
            level_text(own, metric),
            difference_cell(record, stratum, metric),
        ]
        for (stratum, variant), own in levels.items()
        if variant == record.variant
        for metrics in [metrics_of(own["scoring"])]
        for metric in metrics
    ]
    columns = ["questions", "metric", variant_title("on"), variant_title(record.variant), "difference, points"]
    return ResultTable(columns, rows, ["metric"])


def history_table(history: Sequence[AliasEntry]) -> ResultTable:
    """Every move of an alias."""
    rows = [
        [
            str(entry.n),
            f"{entry.at:%Y-%m-%d %H:%M}",
            entry.kind,
            version_name(entry.from_) if entry.from_ else UNDEFINED,
            version_name(entry.to),
            f"{entry.by} on {entry.host}",
            entry.why,
        ]
        for entry in history
    ]
    texts = ("at (UTC)", "how", "from", "to", "by", "why")
    return ResultTable(["n", *texts], rows, texts)


def difference_tables(found: VersionDifferences, before: str, after: str) -> list[ResultTable]:
    """What sets two versions apart; tables without rows are left out.

    Args:
        found: what :func:`~mralign_core.versions.differences.version_differences` returns.
        before: name of the earlier version.
        after: name of the later one.
    """
    config = [[change.field, _value(change.before), _value(change.after)] for change in found.config]
    tables = [
        ResultTable(["config", before, after], config, [before, after]),
        ResultTable(["data", "in both", "added", "gone"], _data_rows(found)),
        ResultTable(["segments of traces in both", ""], _segment_rows(found), [""]),
        ResultTable(["questions", "metric", before, after, "difference, points"], _score_rows(found), ["metric"]),
        ResultTable(
            ["answers that flipped", "question", before, after],
            [
                [row["flip"], row["question"], row["answer_before"] or UNDEFINED, row["answer_after"] or UNDEFINED]
                for row in found.flips.head(MOST_FLIPS).to_dict("records")
            ],
            ["question", before, after],
        ),
    ]
    return [table for table in tables if table.rows]


def difference_notes(found: VersionDifferences) -> list[str]:
    """Sentences below the tables."""
    notes = [f"made from other {', '.join(found.artifacts)}" if found.artifacts else "made from the same artifacts"]
    if not found.config:
        notes.append("the configs are the same")
    if len(found.flips):
        counts = found.flips["flip"].value_counts()
        notes.append("answers that flipped: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    elif len(found.scores):
        notes.append("no answer flipped")
    return [*notes, *(f"not compared: {why}" for why in found.missing)]


def _headline(record: VersionRecord) -> tuple[str, str | ResultCell]:
    """Of the first stratum, the first metric: its level, and its difference against think-on."""
    own = next((row for row in record.scores if row["variant"] == record.variant), None)
    if own is None:
        return UNDEFINED, UNDEFINED
    metrics = metrics_of(own["scoring"])
    level = f"{metric_title(metrics[0], metrics)} {level_text(own, metrics[0])}"
    return level, difference_cell(record, own["stratum"], metrics[0])


def difference_cell(record: VersionRecord, stratum: str, metric: str) -> str | ResultCell:
    """What a version moved against think-on, in points with its interval; a dash where that is not defined."""
    for row in record.differences:
        if (row["baseline"], row["stratum"], row["metric"]) == ("on", stratum, metric):
            return _moved(row)
    return UNDEFINED


def _moved(row: Mapping[str, Any]) -> str | ResultCell:
    """A difference in points, with its interval."""
    if pd.isna(row["difference"]) or row["metric"] not in METRIC_SIGNS:
        return UNDEFINED
    values = (float(row[name]) for name in ("difference", "low", "high"))
    shown = Difference("", "", row["metric"], *values)
    return ResultCell(shown.text, shown.tone)


def level_text(row: Mapping[str, Any], metric: str) -> str:
    """A metric of a row of scores, in %; a dash where it is not defined."""
    share = row.get(metric)
    return UNDEFINED if share is None else points(share)


def _data_rows(found: VersionDifferences) -> list[list[str]]:
    both = {"questions trained on": found.questions, "traces trained on": found.traces}
    return [[name, *(f"{count:,}" for count in each)] for name, each in both.items()]


def _segment_rows(found: VersionDifferences) -> list[list[str]]:
    if found.segments is None:
        return []
    relabelled = f"{found.segments.num_relabelled:,} of {found.segments.num_segments:,}"
    rows = [["with other labels", relabelled]]
    if found.segments.mean is not None:
        rows.append(["mean and largest |Δw|", f"{found.segments.mean:.3f} and {found.segments.most:.3f}"])
    return rows


def _score_rows(found: VersionDifferences) -> list[list[str | ResultCell]]:
    return [
        [
            row["stratum"],
            metric_title(row["metric"], metrics_of(row["scoring"])),
            points(row["before"]),
            points(row["after"]),
            _moved(row),
        ]
        for row in found.scores.to_dict("records")
    ]


def _value(value: Any) -> str:
    text = UNDEFINED if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
