"""What an ablation shows, and what it does not, in one sentence and in tables.

Every word is computed from the differences. Nothing is called shown whose interval includes 0, or that has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from mralign_core.ablation.grid import GridArm, oracle_pairs
from mralign_core.ablation.paired import Unit
from mralign_core.evaluation.metrics import METRICS
from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.result_table import BOLD, ResultCell, ResultTable, Tone
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import UNDEFINED, metric_title, variant_title

POSITIVE_CONTROL = (
    "the pocket world plants the link between habits and errors, so this is a positive control and says nothing of "
    "large models"
)


class Ablation(NamedTuple):
    """A finished ablation.

    Args:
        arms: the arms by name.
        results: rows of ``schemas.ablation.ABLATION_RESULTS``.
        differences: rows of ``schemas.ablation.ABLATION_DIFFERENCES``.
        unit: what the intervals are over.
        confidence: their coverage.
        smallest_effect: difference in Acc or Mis that would be worth having, as a share.
        is_pocket: whether the worlds are pocket worlds.
        refused: world → why it was left out and replaced.
        left_out: question sets that were answered and are not compared.
    """

    arms: Mapping[str, GridArm]
    results: pd.DataFrame
    differences: pd.DataFrame
    unit: Unit
    confidence: float
    smallest_effect: float
    is_pocket: bool
    refused: Mapping[int, str]
    left_out: Sequence[str] = ()

    def title(self, arm: str) -> str:
        """The arm as people call it; an untrained model that is not the run's, by the first arm that has it."""
        variant, _, backbone = arm.partition("@")
        if backbone:
            return f"{variant_title(variant)} of {self.arms[backbone].title}"
        return self.arms[arm].title if arm in self.arms else variant_title(arm)

    @property
    def metrics(self) -> list[str]:
        """The metrics that the questions have."""
        return [metric for metric in METRICS if metric in set(self.differences["metric"])]

    @property
    def headline_metrics(self) -> list[str]:
        """What the sentence and the figure are about: Acc and Mis, or the accuracy of sets without these."""
        return self.metrics[:2]

    def metric_title(self, metric: str) -> str:
        """The metric as people call it."""
        return metric_title(metric, self.metrics)

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return int(self.results[self.unit].nunique())


def is_shown(row: pd.Series) -> bool:
    """Whether the interval of a difference excludes 0."""
    return bool(row["low"] > 0 or row["high"] < 0)


def is_ruled_out(row: pd.Series, smallest_effect: float) -> bool:
    """Whether the interval of a difference lies within ± what would be worth having."""
    return bool(row["low"] > -smallest_effect and row["high"] < smallest_effect)


def design(ablation: Ablation) -> str:
    """On what was compared, in a few words."""
    results = ablation.results
    cells = results.drop_duplicates(["world", "seed"])
    questions, answers = int(cells["num_questions"].max()), int(cells["num_answers"].max())
    most = "up to " if cells["num_answers"].nunique() > 1 else ""
    worlds, seeds = results["world"].nunique(), _plural(results["seed"].nunique(), "alignment seed")
    where = f"In one world with {seeds}" if worlds == 1 else f"Over {worlds} worlds with {seeds} each"
    return f"{where} ({most}{questions:,} held-out questions and {answers:,} answers an arm and seed)"


def sentence(ablation: Ablation) -> str:
    """The one honest sentence: what the headline's metrics show, what they don't, and how many intervals there are."""
    rows = ablation.differences[ablation.differences["metric"].isin(ablation.headline_metrics)]
    with_interval = rows[rows["low"].notna()]
    if with_interval.empty:
        return _end(ablation, f"{design(ablation)} there is no interval, so that nothing is shown or ruled out")
    shown = with_interval[with_interval.apply(is_shown, axis=1)]
    open_ = rows.drop(index=shown.index)
    percent = f"{100 * ablation.confidence:.3g} %"
    parts = [
        f"what is shown, in that the {percent} interval over {ablation.unit}s excludes 0, is "
        + _list(ablation, shown, numbers=True),
        f"what is not shown is {_list(ablation, open_)}",
        *_ruled_out(ablation, with_interval),
        _multiplicity(ablation, with_interval),
    ]
    return _end(ablation, f"{design(ablation)}, " + "; ".join(parts))


def level_rows(ablation: Ablation) -> list[list[str]]:
    """Each arm with its metrics and its well-formed completions in percent, and words of thinking: means over units."""
    columns = [*ablation.metrics, "well_formed", "thinking_words"]
    means = ablation.results.groupby(["arm", ablation.unit], sort=False)[columns].mean()
    levels = means.groupby("arm", sort=False).mean()
    return [
        [
            ablation.title(str(arm)),
            *(points(row[metric]) for metric in columns[:-1]),
            UNDEFINED if pd.isna(row["thinking_words"]) else f"{row['thinking_words']:.1f}",
        ]
        for arm, row in levels.iterrows()
    ]


def oracle_rows(ablation: Ablation) -> list[list[str]]:
    """Each arm beside the oracle that makes weights in the same way: what either gains over KTO in Acc, and the share.

    Where the questions have no Acc, it is the accuracy. The oracle has the matrices of the world itself, by true
    labels; it is no strict bound, since weights that are right on the average need not train best. No share is told of
    an oracle whose own gain is not shown.
    """
    gains = ablation.differences
    gains = gains[(gains["metric"] == ablation.metrics[0]) & (gains["baseline"] == "kto")].set_index("arm")
    rows = []
    for name, oracle in oracle_pairs(ablation.arms):
        if name in gains.index and oracle in gains.index:
            gain, most = gains.loc[name], gains.loc[oracle]
            share = points(gain["difference"] / most["difference"]) + " %" if most["low"] > 0 else UNDEFINED
            rows.append([ablation.title(name), interval_text(gain), ablation.title(oracle), interval_text(most), share])
    return rows


def difference_rows(ablation: Ablation) -> list[tuple[str, dict[str, pd.Series]]]:
    """Each comparison as people call it, with the row of each metric."""
    grouped = ablation.differences.groupby(["arm", "baseline"], sort=False)
    return [
        (_pair(ablation, arm, baseline), {str(row["metric"]): row for _, row in rows.iterrows()})
        for (arm, baseline), rows in grouped
    ]


def interval_text(row: pd.Series) -> str:
    """A difference in points with its interval and the units that agree in sign, e.g. ``−1.3 [−2.0, −0.7] 8/8``."""
    text = points(row["difference"], signed=True)
    if pd.isna(row["low"]):
        return text
    low, high = points(row["low"], signed=True), points(row["high"], signed=True)
    return f"{text} [{low}, {high}] {row['num_agreeing']}/{row['num_units']}"


def ablation_tables(ablation: Ablation) -> list[ResultTable]:
    """Levels, then differences, two metrics a table, as 80 columns have room for, then shares of what oracles gain."""
    names = [ablation.metric_title(metric) for metric in ablation.metrics]
    headline = ablation.headline_metrics
    tables = [ResultTable(["mean, %", *names, "formed", "words"], level_rows(ablation))]
    for metrics in filter(None, (headline, ablation.metrics[len(headline) :])):
        columns = ["paired difference, points", *map(ablation.metric_title, metrics)]
        rows: list[list[str | ResultCell]] = [
            [name, *(ResultCell(interval_text(by_metric[metric]), _tone(by_metric[metric])) for metric in metrics)]
            for name, by_metric in difference_rows(ablation)
        ]
        tables.append(ResultTable(columns, rows))
    if shares := oracle_rows(ablation):
        tables.append(
            ResultTable([f"{names[0]} − KTO of", "points", "its oracle", "points ", "share"], shares, ["its oracle"])
        )
    return tables


def arms_table(ablation: Ablation) -> ResultTable:
    """What each arm is."""
    columns = ["arm", "called", "trains", "differs from the run in"]
    rows = [[name, arm.title, arm.variant, _settings(ablation, name)] for name, arm in ablation.arms.items()]
    return ResultTable(columns, rows, text_columns=columns)


def refused_worlds(ablation: Ablation) -> list[str]:
    """A sentence for each world without a model that passes."""
    return [f"World {world} was left out and replaced: {why}" for world, why in ablation.refused.items()]


def left_out_note(ablation: Ablation) -> list[str]:
    """A sentence on the sets that were answered and are not compared, if there are any."""
    if not ablation.left_out:
        return []
    return [f"Left out of the comparison, for other metrics than these or none: {', '.join(ablation.left_out)}."]


def ablation_markdown(ablation: Ablation) -> str:
    """The whole page: the sentence, what was refused or left out, levels, differences, and what each arm is."""
    parts = [
        sentence(ablation),
        *refused_worlds(ablation),
        *left_out_note(ablation),
        *(table.to_markdown() for table in ablation_tables(ablation)),
        "*formed*: completions with a closed thinking, where one is due, and an answer, %; *words*: of the thinking.",
        f"Behind each interval: how many of the {ablation.unit}s have the mean's sign. {BOLD}",
        arms_table(ablation).to_markdown(),
    ]
    return "\n\n".join(parts) + "\n"


def _settings(ablation: Ablation, name: str) -> str:
    arm = ablation.arms[name]
    return ", ".join(f"`{field}: {value}`" for field, value in arm.overrides.items()) or "–"


def _plural(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"{count:,} {noun}s"


def _pair(ablation: Ablation, arm: str, baseline: str) -> str:
    return f"{ablation.title(arm)} − {ablation.title(baseline)}"


def _list(ablation: Ablation, rows: pd.DataFrame, *, numbers: bool = False) -> str:
    """Comparisons with their metrics, in the order of the rows."""
    parts = []
    for (arm, baseline), each in rows.groupby(["arm", "baseline"], sort=False):
        metrics = [
            ablation.metric_title(row["metric"]) + (f" {interval_text(row)}" if numbers else "")
            for _, row in each.iterrows()
        ]
        parts.append(f"{_pair(ablation, arm, baseline)} ({', '.join(metrics)})")
    return ", ".join(parts) or "nothing"


def _ruled_out(ablation: Ablation, rows: pd.DataFrame) -> list[str]:
    """Where a difference worth having is ruled out, if anywhere."""
    smallest = ablation.smallest_effect
    found = rows[rows.apply(is_ruled_out, axis=1, smallest_effect=smallest)]
    if found.empty:
        return []
    return [f"a difference of {points(smallest)} points or more is ruled out for {_list(ablation, found)}"]


def _multiplicity(ablation: Ablation, rows: pd.DataFrame) -> str:
    tail = 1 - ablation.confidence
    survive = int((rows["p_value"] < tail / len(rows)).sum())
    return (
        f"these {len(rows)} intervals are not corrected for their number, so that about {tail * len(rows):.2g} would "
        f"exclude 0 by chance alone, and {survive} would still do so after Bonferroni's correction"
    )


def _end(ablation: Ablation, text: str) -> str:
    if ablation.is_pocket:
        return f"{text}; {POSITIVE_CONTROL}."
    return f"{text}; seeds of one model are not independent worlds: another model, or other questions, may differ."


def _tone(row: pd.Series) -> Tone:
    if not is_shown(row):
        return "open"
    return "better" if row["difference"] * METRIC_SIGNS[str(row["metric"])] > 0 else "worse"
