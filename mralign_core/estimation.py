"""From tables to matrices and weights: the bridge between the annotation tables and :mod:`mralign_core.method`.

P⁺, P⁻ and P are always estimated from the same annotated traces, and with the same estimator.

Shapes: K states, S segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import ArtifactError, NoCandidatesError
from mralign_core.method.rewards import clip_weights, trace_ratios
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.method.transitions import (
    FloatArray,
    SetPairCounts,
    TransitionEstimate,
    count_set_pairs,
    fit_em,
    fit_frequency,
    keep_most_confident,
)
from mralign_core.schemas import REWARDS

CLASSES = ("plus", "minus", "all")
POLARITY_OF = {"plus": "positive", "minus": "negative"}


class LabelledTrace(NamedTuple):
    """A trace as the estimator sees it: per step its states, and per segment the step it belongs to."""

    trace_id: str
    polarity: str
    steps: list[tuple[int, ...]]
    step_of_segment: list[int]


class TransitionMatrices(NamedTuple):
    """P⁺ ("plus"), P⁻ ("minus") and P ("all"), each with what it was estimated from, and the states' names."""

    estimates: dict[str, TransitionEstimate]
    state_names: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of plain arrays: ``p_plus``, ``counts_plus``, …, ``log_likelihood_all``, ``states``."""
        arrays = {
            f"{field}_{name}": np.asarray(value)
            for name, estimate in self.estimates.items()
            for field, value in estimate._asdict().items()
        }
        np.savez(path, allow_pickle=False, states=np.array(self.state_names), **arrays)

    @classmethod
    def load(cls, path: Path) -> TransitionMatrices:
        """Read what :meth:`save` wrote; nothing that could execute is loaded.

        Raises:
            ArtifactError: the file is not one.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = tuple(str(state) for state in arrays["states"])
                return cls({name: _load_estimate(arrays, name) for name in CLASSES}, names)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
            raise ArtifactError(
                f"{path} does not hold transition matrices ({error}): run stage estimate again"
            ) from None


def labelled_traces(
    candidates: pd.DataFrame,
    annotations: pd.DataFrame,
    *,
    labels_per_segment: str = "two",
    taxonomy: Taxonomy = PAPER_TAXONOMY,
) -> list[LabelledTrace]:
    """Join annotations to their traces and merge segments of one step, in the order of ``candidates``.

    Args:
        candidates: rows of ``schemas.CANDIDATES``.
        annotations: rows of ``schemas.ANNOTATIONS``; traces without any are left out.
        labels_per_segment: "two", or "one" to keep only the most confident label.
        taxonomy: gives the state of each label.
    """
    by_trace = {trace_id: rows.sort_values("segment") for trace_id, rows in annotations.groupby("trace_id")}
    traces = []
    for trace in candidates.itertuples(index=False):
        if trace.trace_id not in by_trace:
            continue
        rows = by_trace[trace.trace_id]
        step_of_segment = pd.factorize(rows["step"])[0].tolist()
        steps: list[tuple[int, ...]] = [()] * (max(step_of_segment) + 1)
        for step, labels, confidences in zip(step_of_segment, rows["labels"], rows["confidences"], strict=True):
            kept = keep_most_confident(labels, confidences) if labels_per_segment == "one" else tuple(labels)
            steps[step] = tuple(taxonomy.state(label) for label in kept)
        traces.append(LabelledTrace(trace.trace_id, trace.polarity, steps, step_of_segment))
    return traces


def estimate_transitions(
    traces: Sequence[LabelledTrace], section: EstimateConfig, taxonomy: Taxonomy = PAPER_TAXONOMY
) -> TransitionMatrices:
    """Estimate P⁺, P⁻ and P.

    Raises:
        NoCandidatesError: no trace was annotated, or one polarity has no labelled trace, so P⁺ or P⁻ can't be
            estimated.
    """
    if not traces:
        raise NoCandidatesError(
            "no trace was annotated: no reply on any of them could be used. The annotations artifact lists why, in "
            "failures.json; try other models in annotate.annotator_a, annotator_b and adjudicator"
        )
    pairs = {name: _count(traces, POLARITY_OF.get(name), taxonomy.num_states) for name in CLASSES}
    for name, polarity in POLARITY_OF.items():
        if not pairs[name].num_traces:
            sign = "⁺" if name == "plus" else "⁻"
            raise NoCandidatesError(
                f"P{sign} can't be estimated: none of the {len(traces)} annotated traces with a label is {polarity}. "
                "Use more questions (questions.train_limit), more draws (generate.num_draws), a looser "
                "generate.answer_match, or wider length bounds"
            )
    fit = _estimator(section, taxonomy.num_states)
    return TransitionMatrices({name: fit(counted) for name, counted in pairs.items()}, tuple(taxonomy.state_names))


def weigh_segments(
    traces: Sequence[LabelledTrace], matrices: TransitionMatrices, section: RewardConfig
) -> pd.DataFrame:
    """Weight of every segment of every trace (Eq. 10), as rows of ``schemas.REWARDS``.

    With ``reference: opposite`` the denominator is the matrix of the other polarity (a departure from the paper).
    """
    p = {name: estimate.p for name, estimate in matrices.estimates.items()}
    frames = [_weigh_trace(trace, p, section) for trace in traces]
    return pd.concat(frames, ignore_index=True)[list(REWARDS.columns)]


def _weigh_trace(trace: LabelledTrace, p: dict[str, FloatArray], section: RewardConfig) -> pd.DataFrame:
    own, opposite = ("plus", "minus") if trace.polarity == "positive" else ("minus", "plus")
    ratio = trace_ratios(trace.steps, p[own], p["all" if section.reference == "all" else opposite])
    weight = clip_weights(ratio, section.clip_min, section.clip_max)
    return pd.DataFrame(
        {
            "trace_id": trace.trace_id,
            "segment": np.arange(len(trace.step_of_segment)),
            "weight": weight[trace.step_of_segment],
            "ratio": ratio[trace.step_of_segment],
            "clipped": (weight != ratio)[trace.step_of_segment],
        }
    )


def _count(traces: Sequence[LabelledTrace], polarity: str | None, num_states: int) -> SetPairCounts:
    return count_set_pairs((t.steps for t in traces if polarity in (None, t.polarity)), num_states)


def _estimator(section: EstimateConfig, num_states: int) -> Callable[[SetPairCounts], TransitionEstimate]:
    if section.estimator == "frequency":
        return lambda pairs: fit_frequency(pairs, num_states, prior=section.prior)
    return lambda pairs: fit_em(
        pairs,
        num_states,
        num_iterations=section.num_iterations,
        damping=section.damping,
        prior=section.prior,
        tolerance=section.tolerance,
    )


def _load_estimate(arrays: Any, name: str) -> TransitionEstimate:
    values = {field: arrays[f"{field}_{name}"] for field in TransitionEstimate._fields}
    values["num_iterations"] = int(values["num_iterations"])
    return TransitionEstimate(**values)
