"""What is wrong with a training, from its curves, weights, rows and answers: rules that speak only where it is plain.

A rule's threshold is where a known cause must be at work, far from what healthy trainings show. Those of the demo's
pocket worlds, which do align, have: a margin β (r⁺ − r⁻) of 0.17 to 0.29 in the end, z0 clamped in 77 to 92 % of the
steps at a raw estimate of up to −2.1 nats (β z0 = −0.2), one class with three times the other's weight in the loss,
44 % of weights near 1 and 8 % clipped, and answers of 0.95 to 1.05 times their former length.

Curves are judged from :data:`FEWEST_STEPS` steps on, and only as far as their noise allows. "In the end" is the last
quarter of the steps, "at first" the first tenth, three steps at least; r is the implicit reward in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

FEWEST_STEPS = 12
"""A last quarter of three steps."""
FEWEST_ANSWERS = 20

SURE = 3.0
"""Standard errors that a loss or a margin must be away from what is healthy."""
FLAT_MARGIN = 0.02
"""Of β (r⁺ − r⁻): a preference of σ(0.02) − ½ = half a percent."""
FLAT_CHANGE = 0.01
"""Share of the loss, for SFT."""
WORSE_MARGIN = -0.05
WORSE_CHANGE = 0.05
MOVED_NATS = 0.5
STILL_NATS = 0.01
HIDDEN_KL = 0.5
"""Of −β z0 before the clamp: every row is judged from a point where σ(½) = 0.62 should stand for ½."""
CLAMPED_SHARE = 0.9
LARGE_MARGIN = 1.0
"""A preference of σ(1) = 0.73."""
HIDDEN_KL_OF_GAINS = 1.0
"""The same as HIDDEN_KL where right traces have gained and lead by a large margin: other rows may lose more then."""
MOST_IMBALANCE = 4.0
"""The paper's data have 1.5; KTO's Eq. 8 asks for 1 to 1.33. At 4, four fifths of the gradient are of one class."""
NEAR_ONE = 0.05
MOST_NEAR_ONE = 0.95
MOST_CLIPPED = 0.5
"""The median weight is then a bound of the clip."""
SATURATED = 3.0
"""Of β (z0 − r⁻): σ = 0.95, and the slope is 18 % of its largest."""
MOST_DRIFT = 1.5
"""Of answers' mean length, either way."""
SOME_DRIFT = 1.15
LENGTH_AUC = 0.8
"""Chance that the longer of a positive and a negative trace is the positive one, either way; 0.54 in the demo."""
LENGTH_CORRELATION = 0.8
"""Of implicit reward and length, in both classes with the same sign. Log-ratios of longer rows are larger: up where a
class is learnt, down where it is unlearnt. The same way in both, it is length itself that is rewarded or punished."""


class TrainingRecord(NamedTuple):
    """What is known of a training; what is not is None, and the rules that need it are silent."""

    variant: str
    """``sft``, ``kto`` or ``mr_align``."""
    metrics: pd.DataFrame
    """Rows of table ``training_metrics``; may have ``length_correlation``."""
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    num_positive: int = 0
    num_negative: int = 0
    weights: np.ndarray | None = None
    """Of segments, or of their tokens."""
    clipped: np.ndarray | None = None
    """Whether the clip moved each weight."""
    positive_lengths: np.ndarray | None = None
    """Completion tokens of the positive traces."""
    negative_lengths: np.ndarray | None = None
    answers_before: np.ndarray | None = None
    """Tokens of the answers to held-out questions without the adapter."""
    answers_after: np.ndarray | None = None
    """Tokens of the answers with it."""


class Fault(NamedTuple):
    """Something that is wrong."""

    name: str
    says: str
    """What was seen, with its figures."""
    to_try: str
    """What to change, by fields of our config, most of which TRL has by the same name."""

    def sentence(self) -> str:
        """Both in a line."""
        return f"{self.says}. Try: {self.to_try}."


def find_faults(record: TrainingRecord) -> list[Fault]:
    """What is wrong with a training; of one that diverged, only that, since all else follows from it.

    Example:
        >>> curves = pd.DataFrame({"loss": [0.5] * 20, **dict.fromkeys(IMPLICIT_REWARDS, 0.0)})
        >>> [fault.name for fault in find_faults(TrainingRecord("kto", curves))]
        ['loss flat']
    """
    if diverged := _diverged(record):
        return [diverged]
    found = [rule(record) for rule in FAULT_RULES]
    return [fault for fault in found if fault is not None]


def _diverged(record: TrainingRecord) -> Fault | None:
    """A norm that is never finite is not known; trainers may leave it out."""
    for name in DIVERGING:
        values = record.metrics.get(name, pd.Series(dtype=float)).astype(float)
        is_finite = pd.Series(np.isfinite(values))
        if is_finite.all() or (name != "loss" and values.isna().all()):
            continue
        return Fault(
            "diverged",
            f"{name} is {values[~is_finite].iloc[0]} at step {int((~is_finite).to_numpy().argmax()) + 1} of "
            f"{len(values)}: the adapter is of no use",
            "a lower learning_rate or max_grad_norm, a longer warm-up, bfloat16 in place of float16",
        )
    return None


def _loss_flat(record: TrainingRecord) -> Fault | None:
    """By the margin, where there is one: KTO's loss also moves with how many rows of each class a step has."""
    if not _has_curves(record):
        return None
    first, last, doubt = _ends(record, "loss")
    margin = _margin(record)
    if margin is None:
        is_flat = abs(last - first) + doubt < FLAT_CHANGE * abs(first)
    else:
        is_flat = abs(margin) + _doubt_of_margin(record) < FLAT_MARGIN
    if not is_flat:
        return None
    told = "" if margin is None else f", and the margin β (r⁺ − r⁻) is {margin:.3f}"
    return Fault(
        "loss flat",
        f"the loss went from {first:.4f} to {last:.4f}{told}: nothing was learnt",
        "a learning_rate 10 times as high, more epochs, or fewer rows a step (global_batch_size); see that "
        "target_modules names what the model has, and that grad_norm is not 0",
    )


def _loss_rises(record: TrainingRecord) -> Fault | None:
    if not _has_curves(record):
        return None
    first, last, doubt = _ends(record, "loss")
    margin = _margin(record)
    if margin is None:
        is_worse = last - first > max(WORSE_CHANGE * abs(first), doubt)
    else:
        is_worse = margin < min(WORSE_MARGIN, -_doubt_of_margin(record))
    if not is_worse:
        return None
    told = f"the loss rose from {first:.4f} to {last:.4f}"
    if margin is not None:
        told = f"right traces are less favoured than wrong ones: the margin β (r⁺ − r⁻) is {margin:.3f} in the end"
    return Fault(
        "loss rises",
        told,
        "a lower learning_rate or max_grad_norm, a longer warm-up; and see that label, or polarity, is not reversed",
    )


def _kl_does_not_move(record: TrainingRecord) -> Fault | None:
    """TRL without the raw value shows the clamped one, whose 0 means nothing by itself."""
    raw = _late(record, "kl_raw")
    if raw is None:
        return None
    moved = [abs(part).mean() for name in IMPLICIT_REWARDS if (part := _late(record, name)) is not None]
    if not moved or max(moved) < MOVED_NATS or abs(raw).max() > STILL_NATS:
        return None
    return Fault(
        "KL stuck at 0",
        f"z0 stays within {abs(raw).max():.1g} nats of 0 before its clamp, while implicit rewards reach "
        f"{max(moved):.1f} nats: its pairs are not those of this policy and reference",
        "KL pairs whose completions are of other questions (KL_completion_ids, or a shuffled data set); the model "
        "without its adapter as the reference; no stale ref_KL_logps",
    )


def _kl_hidden_by_clamp(record: TrainingRecord) -> Fault | None:
    if (raw := _late(record, "kl_raw")) is None:
        return None
    half = record.metrics["kl_raw"].iloc[len(record.metrics) // 2 :].dropna()
    positive, margin = _late(record, IMPLICIT_REWARDS[0]), _margin(record)
    gains = positive is not None and margin is not None and positive.mean() > 0 and margin >= LARGE_MARGIN
    most = HIDDEN_KL_OF_GAINS if gains else HIDDEN_KL
    if (half <= 0).mean() < CLAMPED_SHARE or record.beta * raw.mean() > -most:
        return None
    return Fault(
        "KL stuck at 0",
        f"z0 is clamped to 0 in {(half <= 0).mean():.0%} of the later steps, and is {raw.mean():.1f} nats before "
        f"(β z0 = {record.beta * raw.mean():.2f}): the policy makes all completions less probable, also unrelated ones",
        "a lower learning_rate or undesirable_weight, more positive traces, a higher beta; in TRL a larger "
        "per_device_train_batch_size steadies z0",
    )


def _one_class_dominates(record: TrainingRecord) -> Fault | None:
    positive = record.desirable_weight * record.num_positive
    negative = record.undesirable_weight * record.num_negative
    if record.variant == "sft" or not positive or not negative:
        return None
    ratio = positive / negative
    if 1 / MOST_IMBALANCE <= ratio <= MOST_IMBALANCE:
        return None
    which, times = ("positive", ratio) if ratio > 1 else ("negative", 1 / ratio)
    change = (
        f"desirable_weight {negative / record.num_positive:.2g}"
        if ratio > 1
        else f"undesirable_weight {positive / record.num_negative:.2g}"
    )
    return Fault(
        "one class dominates",
        f"the {record.num_positive} positive and {record.num_negative} negative rows, times their λ "
        f"({record.desirable_weight:g} and {record.undesirable_weight:g}), give the {which} class {times:.1f} times "
        "the weight of the other in the loss",
        f"{change}, which makes them equal (KTO's authors ask for 1 to 1.33 times as much of the positive), or more "
        "questions for the other class",
    )


def _weights_near_one(record: TrainingRecord) -> Fault | None:
    if record.variant != "mr_align" or record.weights is None or not len(record.weights):
        return None
    share = float((abs(record.weights - 1) < NEAR_ONE).mean())
    if share < MOST_NEAR_ONE:
        return None
    return Fault(
        "weights near 1",
        f"{share:.0%} of the weights are within {NEAR_ONE} of 1: this is KTO but for the name",
        "the report's section on the weights, which says whether labels tell right from wrong at all; "
        "reward.reference 'opposite', a lower reward.support_shrinkage, or more traces",
    )


def _weights_clipped(record: TrainingRecord) -> Fault | None:
    if record.variant != "mr_align" or record.clipped is None or not len(record.clipped):
        return None
    share = float(record.clipped.mean())
    if share < MOST_CLIPPED:
        return None
    return Fault(
        "weights clipped",
        f"{share:.0%} of the weights are at a bound of the clip: they say for or against, and not how much",
        "wider reward.clip_min and reward.clip_max, reward.support_shrinkage where moves are rare, more traces, or a "
        "coarser label set",
    )


def _negatives_saturate(record: TrainingRecord) -> Fault | None:
    kl, negative, positive = (_late(record, name) for name in ("kl_baseline", *IMPLICIT_REWARDS[::-1]))
    if kl is None or negative is None or positive is None:
        return None
    reach = record.beta * (kl.mean() - negative.mean())
    if reach < SATURATED or positive.mean() >= 0:
        return None
    return Fault(
        "λ_r saturates",
        f"negative rows have given what they can (β (z0 − r⁻) = {reach:.1f}, σ = {1 / (1 + math.exp(-reach)):.2f}), "
        f"and the positive ones lose with them (r⁺ = {positive.mean():.1f} nats)",
        f"an undesirable_weight (λ_r) below {record.undesirable_weight:g}, at most the paper's 1.5; a lower "
        "learning_rate; fewer epochs",
    )


def _length_drifts(record: TrainingRecord) -> Fault | None:
    if (drift := _drift(record)) is None or 1 / MOST_DRIFT < drift < MOST_DRIFT:
        return None
    return Fault(
        "length drift",
        f"answers to held-out questions have {drift:.2f} times the tokens that they had before",
        "a lower learning_rate or fewer epochs; positive and negative traces of like length "
        "(generate.min_reasoning_tokens, generate.max_reasoning_tokens); see that end tokens are trained on",
    )


def _length_is_rewarded(record: TrainingRecord) -> Fault | None:
    to_try = (
        "positive and negative traces of like length (generate.min_reasoning_tokens, generate.max_reasoning_tokens, "
        "or pairs of one question: estimate.traces 'matched'); a higher beta; fewer epochs"
    )
    correlation = _late(record, "length_correlation")
    has_both = _margin(record) is not None
    if correlation is not None and has_both and len(correlation) >= 3 and abs(correlation.mean()) >= LENGTH_CORRELATION:
        which = "longer" if correlation.mean() > 0 else "shorter"
        return Fault(
            "reward hacking by length",
            f"{which} rows have the higher implicit reward in both classes (correlation {correlation.mean():.2f})",
            to_try,
        )
    auc, drift = _length_auc(record), _drift(record)
    if auc is None or drift is None or max(auc, 1 - auc) < LENGTH_AUC:
        return None
    is_longer = auc > 0.5
    if (drift if is_longer else 1 / drift) < SOME_DRIFT:
        return None
    which = "longer" if is_longer else "shorter"
    return Fault(
        "reward hacking by length",
        f"length alone tells the classes apart (positive traces are {which}, AUC {max(auc, 1 - auc):.2f}), and answers "
        f"became {which} with it ({drift:.2f} times the tokens)",
        to_try,
    )


DIVERGING = ("loss", "grad_norm")
IMPLICIT_REWARDS = ("implicit_reward_positive", "implicit_reward_negative")
FAULT_RULES: tuple[Callable[[TrainingRecord], Fault | None], ...] = (
    _loss_flat,
    _loss_rises,
    _kl_does_not_move,
    _kl_hidden_by_clamp,
    _one_class_dominates,
    _weights_near_one,
    _weights_clipped,
    _negatives_saturate,
    _length_drifts,
    _length_is_rewarded,
)


def _has_curves(record: TrainingRecord) -> bool:
    return len(record.metrics) >= FEWEST_STEPS


def _late(record: TrainingRecord, column: str) -> pd.Series | None:
    """A column in the end; None where it has no value there, or there are too few steps."""
    if not _has_curves(record) or column not in record.metrics:
        return None
    values = record.metrics[column].iloc[-_num_late(record) :].dropna()
    return values if len(values) else None


def _num_late(record: TrainingRecord) -> int:
    return max(3, len(record.metrics) // 4)


def _ends(record: TrainingRecord, column: str) -> tuple[float, float, float]:
    """A column's mean at first and in the end, and by how much steps' noise may make them differ."""
    values = record.metrics[column]
    num_first, num_last = max(3, len(values) // 10), _num_late(record)
    doubt = SURE * _noise(values) * math.sqrt(1 / num_first + 1 / num_last)
    return float(values.iloc[:num_first].mean()), float(values.iloc[-num_last:].mean()), doubt


def _noise(values: pd.Series) -> float:
    """Standard deviation of a curve around its course, from the differences of steps, which the course hardly moves."""
    return math.sqrt(float((values.dropna().diff() ** 2).mean()) / 2)


def _doubt_of_margin(record: TrainingRecord) -> float:
    """By how much steps' noise may move the margin in the end."""
    parts = [(record.metrics[name], _late(record, name)) for name in IMPLICIT_REWARDS]
    variance = sum(_noise(curve) ** 2 / len(late) for curve, late in parts if late is not None)
    return SURE * record.beta * math.sqrt(variance)


def _margin(record: TrainingRecord) -> float | None:
    """β (r⁺ − r⁻) in the end; None where one class has no rows, as in SFT."""
    positive, negative = (_late(record, name) for name in IMPLICIT_REWARDS)
    if positive is None or negative is None:
        return None
    return float(record.beta * (positive.mean() - negative.mean()))


def _drift(record: TrainingRecord) -> float | None:
    """Mean tokens of an answer after training, over those before."""
    before, after = record.answers_before, record.answers_after
    if before is None or after is None or min(len(before), len(after)) < FEWEST_ANSWERS or not before.mean():
        return None
    return max(float(after.mean() / before.mean()), 1e-9)


def _length_auc(record: TrainingRecord) -> float | None:
    """Chance that a positive trace is longer than a negative one."""
    positive, negative = record.positive_lengths, record.negative_lengths
    if positive is None or negative is None or not len(positive) or not len(negative):
        return None
    from scipy.stats import mannwhitneyu  # takes a second to import, which a run that finds all in the store is spared

    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))
