"""How much answers move between classes by the draw alone: what a change of classes is to be measured against.

An addition to the paper, whose Fig. 5 shows where training takes right, inconsistent and wrong answers. Some of that
traffic is regression to the mean: the same model, asked again, does not repeat its classes either.
"""

from __future__ import annotations

import pandas as pd

from mralign_core.evaluation.metrics import CONSISTENCY, consistency_shifts

AGAIN = "on_again"
"""What think-on is called that is compared with itself."""


def redrawn_shifts(scores: pd.DataFrame) -> pd.DataFrame:
    """Where think-on's next draw of the same question takes what a draw had right, inconsistent or wrong.

    Each draw is compared with the next one of its question, the last with the first.

    Args:
        scores: rows of :data:`~mralign_core.schemas.scores.SCORES`.

    Returns:
        What :func:`~mralign_core.evaluation.metrics.consistency_shifts` returns, of variant :data:`AGAIN`; empty where
        a question was drawn only once.
    """
    on = scores[scores["variant"] == "on"].sort_values(["question_id", "draw"])
    draws = on.groupby("question_id", sort=False)["draw"]
    if on.empty or draws.size().min() < 2:
        return pd.DataFrame(columns=["variant", "before", "num_answers", *CONSISTENCY])
    # The draw before it, and of the first the last: under that number it stands beside the draw it is compared with.
    before = draws.shift(1).fillna(draws.transform("last")).astype(int)
    again = on.assign(variant=AGAIN, draw=before)
    return consistency_shifts(pd.concat([on, again], ignore_index=True))
