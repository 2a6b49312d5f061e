"""How sure the matrices and the weights are: diagnostics and their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.estimation import TransitionMatrices, read_trace_batches
from mralign_core.estimation.diagnostics import Diagnostics, diagnose
from mralign_core.estimation.diagnostics.sensitivity import Sensitivity, weight_sensitivity
from mralign_core.estimation.diagnostics.survey import Survey, survey_traces
from mralign_core.label_sets import label_set_of
from mralign_core.reporting.diagnostic_figures import diagnostic_charts
from mralign_core.reporting.matrix_figures import Transitions
from mralign_core.reporting.style import to_png, to_svg
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.run import Built, Produced, Work, stage_task


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
        taxonomy = label_set_of(config).taxonomy
        surveys = {choice: _survey(config, store, candidates, annotations, choice) for choice in ("two", "one")}
        matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
        diagnostics = diagnose(
            surveys,
            matrices,
            config.estimate,
            config.reward,
            np.random.default_rng([config.seed, 7]),
            taxonomy=taxonomy,
        )
        (directory / "diagnostics.json").write_text(diagnostics.to_json(), encoding="utf-8")
        shown = Transitions.of(matrices, config.reward, config.estimate.confidence, taxonomy)
        for name, figure in diagnostic_charts(diagnostics, shown).items():
            (directory / f"{name}.png").write_bytes(to_png(figure))
            (directory / f"{name}.svg").write_text(to_svg(figure, name), encoding="utf-8")
        counts = {
            "traces": surveys["two"].corpus.totals["traces"],
            **{f"traces used for {name}": number for name, number in diagnostics.used_traces.items()},
            "parts not computed": len(diagnostics.skipped),
        }
        return Built(counts=counts)

    return diagnostics_work(config, candidates, annotations, transitions).produce(build)


def read_diagnostics(store: ArtifactStore, diagnostics: ArtifactRef) -> Diagnostics:
    """What :func:`diagnose_matrices` found."""
    return Diagnostics.from_json(store.open_file(diagnostics, "diagnostics.json").read_text(encoding="utf-8"))


def sensitivity_of(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Sensitivity:
    """How far the weights move with other settings; nothing is stored."""
    store = ArtifactStore(config.storage)
    survey = _survey(config, store, candidates, annotations, config.estimate.labels_per_segment)
    return weight_sensitivity(survey, config.estimate, config.reward, taxonomy=label_set_of(config).taxonomy)


def _survey(
    config: RunConfig, store: ArtifactStore, candidates: ArtifactRef, annotations: ArtifactRef, labels: str
) -> Survey:
    """The annotated traces with one or two labels a segment; the samples are of the same traces."""
    taxonomy = label_set_of(config).taxonomy
    batches = read_trace_batches(
        store.open_file(candidates, "candidates.parquet"),
        store.open_file(annotations, "annotations.parquet"),
        labels_per_segment=labels,
        taxonomy=taxonomy,
    )
    return survey_traces(batches, taxonomy.num_states, np.random.default_rng([config.seed, 8]))
