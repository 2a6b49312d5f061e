"""How sure the matrices and the weights are: diagnostics and their figures."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.diagnostics import Diagnostics, Sensitivity, diagnose, weight_sensitivity
from mralign_core.estimation import LabelledTrace, TransitionMatrices, read_trace_batches, traces_of_batch
from mralign_core.evaluation.diagnostic_figures import diagnostic_charts
from mralign_core.evaluation.drawing import to_png, to_svg
from mralign_core.evaluation.matrix_figures import Transitions
from mralign_core.label_sets import label_set_of
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.caching import Built, Produced, Work, stage_task

DIAGNOSED_TRACES = 20_000
"""Of more traces about so many, evenly spaced, are looked at; the artifact's counts say how many."""


def diagnostics_work(
    config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef, transitions: ArtifactRef
) -> Work:
    """The diagnostics of a set of matrices."""
    inputs = {"candidates": candidates, "annotations": annotations, "transitions": transitions}
    return Work("diagnostics", config, inputs)


@stage_task("diagnose-transitions")
def diagnose_matrices(
    config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef, transitions: ArtifactRef
) -> Produced:
    """Test what the estimate assumes, and how far the weights move with what could have been chosen otherwise."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        taxonomy = _taxonomy(config)
        choices = dict.fromkeys((config.estimate.labels_per_segment, "one"))
        used, *single = (_traces(store, candidates, annotations, choice, taxonomy) for choice in choices)
        matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
        diagnostics = diagnose(
            used,
            matrices,
            config.estimate,
            config.reward,
            np.random.default_rng([config.seed, 7]),
            taxonomy=taxonomy,
            single_label=single[0] if single else (),
        )
        (directory / "diagnostics.json").write_text(diagnostics.to_json(), encoding="utf-8")
        shown = Transitions.of(matrices, config.reward, config.estimate.confidence, taxonomy)
        for name, figure in diagnostic_charts(diagnostics, shown).items():
            (directory / f"{name}.png").write_bytes(to_png(figure))
            (directory / f"{name}.svg").write_text(to_svg(figure, name), encoding="utf-8")
        return Built(counts={"traces": len(used), "parts not computed": len(diagnostics.skipped)})

    return diagnostics_work(config, candidates, annotations, transitions).produce(build)


def read_diagnostics(store: ArtifactStore, diagnostics: ArtifactRef) -> Diagnostics:
    """What :func:`diagnose_matrices` found."""
    return Diagnostics.from_json(store.open_file(diagnostics, "diagnostics.json").read_text(encoding="utf-8"))


def sensitivity_of(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Sensitivity:
    """How far the weights move with other settings; nothing is stored."""
    taxonomy = _taxonomy(config)
    store = ArtifactStore(config.storage)
    traces = _traces(store, candidates, annotations, config.estimate.labels_per_segment, taxonomy)
    rng = np.random.default_rng([config.seed, 7])
    return weight_sensitivity(traces, config.estimate, config.reward, rng, taxonomy=taxonomy)


def _taxonomy(config: RunConfig) -> Taxonomy:
    return label_set_of(config).taxonomy


def _traces(
    store: ArtifactStore, candidates: ArtifactRef, annotations: ArtifactRef, labels: str, taxonomy: Taxonomy
) -> list[LabelledTrace]:
    """The annotated traces, or evenly spaced ones of them when they are too many to hold."""
    batches = read_trace_batches(
        store.open_file(candidates, "candidates.parquet"),
        store.open_file(annotations, "annotations.parquet"),
        labels_per_segment=labels,
        taxonomy=taxonomy,
    )
    every = 1 + (candidates.rows or 0) // DIAGNOSED_TRACES
    return list(islice(chain.from_iterable(map(traces_of_batch, batches)), None, None, every))
