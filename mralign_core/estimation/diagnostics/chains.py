"""Whether each polarity has traces of enough questions to test their chain, and the tests of those that are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mralign_core.estimation.chain_tests import OrderComparison, StationarityTest, compare_orders, stationarity_test
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.method.taxonomy import Taxonomy

MIN_QUESTIONS = 20
"""Questions of one polarity below which neither stationarity nor order is tested."""


def stationarity_of(
    polarity: str,
    traces: Sequence[LabelledTrace],
    taxonomy: Taxonomy,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> StationarityTest | None:
    """The test of the traces of one polarity; None for too few, with the reason in ``skipped``."""
    number = _num_questions(trace for trace in traces if sum(map(bool, trace.steps)) >= 3)
    if number < MIN_QUESTIONS:
        skipped[f"stationarity.{polarity}"] = (
            f"too few: {number} questions have a {polarity} trace with two transitions between labels, "
            f"and fewer than {MIN_QUESTIONS} tell nothing"
        )
        return None
    steps, question_ids = _parts(traces)
    return stationarity_test(steps, taxonomy.num_states, rng, question_ids=question_ids)


def order_of(
    polarity: str, traces: Sequence[LabelledTrace], rng: np.random.Generator, skipped: dict[str, str]
) -> OrderComparison | None:
    """The comparison of orders on the traces of one polarity; None for too few, with the reason in ``skipped``."""
    if (number := _num_questions(traces)) < MIN_QUESTIONS:
        skipped[f"order.{polarity}"] = (
            f"too few: {number} questions have a {polarity} trace with a label, "
            f"and fewer than {MIN_QUESTIONS} tell nothing"
        )
        return None
    steps, question_ids = _parts(traces)
    return compare_orders(steps, rng, question_ids=question_ids)


def _num_questions(traces: Iterable[LabelledTrace]) -> int:
    return len({trace.question_id for trace in traces})


def _parts(traces: Sequence[LabelledTrace]) -> tuple[list[list[tuple[int, ...]]], list[str]]:
    return [trace.steps for trace in traces], [trace.question_id for trace in traces]
