"""The gate: whether a challenger takes the champion's place, from both models' answers to the same held-out questions.

Everything rests on paired differences by question, as in :mod:`~mralign_core.evaluation.decisions`, with such a sign
that a positive one is a gain. With G the gain in Mis over all questions (the macro average of several
sets; in the main metric where Mis is not defined), the challenger is

* **promoted** when G ≥ ``min_gain``, the sign-flip test shows G > 0 at a level of (1 − confidence) / comparisons, and
  the one-sided t bound of Acc's gain lies above −``max_loss``;
* **rejected** when there is an objection (:mod:`.objections`), or any metric of any part is shown to be worse, at a
  level of (1 − confidence) / the number of them, and is seen to be so by more than the config allows;
* **held** otherwise: the champion stays, and the reasons say what these questions could have shown.

A champion is chosen on the very questions that later champions are compared on, again and again. What keeps them from
being used up: a set of questions may decide only so many ``comparisons``, each at its share of the whole error, so that
over the life of the set an equal model is promoted with a chance of at most 1 − ``confidence`` (Bonferroni); and a
gain must exceed ``min_gain``, as in the ladder of Blum & Hardt (2015), so that noise is not climbed in small steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.config.retrain import GateConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.decisions import (
    NUM_FLIPS,
    MeanOfSets,
    decision_metrics,
    differences_by_question,
    mean_of_sets,
    sign_flip_p,
)
from mralign_core.evaluation.metrics import PairedPart, answer_metrics, paired_parts
from mralign_core.judging.verdicts import CELL
from mralign_core.method.benchmarks import METRIC_SIGNS
from mralign_core.reporting.titles import metric_title

CHALLENGER, CHAMPION = "challenger", "champion"
GAIN_COLUMNS = (
    *("part", "is_whole", "metric", "before", "after", "gain", "low", "high", "std_error"),
    *("p_gain", "p_loss", "num_questions"),
)
PROMOTED_SHARE = 0.9
"""The chance to promote at which a true gain counts as one that these questions can show."""

GateVerdict = Literal["PROMOTE", "HOLD", "REJECT"]


class GateDecision(NamedTuple):
    """What the gate decides, and why, a sentence a reason."""

    verdict: GateVerdict
    reasons: list[str]


def compare_with_champion(
    challenger: pd.DataFrame,
    champion: pd.DataFrame,
    *,
    confidence: float,
    rng: np.random.Generator,
    num_flips: int = NUM_FLIPS,
) -> pd.DataFrame:
    """What the challenger gains, over all questions and in each set and stratum.

    Args:
        challenger: rows of ``schemas.scores`` of one model, with its judged metrics where there are any.
        champion: the same of the other; what only one of them has is left out.
        confidence: of the one-sided bounds.
        rng: source of the sign flips.
        num_flips: how many; no p-value is below half of one in so many.

    Returns:
        A row a part and metric, :data:`GAIN_COLUMNS`: all questions first (``is_whole``), then sets and strata; of each
        the main metric, and Mis where it is defined. ``before`` and ``after`` are the champion's and the challenger's
        share, ``gain`` their difference, positive where the challenger is better, ``low`` and ``high`` its one-sided t
        bounds, ``p_gain`` and ``p_loss`` the one-sided p-values of the sign-flip test.

    Raises:
        DataError: there is no question that both have a score of.
    """
    cells = challenger[CELL].merge(champion[CELL])  # of an answer that a judge refused for good, there is no pair
    named = ((CHALLENGER, challenger), (CHAMPION, champion))
    both = [frame.merge(cells, on=CELL).assign(variant=name) for name, frame in named]
    answers = answer_metrics(pd.concat(both, ignore_index=True))
    rows = [
        {
            "part": part.stratum,
            "is_whole": number == 0,
            "metric": metric,
            **_gain(part, metric, confidence, rng, num_flips),
        }
        for number, part in enumerate(_all_parts(answers))
        for metric in decision_metrics(part)
    ]
    if not rows:
        raise DataError("no held-out question has a score that two models can be compared by: see questions.eval")
    return pd.DataFrame(rows, columns=list(GAIN_COLUMNS))


def decide_promotion(
    gains: pd.DataFrame, gate: GateConfig, objections: Sequence[str] = (), num_comparisons: int = 0
) -> GateDecision:
    """Whether the challenger takes the champion's place.

    Args:
        gains: what :func:`compare_with_champion` returns.
        gate: the margins.
        objections: why the challenger must not be promoted whatever its scores.
        num_comparisons: decided by the same held-out questions before this one.
    """
    if objections:
        return GateDecision("REJECT", list(objections))
    if losses := _shown_losses(gains, gate):
        return GateDecision("REJECT", losses)
    if num_comparisons >= gate.comparisons:
        reason = (
            f"the held-out questions have decided {num_comparisons} comparisons, as many as retrain.gate.comparisons "
            "allows: replace at least nine tenths of questions.eval"
        )
        return GateDecision("HOLD", [reason])
    wanted = gains[gains["is_whole"]].set_index("metric")
    metric = "mis" if "mis" in wanted.index else str(wanted.index[0])
    level = level_of(gate)
    reasons = [_gain_sentence(metric, wanted.loc[metric], gate, level)]
    is_promoted = bool(wanted.loc[metric, "gain"] >= gate.min_gain and wanted.loc[metric, "p_gain"] <= level)
    for guarded in wanted.index.drop(metric):
        row = wanted.loc[guarded]
        is_safe = bool(row["low"] >= -gate.max_loss)
        is_promoted &= is_safe
        reasons.append(
            f"{_title(guarded)} {_move(row)}: {'' if is_safe else 'not '}shown to be no worse than "
            f"{100 * gate.max_loss:.1f} points (bound {100 * row['low']:+.1f})"
        )
    reasons += _watched(gains, gate)
    return GateDecision("PROMOTE" if is_promoted else "HOLD", reasons)


def gate_rng(seed: int) -> np.random.Generator:
    """The source of the sign flips in a run of a seed."""
    return np.random.default_rng([seed, 15])


def level_of(gate: GateConfig) -> float:
    """The chance of a wrong promotion that one comparison may take: (1 − confidence) / comparisons."""
    return (1 - gate.confidence) / gate.comparisons


def fewest_questions(gate: GateConfig) -> int:
    """How many questions the sign-flip test needs to show anything: all flips one way have a chance of 2⁻ⁿ.

    >>> fewest_questions(GateConfig())  # .05 / 52
    11
    """
    return int(np.ceil(-np.log2(level_of(gate))))


def smallest_shown_gain(std_error: float, gate: GateConfig) -> float:
    """The true gain, as a share, promoted with a chance of :data:`PROMOTED_SHARE`, by the normal approximation.

    max(min_gain, z₁₋α · s) + z_power · s, with s the standard error and α the level of one comparison.

    >>> round(smallest_shown_gain(0.005, GateConfig(min_gain=0.02)), 4)
    0.0264
    """
    from scipy.stats import norm

    level = level_of(gate)
    return float(max(gate.min_gain, norm.isf(level) * std_error) + norm.ppf(PROMOTED_SHARE) * std_error)


def _all_parts(answers: pd.DataFrame) -> Iterator[PairedPart]:
    """All questions, or of several sets each macro average and each set; then the strata of each set."""
    yield from paired_parts(answers, CHALLENGER, CHAMPION)
    for source, of_set in answers.groupby("source", sort=True):
        strata = sorted(of_set["stratum"].unique())
        for stratum in strata if len(strata) > 1 else ():
            part = next(paired_parts(of_set[of_set["stratum"] == stratum], CHALLENGER, CHAMPION))
            name = stratum or "(none)"
            yield part._replace(stratum=f"{source}: {name}" if answers["source"].nunique() > 1 else name)


def _gain(
    part: PairedPart, metric: str, confidence: float, rng: np.random.Generator, num_flips: int
) -> dict[str, float]:
    sign = METRIC_SIGNS[metric]
    sets = [
        differences_by_question(
            ours["question_id"], sign * (ours[metric].to_numpy(float) - theirs[metric].to_numpy(float))
        )
        for ours, theirs in part.sets
    ]
    found = mean_of_sets(sets)
    two_sided = sign_flip_p(sets, rng, num_flips)
    p_gain = two_sided / 2 if found.difference > 0 else 1 - two_sided / 2
    low, high = _bounds(found, confidence)
    after, before = (float(np.mean([pair[side][metric].mean() for pair in part.sets])) for side in (0, 1))
    return {
        "before": before,
        "after": after,
        "gain": found.difference,
        "low": low,
        "high": high,
        "std_error": found.std_error,
        "p_gain": p_gain,
        "p_loss": two_sided / 2 if found.difference < 0 else 1 - two_sided / 2,
        "num_questions": int(found.sizes.sum()),
    }


def _bounds(found: MeanOfSets, confidence: float) -> tuple[float, float]:
    """One-sided t bounds; those of the range of a share where a set has one question."""
    from scipy.stats import t

    if np.isnan(found.std_error):
        return -1.0, 1.0
    reach = float(t.ppf(confidence, found.dof())) * found.std_error
    return found.difference - reach, found.difference + reach


def _shown_losses(gains: pd.DataFrame, gate: GateConfig) -> list[str]:
    """What is shown to be worse by more than the config allows, at a level that all parts and metrics share."""
    level = (1 - gate.confidence) / len(gains)
    found = []
    for row in gains.to_dict("records"):
        allowed = gate.max_loss if row["is_whole"] else gate.max_part_loss
        if row["gain"] < -allowed and row["p_loss"] <= level:
            found.append(
                f"{_title(row['metric'])} of {row['part']} {_move(row)}: shown to be worse (p {row['p_loss']:.2g} of "
                f"{level:.2g}), and seen to be so by more than the {100 * allowed:.1f} points allowed"
            )
    return found


def _watched(gains: pd.DataFrame, gate: GateConfig) -> list[str]:
    """Parts that look worse than allowed, with too few questions to show it: said, and not held against the model."""
    seen = gains[~gains["is_whole"] & (gains["gain"] < -gate.max_part_loss)].to_dict("records")
    return [
        f"{_title(row['metric'])} of {row['part']} {_move(row)}: looks worse, and {row['num_questions']} questions do "
        "not show it"
        for row in seen
    ]


def _gain_sentence(metric: str, row: pd.Series, gate: GateConfig, level: float) -> str:
    short = []
    if row["gain"] < gate.min_gain:
        exact = f" ({100 * row['gain']:.3f})" if f"{row['gain']:.3f}" == f"{gate.min_gain:.3f}" else ""
        short.append(f"less than the {100 * gate.min_gain:.1f} points asked for{exact}")
    if row["p_gain"] > level:
        short.append(f"not shown (p {row['p_gain']:.2g} of {level:.2g})")
    what = " and ".join(short) or f"shown (p {row['p_gain']:.2g} of {level:.2g})"
    return f"{_title(metric)} {_move(row)}: {what}{_power(row, gate, level) if short else ''}"


def _power(row: pd.Series, gate: GateConfig, level: float) -> str:
    """What these questions could have shown."""
    fewest = fewest_questions(gate)
    if row["num_questions"] < fewest:
        return f"; fewer than {fewest} questions can show nothing at a level of {level:.2g}"
    if np.isnan(row["std_error"]):
        return "; a set with one question shows nothing: give it more, or leave it out of questions.eval"
    could = smallest_shown_gain(row["std_error"], gate)
    return f"; {row['num_questions']} questions show {100 * could:.1f} points nine times in ten"


def _move(row: pd.Series | dict[str, float]) -> str:
    """The champion's and the challenger's rate in percent, and the gain."""
    return f"{100 * row['before']:.1f} → {100 * row['after']:.1f} ({100 * row['gain']:+.1f} points of gain)"


def _title(metric: str) -> str:
    return metric_title(metric, (metric,))
