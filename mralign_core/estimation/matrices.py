"""P⁺, P⁻ and P of a set of annotated traces, their bootstrap draws, and the same by stratum.

Departure from the paper: matrices are also estimated for each stratum of questions that has enough traces. They change
no weight unless ``reward.condition_on`` asks for them.

Shapes: K states, R bootstrap resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mralign_core.config import EstimateConfig
from mralign_core.errors import ArtifactError, NoCandidatesError
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL, draw_transitions
from mralign_core.estimation.corpus import CLASSES, POLARITY_OF, Corpus, count_corpus
from mralign_core.estimation.estimators import make_estimator, warn_unless_converged
from mralign_core.estimation.hidden_labels import HiddenLabels
from mralign_core.estimation.traces import LabelledTrace, batch_of_traces
from mralign_core.method import FloatArray
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.method.transitions import TransitionEstimate

logger = logging.getLogger("mralign_core.estimation")

MIN_STRATUM_TRACES = 10
"""Labelled traces of each polarity that a stratum needs for matrices of its own. From fewer, P⁺ and P⁻ are the moves of
those very traces, and weights would repeat them instead of telling the classes apart."""

Estimates = Mapping[str, TransitionEstimate]
Draws = Mapping[str, NDArray[np.float32]]
_NO_STRATA: Mapping[str, Any] = MappingProxyType({})


class TransitionMatrices(NamedTuple):
    """P⁺ ("plus"), P⁻ ("minus") and P ("all"), each with what it was estimated from, and the states' names.

    Args:
        estimates: by class.
        state_names: (K,) names.
        strata: the estimates of each stratum that has enough traces of both polarities; empty with fewer than two
            strata.
        draws: (R, K, K) matrices of bootstrap resamples by class, the same resample in each; empty without bootstrap,
            and where a polarity has fewer than ``MIN_QUESTIONS_FOR_INTERVAL`` questions.
        strata_draws: the same for each of ``strata`` that has such draws.
        channels: (3, K − 2, K − 1) with hidden labels, the probability of what annotator a, b and the adjudicator say
            ("none" first) of each true label; else None.
    """

    estimates: dict[str, TransitionEstimate]
    state_names: tuple[str, ...]
    strata: Mapping[str, Estimates] = _NO_STRATA
    draws: Draws = _NO_STRATA
    strata_draws: Mapping[str, Draws] = _NO_STRATA
    channels: FloatArray | None = None

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of plain arrays.

        ``p_plus``, ``counts_plus``, …, ``log_likelihood_all``, ``states``, and ``draws_plus``, …; for the n-th name of
        ``strata``, the same with ``@n`` behind; ``channels``, if there are any.
        """
        arrays = _arrays(self.estimates, self.draws)
        if self.channels is not None:
            arrays["channels"] = self.channels
        for number, stratum in enumerate(self.strata):
            of_stratum = _arrays(self.strata[stratum], self.strata_draws.get(stratum, _NO_STRATA))
            arrays |= {f"{name}@{number}": array for name, array in of_stratum.items()}
        strata = np.array(list(self.strata), dtype=np.str_)
        np.savez(path, allow_pickle=False, states=np.array(self.state_names), strata=strata, **arrays)

    @classmethod
    def load(cls, path: Path) -> TransitionMatrices:
        """Read what :meth:`save` wrote; nothing that could execute is loaded.

        Raises:
            ArtifactError: the file is not one.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = tuple(str(state) for state in arrays["states"])
                strata = {str(name): f"@{number}" for number, name in enumerate(arrays["strata"])}
                return cls(
                    _load_estimates(arrays),
                    names,
                    {name: _load_estimates(arrays, suffix) for name, suffix in strata.items()},
                    _load_draws(arrays),
                    {name: draws for name, suffix in strata.items() if (draws := _load_draws(arrays, suffix))},
                    arrays.get("channels"),
                )
        except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
            raise ArtifactError(
                f"{path} does not hold transition matrices ({error}): run stage estimate again"
            ) from None


def estimate_transitions(
    traces: Sequence[LabelledTrace],
    section: EstimateConfig,
    taxonomy: Taxonomy,
    *,
    rng: np.random.Generator | None = None,
    min_stratum_traces: int = MIN_STRATUM_TRACES,
) -> TransitionMatrices:
    """Estimate P⁺, P⁻ and P from traces in memory; see :func:`estimate_corpus`.

    Args:
        traces: annotated traces.
        section: estimator and its settings.
        taxonomy: names the states.
        rng: for the bootstrap; without it there is none, whatever ``section`` says.
        min_stratum_traces: as there.

    Raises:
        NoCandidatesError: no trace was annotated, or one polarity has no labelled trace, so P⁺ or P⁻ can't be
            estimated.
    """
    keep_traces = rng is not None and section.num_resamples > 0
    corpus = count_corpus([batch_of_traces(traces)], taxonomy.num_states, keep_traces=keep_traces)
    return estimate_corpus(corpus, section, taxonomy, rng=rng, min_stratum_traces=min_stratum_traces)


def estimate_corpus(
    corpus: Corpus,
    section: EstimateConfig,
    taxonomy: Taxonomy,
    *,
    rng: np.random.Generator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    min_stratum_traces: int = MIN_STRATUM_TRACES,
) -> TransitionMatrices:
    """Estimate P⁺, P⁻ and P, pooled and by stratum, with bootstrap draws of each.

    Args:
        corpus: what was counted; with its traces when there is to be a bootstrap, with votes for hidden labels.
        section: estimator and its settings.
        taxonomy: names the states.
        rng: for the bootstrap; without it there is none.
        on_progress: called with (done, total) resamples.
        min_stratum_traces: labelled traces of each polarity that a stratum needs for matrices of its own, at least 1.

    Raises:
        NoCandidatesError: no trace was annotated, or one polarity has no labelled trace, so P⁺ or P⁻ can't be
            estimated.
    """
    _require_both_polarities(corpus)
    strata = _usable_strata(corpus, min_stratum_traces)
    labels = HiddenLabels(corpus, section) if section.estimator == "hidden" else _LabelSets(corpus, section)
    estimates = {where: labels.fit(where) for where in (None, *strata)}
    draws: dict[str | None, dict[str, NDArray[np.float32]]] = {}
    draws_any = section.num_resamples > 0 and section.estimator != "oracle"
    if rng is not None and draws_any and (resampled := _with_intervals(corpus, strata)):
        draws = labels.draw(resampled, rng, on_progress)
    return TransitionMatrices(
        estimates[None],
        tuple(taxonomy.state_names),
        {stratum: estimates[stratum] for stratum in strata},
        draws.get(None, {}),
        {stratum: draws[stratum] for stratum in strata if stratum in draws},
        labels.channels if isinstance(labels, HiddenLabels) else None,
    )


class _LabelSets:
    """Matrices of consolidated label sets, of one stratum or (None) of all traces."""

    def __init__(self, corpus: Corpus, section: EstimateConfig) -> None:
        self._corpus, self._section = corpus, section
        self._fit = make_estimator(section, corpus.num_states)

    def fit(self, where: str | None) -> dict[str, TransitionEstimate]:
        """P⁺, P⁻ and P."""
        selections = self._corpus.selections(where)
        found = self._fit({name: selection.pairs(self._corpus.counts) for name, selection in selections.items()})
        for name, estimate in found.items():
            warn_unless_converged(self._section, estimate, name if where is None else f"{name} in stratum {where!r}")
        return found

    def draw(
        self, wheres: Sequence[str | None], rng: np.random.Generator, on_progress: Callable[[int, int], None] | None
    ) -> dict[str | None, dict[str, NDArray[np.float32]]]:
        """The same of bootstrap resamples."""
        selections = {where: self._corpus.selections(where) for where in wheres}
        return draw_transitions(self._corpus, selections, self._fit, self._section.num_resamples, rng, on_progress)


def _usable_strata(corpus: Corpus, min_traces: int) -> list[str]:
    """Strata with enough labelled traces of both polarities, when there are at least two strata; in order of name."""
    if len(corpus.strata) < 2:
        return []
    return sorted(stratum for stratum in corpus.strata if _rarer_polarity(corpus, stratum) >= min_traces)


def _with_intervals(corpus: Corpus, strata: Sequence[str]) -> list[str | None]:
    """The strata, and None for all traces, that have enough questions of both polarities to resample."""
    enough = [where for where in (None, *strata) if _fewest_questions(corpus, where) >= MIN_QUESTIONS_FOR_INTERVAL]
    if None not in enough:
        logger.warning(
            "P and the weights get no intervals: one polarity has labelled traces of %d questions, and fewer than %d "
            "say nothing about how far P could be off",
            _fewest_questions(corpus),
            MIN_QUESTIONS_FOR_INTERVAL,
        )
    return enough


def _fewest_questions(corpus: Corpus, stratum: str | None = None) -> int:
    """Questions of the polarity that has fewer, in a stratum or in all."""
    return min(corpus.num_questions(polarity, stratum) for polarity in POLARITY_OF.values())


def _rarer_polarity(corpus: Corpus, stratum: str) -> int:
    """Labelled traces of the polarity that has fewer in a stratum."""
    return int(corpus.num_traces.reshape(-1, 2)[corpus.strata.index(stratum)].min())


def _require_both_polarities(corpus: Corpus) -> None:
    num_annotated = int((corpus.num_traces + corpus.num_empty_traces).sum())
    if not num_annotated:
        raise NoCandidatesError(
            "no trace was annotated: no reply on any of them could be used. The annotations artifact lists why, in "
            "failures.json; try other models in annotate.annotator_a, annotator_b and adjudicator"
        )
    for name, polarity in POLARITY_OF.items():
        if not corpus.pairs(polarity).num_traces:
            sign = "⁺" if name == "plus" else "⁻"
            raise NoCandidatesError(
                f"P{sign} can't be estimated: none of the {num_annotated} annotated traces with a label is {polarity}. "
                "Use more questions (questions.train), more draws (generate.num_draws), a looser "
                "generate.answer_match, or wider length bounds"
            )


def _arrays(estimates: Estimates, draws: Draws) -> dict[str, NDArray[Any]]:
    fields = {
        f"{field}_{name}": np.asarray(value)
        for name, estimate in estimates.items()
        for field, value in estimate._asdict().items()
    }
    return fields | {f"draws_{name}": array for name, array in draws.items()}


def _load_estimates(arrays: Any, suffix: str = "") -> dict[str, TransitionEstimate]:
    return {name: _load_estimate(arrays, f"{name}{suffix}") for name in CLASSES}


def _load_estimate(arrays: Any, name: str) -> TransitionEstimate:
    values = {field: arrays[f"{field}_{name}"] for field in TransitionEstimate._fields}
    values["num_iterations"] = int(values["num_iterations"])
    return TransitionEstimate(**values)


def _load_draws(arrays: Any, suffix: str = "") -> dict[str, NDArray[np.float32]]:
    return {name: arrays[f"draws_{name}{suffix}"] for name in CLASSES if f"draws_{name}{suffix}" in arrays}
