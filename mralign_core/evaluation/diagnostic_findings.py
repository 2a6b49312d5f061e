"""What the diagnostics say, in plain words and in tables; nothing is said that the numbers don't."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from mralign_core.diagnostics import (
    MIN_SUPPORT,
    Diagnostics,
    Distance,
    Sensitivity,
    SensitivityRow,
    Strata,
    WeightShift,
)
from mralign_core.evaluation.diagnostic_figures import MATRIX_NAMES
from mralign_core.method.chain_tests import OrderComparison, StationarityTest

SIGNIFICANT = 0.05
"""p-value up to which a change of P along the trace is claimed."""
_ESTIMATORS = {
    "paper": "paper: 5 damped EM iterations",
    "converged": "EM to convergence",
    "frequency": "frequency",
    "single label": "one label a segment",
}


def findings(diagnostics: Diagnostics) -> list[str]:
    """One sentence or two a question, in the order of the report."""
    return [
        *_support(diagnostics),
        *_convergence(diagnostics),
        _settings(diagnostics.sensitivity),
        *(_stationary(name, test) for name, test in diagnostics.stationarity.items() if test),
        *(_memory(name, rows) for name, rows in diagnostics.order.items() if rows),
        *(_question_type(diagnostics.strata) if diagnostics.strata else ()),
        *(f"Not computed: {name.replace('.', ', ')}: {reason}." for name, reason in diagnostics.skipped.items()),
    ]


def tables(diagnostics: Diagnostics) -> dict[str, pd.DataFrame]:
    """Title → table, cells as text; only those that have rows."""
    found = {
        "What each matrix rests on": _yield_table(diagnostics),
        "Estimators, against the paper's": _estimator_table(diagnostics),
        "Is P the same in both halves of a trace?": _stationarity_table(diagnostics),
        "Does the move before the last one matter?": _order_table(diagnostics),
        "Distances between groups of traces": _distance_table(diagnostics.strata),
        "Other settings, one at a time": sensitivity_table(diagnostics.sensitivity),
    }
    return {title: table for title, table in found.items() if len(table)}


def sensitivity_table(sensitivity: Sensitivity) -> pd.DataFrame:
    """Shift in w along each setting, the others as configured."""
    rows = []
    for name in ("damping", "prior", "clip"):
        for row in sensitivity.along(name):
            own = row.shift.mean_abs_log == 0 and _setting(name, row) == _configured(name, sensitivity)
            value = _setting(name, row) + (" (this run)" if own else "")
            rows.append({"setting": name, "value": value, **_shift(row.shift), "clipped": _percent(row.share_clipped)})
    return pd.DataFrame(rows)


def _support(diagnostics: Diagnostics) -> Iterator[str]:
    for row in diagnostics.yields:
        yield (
            f"{MATRIX_NAMES[row.matrix]} rests on {row.transitions:,} transitions of {row.traces:,} traces. "
            f"{row.entries} of its entries have at least {MIN_SUPPORT} soft counts; they hold "
            f"{_percent(row.share_in_entries)} of all."
        )


def _convergence(diagnostics: Diagnostics) -> Iterator[str]:
    below = ", ".join(
        f"{max(*row.configured, *row.undamped) - row.configured[-1]:.1f} ({MATRIX_NAMES[row.matrix]})"
        for row in diagnostics.objectives
    )
    yield f"The estimate ends so many nats below the largest value of what EM maximises: {below}."
    for row in diagnostics.estimators:
        if row.estimator != "paper":
            yield f"{_ESTIMATORS[row.estimator]}, against the paper's five damped iterations: {_moves(row.shift)}."


def _settings(sensitivity: Sensitivity) -> str:
    rows = [(name, row) for name in ("damping", "prior", "clip") for row in sensitivity.along(name)]
    name, row = max(rows, key=lambda item: item[1].shift.mean_abs_log)
    return f"Of the settings tried one at a time, {name} {_setting(name, row)} moves weights most: {_moves(row.shift)}."


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


def _memory(polarity: str, rows: tuple[OrderComparison, ...]) -> str:
    best = max(rows, key=lambda row: row.second)
    interval = f"{best.gain:+.3f} nats a transition [{best.gain_low:+.3f}, {best.gain_high:+.3f}]"
    if best.gain_low > 0:
        verdict = "a second-order chain predicts held-out moves better"
    elif best.gain_high < 0:
        verdict = "a second-order chain predicts held-out moves worse"
    else:
        verdict = "first and second order can't be told apart"
    return (
        f"{polarity.capitalize()} traces: {verdict}, {interval} (best of κ = "
        f"{', '.join(f'{row.kappa:g}' for row in rows)}). For scale, the first order gains "
        f"{best.first - best.zeroth:+.3f} over no memory."
    )


def _question_type(strata: Strata) -> Iterator[str]:
    polarity = strata.polarities
    text = f"P⁺ and P⁻ are {polarity.l1:.2f} apart, where shuffled polarities give {polarity.by_chance:.2f}. "
    if polarity.by_strata is not None and polarity.l1 > polarity.by_chance:
        share = (polarity.by_strata - polarity.by_chance) / (polarity.l1 - polarity.by_chance)
        text += (
            f"Shuffled within each stratum, which leaves nothing but the kind of question, they are still "
            f"{polarity.by_strata:.2f} apart: {_percent(min(max(share, 0.0), 1.0))} of the distance beyond chance."
        )
    yield text.strip()
    if strata.conditioned_shift:
        names = ", ".join(strata.conditioned)
        yield f"Matrices of their own would move the weights of strata {names}: {_moves(strata.conditioned_shift)}."


def _moves(shift: WeightShift) -> str:
    return f"mean |Δ log w| {shift.mean_abs_log:.3f}, {_percent(shift.share_crossing_one)} of segments cross 1"


def _shift(shift: WeightShift) -> dict[str, str]:
    return {"mean |Δ log w|": f"{shift.mean_abs_log:.4f}", "cross 1": _percent(shift.share_crossing_one)}


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


def _yield_table(diagnostics: Diagnostics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "matrix": MATRIX_NAMES[row.matrix],
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
            **{f"L1 of {MATRIX_NAMES[name]}": f"{value:.3f}" for name, value in row.l1.items()},
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
            "κ": f"{row.kappa:g}",
            "order 0": f"{row.zeroth:.3f}",
            "order 1": f"{row.first:.3f}",
            "order 2": f"{row.second:.3f}",
            "2 over 1": f"{row.gain:+.3f} [{row.gain_low:+.3f}, {row.gain_high:+.3f}]",
        }
        for polarity, rows in diagnostics.order.items()
        for row in rows or ()
    )


def _distance_table(strata: Strata | None) -> pd.DataFrame:
    distances: tuple[Distance, ...] = (strata.polarities, *strata.strata) if strata else ()
    return pd.DataFrame(
        {
            "between": row.between,
            "L1": f"{row.l1:.3f}",
            "by chance": f"{row.by_chance:.3f}",
            "by strata alone": "–" if row.by_strata is None else f"{row.by_strata:.3f}",
        }
        for row in distances
    )
