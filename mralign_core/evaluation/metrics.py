"""Acc, Mis, EM_t, EM_a of each variant, and paired bootstrap intervals of their differences (§4, App. A.2).

Departures from the paper, which gives point estimates only:

* Differences come with percentile-bootstrap intervals over questions. A question is one cluster: all its
  draws are resampled together, in both variants, so that they never pass for independent evidence.
* A variant that never thinks has no EM_t, so its Acc and Mis are not defined: missing values, never 0.
* In a variant that does think, an answer without a think block counts as EM_t = 0: nothing was named.
* What a judge says of an answer (:mod:`mralign_core.judging`) is a metric like the others: the share of truthful
  answers, of informative ones, and of both; of long answers F1@K and the share of supported claims, means of an
  answer's own shares.
* Several sets are never pooled: results are by set, and above them stands the macro average, the plain mean over the
  sets that have the same metrics (:data:`~mralign_core.method.benchmarks.SCORINGS`). Its interval resamples the
  questions of each set by themselves. First stands what a headline may speak of: the sets of the paper's metrics where
  there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.errors import DataError
from mralign_core.evaluation.variants import SELF_REFINE, is_trained
from mralign_core.method import FloatArray
from mralign_core.method.benchmarks import CLAIM_METRICS, JUDGED_METRICS, MATCH_METRICS, SCORINGS, ScoringName
from mralign_core.method.traces import WELL_FORMED
from mralign_core.schemas.outcomes import OUTCOMES

METRICS = MATCH_METRICS
"""Acc = mean(EM_t ∧ EM_a), Mis = mean(EM_t ⊕ EM_a), EM_t, EM_a; the last is the accuracy of a set without EM_t. Judged
sets have :data:`~mralign_core.method.benchmarks.JUDGED_METRICS` or ``CLAIM_METRICS``."""
DIFFERENCE_COLUMNS = ("difference", "low", "high")
"""A paired difference and the ends of its interval."""
ALL_QUESTIONS = "(all)"
"""The stratum of every question together, where all are of one set."""
MACRO = "macro average of "
"""What the stratum begins with that is a mean over sets."""
VARIANT_ORDER = ("off", "on", SELF_REFINE, "on_retrieval", "sft", "kto", "mr_align", "mr_align_retrieval")
FURTHER_COMPARISONS = (
    ("mr_align", "kto"),
    (SELF_REFINE, "on"),
    ("on_retrieval", "on"),
    ("mr_align_retrieval", "on_retrieval"),
    ("mr_align_retrieval", "mr_align"),
)
"""What is compared beside each trained variant and think-on, where both are there."""
CONSISTENCY = ("both_correct", "inconsistent", "both_wrong")
"""What thinking and answer did: both named a gold answer, exactly one did (the hit gap), neither did."""

# Bounds the memory of the resampling (about 32 MB) without changing its result.
_CELLS_PER_BLOCK = 4_000_000


class _Part(NamedTuple):
    """Answers that are reported together: those of one set or stratum, or of several sets whose means are averaged."""

    stratum: str
    sets: list[pd.DataFrame]

    @property
    def scoring(self) -> ScoringName:
        """How it is scored; of several sets, which have the same metrics, how the first is."""
        name: ScoringName = self.sets[0]["scoring"].iloc[0]
        return name


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Every metric of every variant: over all questions and by stratum; of several sets, averaged and set by set.

    Implements Acc and Mis of §4 and App. A.2 of arXiv 2510.24794.

    Args:
        scores: rows of ``schemas.scores``, and where answers were judged, their metrics.

    Returns:
        A row a variant and stratum: ``variant, stratum, scoring, num_questions, num_answers``, the :func:`metrics_in`,
        ``contains_answer``, ``well_formed`` (a closed thinking where one is due, and an answer), and the share of
        each outcome as ``outcome_<name>``; all shares in [0, 1], NaN where a metric is not defined. First comes stratum
        :data:`ALL_QUESTIONS`, or of several sets that of the first :data:`MACRO` average.

    Example:
        >>> same = {"variant": "on", "source": "s", "scoring": "exact_match", "stratum": "", "draw": 0}
        >>> same |= {"outcome": "ok", "contains_answer": True}
        >>> scores = pd.DataFrame({"question_id": ["a", "b"], "em_thought": [True, True],
        ...                        "em_answer": [True, False]}).assign(**same)
        >>> summarize(scores)[["acc", "mis", "em_thought", "em_answer"]].iloc[0].tolist()
        [0.5, 0.5, 1.0, 0.5]
    """
    answers = answer_metrics(scores)
    shares = [*metrics_in(answers), "contains_answer", "well_formed", *(f"outcome_{name}" for name in OUTCOMES)]
    rows: list[pd.DataFrame] = []
    for part in _parts(answers):
        grouped = [members.groupby("variant", sort=False) for members in part.sets]
        counts = [each["question_id"].agg(num_questions="nunique", num_answers="size") for each in grouped]
        levels = [each[shares].mean() for each in grouped]
        table = sum(counts[1:], counts[0]).join(sum(levels[1:], levels[0]) / len(levels)).reset_index()
        table.insert(1, "stratum", part.stratum)
        table.insert(2, "scoring", part.scoring)
        rows.append(table)
    if not rows:
        return pd.DataFrame(columns=["variant", "stratum", "scoring", "num_questions", "num_answers", *shares])
    return pd.concat(rows, ignore_index=True)


def headline_sets(answers: pd.DataFrame) -> list[pd.DataFrame]:
    """The answers of those sets that a single number may speak of: all of one set, or of those first averaged.

    Args:
        answers: what :func:`answer_metrics` returns.
    """
    return next((part.sets for part in _parts(answers)), [])


def metrics_of(scoring: ScoringName) -> tuple[str, ...]:
    """Which of the :data:`METRICS` sets have that are scored so."""
    return SCORINGS[scoring].metrics


def metrics_in(answers: pd.DataFrame) -> tuple[str, ...]:
    """The :data:`METRICS`, and those that a judge gives where any answer was judged.

    Args:
        answers: what :func:`answer_metrics` takes, or returns.
    """
    return (*METRICS, *(name for name in (*JUDGED_METRICS, *CLAIM_METRICS) if name in answers))


def answer_metrics(scores: pd.DataFrame) -> pd.DataFrame:
    """Each answer's metrics as 0/1 numbers, of claims as shares, in the order of variant, question and draw; NaN where
    one is not defined.

    Raises:
        DataError: two rows share a variant, question and draw.
    """
    keys = ["variant", "question_id", "draw"]
    repeated = scores.duplicated(keys)
    if repeated.any():
        row = scores[repeated].iloc[0]
        raise DataError(
            f"scores: {int(repeated.sum())} repeated row(s), first variant {row['variant']!r}, question "
            f"{row['question_id']!r}, draw {row['draw']}; keep one score a variant, question and draw"
        )
    answers = scores[[*keys, "source", "scoring", "stratum"]].reset_index(drop=True)
    thought = scores["em_thought"].astype("boolean").reset_index(drop=True)
    is_compared = answers["scoring"].map(lambda name: "em_thought" in metrics_of(name)).to_numpy(bool)
    thinks = thought.notna().groupby(answers["variant"]).transform("any").to_numpy(bool) & is_compared
    em_thought = thought.fillna(False).to_numpy(bool)
    em_answer = scores["em_answer"].to_numpy(bool)
    answers["acc"] = np.where(thinks, em_thought & em_answer, np.nan)
    answers["mis"] = np.where(thinks, em_thought ^ em_answer, np.nan)
    answers["em_thought"] = np.where(thinks, em_thought, np.nan)
    is_matched = answers["scoring"].map(lambda name: "em_answer" in metrics_of(name)).to_numpy(bool)
    answers["em_answer"] = np.where(is_matched, em_answer, np.nan)
    answers["contains_answer"] = np.where(is_matched, scores["contains_answer"].to_numpy(bool), np.nan)
    for name in metrics_in(scores)[len(METRICS) :]:
        answers[name] = scores[name].to_numpy(float)
    answers["well_formed"] = scores["outcome"].isin(WELL_FORMED).to_numpy(float)
    for name in OUTCOMES:
        answers[f"outcome_{name}"] = (scores["outcome"].to_numpy(object) == name).astype(float)
    answers["variant"] = pd.Categorical(
        answers["variant"], order_variants(list(answers["variant"].unique())), ordered=True
    )
    answers = answers.sort_values(keys, ignore_index=True)
    return answers.assign(variant=answers["variant"].astype(object))


def order_variants(variants: Sequence[str]) -> list[str]:
    """Variants in the paper's order, then any others by name."""
    known = [name for name in VARIANT_ORDER if name in variants]
    return known + sorted(set(variants) - set(known))


def comparisons(variants: Sequence[str]) -> list[tuple[str, str]]:
    """The (variant, baseline) pairs to compare: each trained variant with think-on, then those of
    :data:`FURTHER_COMPARISONS`.

    >>> comparisons(["off", "on", "on_retrieval", "mr_align", "mr_align_retrieval"])[:2]
    [('mr_align', 'on'), ('on_retrieval', 'on')]
    """
    pairs = [(name, "on") for name in order_variants(variants) if is_trained(name) and "on" in variants]
    return pairs + [pair for pair in FURTHER_COMPARISONS if set(pair) <= set(variants)]


class PairedPart(NamedTuple):
    """What is reported together of a variant and its baseline: both frames of each set, on the same cells."""

    stratum: str
    scoring: ScoringName
    sets: list[tuple[pd.DataFrame, pd.DataFrame]]


def paired_parts(answers: pd.DataFrame, variant: str, baseline: str) -> Iterator[PairedPart]:
    """What a decision is made on: all questions of one set, or of several sets each macro average and each set.

    Args:
        answers: what :func:`answer_metrics` returns.
        variant: compared with the baseline.
        baseline: must hold the same questions and draws.

    Raises:
        DataError: the two differ in their questions or draws.
    """
    for part in _parts(answers):
        pairs = [(_same_cells(rows, variant, baseline), rows[rows["variant"] == baseline]) for rows in part.sets]
        yield PairedPart(part.stratum, part.scoring, pairs)
        if part.stratum == ALL_QUESTIONS:
            return


def paired_differences(
    scores: pd.DataFrame, *, num_resamples: int, confidence: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Differences between variants on the same questions and draws, with paired-bootstrap intervals.

    Args:
        scores: rows of ``schemas.scores``; compared variants must hold the same questions and draws.
        num_resamples: bootstrap resamples of questions.
        confidence: coverage of the percentile intervals, e.g. 0.95.
        rng: source of the resamples, the same ones for every comparison.

    Returns:
        A row a comparison, stratum and metric: ``variant, baseline, stratum, metric, difference, low, high,
        num_questions``; differences are shares in [-1, 1], variant minus baseline, NaN where a metric is not defined.
        Strata are those of :func:`summarize`.

    Raises:
        DataError: two compared variants differ in their questions or draws.
    """
    answers = answer_metrics(scores)
    pairs = comparisons(list(answers["variant"].unique()))
    rows: list[dict[str, object]] = []
    for part in _parts(answers) if pairs else ():
        paired = [_paired_sums(members, pairs, metrics_in(answers)) for members in part.sets]
        differences = np.mean([sums.sum(axis=0) / num_draws.sum() for sums, num_draws in paired], axis=0)
        means = np.mean([_resampled_means(*each, num_resamples, rng) for each in paired], axis=0)
        low, high = _percentile_interval(means, confidence)
        keys = [(variant, baseline, metric) for variant, baseline in pairs for metric in metrics_in(answers)]
        for (variant, baseline, metric), *interval in zip(keys, differences, low, high, strict=True):
            values = dict(zip(DIFFERENCE_COLUMNS, map(float, interval), strict=True))
            row = {"variant": variant, "baseline": baseline, "stratum": part.stratum, "metric": metric}
            rows.append({**row, **values, "num_questions": sum(len(num_draws) for _, num_draws in paired)})
    columns = ["variant", "baseline", "stratum", "metric", *DIFFERENCE_COLUMNS, "num_questions"]
    return pd.DataFrame(rows, columns=columns)


def paired_shares(
    answers: pd.DataFrame, shares: Sequence[str], *, num_resamples: int, confidence: float, rng: np.random.Generator
) -> pd.DataFrame:
    """The same differences of one set, in any 0/1 columns.

    Args:
        answers: ``variant, question_id, draw`` and the columns; compared variants have the same questions and draws.
        shares: the columns.
        num_resamples: bootstrap resamples of questions.
        confidence: coverage of the percentile intervals.
        rng: source of the resamples.

    Returns:
        A row a comparison and column: ``variant, baseline, metric, difference, low, high``.
    """
    pairs = comparisons(list(answers["variant"].unique()))
    columns = ["variant", "baseline", "metric", *DIFFERENCE_COLUMNS]
    if not pairs:
        return pd.DataFrame(columns=columns)
    sums, num_draws = _paired_sums(answers.sort_values(["variant", "question_id", "draw"]), pairs, shares)
    low, high = bootstrap_interval(sums, num_draws, num_resamples=num_resamples, confidence=confidence, rng=rng)
    keys = [(variant, baseline, share) for variant, baseline in pairs for share in shares]
    intervals = zip(sums.sum(axis=0) / num_draws.sum(), low, high, strict=True)
    rows = [(*key, *map(float, interval)) for key, interval in zip(keys, intervals, strict=True)]
    return pd.DataFrame(rows, columns=columns)


def paired_figures(
    answers: pd.DataFrame,
    shares: Sequence[str],
    figure: Callable[[FloatArray], FloatArray],
    *,
    num_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The differences of one set in a figure that is no mean over answers, but made of such means.

    Args:
        answers: as for :func:`paired_shares`.
        shares: the columns of whose means it is made.
        figure: means of shape (…, shares) → figures of shape (…).
        num_resamples: bootstrap resamples of questions.
        confidence: coverage of the percentile intervals.
        rng: source of the resamples.

    Returns:
        A row a comparison: ``variant, baseline, difference, low, high``.
    """
    pairs = comparisons(list(answers["variant"].unique()))
    columns = ["variant", "baseline", *DIFFERENCE_COLUMNS]
    if not pairs:
        return pd.DataFrame(columns=columns)
    ordered = answers.sort_values(["variant", "question_id", "draw"])
    sides = [rows for pair in pairs for rows in (_same_cells(ordered, *pair), ordered[ordered["variant"] == pair[1]])]
    summed = [_sums_by_question(rows[list(shares)].to_numpy(float), rows["question_id"]) for rows in sides]
    sums, num_draws = np.hstack([each for each, _ in summed]), summed[0][1]

    def differences(means: FloatArray) -> FloatArray:
        found = figure(means.reshape(*means.shape[:-1], len(pairs), 2, len(shares)))
        return found[..., 0] - found[..., 1]

    resampled = differences(_resampled_means(sums, num_draws, num_resamples, rng))
    intervals = zip(
        differences(sums.sum(axis=0) / num_draws.sum()), *_percentile_interval(resampled, confidence), strict=True
    )
    rows = [(*pair, *map(float, interval)) for pair, interval in zip(pairs, intervals, strict=True)]
    return pd.DataFrame(rows, columns=columns)


def bootstrap_interval(
    sums: FloatArray,
    num_draws: FloatArray,
    *,
    num_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Percentile interval of the mean over answers, with questions resampled as clusters.

    Args:
        sums: shape (Q, M), the sum over each question's draws of M paired differences.
        num_draws: shape (Q,), the draws of each question.
        num_resamples: bootstrap resamples.
        confidence: coverage in (0, 1).
        rng: source of the resamples.

    Returns:
        Low and high ends, each of shape (M,).

    Example:
        >>> low, high = bootstrap_interval(np.zeros((5, 1)), np.ones(5), num_resamples=100, confidence=0.95,
        ...                                rng=np.random.default_rng(0))
        >>> low.tolist(), high.tolist()
        ([0.0], [0.0])
    """
    return _percentile_interval(_resampled_means(sums, num_draws, num_resamples, rng), confidence)


def _resampled_means(
    sums: FloatArray, num_draws: FloatArray, num_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """The means over answers in each resample of the questions, shape (resamples, M)."""
    totals = np.column_stack([sums, num_draws])
    resampled = np.concatenate([counts @ totals for counts in _resample(len(totals), num_resamples, rng)])
    means: FloatArray = resampled[:, :-1] / resampled[:, -1:]
    return means


def _percentile_interval(means: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def consistency_shifts(scores: pd.DataFrame) -> pd.DataFrame:
    """Where the variants compared with think-on take the answers it had right, inconsistent, or wrong (Fig. 5).

    Answers are paired by question and draw; those of sets without EM_t have no such class and are left out. Some
    traffic out of every class is regression to the mean: think-on itself, drawn again, would not repeat its classes
    either.

    Returns:
        A row a variant and think-on class: ``variant, before, num_answers``, and the answers in each
        class of :data:`CONSISTENCY` afterwards. Empty without think-on or without such a variant.

    Raises:
        DataError: a variant and think-on differ in their questions or draws.
    """
    answers = answer_metrics(scores)
    answers = answers[answers["scoring"].map(lambda name: "em_thought" in metrics_of(name)).astype(bool)]
    variants = [variant for variant, baseline in comparisons(list(answers["variant"].unique())) if baseline == "on"]
    rows = []
    before = _consistency(answers[answers["variant"] == "on"])
    for variant in variants:
        after = _consistency(_same_cells(answers, variant, "on"))
        for index, name in enumerate(CONSISTENCY):
            moved = np.bincount(after[before == index], minlength=len(CONSISTENCY)).tolist()
            row = {"variant": variant, "before": name, "num_answers": sum(moved)}
            rows.append({**row, **dict(zip(CONSISTENCY, moved, strict=True))})
    return pd.DataFrame(rows, columns=["variant", "before", "num_answers", *CONSISTENCY])


def _parts(answers: pd.DataFrame) -> Iterator[_Part]:
    """All answers of one set, then each stratum, of which a single one would only repeat the whole; or of several sets
    those with the same metrics, averaged where there are two or more, and then each by itself.
    """
    if answers.empty:
        return
    if answers["source"].nunique() > 1:
        yield from _parts_of_sets(answers)
        return
    yield _Part(ALL_QUESTIONS, [answers])
    strata = sorted(answers["stratum"].unique())
    if len(strata) > 1:
        for stratum in strata:
            yield _Part(stratum or "(none)", [answers[answers["stratum"] == stratum]])


def _parts_of_sets(answers: pd.DataFrame) -> Iterator[_Part]:
    alike: dict[tuple[str, ...], list[_Part]] = {scoring.metrics: [] for scoring in SCORINGS.values()}
    for name in sorted(answers["source"].unique()):
        part = _Part(name, [answers[answers["source"] == name]])
        alike[metrics_of(part.scoring)].append(part)
    for parts in alike.values():
        if len(parts) > 1:
            names = [part.stratum for part in parts]
            title = f"{MACRO}{', '.join(names[:-1])} and {names[-1]}"
            yield _Part(title, [members for part in parts for members in part.sets])
        yield from parts


def _paired_sums(
    answers: pd.DataFrame, pairs: Sequence[tuple[str, str]], metrics: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Each question's sums over draws of all differences, (Q, pairs · metrics), and its draws, (Q,)."""
    blocks = []
    for variant, baseline in pairs:
        ours = _same_cells(answers, variant, baseline)
        theirs = answers[answers["variant"] == baseline]
        difference = ours[list(metrics)].to_numpy(float) - theirs[list(metrics)].to_numpy(float)
        block, num_draws = _sums_by_question(difference, ours["question_id"])
        blocks.append(block)
    return np.hstack(blocks), num_draws


def _sums_by_question(values: FloatArray, question_ids: pd.Series) -> tuple[FloatArray, FloatArray]:
    """Each question's sums over its draws, (Q, M), and how many these are, (Q,); rows of a question are together."""
    questions = question_ids.to_numpy(object)
    starts = np.flatnonzero(np.append(True, questions[1:] != questions[:-1]))
    sums: FloatArray = np.add.reduceat(values, starts, axis=0)
    return sums, np.diff(np.append(starts, len(questions))).astype(float)


def _same_cells(answers: pd.DataFrame, variant: str, baseline: str) -> pd.DataFrame:
    """The variant's answers, row by row on the questions and draws of the baseline's."""
    ours, theirs = (answers[answers["variant"] == name] for name in (variant, baseline))
    ours_cells, theirs_cells = (pd.MultiIndex.from_frame(rows[["question_id", "draw"]]) for rows in (ours, theirs))
    if not ours_cells.equals(theirs_cells):
        unpaired = ours_cells.symmetric_difference(theirs_cells)
        question_id, draw = unpaired[0]
        raise DataError(
            f"scores: {len(unpaired)} answer(s) are in only one of {variant!r} ({len(ours)} answers) and "
            f"{baseline!r} ({len(theirs)} answers), first question {question_id!r}, draw {draw}; differences "
            "are paired: evaluate both on the same questions with the same evaluate.num_draws"
        )
    return ours


def _consistency(answers: pd.DataFrame) -> NDArray[np.intp]:
    """Index into CONSISTENCY of each answer."""
    acc, mis = answers["acc"].to_numpy(float), answers["mis"].to_numpy(float)
    return np.where(acc == 1, 0, np.where(mis == 1, 1, 2))


def _resample(num_questions: int, num_resamples: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """How often each question appears in each resample, in blocks of shape (block, Q)."""
    probs = np.full(num_questions, 1 / num_questions)
    block = max(1, _CELLS_PER_BLOCK // num_questions)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield rng.multinomial(num_questions, probs, size=size).astype(float)
