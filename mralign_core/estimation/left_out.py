"""Weights of a trace from matrices that no trace of its own question took part in.

A departure from the paper, off by default (``reward.leave_own_question_out``). A trace pulls the matrix of its own
class towards itself, so that its own moves look likelier than they are, the more the fewer traces there are. Without
its question's traces, what is left in a weight is what other questions tell.

The polarities are those that the matrices were estimated with, and the strata with matrices of their own are the same.
A question that is the only one of its polarity leaves nothing to estimate its own matrix from: its moves tell nothing,
and have ratio 1. Where matrices are estimated from other traces (``estimate.traces``), a question may have taken no
part: its traces are weighed by the matrices of all. Such weights have no intervals: a resample would have to be
estimated anew for each question. It takes two matrices for each question, polarity and stratum.

Shapes: N traces, C columns of the corpus, Q questions, U distinct pairs of label sets, H fractions, K states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.corpus import POLARITY_OF, Corpus, Selection, question_hashes
from mralign_core.estimation.em_tables import TransitionTables
from mralign_core.estimation.estimators import estimate_tables
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.estimation.traces import TraceBatch
from mralign_core.estimation.weights import Weigher, fraction_of
from mralign_core.method import FloatArray, IntArray
from mralign_core.method.transitions import base_pair_sums


class _Fraction(NamedTuple):
    """The matrices above and below the fraction of Eq. 10, and the soft counts of the upper one, (K, K) each."""

    above: FloatArray
    below: FloatArray
    counts: FloatArray


class LeftOutWeigher(Weigher):
    """Weighs batches of traces, each without the traces of its own question; see the module.

    Args:
        matrices: estimated from the corpus; they only say which strata have matrices of their own.
        section: reference, clip, shrinkage, conditioning.
        corpus: what they were estimated from, counted with its traces.
        estimate: how.
        exponent: as of :class:`Weigher`.

    Raises:
        ConfigError: weights are to be conditioned on a stratum, and no stratum has matrices.
        ValueError: the corpus was counted without its traces.
    """

    def __init__(
        self,
        matrices: TransitionMatrices,
        section: RewardConfig,
        corpus: Corpus,
        estimate: EstimateConfig,
        exponent: float = 1.0,
    ) -> None:
        from scipy import sparse

        super().__init__(matrices._replace(draws={}, strata_draws={}), section, confidence=0.0, exponent=exponent)
        self._corpus, self._estimate = corpus, estimate
        self._stratum_of_source = [None, *self._source_of]
        kept = corpus.traces
        rows = np.repeat(kept.questions, kept.lengths)
        shape = (len(kept.question_keys) + 1, len(corpus.columns))  # the last row: of a question without a trace
        self._by_question = sparse.csr_array((np.ones(len(rows), dtype=np.int64), (rows, kept.columns)), shape=shape)
        self._fractions: dict[int, _Fraction] = {}

    def weigh(self, batch: TraceBatch) -> dict[str, Any]:
        """Columns of ``schemas.segment_weights`` for the segments of a batch, in their order."""
        # Another batch has other questions: nothing that was learned of these is of use.
        self._forget()
        self._fractions = {}
        return super().weigh(batch)

    def _numerator_of_trace(self, batch: TraceBatch) -> IntArray:
        """Source, polarity and question as one number: question · 2 sources + 2 · source + whether positive, (N,)."""
        keys, hashes = self._corpus.traces.question_keys, question_hashes(batch)
        questions = np.where(np.isin(hashes, keys), np.searchsorted(keys, hashes), len(keys))
        numerators = questions * 2 * len(self._sources) + super()._numerator_of_trace(batch)
        self._estimate_fractions(np.unique(numerators))
        return numerators

    def _estimate_fractions(self, numerators: IntArray) -> None:
        questions, of_source = np.divmod(numerators, 2 * len(self._sources))
        for number in np.unique(of_source):
            chosen = np.flatnonzero(of_source == number)
            stratum, side = self._stratum_of_source[number // 2], "plus" if number % 2 else "minus"
            names = fraction_of(side, self._section.reference)
            found = self._without(questions[chosen], stratum, names)
            above, below = (found[name] for name in names)
            parts = zip(numerators[chosen].tolist(), above.p, below.p, above.counts, strict=True)
            self._fractions |= {numerator: _Fraction(*fraction) for numerator, *fraction in parts}

    def _without(self, questions: IntArray, stratum: str | None, wanted: Sequence[str]) -> dict[str, TransitionTables]:
        """Estimates from the traces of a stratum, without those of each question in turn."""
        selections = self._corpus.selections(stratum)
        everything = selections["all"]
        plus, minus = (self._counts_without(questions, selections[name], everything) for name in POLARITY_OF)
        return estimate_tables(self._estimate, everything.empty, plus, minus, wanted)

    def _counts_without(self, questions: IntArray, of_polarity: Selection, everything: Selection) -> IntArray:
        """Occurrences of all pairs in the traces of a polarity, without those of each question in turn, (H, U)."""
        from scipy import sparse

        is_of_polarity = np.isin(everything.places, of_polarity.places)
        columns, pairs = everything.places[is_of_polarity], everything.pair_of_place[is_of_polarity]
        shape = (len(self._corpus.columns), len(everything.empty.multiplicities))
        to_pairs = sparse.csr_array((np.ones(len(columns), dtype=np.int64), (columns, pairs)), shape=shape)
        own = (self._by_question[questions] @ to_pairs).toarray()
        counts: IntArray = self._corpus.counts @ to_pairs - own
        return counts

    def _weigh_sets(self, numerator: int, left: NDArray[np.bool_], entered: NDArray[np.bool_]) -> NDArray[np.void]:
        fraction = self._fractions[numerator]
        ratio = self._ratios(fraction.above, fraction.below, left, entered)
        if not fraction.counts.any():
            ratio = np.ones(len(ratio))
        return self._known_of(ratio, base_pair_sums(fraction.counts, left, entered))
