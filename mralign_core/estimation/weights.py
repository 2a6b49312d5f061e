"""The weight of every segment (§3.2.3, Eq. 10), with what stands behind it.

Departures from the paper, all off by default: the opposite polarity's matrix as denominator (``reward.reference``),
other forms than the clipped ratio (``reward.form``), ratios drawn to 1 where support is small
(``reward.support_shrinkage``), and matrices of the trace's own stratum (``reward.condition_on``), where that has
``MIN_STRATUM_TRACES`` of each polarity; other traces keep the pooled ones.

A weight is a function of five things: stratum, polarity, the set left, the set entered, and the config. So it is
computed once for each distinct transition, however many segments there are.

Shapes: N traces, T steps, S segments, U distinct transitions, R bootstrap resamples, K states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mralign_core.config import RewardConfig
from mralign_core.errors import ConfigError
from mralign_core.estimation.bootstrap import MIN_SUPPORT
from mralign_core.estimation.matrices import MIN_STRATUM_TRACES, Draws, Estimates, TransitionMatrices
from mralign_core.estimation.traces import LabelledTrace, TraceBatch, batch_of_traces
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.segment_weights import ClippedWeights, neutral_weight, segment_weights, set_pair_ratios
from mralign_core.method.set_pairs import members_of_codes, moves_into_steps
from mralign_core.method.transitions import base_pair_sums
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS

_BLOCK = 256
"""Transitions whose draws are in memory at once."""
_NO_MOVE = -1
"""Code of a step without a label; those of transitions are not negative."""
_KNOWN = np.dtype(
    [
        ("weight", np.float64),
        ("ratio", np.float64),
        ("clipped", np.bool_),
        ("support", np.float64),
        ("weight_low", np.float64),
        ("weight_high", np.float64),
    ]
)
"""What is known of a transition: columns of ``schemas.segment_weights``, the bounds NaN without a bootstrap."""


def fraction_of(side: str, reference: str) -> tuple[str, str]:
    """Names of the matrices above and below the fraction of Eq. 10.

    Args:
        side: "plus" for positive traces, "minus" for negative ones.
        reference: "all" as in the paper, or "opposite".

    >>> fraction_of("plus", "all"), fraction_of("minus", "opposite")
    (('plus', 'all'), ('minus', 'plus'))
    """
    opposite = {"plus": "minus", "minus": "plus"}[side]
    return side, "all" if reference == "all" else opposite


def weights_of(section: RewardConfig, ratios: FloatArray, support: FloatArray) -> ClippedWeights:
    """Weights of ratios as a config shrinks, clips and forms them, (…, U).

    Args:
        section: shrinkage, clip and form.
        ratios: (…, U), at least 0.
        support: (U,) soft counts behind each.
    """
    return segment_weights(
        ratios,
        support,
        shrinkage=section.support_shrinkage,
        low=section.clip_min,
        high=section.clip_max,
        form=section.form,
        gamma=section.gamma,
    )


class _Source(NamedTuple):
    """The matrices behind the weights of one stratum, or of all."""

    estimates: Estimates
    draws: Draws


class Weigher:
    """Weighs batches of traces by the same matrices.

    Args:
        matrices: estimated from these traces.
        section: reference, clip, shrinkage, conditioning.
        confidence: coverage of the percentile intervals, from the bootstrap draws of the matrices. The support is
            that of the estimate in every draw. An interval need not contain the weight itself. Transitions with fewer
            than ``MIN_SUPPORT`` soft counts on either side of the fraction have none.
        exponent: power that every ratio is raised to before anything else; of a placebo that is to have the size of
            real weights. 1 leaves ratios as they are.

    Raises:
        ConfigError: weights are to be conditioned on a stratum, and no stratum has matrices.
    """

    def __init__(
        self, matrices: TransitionMatrices, section: RewardConfig, confidence: float, exponent: float = 1.0
    ) -> None:
        self._section = section
        self._confidence = confidence
        self._exponent = exponent
        self._num_states = len(matrices.state_names)
        self._sources = [_Source(matrices.estimates, matrices.draws)]
        self._source_of: dict[str, int] = {}
        if section.condition_on == "stratum":
            if not matrices.strata:
                raise ConfigError(
                    "reward.condition_on is 'stratum', but no stratum has matrices of its own: that takes at least two "
                    f"strata, and one with {MIN_STRATUM_TRACES} labelled traces of each polarity. Use 'none'"
                )
            self._source_of = {stratum: number for number, stratum in enumerate(matrices.strata, start=1)}
            self._sources += [_Source(matrices.strata[s], matrices.strata_draws.get(s, {})) for s in matrices.strata]
        self._forget()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """What was weighed so far, and the traces that pooled matrices weighed for want of their stratum's own."""
        return dict(self._counts)

    def weigh(self, batch: TraceBatch) -> dict[str, Any]:
        """Columns of ``schemas.segment_weights`` for the segments of a batch, in their order."""
        code_of_step = self._code_of_step(batch)
        self._learn(np.setdiff1d(code_of_step, self._codes))
        place = np.searchsorted(self._codes, code_of_step)[batch.step_of_segment]
        weighed = self._known[place]
        self._counts.update(
            {
                "segments": len(place),
                "clipped": int(weighed["clipped"].sum()),
                "without label": int((self._codes[place] == _NO_MOVE).sum()),
            }
        )
        return {
            "trace_id": batch.trace_ids.take(pa.array(batch.trace_of_step[batch.step_of_segment])),
            "segment": batch.segments,
            **{name: pa.array(weighed[name], from_pandas=True) for name in _KNOWN.names or ()},
        }

    def _forget(self) -> None:
        """Know of no transition but that there can be none."""
        self._codes, self._known = np.array([_NO_MOVE]), self._weigh_no_move()

    def _code_of_step(self, batch: TraceBatch) -> IntArray:
        """The transition into each step as a number: which matrices, which polarity, which sets; (T,)."""
        moves = moves_into_steps(batch.labels, batch.trace_of_step, self._num_states)
        numerator = self._numerator_of_trace(batch)
        base = self._num_states**2
        code_of_step = np.full(len(batch.trace_of_step), _NO_MOVE)
        code_of_step[moves.steps] = (numerator[moves.traces] * base + moves.sources) * base + moves.targets
        return code_of_step

    def _numerator_of_trace(self, batch: TraceBatch) -> IntArray:
        """Which matrix is above the fraction of each trace, (N,): 2 · source + whether it is positive."""
        return 2 * self._source_of_trace(batch) + batch.is_positive

    def _source_of_trace(self, batch: TraceBatch) -> IntArray:
        """Which matrices weigh each trace, (N,); 0 are the pooled ones."""
        encoded = batch.strata.dictionary_encode()
        sources = np.array([self._source_of.get(name, 0) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
        source_of_trace: IntArray = sources[encoded.indices.to_numpy()]
        if self._source_of:
            self._counts["traces weighed by pooled matrices"] += int((source_of_trace == 0).sum())
        return source_of_trace

    def _learn(self, codes: IntArray) -> None:
        """Weigh transitions that were not met before."""
        pieces = [self._known]
        numerators, pairs = np.divmod(codes, self._num_states**4)
        for numerator in np.unique(numerators):
            members = pairs[numerators == numerator]
            for start in range(0, len(members), _BLOCK):
                sets = members_of_codes(members[start : start + _BLOCK], self._num_states)
                pieces.append(self._weigh_sets(int(numerator), *sets))
        self._codes = np.concatenate([self._codes, codes])
        order = np.argsort(self._codes)
        self._codes, self._known = self._codes[order], np.concatenate(pieces)[order]

    def _weigh_sets(self, numerator: int, left: NDArray[np.bool_], entered: NDArray[np.bool_]) -> NDArray[np.void]:
        source = self._sources[numerator // 2]
        own, reference = fraction_of("plus" if numerator % 2 else "minus", self._section.reference)
        support = base_pair_sums(source.estimates[own].counts, left, entered)
        ratio = self._ratios(source.estimates[own].p, source.estimates[reference].p, left, entered)
        known = self._known_of(ratio, support)
        if source.draws:
            p_own, p_reference = (source.draws[name].astype(np.float64) for name in (own, reference))
            drawn = weights_of(self._section, self._ratios(p_own, p_reference, left, entered), support)
            tail = (1 - self._confidence) / 2
            below = base_pair_sums(source.estimates[reference].counts, left, entered)
            enough = np.minimum(support, below) >= MIN_SUPPORT
            bounds = np.quantile(drawn.weights, [tail, 1 - tail], axis=0)
            known["weight_low"], known["weight_high"] = np.where(enough, bounds, np.nan)
        return known

    def _known_of(self, ratio: FloatArray, support: FloatArray) -> NDArray[np.void]:
        """What is known of transitions without an interval."""
        known = np.full(len(ratio), np.nan, dtype=_KNOWN)
        known["ratio"], known["support"] = ratio, support
        known["weight"], known["clipped"] = weights_of(self._section, ratio, support)
        return known

    def _ratios(
        self, above: FloatArray, below: FloatArray, left: NDArray[np.bool_], entered: NDArray[np.bool_]
    ) -> FloatArray:
        ratios = set_pair_ratios(above, below, left, entered)
        return ratios if self._exponent == 1 else ratios**self._exponent

    def _weigh_no_move(self) -> NDArray[np.void]:
        """No transition leads to a step without a label, so its ratio is 1 for certain."""
        weight = neutral_weight(self._section.form)
        bound = weight if self._sources[0].draws else np.nan
        return np.array([(weight, 1.0, False, 0.0, bound, bound)], dtype=_KNOWN)


def weigh_segments(
    traces: Sequence[LabelledTrace],
    matrices: TransitionMatrices,
    section: RewardConfig,
    *,
    confidence: float,
) -> pd.DataFrame:
    """Weight of every segment of every trace (Eq. 10), as rows of ``schemas.segment_weights``.

    Args:
        traces: what to weigh.
        matrices: estimated from these traces.
        section: reference, clip, shrinkage, conditioning.
        confidence: coverage of the intervals.
    """
    columns = Weigher(matrices, section, confidence).weigh(batch_of_traces(traces))
    return pd.DataFrame({name: np.asarray(columns[name]) for name in SEGMENT_WEIGHTS.columns})
