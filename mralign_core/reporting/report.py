"""The report of a run: one self-contained HTML page, a function of its inputs alone.

The page loads nothing from anywhere, and its content policy forbids it to. Whatever a model, an annotator or
a file wrote is escaped. Each section that has no data says so in a plain sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from numbers import Number
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from mralign_core.estimation.diagnostics import Diagnostics
from mralign_core.evaluation.guessable_scores import guessable_scores
from mralign_core.evaluation.metrics import ALL_QUESTIONS, MACRO, order_variants
from mralign_core.evaluation.variants import is_trained
from mralign_core.generation.outcomes import PARTLY_DRAWN
from mralign_core.method.matching import DEFAULT_RULES, MatchRules
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.traces import WELL_FORMED
from mralign_core.reporting import (
    decision_findings,
    diagnostic_findings,
    example_traces,
    figures,
    matrix_figures,
    style,
)
from mralign_core.reporting import run_findings as findings
from mralign_core.reporting.case_addresses import case_address, row_address
from mralign_core.reporting.diagnostic_figures import DIAGNOSTIC_CHARTS, diagnostic_charts
from mralign_core.reporting.judged_findings import JudgedResults, judged_notes, judged_tables
from mralign_core.reporting.parting import PARTING_CHARTS, parting_blocks
from mralign_core.reporting.people_findings import PeopleSection
from mralign_core.reporting.provenance import MADE
from mralign_core.reporting.report_block import Block
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.set_table import guessable_table, set_table
from mralign_core.reporting.titles import metric_title, variant_title
from mralign_core.reporting.token_table import token_table
from mralign_core.schemas.annotations import RULES
from mralign_core.schemas.outcomes import OUTCOMES

INTRODUCTION = (
    "MR-ALIGN labels what each step of a model's thinking does, learns which moves between such steps go with right "
    "and which with wrong answers, and trains the model with each step weighted by that, so that its answers keep to "
    "the facts that its thinking found."
)
PLANTED = (
    "This run is of the pocket world, a tiny made-up world that plants the link between habits of thinking and errors, "
    "so it shows that the machinery works and says nothing of large models."
)
CHART_TITLES = DIAGNOSTIC_CHARTS | {
    "differences": "Paired differences with their intervals",
    "funnel": "Yield of the selection",
    "labels": "What segments do, by polarity",
    "matrices": "P⁺ and P⁻",
    "weights": "Weights of single transitions",
    "histogram": "Weights of all segments",
    "training": "Loss, implicit rewards and KL baseline by step",
    **PARTING_CHARTS,
}
HITS = {"acc": "both", "mis": "gap", "em_thought": "named", "em_answer": "right"}
"""Metric → what the workbench calls the answers that it counts."""
# HTML has no place for control characters, and a lone surrogate cannot be written as UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything the report shows. What a run did not produce stays None or empty, and the report says so."""

    run: Mapping[str, str]
    """Header: name of the run, model, seed, store and the like, shown in this order."""
    taxonomy: Taxonomy
    """The label set."""
    is_pocket: bool = False
    """Whether the model and the questions are the pocket world's, whose effect is planted."""
    notes: Sequence[str] = ()
    """Plain statements to show at the top, such as why a stage was skipped."""
    funnel: pd.DataFrame | None = None
    """What each step of the selection kept: ``step, kept, dropped, reason``."""
    draws_funnel: pd.DataFrame | None = None
    """The same of the think-on draws that matrices are estimated from; None where these are the selected traces."""
    draws: pd.DataFrame | None = None
    """What became of the draws, a column a thinking mode: what ``draws_table`` returns."""
    draws_are_partial: bool = False
    """Whether draws stopped where they could no longer matter, so that their shares are not those of all draws."""
    candidates: pd.DataFrame | None = None
    """Rows of ``schemas.candidates``."""
    annotations: pd.DataFrame | None = None
    """Rows of ``schemas.annotations``."""
    transitions: matrix_figures.Transitions | None = None
    """P⁺, P⁻ and P with their counts, and how weights are made of them."""
    diagnostics: Diagnostics | None = None
    """How sure the matrices and weights are."""
    segment_weights: pd.DataFrame | None = None
    """Rows of ``schemas.segment_weights``."""
    training: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Variant → rows of ``schemas.training_metrics``."""
    scores: pd.DataFrame | None = None
    """Rows of ``schemas.scores``; used for the examples and for what became of each answer."""
    questions: pd.DataFrame | None = None
    """Rows of ``schemas.questions`` of the evaluation; used for the examples and for where golds are named."""
    held_out_traces: pd.DataFrame | None = None
    """Rows of ``schemas.held_out_traces``; None where the thinking of held-out answers is not labelled."""
    held_out_annotations: pd.DataFrame | None = None
    """Rows of ``schemas.annotations``, of these."""
    rules: MatchRules = DEFAULT_RULES
    """What counts as naming a gold answer, in the scores."""
    summary: pd.DataFrame | None = None
    """What ``metrics.summarize`` returns."""
    differences: pd.DataFrame | None = None
    """What ``metrics.paired_differences`` returns."""
    confidence: float
    """Coverage of the intervals in ``differences``."""
    decisions: pd.DataFrame | None = None
    """What ``decisions.decide`` returns."""
    flips: pd.DataFrame | None = None
    """Rows of ``schemas.flips``."""
    guessable: pd.DataFrame | None = None
    """Held-out questions that can be guessed, with ``question_id`` and ``kind``."""
    tokens: pd.DataFrame | None = None
    """What ``token_costs.mean_tokens`` returns."""
    costs: pd.DataFrame | None = None
    """Replies, tokens and dollars behind the labels, by annotator; any columns."""
    ledger: pd.DataFrame | None = None
    """What each run asked of each model and paid; any columns."""
    judged: JudgedResults | None = None
    """What judges say of the answers; None where none is named."""
    people: PeopleSection | None = None
    """What people's verdicts say of the judges; None where no sheet is named."""
    judging_costs: pd.DataFrame | None = None
    """Requests, tokens and dollars behind their verdicts, by judge; any columns."""
    judging_ledger: pd.DataFrame | None = None
    """What each run asked of each judge and paid; any columns."""
    quarantine: pd.DataFrame | None = None
    """Rows set aside and why, counted; any columns."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Artifact → digest."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run config."""


def render_report(inputs: ReportInputs) -> str:
    """The report as one HTML page, the same for the same inputs.

    Raises:
        DataError: variants in ``inputs.scores`` differ in their questions or draws.
    """
    parting = _parting(inputs)
    drawn = _figures(inputs) | {block.chart: block.figure for block in parting if block.chart}
    page = _template().render(
        inputs=inputs,
        results=_results(inputs),
        tokens=token_table(tokens) if (tokens := _rows(inputs.tokens)) is not None else None,
        findings=_findings(inputs),
        parting=parting,
        charts={name: _chart(name, figure) for name, figure in drawn.items()},
        traces=_traces(inputs),
        pairs=_pairs(inputs),
        rules=_rule_counts(inputs.annotations),
        channels=_channels(inputs),
        judged=_judged(inputs.judged),
        macro_colours=style.macro_colours(inputs.taxonomy),
        row_address=partial(row_address, taxonomy=inputs.taxonomy),
        config_text=yaml.safe_dump(dict(inputs.config), sort_keys=False, allow_unicode=True),
    )
    return _UNPRINTABLE.sub("\ufffd", page)


def _results(inputs: ReportInputs) -> dict[str, Any] | None:
    """Headline, sentences and tables of the evaluation; None where nothing was evaluated."""
    summary, differences = inputs.summary, inputs.differences
    if summary is None or summary.empty:
        return None
    if differences is None:
        differences = pd.DataFrame(columns=[*findings.Difference._fields, "stratum", "num_questions"])
    strata = list(dict.fromkeys(summary["stratum"]))
    candidates = _rows(inputs.candidates)
    are_estimated_from = inputs.draws_funnel is None
    composed = "" if candidates is None else findings.composition(candidates, are_estimated_from=are_estimated_from)
    return {
        "headline": findings.headline(summary, differences),
        "sentences": findings.sentences(summary, differences, inputs.confidence, composed),
        "composed": composed,
        "strata": [
            {
                "name": stratum,
                "in_sentence": findings.in_sentence(stratum),
                "is_set": strata[0] != ALL_QUESTIONS,
                "asked": _asked(stratum, is_set=strata[0] != ALL_QUESTIONS),
                "metrics": {metric: metric_title(metric, metrics) for metric in metrics},
                "levels": summary[summary["stratum"] == stratum].to_dict("records"),
                "differences": findings.difference_rows(differences, stratum, metrics),
            }
            for stratum in strata
            for metrics in [findings.stratum_metrics(summary, stratum)]
        ],
        "by_set": set_table(summary),
        "guessable": _guessable(inputs),
        "decided": _decided(inputs),
    }


def _asked(stratum: str, *, is_set: bool) -> dict[str, str]:
    """How the workbench is asked for the answers of a stratum, or of a set; it has no averages of sets."""
    if stratum == ALL_QUESTIONS or stratum.startswith(MACRO):
        return {}
    return {"source" if is_set else "stratum": stratum}


def _guessable(inputs: ReportInputs) -> ResultTable | None:
    scores, guessable = _rows(inputs.scores), _rows(inputs.guessable)
    return None if scores is None or guessable is None else guessable_table(guessable_scores(scores, guessable))


def _decided(inputs: ReportInputs) -> dict[str, Any] | None:
    """Sentences and tables of what comparisons decide, and the flips to read; None where nothing was compared."""
    decisions, flips = _rows(inputs.decisions), _rows(inputs.flips)
    if decisions is None:
        return None
    return {
        "sentences": decision_findings.decision_sentences(decisions),
        "tables": decision_findings.decision_tables(decisions),
        "flips": [] if flips is None else decision_findings.flip_groups(flips),
    }


def _parting(inputs: ReportInputs) -> list[Block]:
    """Where thinking and answer part."""
    return parting_blocks(
        inputs.scores,
        inputs.questions,
        inputs.candidates,
        inputs.annotations,
        _held_out(inputs),
        taxonomy=inputs.taxonomy,
        confidence=inputs.confidence,
        rules=inputs.rules,
    )


def _held_out(inputs: ReportInputs) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The thinking of held-out answers with its labels; None where there is none."""
    traces, annotations = _rows(inputs.held_out_traces), _rows(inputs.held_out_annotations)
    return None if traces is None or annotations is None else (traces, annotations)


def _traces(inputs: ReportInputs) -> list[example_traces.WeightedTrace]:
    if inputs.candidates is None or inputs.annotations is None:
        return []
    form = inputs.transitions.form if inputs.transitions else "ratio"
    return example_traces.weighted_traces(inputs.candidates, inputs.annotations, inputs.segment_weights, form)


def _pairs(inputs: ReportInputs) -> list[example_traces.BeforeAfter]:
    if inputs.scores is None or inputs.scores.empty:
        return []
    variants = order_variants(list(inputs.scores["variant"].unique()))
    trained = [variant for variant in variants if is_trained(variant)]
    if "on" not in variants or not trained:
        return []
    return example_traces.before_and_after(inputs.scores, inputs.questions, trained[-1])


def _rule_counts(annotations: pd.DataFrame | None) -> list[tuple[str, int, float]]:
    """Rule → how many segments it decided, and which share, in the order of ``schemas.annotations.RULES``.

    Where no distilled annotator was named, its rule is left out.
    """
    if annotations is None or annotations.empty:
        return []
    counts = annotations["rule"].value_counts()
    shown = [rule for rule in RULES if rule != "distilled" or rule in counts]
    return [(rule, int(counts.get(rule, 0)), counts.get(rule, 0) / len(annotations)) for rule in shown]


def _channels(inputs: ReportInputs) -> pd.DataFrame | None:
    """What annotators say of each label, where true labels are hidden."""
    found = inputs.transitions
    if found is None or found.channels is None:
        return None
    return diagnostic_findings.channel_table(found.channels, found.taxonomy.state_names[1:-1])


def _judged(judged: JudgedResults | None) -> dict[str, Any] | None:
    """Sentences and tables of what judges say."""
    return None if judged is None else {"notes": judged_notes(judged), "tables": judged_tables(judged)}


def _polarities(inputs: ReportInputs) -> dict[str, str]:
    if inputs.candidates is None:
        return {}
    return dict(zip(inputs.candidates["trace_id"], inputs.candidates["polarity"], strict=True))


def _rows(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if frame is None or frame.empty else frame


def _funnel(inputs: ReportInputs) -> Figure | None:
    funnel = _rows(inputs.funnel)
    return None if funnel is None else figures.yield_funnel(funnel)


def _labels(inputs: ReportInputs) -> Figure | None:
    annotations, polarities = _rows(inputs.annotations), _polarities(inputs)
    return (
        figures.label_mix(annotations, polarities, inputs.taxonomy) if annotations is not None and polarities else None
    )


def _matrices(inputs: ReportInputs) -> Figure | None:
    return matrix_figures.transition_heatmaps(inputs.transitions) if inputs.transitions else None


def _weights(inputs: ReportInputs) -> Figure | None:
    return matrix_figures.weight_heatmaps(inputs.transitions) if inputs.transitions else None


def _histogram(inputs: ReportInputs) -> Figure | None:
    segment_weights, transitions = _rows(inputs.segment_weights), inputs.transitions
    if segment_weights is None or transitions is None:
        return None
    bounds = (transitions.clip_min, transitions.clip_max)
    return figures.weight_histogram(segment_weights, _polarities(inputs), *bounds, transitions.form)


def _diagnostic_charts(inputs: ReportInputs) -> dict[str, Figure | None]:
    drawn: dict[str, Figure] = {}
    if inputs.diagnostics and inputs.transitions:
        drawn = diagnostic_charts(inputs.diagnostics, inputs.transitions)
    return {name: drawn.get(name) for name in DIAGNOSTIC_CHARTS}


def _findings(inputs: ReportInputs) -> dict[str, Any] | None:
    """Sentences and tables of the diagnostics."""
    found = inputs.diagnostics
    return (
        None
        if found is None
        else {
            "verdict": diagnostic_findings.verdict(found),
            "sentences": diagnostic_findings.findings(found),
            "tables": diagnostic_findings.tables(found),
        }
    )


def _training(inputs: ReportInputs) -> Figure | None:
    return figures.training_curves(inputs.training) if inputs.training else None


def _differences(inputs: ReportInputs) -> Figure | None:
    differences = _rows(inputs.differences)
    if differences is None or _rows(inputs.summary) is None:
        return None
    return figures.difference_intervals(differences, findings.panel_metrics(inputs.summary))


_CHARTS: dict[str, Callable[[ReportInputs], Figure | None]] = {
    "differences": _differences,
    "funnel": _funnel,
    "labels": _labels,
    "matrices": _matrices,
    "weights": _weights,
    "histogram": _histogram,
    "training": _training,
}


def _figures(inputs: ReportInputs) -> dict[str, Figure | None]:
    return {name: draw(inputs) for name, draw in _CHARTS.items()} | _diagnostic_charts(inputs)


def _chart(name: str, figure: Figure | None) -> Markup | None:
    # Safe as markup: matplotlib escapes the texts it is given, and to_svg keeps its escaping.
    return None if figure is None else Markup(style.to_svg(figure, name))


def _cells(frame: pd.DataFrame) -> list[list[tuple[str, bool]]]:
    """Each row's cells as text, with whether they are numbers."""
    rows = frame.itertuples(index=False)
    return [[(f"{cell:,}", True) if isinstance(cell, Number) else (str(cell), False) for cell in row] for row in rows]


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mralign_core", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=findings.points, variant=variant_title)
    environment.globals.update(
        OUTCOMES=OUTCOMES,
        HITS=HITS,
        case_address=case_address,
        WELL_FORMED=WELL_FORMED,
        PARTLY_DRAWN=PARTLY_DRAWN,
        POLARITY_COLOURS=style.POLARITY_COLOURS,
        weight_colour=matrix_figures.weight_colour,
        ink_on=style.ink_on,
        ALL_QUESTIONS=ALL_QUESTIONS,
        INTRODUCTION=INTRODUCTION,
        PLANTED=PLANTED,
        CHART_TITLES=CHART_TITLES,
        MADE=MADE,
        cells=_cells,
    )
    return environment.get_template("report.html.jinja")
