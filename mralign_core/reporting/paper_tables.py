"""The arms of an ablation that the paper's Tables 3 and 4 compare, as these show them (arXiv 2510.24794).

Departure: beside the levels stand paired differences with intervals. What has no arm is named, since arms share model
and data: the data source (rows of Table 3) and the backbones (Tables 5 and 12) are runs of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.ablation_findings import (
    Ablation,
    ablation_markdown,
    difference_rows,
    interval_text,
    is_shown,
)
from mralign_core.reporting.result_table import ResultCell, ResultTable, Tone
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import UNDEFINED

OWN_ARM = "mr_align"
"""The arm that is the run's own config, which the others are compared with."""
NO_ARM = (
    "No arm has what else these tables show, since arms share model and data: the data source (Table 3) is "
    "`questions.train` of a run of its own, a backbone (Tables 5 and 12) its `model.path`."
)


class PaperTable(NamedTuple):
    """One of the paper's tables: its title, and arm → what its row is called."""

    title: str
    rows: dict[str, str]


PAPER_TABLES = (
    PaperTable(
        "Table 3: the estimate, and labels a segment",
        {
            OWN_ARM: "EM, two labels (the run's own)",
            "frequency": "frequency, two labels",
            "single_label": "EM, one label",
        },
    ),
    PaperTable(
        "Table 4: λ_r",
        {
            "undesirable_0.5": "0.5",
            "undesirable_1.0": "1.0",
            OWN_ARM: "the run's own (1.5 unless set)",
            "undesirable_2.0": "2.0",
        },
    ),
)


def paper_tables(ablation: Ablation) -> list[ResultTable]:
    """Those of the paper's tables that this ablation has an arm for beside MR-ALIGN itself.

    Args:
        ablation: finished, with MR-ALIGN among its arms.
    """
    if OWN_ARM not in ablation.arms:
        return []
    return [
        _table(ablation, each)
        for each in PAPER_TABLES
        if any(arm in ablation.arms for arm in each.rows if arm != OWN_ARM)
    ]


def ablation_page(ablation: Ablation) -> str:
    """All that an ablation shows, and below it the paper's tables, as Markdown."""
    return "\n\n".join([ablation_markdown(ablation), *paper_section(ablation)])


def paper_section(ablation: Ablation) -> list[str]:
    """The same as Markdown, with what has no arm; nothing where there is no such table."""
    tables = [table.to_markdown() for table in paper_tables(ablation)]
    return ["## As the paper's tables", *tables, NO_ARM] if tables else []


def _table(ablation: Ablation, table: PaperTable) -> ResultTable:
    metrics = ablation.headline_metrics
    names = [ablation.metric_title(metric) for metric in metrics]
    means = ablation.results.groupby(["arm", ablation.unit], sort=False)[metrics].mean().groupby("arm").mean()
    differences = dict(difference_rows(ablation))
    rows: list[list[str | ResultCell]] = []
    for arm, title in table.rows.items():
        if arm in ablation.arms:
            of_metric = differences.get(f"{ablation.title(arm)} − {ablation.title(OWN_ARM)}", {})
            levels = [points(means.loc[arm, metric]) for metric in metrics]
            rows.append([title, *levels, *(_cell(of_metric.get(metric)) for metric in metrics)])
    columns = ["MR-ALIGN with", *(f"{name}, %" for name in names), *(f"Δ {name}" for name in names)]
    return ResultTable(columns, rows, title=table.title)


def _cell(row: pd.Series | None) -> str | ResultCell:
    if row is None:
        return UNDEFINED
    is_better = row["difference"] * METRIC_SIGNS[str(row["metric"])] > 0
    tone: Tone = "open" if not is_shown(row) else "better" if is_better else "worse"
    return ResultCell(interval_text(row), tone)
