"""What is new of the questions, against those of an earlier run: by set, told by id and contents."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from mralign_core.storage.digests import row_digests

CONTENTS = ("question", "answers", "options", "incorrect_answers", "stratum", "scoring")
"""Columns of a question beside its id; where one differs, it is another question of the same id."""


class SetNews(NamedTuple):
    """Ids of a set's questions that were added, have other contents than before, or are gone, in order."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    num_kept: int

    def __str__(self) -> str:
        counts = {"added": self.added, "changed": self.changed, "gone": self.gone}
        told = [f"{len(ids):,} {what}" for what, ids in counts.items() if ids] or ["nothing new"]
        return f"{', '.join(told)} ({self.num_kept:,} as before)"


class NewQuestions(NamedTuple):
    """What is new of each set, by its role and name such as ``train nq_open``; ``since`` says since when."""

    sets: dict[str, SetNews]
    since: str = ""

    @property
    def is_nothing_new(self) -> bool:
        """Whether every set has the questions that it had, with the same contents."""
        return not any(one.added or one.changed or one.gone for one in self.sets.values())

    def __str__(self) -> str:
        since = self.since or "no earlier run"
        if self.is_nothing_new:
            return f"nothing new since {since}: {sum(one.num_kept for one in self.sets.values()):,} questions as before"
        return f"new since {since}: " + "; ".join(f"{name}: {one}" for name, one in self.sets.items())


def new_questions(before: pd.DataFrame | None, after: pd.DataFrame, since: str = "") -> NewQuestions:
    """What of the questions is new.

    Args:
        before: rows of :data:`~mralign_core.schemas.questions.QUESTIONS` of an earlier run; None where there is none.
        after: those of this run.
        since: what the earlier run is called in words, such as ``the run of 2026-11-22``.

    Example:
        >>> columns = ["question_id", "question", "answers", "source", "split", "stratum", "scoring", "options"]
        >>> rows = [["a-1", "Who?", ["x"], "a", "train", "", "exact_match", []]]
        >>> frame = pd.DataFrame(rows, columns=columns).assign(incorrect_answers=[[]])
        >>> str(new_questions(None, frame)), new_questions(frame, frame).is_nothing_new
        ('new since no earlier run: train a: 1 added (0 as before)', True)
    """
    old = _contents(before) if before is not None else {}
    new = _contents(after)
    return NewQuestions({name: _news(old.get(name, {}), new.get(name, {})) for name in {**new, **old}}, since)


def _news(old: dict[str, str], new: dict[str, str]) -> SetNews:
    both = [name for name in new if name in old]
    return SetNews(
        added=tuple(name for name in new if name not in old),
        changed=tuple(name for name in both if old[name] != new[name]),
        gone=tuple(name for name in old if name not in new),
        num_kept=sum(old[name] == new[name] for name in both),
    )


def _contents(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Role and name of each set → id → digest of the question's contents."""
    found: dict[str, dict[str, str]] = {}
    names = (frame["split"] + " " + frame["source"]).tolist()
    for name, own, digest in zip(names, frame["question_id"], row_digests(frame, CONTENTS), strict=True):
        found.setdefault(name, {})[own] = digest
    return found
