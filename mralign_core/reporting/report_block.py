"""A piece of a report: one question that it answers, in words, by a figure, by tables and by cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mralign_core.evaluation.thinking_habits import mean_gap_by_question
from mralign_core.method import FloatArray
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points

BLOCK_RESAMPLES = 1000
"""Resamples of questions behind the intervals of such pieces."""
MOST_TOLD = 5
"""Items of a list that a sentence names."""
ARROW = " → "
"""Between the steps of a path."""


class Case(NamedTuple):
    """A trace that names the gold answer and answers something else."""

    question: str
    golds: str
    mention: str
    path: str
    answer: str


class LinkedTable(ResultTable):
    """A table whose rows lead to cases that their names alone do not say; made by :meth:`of`."""

    addresses: Sequence[str]
    """Of each row's cases in the workbench (:mod:`~mralign_core.reporting.case_addresses`); "" of a row without any."""
    cell_addresses: Mapping[tuple[int, int], str]
    """Row and column, from 0, of cells that have cases of their own → where these are."""

    @classmethod
    def of(
        cls, table: ResultTable, addresses: Sequence[str], cell_addresses: Mapping[tuple[int, int], str] | None = None
    ) -> LinkedTable:
        """A table with an address a row, and of some cells."""
        linked = cls(*table)
        linked.addresses = addresses
        linked.cell_addresses = cell_addresses or {}
        return linked


class Block(NamedTuple):
    """One question that this part of a report answers: in words, by a figure, by tables and by cases."""

    title: str
    lead: str
    sentences: Sequence[str] = ()
    chart: str = ""
    figure: Figure | None = None
    caption: str = ""
    tables: Sequence[ResultTable] = ()
    has_cases: bool = True
    """Whether rows of plain tables lead to the workbench by their names, which would be training traces."""
    cases: Sequence[Case] = ()


def listed(items: Sequence[str]) -> str:
    """The first of some items, and how many others there are.

    >>> listed(["a", "b"]), listed(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 others')
    """
    others = len(items) - MOST_TOLD
    if others <= 1:  # one more takes no more room than saying so
        return ", ".join(items)
    return f"{', '.join(items[:MOST_TOLD])} and {others} others"


def question_gap(
    values: FloatArray, is_one: NDArray[np.bool_], rows: pd.DataFrame, confidence: float
) -> tuple[float, float, float]:
    """The mean of some rows minus that of the others, with its interval over their questions; always the same one."""
    return mean_gap_by_question(
        values,
        is_one,
        rows["question_id"].tolist(),
        num_resamples=BLOCK_RESAMPLES,
        confidence=confidence,
        rng=np.random.default_rng(0),
    )


def judged_gap(gap: tuple[float, float, float], otherwise: str) -> str:
    """A difference of shares in points with its interval, behind what is said where this includes 0.

    >>> judged_gap((-0.25, -0.5, 0.0), "no measurable difference"), judged_gap((0.25, 0.125, 0.5), "none")
    ('no measurable difference (−25.0 points, interval −50.0 to 0.0).', '+25.0 points, interval +12.5 to +50.0.')
    """
    difference, low, high = (points(value, signed=True) for value in gap)
    interval = f"{difference} points, interval {low} to {high}"
    return f"{otherwise} ({interval})." if gap[1] <= 0 <= gap[2] else f"{interval}."
