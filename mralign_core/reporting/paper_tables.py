"""The arms of an ablation that the paper's Tables 3, 4, 5 and 12 compare, as these show them (arXiv 2510.24794).

Departure: beside the levels stand paired differences with intervals. Those of settings and of data sources are from the
run's own MR-ALIGN; those of a backbone from that very backbone, untrained.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from mralign_core.ablation.grid import BASELINE, untrained
from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.ablation_findings import (
    Ablation,
    ablation_markdown,
    interval_text,
    is_shown,
)
from mralign_core.reporting.result_table import ResultCell, ResultTable, Tone
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import UNDEFINED

OWN_ARM = "mr_align"
"""The arm that is the run's own config, which the others are compared with."""
BACKBONES = "Tables 5 and 12: backbones"


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
    """Those of the paper's tables that this ablation has arms for; all but the backbones' need MR-ALIGN itself too."""
    compared = [
        _table(ablation, each)
        for each in (*PAPER_TABLES, _data_sources(ablation))
        if OWN_ARM in ablation.arms and any(arm in ablation.arms for arm in each.rows if arm != OWN_ARM)
    ]
    has_backbones = any(arm.backbone for arm in ablation.arms.values())
    return [*compared, *([_backbones(ablation)] if has_backbones else [])]


def ablation_page(ablation: Ablation) -> str:
    """All that an ablation shows, and below it the paper's tables, as Markdown."""
    return "\n\n".join([ablation_markdown(ablation), *paper_section(ablation)])


def paper_section(ablation: Ablation) -> list[str]:
    """The same as Markdown; nothing where there is no such table."""
    tables = [table.to_markdown() for table in paper_tables(ablation)]
    return ["## As the paper's tables", *tables] if tables else []


def _data_sources(ablation: Ablation) -> PaperTable:
    """The data source's rows of Table 3: whatever arms train on other traces than the run, with its model."""
    others = {
        name: arm.title for name, arm in ablation.arms.items() if arm.differs_in_data and arm.variant == "mr_align"
    }
    return PaperTable("Table 3: the data source", {**others, OWN_ARM: "all (the run's own)"})


def _table(ablation: Ablation, table: PaperTable) -> ResultTable:
    rows = [
        [title, *_levels(ablation, arm), *_differences(ablation, arm, OWN_ARM)]
        for arm, title in table.rows.items()
        if arm in ablation.arms
    ]
    return ResultTable(_columns(ablation, "MR-ALIGN with"), rows, title=table.title)


def _backbones(ablation: Ablation) -> ResultTable:
    """Every backbone untrained, then what was trained of it with the difference that this made."""
    rows: list[list[str | ResultCell]] = []
    arms = ablation.arms
    for backbone in dict.fromkeys(arm.backbone for arm in arms.values()):
        on = untrained(BASELINE, backbone)
        of_it = [name for name, arm in arms.items() if arm.backbone == backbone]
        shown = of_it if backbone else [name for name in of_it if name in ("sft", "kto", OWN_ARM)]
        whose = "" if backbone else ", the run's own"
        for name in (on, *shown):
            rows.append([f"{ablation.title(name)}{whose}", *_levels(ablation, name), *_differences(ablation, name, on)])
    return ResultTable(_columns(ablation, "backbone"), rows, title=BACKBONES)


def _columns(ablation: Ablation, first: str) -> list[str]:
    names = [ablation.metric_title(metric) for metric in ablation.headline_metrics]
    return [first, *(f"{name}, %" for name in names), *(f"Δ {name}" for name in names)]


def _levels(ablation: Ablation, arm: str) -> list[str]:
    of_arm = ablation.results[ablation.results["arm"] == arm]
    means = of_arm.groupby(ablation.unit)[ablation.headline_metrics].mean().mean()
    return [points(means[metric]) for metric in ablation.headline_metrics]


def _differences(ablation: Ablation, arm: str, baseline: str) -> list[str | ResultCell]:
    rows = ablation.differences
    of_pair = rows[(rows["arm"] == arm) & (rows["baseline"] == baseline)].set_index("metric", drop=False)
    return [
        _cell(of_pair.loc[metric]) if metric in of_pair.index else UNDEFINED for metric in ablation.headline_metrics
    ]


def _cell(row: pd.Series) -> ResultCell:
    is_better = row["difference"] * METRIC_SIGNS[str(row["metric"])] > 0
    tone: Tone = "open" if not is_shown(row) else "better" if is_better else "worse"
    return ResultCell(interval_text(row), tone)
