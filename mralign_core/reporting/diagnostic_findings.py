"""What the diagnostics say, in plain words and in tables; nothing is said that the numbers don't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL, MIN_SUPPORT
from mralign_core.estimation.chain_tests import OrderComparison, StationarityTest
from mralign_core.estimation.diagnostics import Diagnostics
from mralign_core.estimation.diagnostics.discrimination import HeldOutAuc
from mralign_core.estimation.diagnostics.own_question import OwnQuestion
from mralign_core.estimation.diagnostics.sensitivity import Sensitivity, SensitivityRow
from mralign_core.estimation.diagnostics.strata import MAX_STRATA, SHUFFLE_QUANTILE, Distance, Strata
from mralign_core.method import FloatArray
from mralign_core.method.distances import WeightShift
from mralign_core.reporting.titles import MATRIX_TITLES, UNDEFINED

SIGNIFICANT = 0.05
"""p-value up to which a change of P along the trace, or memory beyond the present label set, is claimed."""
_VERDICTS = {"shown": "Shown", "not shown": "Not shown", "too few": "Too few questions to say"}
_ANNOTATORS = ("annotator a", "annotator b", "adjudicator (where they differ)")
_ESTIMATORS = {
    "paper": "paper: 5 damped EM iterations",
    "converged": "EM to convergence",
    "frequency": "frequency",
    "value": "by the value of each state",
    "hidden": "hidden labels",
    "single label": "one label a segment, 5 damped EM iterations",
}


def findings(diagnostics: Diagnostics) -> list[str]:
    """One sentence or two a question, in the order of the report."""
    return [
        *discrimination_sentences(diagnostics),
        *_support(diagnostics),
        *_sample(diagnostics),
        *_convergence(diagnostics),
        _settings(diagnostics.sensitivity),
        *_own_question(diagnostics.own_question),
        *(_stationary(name, test) for name, test in diagnostics.stationarity.items() if test),
        *(_memory(name, row) for name, row in diagnostics.order.items() if row),
        *_question_type(diagnostics.strata),
        *(f"Not computed: {name.replace('.', ', ')}: {reason}." for name, reason in diagnostics.skipped.items()),
    ]


def verdict(diagnostics: Diagnostics) -> str:
    """In one sentence, whether the labels tell right from wrong, and so what the weights are worth; "" if not asked."""
    if not diagnostics.discrimination or not (overall := diagnostics.discrimination[0].overall):
        return ""
    within = diagnostics.discrimination[0].within
    if overall.verdict == "too few":
        return "Not known: there are too few questions to say whether the labels tell right from wrong."
    interval = f"held-out AUC {overall.auc:.2f} [{overall.low:.2f}, {overall.high:.2f}], where 0.5 is chance"
    if overall.verdict == "not shown":
        return (
            f"Not sure: that the labels tell right from wrong is not shown, and the weights may be noise ({interval})."
        )
    if within and within.verdict != "shown":
        return (
            f"Not sure: the labels tell kinds of question apart ({interval}); that they tell right from wrong within a "
            "kind is not shown."
        )
    return f"Sure enough to be more than noise: the labels tell right from wrong on questions not seen ({interval})."


def discrimination_sentences(diagnostics: Diagnostics) -> list[str]:
    """Do the labels tell right from wrong on questions not seen? Over all traces, within strata, and what follows."""
    if not diagnostics.discrimination or not (overall := diagnostics.discrimination[0].overall):
        return []
    found = [
        f"Do the labels tell right from wrong on questions not seen? {_VERDICTS[overall.verdict]}: {_auc(overall)}."
    ]
    if within := diagnostics.discrimination[0].within:
        strata = diagnostics.discrimination[0].strata
        names = ", ".join(strata) if len(strata) <= MAX_STRATA else f"{len(strata)} of them"
        found.append(f"{_VERDICTS[within.verdict]} within strata ({names}): {_auc(within)}.")
    if overall.verdict == "not shown":
        found.append("As long as that is not shown, weights made of these labels may be noise, whatever their size.")
    elif within and overall.verdict == "shown" and within.verdict != "shown":
        found.append("So far the labels tell kinds of question apart; that they tell right from wrong is not shown.")
    return found


def tables(diagnostics: Diagnostics) -> dict[str, pd.DataFrame]:
    """Title → table, cells as text; only those that have rows."""
    found = {
        "Do the labels tell right from wrong on questions not seen?": _discrimination_table(diagnostics),
        "What each matrix rests on": _yield_table(diagnostics),
        "Estimators, against the paper's": _estimator_table(diagnostics),
        "Is P the same in both halves of a trace?": _stationarity_table(diagnostics),
        "Does the label set before the present one matter?": _order_table(diagnostics),
        "Distances between groups of traces": _distance_table(diagnostics.strata),
        "Other settings, one at a time": sensitivity_table(diagnostics.sensitivity),
    }
    return {title: table for title, table in found.items() if len(table)}


def channel_table(channels: FloatArray, label_names: Sequence[str]) -> pd.DataFrame:
    """How often annotators say a label where it is the hidden true one, and what they say most often instead.

    Args:
        channels: (A, S, S + 1) probability of what annotator a, annotator b and the adjudicator say of each true label;
            "none" first.
        label_names: the S labels.

    >>> import numpy as np
    >>> channels = np.array([[[0.1, 0.7, 0.2], [0.0, 0.0, 1.0]]])
    >>> channel_table(channels, ["retrieval", "analogy"]).to_dict("list")
    {'true label': ['retrieval', 'analogy'], 'annotator a': ['70 %; analogy 20 %', '100 %']}
    """
    said = ("none", *label_names)
    columns: dict[str, list[str]] = {"true label": list(label_names)}
    for name, of_true in zip(_ANNOTATORS, channels, strict=False):
        columns[name] = []
        for own, probs in enumerate(of_true, start=1):
            others = probs.copy()
            others[own] = 0.0
            other = int(others.argmax())
            instead = f"; {said[other]} {100 * others[other]:.0f} %" if others[other] >= 0.005 else ""
            columns[name].append(f"{100 * probs[own]:.0f} %{instead}")
    return pd.DataFrame(columns)


def sensitivity_table(sensitivity: Sensitivity) -> pd.DataFrame:
    """Shift in w along each setting, the others as configured."""
    rows = []
    for name in ("damping", "prior", "clip"):
        for row in sensitivity.along(name):
            own = row.shift.mean_abs_log_ratio == 0 and _setting(name, row) == _configured(name, sensitivity)
            value = _setting(name, row) + (" (this run)" if own else "")
            rows.append({"setting": name, "value": value, **_shift(row.shift), "clipped": _percent(row.share_clipped)})
    return pd.DataFrame(rows)


def _auc(found: HeldOutAuc) -> str:
    questions = f"{found.positive_questions} positive and {found.negative_questions} negative questions"
    if found.low is None or found.high is None or found.p_value is None or found.by_chance is None:
        return (
            f"{questions}, and fewer than {MIN_QUESTIONS_FOR_INTERVAL} of either tell nothing (held-out AUC "
            f"{found.auc:.2f})"
        )
    text = (
        f"held-out AUC {found.auc:.2f} [{found.low:.2f}, {found.high:.2f}] of Σ log(P⁺/P⁻) over {found.traces:,} "
        f"traces of {questions} ({found.by_chance:.2f} with permuted polarities, p = {found.p_value:.3f})"
    )
    if found.verdict == "shown":
        return text
    if found.questions_to_show is None:
        return f"{text}; more questions like these would not show it"
    return f"{text}; showing an AUC of this size takes about {found.questions_to_show:,} such questions"


def _support(diagnostics: Diagnostics) -> Iterator[str]:
    for row in diagnostics.yields:
        yield (
            f"{MATRIX_TITLES[row.matrix]} rests on {row.transitions:,} transitions of {row.traces:,} traces. "
            f"{row.entries} of its entries have at least {MIN_SUPPORT} soft counts; they hold "
            f"{_percent(row.share_in_entries)} of all."
        )


def _sample(diagnostics: Diagnostics) -> Iterator[str]:
    labelled = {row.matrix: row.traces for row in diagnostics.yields}
    of_all = {"positive": labelled["plus"], "negative": labelled["minus"], "strata and weights": labelled["all"]}
    used = [
        f"{number:,} of {of_all[name]:,} ({name})"
        for name, number in diagnostics.used_traces.items()
        if number < of_all[name]
    ]
    if used:
        yield f"Tests, strata and shifts in weights use a random sample of the labelled traces: {', '.join(used)}."


def _convergence(diagnostics: Diagnostics) -> Iterator[str]:
    below = ", ".join(
        f"{max(*row.configured, *row.undamped) - row.configured[-1]:.1f} ({MATRIX_TITLES[row.matrix]})"
        for row in diagnostics.objectives
    )
    yield f"The estimate ends so many nats below the largest value of what EM maximises: {below}."
    for row in diagnostics.estimators:
        if row.estimator != "paper":
            yield f"{_ESTIMATORS[row.estimator]}, against the paper's five damped iterations: {_moves(row.shift)}."


def _settings(sensitivity: Sensitivity) -> str:
    rows = [(name, row) for name in ("damping", "prior", "clip") for row in sensitivity.along(name)]
    name, row = max(rows, key=lambda item: item[1].shift.mean_abs_log_ratio)
    return f"Of the settings tried one at a time, {name} {_setting(name, row)} moves weights most: {_moves(row.shift)}."


def _own_question(found: OwnQuestion) -> Iterator[str]:
    if found.own_share is not None:
        yield (
            f"{_percent(found.own_share)} of the variance of log w is the pull of the trace's own question on the "
            f"matrices (1 − R² between log w with and without it). Leaving it out: {_moves(found.shift)}."
        )


def _stationary(polarity: str, test: StationarityTest) -> str:
    p = test.simulated_p_value
    verdict = (
        "P is not the same in the first and second half"
        if p <= SIGNIFICANT
        else "no change of P between the halves can be shown"
    )
    return (
        f"{polarity.capitalize()} traces: {verdict} (p = {p:.3f} against simulated traces of one chain; "
        f"likelihood ratio {test.statistic:.0f} on {test.degrees_of_freedom} degrees of freedom, {test.num_traces} "
        "traces)."
    )


def _memory(polarity: str, row: OrderComparison) -> str:
    interval = f"{row.gain:+.3f} nats a transition [{row.gain_low:+.3f}, {row.gain_high:+.3f}]"
    if row.simulated_p_value <= SIGNIFICANT and row.gain_low > 0:
        verdict = "a second-order chain of label sets predicts held-out moves better than a first-order one"
    elif row.simulated_p_value <= SIGNIFICANT:
        verdict = (
            "there is memory beyond the present label set, but it isn't shown that a second-order chain predicts "
            "held-out moves better"
        )
    else:
        verdict = "no memory beyond the present label set can be shown"
    scale = f"For scale, the first order gains {row.first - row.zeroth:+.3f} over no memory."
    if row.first <= row.zeroth:
        scale = f"So few traces tell little: with {row.num_sets} sets, not even the first order beats no memory."
    return (
        f"{polarity.capitalize()} traces: {verdict}, {interval} (p = {row.simulated_p_value:.3f} against simulated "
        f"traces of one first-order chain). {scale}"
    )


def _question_type(strata: Strata) -> Iterator[str]:
    if strata.polarities:
        yield f"P⁺ and P⁻ are {_beside_chance(strata.polarities, 'polarities shuffled between questions')}."
    if strata.within:
        groups = "; ".join(
            f"{level}: {', '.join(f'{number} {polarity}' for polarity, number in strata.traces[level].items())} traces"
            for level in strata.compared
        )
        verdict = "differ within strata too" if strata.within.beyond_chance else "can't be told apart within strata"
        average = "on average " if len(strata.compared) > 1 else ""
        beside = _beside_chance(strata.within, "polarities shuffled between the questions of each")
        yield f"Within strata ({groups}), P⁺ and P⁻ are {average}{beside}, so they {verdict}."
    if strata.conditioned_shift:
        names = ", ".join(strata.conditioned)
        yield f"Matrices of their own would move the weights of strata {names}: {_moves(strata.conditioned_shift)}."


def _beside_chance(distance: Distance, shuffles: str) -> str:
    relation = "farther than" if distance.beyond_chance else "no farther than"
    return (
        f"{distance.l1:.2f} apart, {relation} chance gives ({shuffles}: {distance.by_chance:.2f} on average, "
        f"up to {distance.chance_high:.2f} in {100 * SHUFFLE_QUANTILE:.0f} % of shuffles)"
    )


def _moves(shift: WeightShift) -> str:
    return f"mean |Δ log w| {shift.mean_abs_log_ratio:.3f}, {_percent(shift.share_crossing)} of segments cross 1"


def _shift(shift: WeightShift) -> dict[str, str]:
    return {"mean |Δ log w|": f"{shift.mean_abs_log_ratio:.4f}", "cross 1": _percent(shift.share_crossing)}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _setting(name: str, row: SensitivityRow) -> str:
    if name != "clip":
        return f"{getattr(row, name):g}"
    return "none" if row.clip_max is None else f"{row.clip_min:.2f} to {row.clip_max:.2f}"


def _configured(name: str, sensitivity: Sensitivity) -> str:
    if name == "clip":
        return f"{sensitivity.clip_min:.2f} to {sensitivity.clip_max:.2f}"
    return f"{getattr(sensitivity, name):g}"


def _discrimination_table(diagnostics: Diagnostics) -> pd.DataFrame:
    rows = []
    for each in diagnostics.discrimination:
        for where, found in (("all traces", each.overall), ("within strata", each.within)):
            if found:
                rows.append({"estimator": each.estimator, "compared": where, **_auc_cells(found)})
    return pd.DataFrame(rows)


def _auc_cells(found: HeldOutAuc) -> dict[str, str]:
    def cell(value: float | None, digits: int = 3) -> str:
        return UNDEFINED if value is None else f"{value:,.{digits}f}"

    return {
        "traces": f"{found.traces:,}",
        "questions, + / −": f"{found.positive_questions} / {found.negative_questions}",
        "AUC": cell(found.auc),
        "interval": f"[{cell(found.low)}, {cell(found.high)}]",
        "permuted": cell(found.by_chance),
        "p": cell(found.p_value),
        "questions to show it": cell(found.questions_to_show, 0),
        "verdict": found.verdict,
    }


def _yield_table(diagnostics: Diagnostics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "matrix": MATRIX_TITLES[row.matrix],
            "traces": row.traces,
            "transitions": row.transitions,
            "unlabelled steps": row.unlabelled_steps,
            "unlabelled traces": row.unlabelled_traces,
            f"states left ≥ {MIN_SUPPORT} times": row.states_left,
            f"entries with ≥ {MIN_SUPPORT} counts": row.entries,
            "share of counts in them": _percent(row.share_in_entries),
        }
        for row in diagnostics.yields
    )


def _estimator_table(diagnostics: Diagnostics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "estimator": _ESTIMATORS[row.estimator],
            **{f"L1 of {MATRIX_TITLES[name]}": f"{value:.3f}" for name, value in row.l1.items()},
            **_shift(row.shift),
        }
        for row in diagnostics.estimators
    )


def _stationarity_table(diagnostics: Diagnostics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "traces": f"{test.num_traces} {polarity}",
            "transitions": test.num_transitions,
            "likelihood ratio": f"{test.statistic:.1f}",
            "degrees of freedom": test.degrees_of_freedom,
            "p, simulated": f"{test.simulated_p_value:.3f}",
            "p, permutation": f"{test.permutation_p_value:.3f}",
            "p, χ²": f"{test.chi2_p_value:.1e}",
        }
        for polarity, test in diagnostics.stationarity.items()
        if test
    )


def _order_table(diagnostics: Diagnostics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "traces": f"{row.num_traces} {polarity}",
            "label sets": row.num_sets,
            "order 0": f"{row.zeroth:.3f}",
            "order 1": f"{row.first:.3f}",
            "order 2": f"{row.second:.3f}",
            "2 over 1": f"{row.gain:+.3f} [{row.gain_low:+.3f}, {row.gain_high:+.3f}]",
            "p, simulated": f"{row.simulated_p_value:.3f}",
        }
        for polarity, row in diagnostics.order.items()
        if row
    )


def _distance_table(strata: Strata) -> pd.DataFrame:
    distances = (strata.polarities, strata.within, *strata.strata)
    return pd.DataFrame(
        {
            "between": row.between,
            "L1": f"{row.l1:.3f}",
            "by chance, mean": f"{row.by_chance:.3f}",
            f"by chance, {100 * SHUFFLE_QUANTILE:.0f} % below": f"{row.chance_high:.3f}",
            "p": f"{row.p_value:.2f}",
        }
        for row in distances
        if row
    )
