"""What the verdicts come to: rates, agreement between judges, and grades.

Decisions:

* The headline goes by what most judges say of an answer, of truthful and of informative by itself; in a tie by the
  judge that is named first among those tied. The offline baseline has no vote beside a model.
* Rates of different variants and judges are of the same answers: one that lacks a verdict of any judge, in any variant,
  is left out of all, and counted.
* Agreement is over the answers that were judged; where there is no answer, judges agree by construction.
* Of graded answers, as SimpleQA's authors count: *correct given attempted* is correct / (correct + incorrect), and F is
  the harmonic mean of that and of correct, which is 2 · correct / (1 + correct + incorrect). A share without a
  denominator is missing, never 0; in a resample where nothing is attempted F is 0, which is its limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.evaluation.held_out import with_gold
from mralign_core.evaluation.metrics import DIFFERENCE_COLUMNS, paired_figures, paired_shares
from mralign_core.judging.claim_scores import claim_metrics, claim_rates, first_of
from mralign_core.method import FloatArray
from mralign_core.method.agreement import agreement
from mralign_core.method.benchmarks import CLAIM_METRICS, JUDGED_METRICS
from mralign_core.schemas.judgements import GRADES, SIMILARITY_PROVIDER

BY_BASELINE = f" by {SIMILARITY_PROVIDER} of wordings"
"""What the name of a set ends with that only the offline baseline has judged."""
CELL = ["question_id", "draw"]
VERDICTS = ("truthful", "informative", "grade")
VERDICT_SHARES = (*JUDGED_METRICS, *GRADES, "correct_given_attempted", "f_score")
"""What can be said of a variant's judged answers, in [0, 1]; those that a set does not have are missing."""


class Judged(NamedTuple):
    """What judges say of all variants.

    ``verdicts`` has a row a variant, question and draw: ``kind, answered, truthful, informative, grade`` by vote, and
    whether the vote is the offline baseline's alone (``by_baseline``).
    ``claims`` has a row a variant, question and draw of long answers: ``source`` and the
    :data:`~mralign_core.method.benchmarks.CLAIM_METRICS` by the first judge; ``claim_rates`` each judge's figures
    (:mod:`~mralign_core.judging.claim_scores`).
    ``rates`` has a row a set, variant and judge, the vote first as judge "": ``num_answers``, ``no_answer`` (share
    without an answer) and the :data:`VERDICT_SHARES`. ``agreement`` has a row a set, verdict and two judges: ``judge_a,
    judge_b, num_answers, agree, kappa``. ``left_out`` has a row a set: ``num_answers`` (questions and draws), and how
    many of them lack a verdict.
    """

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    agreement: pd.DataFrame
    left_out: pd.DataFrame
    claims: pd.DataFrame
    claim_rates: pd.DataFrame


def weigh_verdicts(
    judgements: Sequence[pd.DataFrame],
    failures: Sequence[Mapping[str, Any]],
    answers: pd.DataFrame,
    judges: Sequence[str],
) -> Judged:
    """Rates, agreement and grades from the verdicts of all judges on all variants.

    Args:
        judgements: of each variant, rows of :data:`~mralign_core.schemas.judgements.JUDGEMENTS`.
        failures: what has no verdict, of all variants.
        answers: rows of :data:`~mralign_core.schemas.scores.SCORES`, which say of which set a question is.
        judges: their names, in the order of the config.
    """
    sources = answers.drop_duplicates("question_id").set_index("question_id")["source"]
    rows = pd.concat(judgements, ignore_index=True)
    rows = rows.assign(source=rows["question_id"].map(sources))
    order = {name: place for place, name in enumerate(judges)}
    rows = rows.sort_values("judge", key=lambda names: names.map(order), kind="stable")
    num_models = sum(not is_baseline(name) for name in judges)
    num_judges = {"truthful": len(judges), "grade": num_models, "claims": num_models}
    complete = _complete(rows, num_judges, len(judgements))
    counted = claim_metrics(complete[complete["kind"] == "claims"])
    whole = complete[complete["kind"] != "claims"]
    voted = _voted(whole)
    rates = _rates(pd.concat([voted.assign(judge=""), whole], ignore_index=True))
    without = pd.DataFrame(failures, columns=CELL)
    asked = pd.concat([rows[CELL], without]).drop_duplicates()
    left_out = _left_out(asked, complete, sources)
    claims = first_of(counted, judges)[["source", "variant", *CELL, *CLAIM_METRICS]]
    return Judged(voted, rates, _agreement(whole, judges), left_out, claims, claim_rates(counted))


def is_baseline(judge: str) -> bool:
    """Whether a judge is the offline baseline of similarity, which understands nothing."""
    return judge.startswith(f"{SIMILARITY_PROVIDER}/")


def _complete(rows: pd.DataFrame, num_judges: Mapping[str, int], num_variants: int) -> pd.DataFrame:
    """The verdicts on answers that every judge of their kind has judged in every variant; a baseline does not grade."""
    num_verdicts = rows.groupby(CELL)["judge"].transform("size")
    return rows[num_verdicts == rows["kind"].map(num_judges) * num_variants]


def _voted(whole: pd.DataFrame) -> pd.DataFrame:
    """The verdict of most judges on each answer."""
    is_model = ~whole["judge"].map(is_baseline).astype(bool)
    has_model = is_model.groupby(whole["kind"]).transform("any") if len(whole) else is_model
    voters = whole[is_model | ~has_model]
    by_answer = voters.groupby(["source", "kind", "variant", *CELL], sort=False)
    rules = {"judge": "first", "answered": "first", **dict.fromkeys(VERDICTS, _most_given)}
    voted = by_answer.agg(rules).reset_index()
    return voted.assign(by_baseline=voted.pop("judge").map(is_baseline).astype(bool))


def _most_given(verdicts: pd.Series) -> Any:
    """The most frequent value; of several, that which comes first."""
    return Counter(verdicts).most_common(1)[0][0]


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    found = [
        {"source": source, "variant": variant, "judge": judge, **_shares(members)}
        for (source, variant, judge), members in rows.groupby(["source", "variant", "judge"], sort=False)
    ]
    columns = ["source", "variant", "judge", "kind", "num_answers", "no_answer", *VERDICT_SHARES]
    return pd.DataFrame(found, columns=columns)


def _shares(rows: pd.DataFrame) -> dict[str, Any]:
    kind = rows["kind"].iloc[0]
    found = {"kind": kind, "num_answers": len(rows), "no_answer": float((~rows["answered"].astype(bool)).mean())}
    if kind == "truthful":
        return found | {name: float(values.mean()) for name, values in judged_metrics(rows).items()}
    shares = {grade: float((rows["grade"] == grade).mean()) for grade in GRADES}
    return found | shares | graded_shares(shares["correct"], shares["incorrect"])


def grade_differences(
    verdicts: pd.DataFrame, *, num_resamples: int, confidence: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Paired differences in the shares of the grades and in F, set by set.

    Args:
        verdicts: of a :class:`Judged`.
        num_resamples: bootstrap resamples of questions.
        confidence: coverage of the intervals.
        rng: source of the resamples.

    Returns:
        ``source`` and the columns of :func:`~mralign_core.evaluation.metrics.paired_shares`; of F NaN where a variant
        attempts nothing.
    """
    of_kind = verdicts[verdicts["kind"] == "grade"]
    graded = of_kind.assign(**{grade: (of_kind["grade"] == grade).astype(float) for grade in GRADES})
    options: dict[str, Any] = {"num_resamples": num_resamples, "confidence": confidence, "rng": rng}
    by_set = list(graded.groupby("source", sort=True))
    found = [paired_shares(rows, GRADES, **options).assign(source=source) for source, rows in by_set]
    # Behind all shares, whose intervals are then those that they would have without F.
    found += [_f_differences(rows, **options).assign(source=source) for source, rows in by_set]
    columns = ["source", "variant", "baseline", "metric", *DIFFERENCE_COLUMNS]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _f_differences(graded: pd.DataFrame, **options: Any) -> pd.DataFrame:
    found = paired_figures(graded, ("correct", "incorrect"), _f_scores, **options).assign(metric="f_score")
    attempting = graded.loc[graded["grade"] != "not_attempted", "variant"].unique()
    is_defined = found[["variant", "baseline"]].isin(attempting).all(axis=1)
    return found.assign(**{name: found[name].where(is_defined) for name in DIFFERENCE_COLUMNS})


def judged_metrics(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The :data:`~mralign_core.method.benchmarks.JUDGED_METRICS` of each answer as 0/1 numbers."""
    truthful, informative = (rows[name].astype(float) for name in ("truthful", "informative"))
    return dict(zip(JUDGED_METRICS, (truthful, informative, truthful * informative), strict=True))


def graded_shares(correct: float, incorrect: float) -> dict[str, float]:
    """Correct given attempted, and F, of the shares of correct and incorrect answers.

    Worked by hand: of ten answers 3 are correct, 1 is incorrect and 6 are not attempted. Given attempted that is 3/4,
    and F = 2 · 0.3 · 0.75 / (0.3 + 0.75) = 3/7.

    >>> {name: round(share, 4) for name, share in graded_shares(0.3, 0.1).items()}
    {'correct_given_attempted': 0.75, 'f_score': 0.4286}
    >>> graded_shares(0.0, 0.0)
    {'correct_given_attempted': nan, 'f_score': nan}
    """
    attempted = correct + incorrect
    given_attempted = correct / attempted if attempted else float("nan")
    f_score = float(_f_scores(np.array([correct, incorrect]))) if attempted else float("nan")
    return {"correct_given_attempted": given_attempted, "f_score": f_score}


def _f_scores(shares: FloatArray) -> FloatArray:
    """F of the shares of correct and incorrect answers, (…, 2)."""
    found: FloatArray = 2 * shares[..., 0] / (1 + shares.sum(axis=-1))
    return found


def _agreement(whole: pd.DataFrame, judges: Sequence[str]) -> pd.DataFrame:
    columns = ["source", "verdict", "judge_a", "judge_b", "num_answers", "agree", "kappa"]
    found = []
    for source, rows in whole[whole["answered"].astype(bool)].groupby("source", sort=True):
        for verdict in VERDICTS:
            by_judge = rows[rows[verdict].notna()].pivot(index=["variant", *CELL], columns="judge", values=verdict)
            for a, b in combinations([name for name in judges if name in by_judge], 2):
                given_a, given_b = ([{str(value)} for value in by_judge[name]] for name in (a, b))
                compared = agreement(given_a, given_b)
                values = (compared.num_segments, compared.observed, compared.kappa)
                found.append(dict(zip(columns, (source, verdict, a, b, *values), strict=True)))
    return pd.DataFrame(found, columns=columns)


def _left_out(asked: pd.DataFrame, whole: pd.DataFrame, sources: pd.Series) -> pd.DataFrame:
    num_answers = asked.groupby(asked["question_id"].map(sources).rename("source")).size()
    num_whole = whole.drop_duplicates(CELL).groupby("source").size().reindex(num_answers.index, fill_value=0)
    counts = {"num_answers": num_answers, "left_out": num_answers - num_whole}
    return pd.DataFrame(counts).astype(int).rename_axis("source").reset_index()


def with_verdicts(answers: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The answers whose truthfulness was voted on, with the :data:`~mralign_core.method.benchmarks.JUDGED_METRICS`.

    Where the vote is the baseline's alone, the name of the set says so.

    Args:
        answers: rows of :data:`~mralign_core.schemas.scores.SCORES`.
        verdicts: of a :class:`Judged`.
    """
    of_kind = verdicts[verdicts["kind"] == "truthful"]
    metrics = of_kind[["variant", *CELL, "by_baseline"]].assign(**judged_metrics(of_kind))
    truthful = answers[answers["scoring"] == "truthful"]
    voted = truthful.merge(metrics, on=["variant", *CELL], how="inner", validate="one_to_one")
    by_baseline = voted.pop("by_baseline").to_numpy(bool)
    return voted.assign(source=voted["source"].where(~by_baseline, voted["source"] + BY_BASELINE))


def scored_answers(answers: pd.DataFrame, judged: Judged | None) -> pd.DataFrame:
    """The answers that results are computed from: those compared with a gold answer, and those that judges judged.

    Args:
        answers: rows of :data:`~mralign_core.schemas.scores.SCORES`.
        judged: the verdicts; None where no judge is named.
    """
    compared = with_gold(answers)
    found = [with_verdicts(answers, judged.verdicts), _with_claims(answers, judged.claims)] if judged else []
    found = [frame for frame in found if len(frame)]
    return pd.concat([compared, *found], ignore_index=True) if found else compared


def _with_claims(answers: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
    """The answers whose claims were checked, with their metrics."""
    metrics = claims[["variant", *CELL, *CLAIM_METRICS]]
    of_kind = answers[answers["scoring"] == "claims"]
    return of_kind.merge(metrics, on=["variant", *CELL], how="inner", validate="one_to_one")


def judging_costs(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What the verdicts rest on: a row a judge and kind with its requests, tokens and dollars; equal answers share
    them, and claims that several answers make are counted with each.

    Args:
        tables: of each variant, rows of :data:`~mralign_core.schemas.judgements.JUDGEMENTS`.
    """
    judgements = pd.concat(tables, ignore_index=True)
    asked = judgements[judgements["answered"].astype(bool)]
    grouped = asked.drop_duplicates(["judge", "request_digest"]).groupby(["judge", "kind"], as_index=False)
    costs = grouped.agg(
        requests=("num_requests", "sum"),
        prompt_tokens=("prompt_tokens", "sum"),
        completion_tokens=("completion_tokens", "sum"),
        cost_usd=("cost_usd", "sum"),
    )
    verdicts = judgements.groupby(["judge", "kind"]).size().rename("verdicts").reset_index()
    return verdicts.merge(costs, on=["judge", "kind"], how="left").fillna(0).astype({"cost_usd": float}).round(6)
