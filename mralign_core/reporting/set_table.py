"""Every variant on every set at a glance, as Table 2 of the paper has it: a column a set and metric."""

from __future__ import annotations

import pandas as pd

from mralign_core.evaluation.metrics import ALL_QUESTIONS, MACRO, METRICS, metrics_of
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import METRIC_TITLES, metric_title, variant_title

MOST_METRICS = 2
"""Of each set its first metrics, such as Acc and Mis; the tables of the sets have all."""


def set_table(summary: pd.DataFrame) -> ResultTable | None:
    """Levels in % of every variant on every set, each by its own metrics; None of a single set.

    Args:
        summary: what :func:`~mralign_core.evaluation.metrics.summarize` returns.
    """
    strata = [name for name in dict.fromkeys(summary["stratum"]) if not name.startswith(MACRO)]
    if ALL_QUESTIONS in strata or len(strata) < 2:
        return None
    rows = summary.set_index(["stratum", "variant"])
    scorings = summary.drop_duplicates("stratum").set_index("stratum")["scoring"]
    columns = [(name, metric) for name in strata for metric in metrics_of(scorings[name])[:MOST_METRICS]]
    cells = [
        [
            variant_title(variant),
            *(
                points(rows.at[key, metric]) if (key := (name, variant)) in rows.index else ""
                for name, metric in columns
            ),
        ]
        for variant in dict.fromkeys(summary["variant"])
    ]
    titles = [f"{name}, {metric_title(metric, metrics_of(scorings[name]))}" for name, metric in columns]
    return ResultTable(["variant, %", *titles], cells, title="Every variant on every set")


def guessable_table(rates: pd.DataFrame) -> ResultTable | None:
    """Levels in % on the questions that can be guessed, beside the others of their set; None where there are none.

    Args:
        rates: what :func:`~mralign_core.evaluation.guessable_scores.guessable_scores` returns.
    """
    if rates.empty:
        return None
    cells = [
        [
            f"{row['source']}, {row['kind']} ({row['num_questions']:,})",
            variant_title(row["variant"]),
            *(points(row[metric]) for metric in METRICS),
        ]
        for row in rates.to_dict("records")
    ]
    columns = ["questions, %", "variant", *(METRIC_TITLES[metric] for metric in METRICS)]
    return ResultTable(columns, cells, text_columns=["variant"], title="Questions that can be guessed")
