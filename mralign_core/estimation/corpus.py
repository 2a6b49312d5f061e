"""Count the transitions of many traces, by polarity and stratum, and by trace with its question for the bootstrap.

A transition between two label sets is a whole number, its *code* (see ``method.set_pairs``). A *column* is a code
within a group, the traces of one stratum and one polarity.

Shapes: N labelled traces, M transitions, C columns, U distinct set pairs, K states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.estimation.traces import TraceBatch
from mralign_core.method import IntArray
from mralign_core.method.set_pairs import (
    Moves,
    SetPairCounts,
    members_of_codes,
    moves_into_steps,
    moves_into_stop,
)

CLASSES = ("plus", "minus", "all")
"""P⁺, P⁻ and P: what is estimated from one set of traces, always together."""
POLARITY_OF = {"plus": "positive", "minus": "negative"}
"""The traces that a class is of; "all" is of both."""


class TraceColumns(NamedTuple):
    """The transitions of each labelled trace, trace after trace.

    Args:
        columns: (M,) place in ``Corpus.columns``.
        lengths: (N,) transitions of each trace.
        is_positive: (N,) bool.
        questions: (N,) number of each trace's question, from 0.
        question_keys: (Q,) what :func:`question_hashes` makes of each question's id, ascending.
    """

    columns: NDArray[np.int32]
    lengths: NDArray[np.int32]
    is_positive: NDArray[np.bool_]
    questions: IntArray
    question_keys: NDArray[np.uint64]


class VotedTraces(NamedTuple):
    """What annotators said of each step, and of each trace what matrices are told apart by.

    Args:
        votes: (T, A, 2) as in ``method.hidden_chain``.
        trace_of_step: (T,) which trace each step belongs to, in order.
        is_positive: (N,) bool.
        strata: (N,) number of each trace's stratum.
        questions: (N,) number of each trace's question, from 0.
    """

    votes: NDArray[np.int16]
    trace_of_step: IntArray
    is_positive: NDArray[np.bool_]
    strata: IntArray
    questions: IntArray


@dataclass(frozen=True)
class Corpus:
    """How often each transition between label sets occurs, by stratum and polarity.

    Group 2s is the negative and 2s + 1 the positive traces of stratum s.

    Args:
        num_states: K.
        strata: names of the strata, in the order they were met.
        columns: (C,) group · K⁴ + code, ascending.
        counts: (C,) occurrences.
        num_traces: (groups,) traces with a labelled step.
        num_empty_steps: (groups,) steps without a label.
        num_empty_traces: (groups,) traces without a labelled step.
        by_trace: what the bootstrap resamples; None when it was not kept.
        by_vote: what annotators said of each step, of labelled traces and others; None when it was not read.
    """

    num_states: int
    strata: tuple[str, ...]
    columns: IntArray
    counts: IntArray
    num_traces: IntArray
    num_empty_steps: IntArray
    num_empty_traces: IntArray
    by_trace: TraceColumns | None = None
    by_vote: VotedTraces | None = None

    @property
    def totals(self) -> dict[str, int]:
        """What was counted and what was passed over."""
        return {
            "traces": int(self.num_traces.sum() + self.num_empty_traces.sum()),
            "traces without a label": int(self.num_empty_traces.sum()),
            "steps without a label": int(self.num_empty_steps.sum()),
        }

    def selection(self, polarity: str | None = None, stratum: str | None = None) -> Selection:
        """The traces of one polarity, of one stratum, or both; None takes all."""
        groups = np.arange(len(self.num_traces))
        wanted = np.ones(len(groups), dtype=np.bool_)
        if polarity is not None:
            wanted &= groups % 2 == (polarity == "positive")
        if stratum is not None:
            wanted &= groups // 2 == self.strata.index(stratum)
        group, code = np.divmod(self.columns, self.num_states**4)
        places = np.flatnonzero(wanted[group])
        codes, pair_of_place = np.unique(code[places], return_inverse=True)
        empty = SetPairCounts(
            *members_of_codes(codes, self.num_states),
            np.zeros(len(codes), dtype=np.int64),
            int(self.num_traces[wanted].sum()),
            int(self.num_empty_steps[wanted].sum()),
            int(self.num_empty_traces[wanted].sum()),
        )
        return Selection(places, pair_of_place, empty)

    def selections(self, stratum: str | None = None) -> dict[str, Selection]:
        """The traces behind each of :data:`CLASSES`, of one stratum or of all."""
        return {name: self.selection(POLARITY_OF.get(name), stratum) for name in CLASSES}

    def pairs(self, polarity: str | None = None, stratum: str | None = None) -> SetPairCounts:
        """The transitions of the traces of a polarity and stratum, by distinct pair of sets; None takes all."""
        return self.selection(polarity, stratum).pairs(self.counts)

    def pairs_by_trace(self) -> IntArray:
        """Transitions of each labelled trace by distinct pair of sets, in the order of :meth:`pairs`, (N, U).

        Raises:
            ValueError: the corpus was counted without its traces.
        """
        everything, kept = self.selection(), self.traces
        counts = np.zeros((len(kept.lengths), len(everything.empty.multiplicities)), dtype=np.int64)
        trace = np.repeat(np.arange(len(counts)), kept.lengths)
        np.add.at(counts, (trace, everything.pair_of_place[kept.columns]), 1)
        return counts

    @property
    def traces(self) -> TraceColumns:
        """The transitions of each labelled trace.

        Raises:
            ValueError: the corpus was counted without its traces.
        """
        if self.by_trace is None:
            raise ValueError("the corpus was counted without its traces; count it with keep_traces=True")
        return self.by_trace

    @property
    def voted(self) -> VotedTraces:
        """What annotators said of each step.

        Raises:
            ValueError: the traces were read without it.
        """
        if self.by_vote is None:
            raise ValueError("the corpus has no votes of annotators; read its traces with_votes=True")
        return self.by_vote

    def num_questions(self, polarity: str, stratum: str | None = None) -> int:
        """Questions with a labelled trace of a polarity, in one stratum or in all.

        Raises:
            ValueError: the corpus was counted without its traces.
        """
        kept = self.traces
        chosen = kept.is_positive == (polarity == "positive")
        if stratum is not None:
            first = np.cumsum(kept.lengths, dtype=np.int64) - kept.lengths
            group = self.columns[kept.columns[first]] // self.num_states**4
            chosen &= group // 2 == self.strata.index(stratum)
        return len(np.unique(kept.questions[chosen]))


class Selection(NamedTuple):
    """Some groups of a corpus: their columns, the set pair that each is, and the set pairs without multiplicities."""

    places: IntArray
    pair_of_place: IntArray
    empty: SetPairCounts

    def pairs(self, counts: IntArray) -> SetPairCounts:
        """The set pairs with the multiplicities that (C,) counts of the columns give."""
        summed = np.bincount(self.pair_of_place, counts[self.places], minlength=len(self.empty.multiplicities))
        return self.empty._replace(multiplicities=summed.astype(np.int64))


def count_corpus(batches: Iterable[TraceBatch], num_states: int, *, keep_traces: bool = False) -> Corpus:
    """Count the transitions {start} → y₁, …, y_T → {stop} of all traces, in one pass.

    Args:
        batches: whole traces.
        num_states: K.
        keep_traces: also keep the transitions of each trace, for the bootstrap: 8 bytes a transition while counting, 4
            in the result.
    """
    tally = _Tally(num_states, keep_traces)
    for batch in batches:
        tally.add(batch)
    return tally.corpus()


def question_hashes(batch: TraceBatch) -> NDArray[np.uint64]:
    """A number for the question of each trace, (N,): 8 bytes however long the id.

    That two of a million questions share one has a chance of one in 37 million.
    """
    hashes: NDArray[np.uint64] = pd.util.hash_array(batch.question_ids.to_numpy(zero_copy_only=False), categorize=False)
    return hashes


class _Tally:
    """What was counted so far."""

    def __init__(self, num_states: int, keep_traces: bool) -> None:
        self._num_states = num_states
        self._keep_traces = keep_traces
        self._strata: dict[str, int] = {}
        self._columns = self._counts = np.zeros(0, dtype=np.int64)
        self._num_traces = self._num_labelled = self._num_empty_steps = np.zeros(0, dtype=np.int64)
        self._kept: list[tuple[IntArray, IntArray, NDArray[np.bool_], NDArray[np.uint64]]] = []
        self._voted: list[_VotedBatch] = []

    def add(self, batch: TraceBatch) -> None:
        """Count the transitions of a batch."""
        strata = self._stratum_of_trace(batch)
        group_of_trace = 2 * strata + batch.is_positive
        into_steps = moves_into_steps(batch.labels, batch.trace_of_step, self._num_states)
        into_stop = moves_into_stop(into_steps, self._num_states)
        step_columns, stop_columns = (self._columns_of(moves, group_of_trace) for moves in (into_steps, into_stop))
        columns, counts = np.unique(np.concatenate([step_columns, stop_columns]), return_counts=True)
        self._columns, self._counts = _summed((self._columns, columns), (self._counts, counts))
        is_empty = ~batch.labels.any(axis=1)
        self._num_traces = self._added(self._num_traces, group_of_trace)
        self._num_labelled = self._added(self._num_labelled, group_of_trace[into_stop.traces])
        self._num_empty_steps = self._added(self._num_empty_steps, group_of_trace[batch.trace_of_step[is_empty]])
        if batch.votes is not None:
            of_trace = (batch.is_positive, strata, question_hashes(batch))
            self._voted.append(_VotedBatch(batch.votes.astype(np.int16), batch.trace_of_step, *of_trace))
        if self._keep_traces:
            ends = np.searchsorted(into_steps.traces, into_stop.traces, side="right")
            lengths = np.diff(ends, prepend=0) + 1
            together = np.insert(step_columns, ends, stop_columns)
            questions = question_hashes(batch)
            of_labelled = into_stop.traces
            self._kept.append((together, lengths, batch.is_positive[of_labelled], questions[of_labelled]))

    def corpus(self) -> Corpus:
        """Everything that was counted."""
        return Corpus(
            self._num_states,
            tuple(self._strata),
            self._columns,
            self._counts,
            num_traces=self._num_labelled,
            num_empty_steps=self._num_empty_steps,
            num_empty_traces=self._num_traces - self._num_labelled,
            by_trace=self._by_trace() if self._keep_traces else None,
            by_vote=_joined_votes(self._voted) if self._voted else None,
        )

    def _stratum_of_trace(self, batch: TraceBatch) -> IntArray:
        encoded = batch.strata.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        places = [self._strata.setdefault(name, len(self._strata)) for name in names]
        return np.array(places, dtype=np.int64)[encoded.indices.to_numpy()]

    def _columns_of(self, moves: Moves, group_of_trace: IntArray) -> IntArray:
        base = self._num_states**2
        return (group_of_trace[moves.traces] * base + moves.sources) * base + moves.targets

    def _added(self, totals: IntArray, groups: IntArray) -> IntArray:
        sums: IntArray = np.bincount(groups, minlength=2 * len(self._strata))
        sums[: len(totals)] += totals
        return sums

    def _by_trace(self) -> TraceColumns:
        columns, lengths, is_positive, questions = [], [], [], []
        while self._kept:  # pieces are let go one by one, which halves the peak of memory
            piece_columns, piece_lengths, piece_is_positive, piece_questions = self._kept.pop()
            columns.append(np.searchsorted(self._columns, piece_columns).astype(np.int32))
            lengths.append(piece_lengths.astype(np.int32))
            is_positive.append(piece_is_positive)
            questions.append(piece_questions)
        joined = (_joined(columns, np.int32), _joined(lengths, np.int32), _joined(is_positive, np.bool_))
        keys, numbers = np.unique(_joined(questions, np.uint64), return_inverse=True)
        return TraceColumns(*joined, numbers.astype(np.int64), keys)


class _VotedBatch(NamedTuple):
    """The votes of a batch; traces are numbered in it."""

    votes: NDArray[np.int16]
    trace_of_step: IntArray
    is_positive: NDArray[np.bool_]
    strata: IntArray
    questions: NDArray[np.uint64]


def _joined_votes(batches: Sequence[_VotedBatch]) -> VotedTraces:
    votes, trace_of_step, is_positive, strata, questions = zip(*batches, strict=True)
    first_traces = np.cumsum([0, *map(len, is_positive)])[:-1]
    return VotedTraces(
        np.concatenate(votes),
        np.concatenate([first + traces for first, traces in zip(first_traces, trace_of_step, strict=True)]),
        np.concatenate(is_positive),
        np.concatenate(strata),
        np.unique(np.concatenate(questions), return_inverse=True)[1].astype(np.int64),
    )


def _joined(pieces: list[Any], kind: type) -> NDArray[Any]:
    return np.concatenate(pieces[::-1]) if pieces else np.zeros(0, dtype=kind)


def _summed(keys: Sequence[IntArray], counts: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Distinct keys in ascending order, and the sum of the counts of each."""
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True)
    return distinct, np.bincount(place, np.concatenate(counts), minlength=len(distinct)).astype(np.int64)
