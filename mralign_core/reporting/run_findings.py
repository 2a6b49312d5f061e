"""What the numbers say, in words and in tables.

Every sentence is computed from the summary and the differences, and no difference is claimed whose interval
includes 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.config import QuestionsConfig
from mralign_core.evaluation.metrics import ALL_QUESTIONS, DIFFERENCE_COLUMNS, MACRO, METRICS, metrics_of
from mralign_core.evaluation.variants import is_trained
from mralign_core.method.benchmarks import CLAIM_METRICS, JUDGED_METRICS, METRIC_SIGNS
from mralign_core.reporting.result_table import ResultCell, ResultTable, Tone
from mralign_core.reporting.titles import ACCURACY, UNDEFINED, metric_title, variant_title
from mralign_core.schemas.candidates import POLARITIES

HEADLINE_VERBS: dict[str, dict[Tone, str]] = {
    "mis": {
        "better": "narrows the hit gap",
        "worse": "widens the hit gap",
        "open": "does not measurably change the hit gap",
    },
    "em_answer": {
        "better": "raises the accuracy",
        "worse": "lowers the accuracy",
        "open": "does not measurably change the accuracy",
    },
    "f1_at_k": {
        "better": "raises F1@K of supported claims",
        "worse": "lowers F1@K of supported claims",
        "open": "does not measurably change F1@K of supported claims",
    },
    "truthful_informative": {
        "better": "raises the share of truthful and informative answers",
        "worse": "lowers the share of truthful and informative answers",
        "open": "does not measurably change the share of truthful and informative answers",
    },
}
"""Metric of a headline → what a method does to it."""
MAX_COMPOSED = 6
"""Strata whose polarities are told one by one."""
FEW_QUESTIONS = 30
"""Below this many questions a percentile interval is known to be too narrow."""


class Difference(NamedTuple):
    """One paired difference, in shares, ready to be shown."""

    variant: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float

    @property
    def tone(self) -> Tone:
        """Whether the interval decides for the better or the worse, or includes 0 and leaves it open."""
        if not (self.low > 0 or self.high < 0):
            return "open"
        return "better" if self.difference * METRIC_SIGNS[self.metric] > 0 else "worse"

    @property
    def interval(self) -> str:
        """The interval in points, e.g. ``−2.9 to +0.3``."""
        return f"{points(self.low, signed=True)} to {points(self.high, signed=True)}"

    @property
    def text(self) -> str:
        """Difference and interval in points, e.g. ``−1.3 [−2.9, +0.3]``; a dash where it is not defined."""
        if np.isnan(self.difference):
            return UNDEFINED
        low, high = points(self.low, signed=True), points(self.high, signed=True)
        return f"{points(self.difference, signed=True)} [{low}, {high}]"


def points(share: float, *, signed: bool = False) -> str:
    """A share as percentage points with one decimal, a dash where it is not defined.

    >>> points(0.2134), points(-0.013, signed=True), points(float("nan")), points(-0.0001, signed=True)
    ('21.3', '−1.3', '–', '0.0')
    """
    if pd.isna(share):
        return UNDEFINED
    value = round(100 * share, 1) + 0.0
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{value:.1f}".replace("-", "−")


def headline_stratum(results: pd.DataFrame) -> str:
    """The stratum that a headline speaks of: all questions, or of several sets those first averaged.

    Args:
        results: what ``metrics.summarize`` or ``metrics.paired_differences`` returns.
    """
    return str(results["stratum"].iloc[0]) if len(results) else ALL_QUESTIONS


def stratum_metrics(summary: pd.DataFrame, stratum: str) -> tuple[str, ...]:
    """The metrics that a stratum has."""
    return metrics_of(summary.loc[summary["stratum"] == stratum, "scoring"].iloc[0])


def panel_metrics(summary: pd.DataFrame) -> tuple[str, ...]:
    """The metrics that the figure of differences has a panel for: Acc and Mis, or accuracy alone."""
    return stratum_metrics(summary, headline_stratum(summary))[:2]


def overall(summary: pd.DataFrame) -> dict[str, pd.Series]:
    """Variant → its summary row in the :func:`headline_stratum`, in the order of the summary."""
    rows = summary[summary["stratum"] == headline_stratum(summary)]
    return {str(row["variant"]): row for _, row in rows.iterrows()}


def list_differences(differences: pd.DataFrame, stratum: str = "") -> list[Difference]:
    """The differences of a stratum, by default the headline's, in the order of the frame."""
    rows = differences[differences["stratum"] == (stratum or headline_stratum(differences))].astype(
        dict.fromkeys(DIFFERENCE_COLUMNS, float)
    )
    return [Difference(*values) for values in rows[list(Difference._fields)].itertuples(index=False)]


def difference_rows(
    differences: pd.DataFrame, stratum: str = "", metrics: Sequence[str] = METRICS
) -> list[tuple[str, list[Difference]]]:
    """Each comparison as people call it, with its differences in these metrics; by default the headline's stratum."""
    known = {(item.variant, item.baseline, item.metric): item for item in list_differences(differences, stratum)}
    pairs = dict.fromkeys((variant, baseline) for variant, baseline, _ in known)
    return [(f"{variant_title(a)} − {variant_title(b)}", [known[a, b, metric] for metric in metrics]) for a, b in pairs]


def headline(summary: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The one sentence to remember: what the last trained method did to the hit gap, and how sure that is.

    Of several sets it says which it speaks of; where these have no hit gap, it speaks of their accuracy, or of what a
    judge says of them.
    """
    rows, known = overall(summary), _by_key(differences)
    stratum = headline_stratum(summary)
    metric = next(name for name in HEADLINE_VERBS if name in stratum_metrics(summary, stratum))
    compared = {
        key[0] for key, item in known.items() if key[1:] == ("on", metric) and item.difference == item.difference
    }
    trained = [variant for variant in rows if variant in compared and is_trained(variant)]
    if not trained:
        return "No trained model was compared with plain thinking, so no change is claimed."
    last = trained[-1]
    moved = known[last, "on", metric]
    before, after = (points(rows[variant][metric]) for variant in ("on", last))
    verbs = HEADLINE_VERBS[metric]
    name = "Mis " if metric == "mis" else ""
    text = f"{variant_title(last)} {verbs[moved.tone]}: {name}{before} % before training, {after} % after"
    against = known.get((last, "kto", metric))
    return f"{_on(stratum)}{text}{_than_kto(against, metric)}." if against else f"{_on(stratum)}{text}."


def in_sentence(stratum: str) -> str:
    """A stratum as a sentence names it.

    >>> in_sentence("nq_open"), in_sentence("macro average of nq_open and sciq")
    ('nq_open', 'the macro average of nq_open and sciq')
    """
    return f"the {stratum}" if stratum.startswith(MACRO) else stratum


def _on(stratum: str) -> str:
    """What a sentence begins with that doesn't speak of all questions."""
    return "" if stratum == ALL_QUESTIONS else f"On {in_sentence(stratum)}, "


def composition(traces: pd.DataFrame, *, are_estimated_from: bool = True) -> str:
    """Of which strata the positive and the negative traces are, and whether weights could tell strata apart instead.

    Args:
        traces: columns ``stratum, polarity`` of the traces that were aligned on.
        are_estimated_from: whether the matrices were too, so that weights could tell these strata apart.

    >>> composition(pd.DataFrame({"stratum": ["", "", ""], "polarity": ["negative", "negative", "positive"]}))
    'Aligned on 1 positive and 2 negative traces of one stratum.'
    """
    counts = pd.crosstab(traces["stratum"], traces["polarity"]).reindex(columns=list(POLARITIES), fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    if len(counts) == 1:
        positive, negative = counts.iloc[0]
        return f"Aligned on {positive} positive and {negative} negative traces of one stratum."
    groups = [*counts.head(MAX_COMPOSED).itertuples()]
    shown = [f"{group.Index}: {group.positive} positive, {group.negative} negative" for group in groups]
    if others := len(counts) - len(groups):
        positive, negative = counts.tail(others).sum()
        shown.append(f"{others} others: {positive} positive, {negative} negative")
    pure = [
        f"no {group.Index} trace is {polarity}"
        for group in groups
        for polarity in POLARITIES
        if not getattr(group, polarity)
    ]
    text = f"Aligned on {'; '.join(shown)} traces."
    if not pure or not are_estimated_from:
        return text
    return f"{text} As {', '.join(pure)}, weights may tell kinds of question apart in place of right from wrong."


def sentences(
    summary: pd.DataFrame, differences: pd.DataFrame, confidence: float, composed: str = ""
) -> list[tuple[Tone, str]]:
    """What moved, by how much, and what did not, one sentence a comparison.

    Args:
        summary: what ``metrics.summarize`` returns.
        differences: what ``metrics.paired_differences`` returns.
        confidence: coverage of its intervals.
        composed: what :func:`composition` returns, to stand beside what is said of MR-ALIGN against KTO.
    """
    known = _by_key(differences)
    pairs = list(dict.fromkeys((variant, baseline) for variant, baseline, _ in known))
    metrics = stratum_metrics(summary, headline_stratum(summary))
    shown = ("mis", "acc") if "mis" in metrics else metrics
    found: list[tuple[Tone, str]] = [("open", text) for text in _starting_point(overall(summary), metrics)]
    for variant, baseline in pairs:
        moved = [item for metric in shown if not np.isnan((item := known[variant, baseline, metric]).difference)]
        if not moved:
            continue
        changes = "; ".join(_moved(item, metrics) for item in moved)
        text = f"{variant_title(variant)} against {variant_title(baseline)}: {changes}."
        if (variant, baseline) == ("mr_align", "kto") and moved[0].tone == "open":
            name = metric_title(moved[0].metric, metrics)
            text += f" The interval of {name} includes 0: this run alone does not tell the two methods apart."
        if (variant, baseline) == ("mr_align", "kto") and composed:
            text += f" {composed}"
        found.append((moved[0].tone, text))
    if pairs:
        thoughts = [item for key, item in known.items() if key[1:] == ("on", "em_thought")]
        found.append(("open", _thinking_moved(thoughts)))
        found.append(("open", _caveat(int(differences["num_questions"].max()), confidence)))
    return [(tone, text) for tone, text in found if text]


class Results(NamedTuple):
    """What ``metrics.summarize`` and ``metrics.paired_differences`` returned, as the report's artifact keeps them."""

    summary: pd.DataFrame
    differences: pd.DataFrame


def read_results(report: Path) -> Results | None:
    """The results in the folder of a report's artifact; None where nothing was scored."""
    if not (report / "summary.json").exists():
        return None
    return Results(*(pd.DataFrame(json.loads((report / f"{name}.json").read_text())) for name in Results._fields))


def why_no_results(questions: QuestionsConfig, *, has_judge: bool) -> str:
    """Why a finished run has no results.

    Args:
        questions: which sets were asked.
        has_judge: whether a judge is named.
    """
    if questions.eval and has_judge:
        return (
            "nothing was scored: no question of questions.eval has a gold answer that a text can be compared with, and "
            "no answer has a verdict of every judge; what was answered is kept"
        )
    if questions.eval:
        return (
            "nothing was scored: no question of questions.eval has a gold answer that a text can be compared with, nor "
            "a judge (judge.endpoints, for truthfulqa; for longfact judge.evidence too); what was answered is kept"
        )
    return "nothing was evaluated: questions.eval names no set"


def yield_table(funnel: Sequence[Mapping[str, Any]]) -> ResultTable:
    """What each step of the selection kept, dropped, and why.

    Args:
        funnel: what ``funnel.json`` of the candidates holds.
    """
    rows = [
        [row["step"], f"{row['kept']:,}", f"{row['dropped']:,}" if row["dropped"] else "", row["reason"]]
        for row in funnel
    ]
    return ResultTable(["step", "kept", "dropped", "reason"], rows, text_columns=["reason"])


def result_tables(summary: pd.DataFrame, differences: pd.DataFrame) -> list[ResultTable]:
    """Levels in %, then paired differences in points; these only where anything was compared. Of several sets, both of
    their macro average and then of each.

    Args:
        summary: what ``metrics.summarize`` returns.
        differences: what ``metrics.paired_differences`` returns.
    """
    headed = headline_stratum(summary)
    strata = [headed] if headed == ALL_QUESTIONS else dict.fromkeys(summary["stratum"])
    return [table for stratum in strata for table in _stratum_tables(summary, differences, stratum)]


def _stratum_tables(summary: pd.DataFrame, differences: pd.DataFrame, stratum: str) -> list[ResultTable]:
    metrics = stratum_metrics(summary, stratum)
    names = [metric_title(metric, metrics) for metric in metrics]
    title = "" if stratum == ALL_QUESTIONS else stratum
    rows = summary[summary["stratum"] == stratum].to_dict("records")
    levels = [[variant_title(row["variant"]), *(points(row[metric]) for metric in metrics)] for row in rows]
    tables = [ResultTable(["variant, %", *names], levels, title=title)]
    compared: list[list[str | ResultCell]] = [
        [name, *(_cell(item, metrics[:2]) for item in items)]
        for name, items in difference_rows(differences, stratum, metrics)
    ]
    if compared:
        tables.append(ResultTable(["difference, points", *names], compared, title=title))
    return tables


def _cell(item: Difference, with_interval: Sequence[str]) -> ResultCell:
    """In 80 columns there is room for the intervals of two metrics."""
    has_room = item.metric in with_interval
    return ResultCell(item.text, item.tone, "" if has_room else points(item.difference, signed=True))


def _by_key(differences: pd.DataFrame) -> dict[tuple[str, str, str], Difference]:
    return {(item.variant, item.baseline, item.metric): item for item in list_differences(differences)}


def _starting_point(rows: dict[str, pd.Series], metrics: Sequence[str]) -> list[str]:
    texts = []
    name = metric_title("em_answer", metrics)
    if "on" in rows and "truthful" in metrics:
        shares = (points(rows["on"][metric]) for metric in JUDGED_METRICS)
        texts.append(
            "Before training, {} % of answers with thinking are truthful, {} % informative, {} % both.".format(*shares)
        )
    if "on" in rows and "f1_at_k" in metrics:
        score, share = (points(rows["on"][metric]) for metric in CLAIM_METRICS)
        texts.append(
            f"Before training, F1@K of answers with thinking is {score} %, and {share} % of their claims are supported."
        )
    if "on" in rows and name == ACCURACY:
        texts.append(
            f"Before training, {points(rows['on']['em_answer'])} % of answers with thinking are right ({name})."
        )
    if "on" in rows and "mis" in metrics and not pd.isna(rows["on"]["mis"]):
        mis, acc = points(rows["on"]["mis"]), points(rows["on"]["acc"])
        texts.append(
            f"Before training, exactly one of thinking and answer names the right fact in {mis} % of answers "
            f"(Mis, the hit gap), and both do in {acc} % (Acc)."
        )
    if "off" in rows and "em_answer" in metrics:
        texts.append(f"Without thinking, {points(rows['off']['em_answer'])} % of answers are right ({name}).")
    return texts


def _moved(item: Difference, metrics: Sequence[str]) -> str:
    name = metric_title(item.metric, metrics)
    name = name[0].upper() + name[1:]
    if item.tone == "open":
        size = points(item.difference, signed=True)
        return f"{name} does not move measurably ({size} points, interval {item.interval})"
    verb = "rises" if item.difference > 0 else "falls"
    return f"{name} {verb} by {points(abs(item.difference))} points (interval {item.interval})"


def _than_kto(item: Difference, metric: str) -> str:
    tails = {
        "better": f", a further step {'down' if metric == 'mis' else 'up'} from KTO",
        "worse": ", but KTO does better",
        "open": "; against KTO the interval includes 0",
    }
    return tails[item.tone]


def _thinking_moved(items: Sequence[Difference]) -> str:
    """Whether a variant changed what is named in the thinking, rather than what is answered."""
    defined = [item for item in items if not np.isnan(item.difference)]
    moved = [f"{variant_title(item.variant)} ({item.text})" for item in defined if item.tone != "open"]
    still = [f"{variant_title(item.variant)} ({item.text})" for item in defined if item.tone == "open"]
    parts = {"moves for": moved, "does not move measurably for": still}
    text = " and ".join(f"{verb} {', '.join(names)}" for verb, names in parts.items() if names)
    return f"EM_t, the right fact in the thinking, {text}." if text else ""


def _caveat(num_questions: int, confidence: float) -> str:
    text = (
        f"Intervals are {100 * confidence:.3g} % paired bootstrap intervals over {num_questions:,} held-out "
        "questions. They cover the choice of questions, not another training seed or another model, and are "
        "not corrected for their number."
    )
    if num_questions < FEW_QUESTIONS:
        text += f" With fewer than {FEW_QUESTIONS} questions they are too narrow: read them as a rough guide."
    return text
