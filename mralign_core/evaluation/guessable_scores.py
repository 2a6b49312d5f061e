"""How variants answer questions that can be guessed (:mod:`mralign_core.questions.guessable`), apart from the others.

There a right answer tells less: a yes or no is found in most texts, and a gold answer that stands in the question is
named by any reply that repeats it.
"""

from __future__ import annotations

import pandas as pd

from mralign_core.evaluation.metrics import METRICS, answer_metrics
from mralign_core.questions.guessable import GUESSABLE_KINDS

OTHERS = "all others"


def guessable_scores(scores: pd.DataFrame, guessable: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each variant on questions of either kind, and on all others of the same set.

    Args:
        scores: rows of ``schemas.scores``.
        guessable: what stands beside the held-out questions, with ``question_id`` and ``kind``.

    Returns:
        A row a set, kind and variant: ``source, kind, variant, num_questions`` and the metrics, in [0, 1]. Sets of
        which no question that was asked can be guessed have none.
    """
    columns = ["source", "kind", "variant", "num_questions", *METRICS]
    if guessable.empty or scores.empty:
        return pd.DataFrame(columns=columns)
    answers = answer_metrics(scores)
    kinds = guessable.drop_duplicates("question_id").set_index("question_id")["kind"].map(GUESSABLE_KINDS)
    answers = answers.assign(kind=answers["question_id"].map(kinds).fillna(OTHERS))
    concerned = answers.loc[answers["kind"] != OTHERS, "source"].unique()
    groups = answers[answers["source"].isin(concerned)].groupby(["source", "kind", "variant"], sort=False)
    found = groups[list(METRICS)].mean().assign(num_questions=groups["question_id"].nunique()).reset_index()
    order = {name: place for place, name in enumerate((*GUESSABLE_KINDS.values(), OTHERS))}
    by_kind = found["kind"].map(order)
    return found.assign(place=by_kind).sort_values(["source", "place"], kind="stable")[columns].reset_index(drop=True)
