"""Which traces a retraining's model is trained on: all, or those of questions that are new to the champion.

New is a question, by its text and gold answers, of which the version named in ``retrain.beyond`` had no trace: neither
to train on nor to leave out. So what came after it stays new until a later one takes its place, however often a model
that knew it was held. Only rows to train on are chosen. Labels are asked for, and transition matrices estimated, of all
traces: both say more the more there are, and what is there costs nothing again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import pandas as pd

from mralign_core.errors import NothingNewError
from mralign_core.generation.funnel import FUNNEL_COLUMNS
from mralign_core.questions.overlap import question_key
from mralign_core.schemas.candidates import POLARITIES
from mralign_core.storage.digests import key_of

SAME_QUESTION = ("question", "answers")
"""Columns of a trace that say which question it answers."""
CHOICE_STEP = "chosen to train on"
"""Last step of the yield of traces, after those of their selection."""


class ChosenTraces(NamedTuple):
    """The rows to train on, in their order, and of how many questions they are."""

    traces: pd.DataFrame
    num_new: int
    num_again: int

    def with_choice(self, funnel: pd.DataFrame) -> pd.DataFrame:
        """The yield of all traces (``FUNNEL_COLUMNS``), with this choice as its last step."""
        num_left_out = int(funnel["kept"].iloc[-1]) - len(self.traces)
        choice = [CHOICE_STEP, len(self.traces), num_left_out, "its question is not new" if num_left_out else ""]
        return pd.concat([funnel, pd.DataFrame([choice], columns=FUNNEL_COLUMNS)], ignore_index=True)


def choose_traces(traces: pd.DataFrame, known: Collection[str], replay_share: float, *, seed: int) -> ChosenTraces:
    """Take the traces of new questions, and of a share of the others.

    Which of the others hangs on their contents and the seed alone: not on the order of the rows, nor on what is new.

    Args:
        traces: rows of table ``candidates``.
        known: the :func:`questions_of` of the version to which others are new.
        replay_share: of the questions that it knew, those that are trained on again; 0 for none.
        seed: the run's.

    Raises:
        NothingNewError: no question is new, or all that is chosen has one polarity.
    """
    questions = pd.Series(questions_of(traces), index=traces.index, dtype=str)
    is_known = questions.isin(known)
    if is_known.all():
        raise NothingNewError(f"none of the {questions.nunique():,} questions with traces is new")
    others = sorted(questions[is_known].unique(), key=lambda question: key_of(seed=seed, question=question))
    again = others[: max(1, round(replay_share * len(others)))] if replay_share else []
    chosen = traces[~is_known | questions.isin(again)]
    num_new = int(questions[~is_known].nunique())
    missing = [polarity for polarity in POLARITIES if polarity not in set(chosen["polarity"])]
    if missing:
        raise NothingNewError(
            f"{num_new:,} question(s) with traces are new, and no trace of them is {missing[0]}: training needs both "
            "kinds, so they wait for others"
        )
    return ChosenTraces(chosen, num_new, len(again))


def questions_of(traces: pd.DataFrame) -> list[str]:
    """A digest of the question of each trace and its gold answers, however both are spaced, cased and ordered."""
    asked = zip(traces["question"], traces["answers"], strict=True)
    return [key_of(question=question_key(text), answers=sorted(map(question_key, gold))) for text, gold in asked]
