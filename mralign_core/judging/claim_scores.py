"""What supported claims come to: F1@K of each answer, and each judge's figures.

Implements F1@K (Wei et al. 2024; VeriScore, Song et al. 2024). Of an answer with N claims, S of them supported,
precision is S/N and recall min(S/K, 1); F1@K is their harmonic mean, and 0 where S is 0. Decisions:

* K is the median number of claims of a set's answers that have any, over all variants, by each judge's own claims: it
  is the same for all variants that are compared, and intervals take it as given.
* Answers without a claim (declined, empty, cut off) abstain. They are counted both ways: as 0, which results and
  their intervals go by, and left out, with their share beside.
* Judges list different claims, so that these can't be put to a vote: what the first judge finds counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mralign_core.method.benchmarks import CLAIM_METRICS

CLAIM_COLUMNS = (
    *("source", "variant", "judge", "k", "num_answers", "no_answer", "abstained", "num_claims"),
    *(f"{name}{ending}" for ending in ("", "_of_claiming") for name in CLAIM_METRICS),
)
"""Of a judge's figures; ``num_claims`` is the mean of answers that have claims, as are those ``_of_claiming``."""


def f1_at_k(num_supported: float, num_claims: float, k: float) -> float:
    """Harmonic mean of precision S/N and recall min(S/K, 1).

    Args:
        num_supported: S.
        num_claims: N, at least S.
        k: K, so many supported claims are enough.

    Worked by hand: 3 of 4 claims are supported and K is 6. Precision is 3/4, recall 1/2, and 2 · 3/8 / (5/4) = 0.6.

    >>> f1_at_k(3, 4, 6), f1_at_k(8, 8, 6), f1_at_k(0, 4, 6), f1_at_k(0, 0, float("nan"))
    (0.6, 1.0, 0.0, 0.0)
    """
    if not num_supported:
        return 0.0
    precision, recall = num_supported / num_claims, min(num_supported / k, 1.0)
    return 2 * precision * recall / (precision + recall)


def claim_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """The answers with K and the :data:`~mralign_core.method.benchmarks.CLAIM_METRICS`, abstentions as 0.

    Args:
        rows: ``source`` and rows of :data:`~mralign_core.schemas.judgements.JUDGEMENTS`, of kind ``claims`` and of
            all variants.
    """
    num_claims, num_supported = rows["num_claims"].astype(float), rows["num_supported"].astype(float)
    counted = rows.assign(num_claims=num_claims, num_supported=num_supported)
    k = num_claims.where(num_claims > 0).groupby([rows["source"], rows["judge"]]).transform("median")
    values = zip(num_supported, num_claims, k, strict=True)
    scores = np.array([f1_at_k(*each) for each in values], float)
    return counted.assign(k=k, f1_at_k=scores, supported_share=(num_supported / num_claims).fillna(0.0))


def claim_rates(metrics: pd.DataFrame) -> pd.DataFrame:
    """Each judge's figures, a row a set, variant and judge with :data:`CLAIM_COLUMNS`; shares in [0, 1].

    Args:
        metrics: what :func:`claim_metrics` returns.
    """
    found = []
    for (source, variant, judge), rows in metrics.groupby(["source", "variant", "judge"], sort=False):
        claiming = rows[rows["num_claims"] > 0]
        values = {
            "k": rows["k"].iloc[0],
            "num_answers": len(rows),
            "no_answer": 1 - rows["answered"].astype(float).mean(),
            "abstained": 1 - len(claiming) / len(rows),
            "num_claims": claiming["num_claims"].mean(),
            **rows[list(CLAIM_METRICS)].mean(),
            **claiming[list(CLAIM_METRICS)].mean().add_suffix("_of_claiming"),
        }
        found.append({"source": source, "variant": variant, "judge": judge, **values})
    return pd.DataFrame(found, columns=list(CLAIM_COLUMNS))


def first_of(metrics: pd.DataFrame, judges: Sequence[str]) -> pd.DataFrame:
    """The rows of the first judge that lists claims.

    Args:
        metrics: what :func:`claim_metrics` returns.
        judges: all of them, in the order of the config.
    """
    first = next((name for name in judges if (metrics["judge"] == name).any()), "")
    return metrics[metrics["judge"] == first]
