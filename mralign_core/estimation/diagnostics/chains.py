"""Whether the traces of each polarity are many enough to test their chain, and the tests of those that are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mralign_core.estimation.chain_tests import OrderComparison, StationarityTest, compare_orders, stationarity_test
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.method.taxonomy import Taxonomy

MIN_TRACES = 20
"""Traces of one polarity below which neither stationarity nor order is tested."""


def stationarity_of(
    polarity: str,
    traces: Sequence[LabelledTrace],
    taxonomy: Taxonomy,
    rng: np.random.Generator,
    skipped: dict[str, str],
) -> StationarityTest | None:
    """The test of the traces of one polarity; None for too few, with the reason in ``skipped``."""
    long_enough = [trace.steps for trace in traces if sum(map(bool, trace.steps)) >= 3]
    if len(long_enough) < MIN_TRACES:
        skipped[f"stationarity.{polarity}"] = (
            f"too few: {len(long_enough)} {polarity} traces have two transitions between labels, "
            f"and fewer than {MIN_TRACES} tell nothing"
        )
        return None
    return stationarity_test([trace.steps for trace in traces], taxonomy.num_states, rng)


def order_of(
    polarity: str, traces: Sequence[LabelledTrace], rng: np.random.Generator, skipped: dict[str, str]
) -> OrderComparison | None:
    """The comparison of orders on the traces of one polarity; None for too few, with the reason in ``skipped``."""
    if len(traces) < MIN_TRACES:
        skipped[f"order.{polarity}"] = (
            f"too few: {len(traces)} {polarity} traces have a label, and fewer than {MIN_TRACES} tell nothing"
        )
        return None
    return compare_orders([trace.steps for trace in traces], rng)
