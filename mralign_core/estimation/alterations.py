"""The weights of a corpus as the config asks for them: those of Eq. 10, a placebo's, or normalised by trace.

Departures from the paper, off by default: ``reward.placebo`` and ``reward.normalize``. Decisions:

* A placebo moves all that is known of a segment's weight together, so that ``ratio``, ``clipped``, ``support`` and the
  interval are those of the weight that the segment carries, not of its own move.
* Where polarities were permuted, all ratios are raised to one power, which gives weights the size of true ones.
* Unlabelled segments take no part in a placebo: they keep the weight of a move that tells nothing.
* Normalising scales and shifts the weight and its interval. ``ratio`` and ``clipped`` still tell of the weight before.

Altered weights are made of the whole corpus at once: some 100 bytes a segment are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.left_out import LeftOutWeigher
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.estimation.traces import TraceBatch
from mralign_core.estimation.weights import Weigher, weights_of
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.normalization import normalize_trace
from mralign_core.method.placebos import (
    permuted_polarities,
    rows_by_trace,
    sources_in_other_traces,
    sources_within_traces,
)
from mralign_core.method.segment_weights import neutral_weight
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import stream_table

KEYS = ["trace_id", "segment"]
SCALED = ["weight", "weight_low", "weight_high"]
TRACES_AT_ONCE = 10_000
MAX_EXPONENT = 20.0
"""Largest power of a placebo's ratios; where permuted polarities give the same matrix twice, none would be enough."""


def weigh_corpus(
    batches: Iterable[TraceBatch], weigher: Weigher, section: RewardConfig, *, seed: int, candidates: Path
) -> Iterator[Mapping[str, Any]]:
    """Columns of ``schemas.segment_weights``: batch by batch as Eq. 10 gives them, or altered, all at once.

    Args:
        batches: whole traces.
        weigher: of the same section.
        section: placebo and normalisation.
        seed: chooses the placebo.
        candidates: file of table ``candidates``, for the tokens of each segment.

    Raises:
        DataError: a trace is the only one of its polarity, so that no other can lend it weights.
    """
    if section.placebo == "none" and section.normalize == "none":
        yield from map(weigher.weigh, batches)
        return
    frame = pd.concat([_weighed(batch, weigher) for batch in batches], ignore_index=True)
    if section.placebo != "none":
        frame = _with_weights_of(frame, _sources(frame, section, seed))
    if section.normalize != "none":
        frame[SCALED] = _normalized(frame, section, candidates)
    yield {name: frame[name] for name in SEGMENT_WEIGHTS.columns}


def traces_to_estimate(
    read: Callable[[], Iterable[TraceBatch]], section: EstimateConfig, *, seed: int
) -> Iterable[TraceBatch]:
    """The traces that matrices are estimated from: as they are, or with permuted polarities.

    Args:
        read: the annotated traces, from the first on at each call.
        section: ``permute_polarity``.
        seed: chooses the permutation.
    """
    return with_permuted_polarities(read(), read(), seed=seed) if section.permute_polarity else read()


def make_weigher(
    read: Callable[[], Iterable[TraceBatch]],
    matrices: TransitionMatrices,
    estimate: EstimateConfig,
    section: RewardConfig,
    *,
    seed: int,
    taxonomy: Taxonomy,
    weighed: Callable[[], Iterable[TraceBatch]],
) -> Weigher:
    """What weighs the traces: by the matrices of all, or by those without the trace's own question.

    Args:
        read: the annotated traces that matrices are estimated from, from the first on at each call.
        matrices: estimated from them.
        estimate: how, and the coverage of the intervals.
        section: how weights are made of matrices.
        seed: of the permutation of polarities that the matrices were estimated with, if there was one.
        taxonomy: names the states.
        weighed: the annotated traces that are to be weighed, from the first on at each call.
    """

    def weigher(matrices: TransitionMatrices, estimate: EstimateConfig, exponent: float = 1.0) -> Weigher:
        if not section.leave_own_question_out:
            return Weigher(matrices, section, estimate.confidence, exponent)
        traces = traces_to_estimate(read, estimate, seed=seed)
        corpus = count_corpus(traces, taxonomy.num_states, keep_traces=True)
        return LeftOutWeigher(matrices, section, corpus, estimate, exponent)

    if not estimate.permute_polarity:
        return weigher(matrices, estimate)
    true = estimate.model_copy(update={"permute_polarity": False})
    true_matrices = estimate_corpus(count_corpus(read(), taxonomy.num_states), true, taxonomy)
    exponent = _placebo_exponent(weighed, weigher(true_matrices, true), weigher(matrices, estimate), section)
    return weigher(matrices, estimate, exponent)


def _placebo_exponent(
    weighed: Callable[[], Iterable[TraceBatch]], true: Weigher, permuted: Weigher, section: RewardConfig
) -> float:
    """Power of all ratios that gives weights of permuted polarities the size of those of the true ones.

    P⁺ and P⁻ of traces that were dealt out at random are alike, so that their ratios are near 1, and weights made of
    them would be KTO's: no control for weights of any size. Size is the root mean square, over segments, of the
    distance from the weight of a move that tells nothing, after shrinkage, clip and form. It never falls as the power
    rises; where :data:`MAX_EXPONENT` is not enough, that is taken.
    """
    neutral = neutral_weight(section.form)
    size = _rms(_columns(weighed(), true, "weight")[0] - neutral)
    ratios, support = _columns(weighed(), permuted, "ratio", "support")

    def size_at(exponent: float) -> float:
        return _rms(weights_of(section, ratios**exponent, support).weights - neutral)

    low, high = 0.0, MAX_EXPONENT
    if size_at(high) <= size:
        return high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if size_at(middle) < size else (low, middle)
    return high


def _columns(batches: Iterable[TraceBatch], weigher: Weigher, *names: str) -> list[FloatArray]:
    """Columns of the weights of all segments, (S,) each."""
    pieces = [[np.asarray(columns[name], dtype=float) for name in names] for columns in map(weigher.weigh, batches)]
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def with_permuted_polarities(
    batches: Iterable[TraceBatch], again: Iterable[TraceBatch], *, seed: int
) -> Iterator[TraceBatch]:
    """The same traces with their polarities dealt out anew over all of them.

    Args:
        batches: whole traces.
        again: the same once more: who is positive is known only after all have been seen.
        seed: chooses the permutation.
    """
    true = {trace_id: sign for batch in batches for trace_id, sign in zip(*_signs(batch), strict=True)}
    permuted = dict(zip(true, permuted_polarities(list(true), list(true.values()), seed=seed), strict=True))
    for batch in again:
        ids, _ = _signs(batch)
        yield batch._replace(is_positive=np.array([permuted[trace_id] for trace_id in ids], dtype=np.bool_))


def _signs(batch: TraceBatch) -> tuple[list[str], list[bool]]:
    return batch.trace_ids.to_pylist(), batch.is_positive.tolist()


def _weighed(batch: TraceBatch, weigher: Weigher) -> pd.DataFrame:
    """Rows of ``schemas.segment_weights``, and of each segment whether its trace is positive and it has a label."""
    columns = weigher.weigh(batch)
    frame = pd.DataFrame({name: np.asarray(columns[name]) for name in SEGMENT_WEIGHTS.columns})
    is_positive = batch.is_positive[batch.trace_of_step[batch.step_of_segment]]
    return frame.assign(is_positive=is_positive, is_labelled=batch.labels[batch.step_of_segment].any(axis=1))


def _sources(frame: pd.DataFrame, section: RewardConfig, seed: int) -> IntArray:
    """Which row each row takes its weight from, (S,)."""
    sources = np.arange(len(frame))
    labelled = np.flatnonzero(frame["is_labelled"])
    rows = frame.iloc[labelled]
    if section.placebo == "within_trace":
        taken = sources_within_traces(rows["trace_id"].tolist(), seed=seed)
    else:
        taken = sources_in_other_traces(rows["trace_id"].tolist(), rows["is_positive"].tolist(), seed=seed)
    sources[labelled] = labelled[taken]
    return sources


def _with_weights_of(frame: pd.DataFrame, sources: IntArray) -> pd.DataFrame:
    taken = frame[[name for name in SEGMENT_WEIGHTS.columns if name not in KEYS]].take(sources).reset_index(drop=True)
    return pd.concat([frame[KEYS], taken], axis=1)


def _normalized(frame: pd.DataFrame, section: RewardConfig, candidates: Path) -> pd.DataFrame:
    """Weight and interval of each row, normalised within its trace."""
    tokens_of = _token_counts(candidates)
    weights, segments = frame["weight"].to_numpy(float), frame["segment"].to_numpy(int)
    scale, shift = np.ones(len(frame)), np.zeros(len(frame))
    for trace_id, rows in rows_by_trace(frame["trace_id"].tolist()).items():
        tokens = tokens_of[trace_id][segments[rows]]
        neutral = neutral_weight(section.form)
        scale[rows], shift[rows] = normalize_trace(weights[rows], tokens, section.normalize, neutral=neutral)
    return frame[SCALED].mul(scale, axis=0).add(shift, axis=0)


def _token_counts(candidates: Path) -> dict[str, IntArray]:
    """Trace → tokens that carry the weight of each of its segments."""
    counts: dict[str, IntArray] = {}
    for batch in stream_table(candidates, CANDIDATES, ["trace_id", "segments"], TRACES_AT_ONCE):
        spans = batch.column("segments")
        flat = spans.flatten()
        tokens = pc.subtract(flat.field("token_end"), flat.field("token_start")).to_numpy()
        ends = np.cumsum(pc.list_value_length(spans).to_numpy())
        counts |= zip(batch.column("trace_id").to_pylist(), np.split(tokens, ends[:-1]), strict=True)
    return counts
