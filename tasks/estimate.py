"""P⁺, P⁻ and P from the labels, how sure they and the weights are, and the figures of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.estimation.alterations import traces_to_estimate
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.diagnostics import Diagnostics, diagnose
from mralign_core.estimation.diagnostics.sensitivity import Sensitivity, weight_sensitivity
from mralign_core.estimation.diagnostics.survey import Survey, survey_traces
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import TraceBatch
from mralign_core.label_sets import label_set_of
from mralign_core.reporting.diagnostic_figures import diagnostic_charts
from mralign_core.reporting.matrix_figures import Transitions
from mralign_core.reporting.style import to_png, to_svg
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.graph import Input, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import all_but, clipped_ratios, labels, without_pocket


def uses_draws(config: RunConfig, _: Part) -> bool:
    """Whether the matrices are estimated from other traces than those that are weighed."""
    return config.estimate.uses_draws


def _uses_candidates(config: RunConfig, _: Part) -> bool:
    return not config.estimate.uses_draws


SELECTED = (Input("candidates", when=_uses_candidates), Input("annotations", when=_uses_candidates))
DRAWN = (
    Input("thinking-draws", when=uses_draws, stands_for="candidates"),
    Input("draw-annotations", when=uses_draws, stands_for="annotations"),
)
"""The traces that matrices are estimated from, one or the other; which it is, their content says in the key."""
DIAGNOSTICS = "diagnostics.json"


def traces_behind(config: RunConfig, ref: ArtifactRef) -> str:
    """Which choice of ``estimate.traces`` an artifact is of, or was made from."""
    store = ArtifactStore(config.storage)
    for each in (ref, *store.manifest(ref).parents):
        if each.stage == "thinking-draws":
            return str(store.manifest(each).fingerprint["traces"])
    return "selected"


def require_chosen_traces(config: RunConfig, inputs: Mapping[str, ArtifactRef], name: str = "candidates") -> None:
    """Refuse an input that is of other traces than those that the config chooses, as a run before may have left it.

    Raises:
        ConfigError: it is.
    """
    made, wanted = traces_behind(config, inputs[name]), config.estimate.traces
    if made != wanted:
        raise ConfigError(
            f"estimate.traces is {wanted!r}, but {inputs[name].stage} {inputs[name].key[:12]} is of {made!r}: run the "
            f"stages from generate on with this config, or set estimate.traces to {made!r}"
        )


def _estimation(config: RunConfig) -> dict[str, Any]:
    has_chance = config.estimate.num_resamples or config.estimate.permute_polarity
    section = all_but(config.estimate, "confidence", "traces")
    return {**section, **labels(config), "seed": config.seed if has_chance else None}


@artifact(
    "transitions",
    stage="estimate",
    inputs=(*SELECTED, *DRAWN),
    fields=_estimation,
    sources=(
        "mralign_core.estimation.reading",
        "mralign_core.estimation.alterations",
        "mralign_core.estimation.corpus",
        "mralign_core.estimation.matrices",
    ),
    without=without_pocket,
    check=require_chosen_traces,
    is_main=lambda _: True,
)
def estimate_transitions(making: Making) -> Built:
    """Estimate the three transition matrices, pooled and by stratum, with bootstrap draws of them."""
    config, taxonomy = making.config, label_set_of(making.config).taxonomy
    read = partial(labelled_traces_of, making.store, config, making["candidates"], making["annotations"])
    batches = traces_to_estimate(read, config.estimate, seed=config.seed)
    corpus = count_corpus(batches, taxonomy.num_states, keep_traces=config.estimate.num_resamples > 0)
    with progress("resampling traces", "estimate") as report:
        rng = np.random.default_rng(config.seed)
        matrices = estimate_corpus(corpus, config.estimate, taxonomy, rng=rng, on_progress=report)
    matrices.save(making.directory / "transitions.npz")
    counts = {f"transitions {name}": float(e.counts.sum()) for name, e in matrices.estimates.items()}
    return Built(counts={**corpus.totals, **counts, "strata with own matrices": len(matrices.strata)})


def _diagnosis(config: RunConfig) -> dict[str, Any]:
    return {
        "estimate": all_but(config.estimate, "traces"),
        "reward": clipped_ratios(config),
        **labels(config),
        "seed": config.seed,
    }


@artifact(
    "diagnostics",
    stage="estimate",
    inputs=(*SELECTED, Input("transitions"), *DRAWN),
    fields=_diagnosis,
    sources=("mralign_core.estimation.diagnostics", "mralign_core.estimation.reading"),
    without=without_pocket,
    check=require_chosen_traces,
)
def diagnose_transitions(making: Making) -> Built:
    """Test what the estimate assumes, and how far the weights move with what could have been chosen otherwise."""
    config, traces = making.config, (making["candidates"], making["annotations"])
    surveys = {choice: _survey(config, making.store, *traces, choice) for choice in ("two", "one")}
    diagnostics = diagnose(
        surveys,
        TransitionMatrices.load(making.file("transitions", "transitions.npz")),
        config.estimate,
        config.reward.of_paper_form,
        np.random.default_rng([config.seed, 7]),
        taxonomy=label_set_of(config).taxonomy,
    )
    (making.directory / DIAGNOSTICS).write_text(diagnostics.to_json(), encoding="utf-8")
    counts = {
        "traces": surveys["two"].corpus.totals["traces"],
        **{f"traces used for {name}": number for name, number in diagnostics.used_traces.items()},
        "parts not computed": len(diagnostics.skipped),
    }
    return Built(counts=counts)


@artifact(
    "diagnostic-figures",
    stage="estimate",
    inputs=(Input("transitions"), Input("diagnostics")),
    fields=lambda config: {
        "reward": clipped_ratios(config),
        "confidence": config.estimate.confidence,
        **labels(config),
    },
    sources=("mralign_core.reporting.diagnostic_figures",),
    without=without_pocket,
)
def draw_diagnostics(making: Making) -> Built:
    """Draw what the diagnostics say, as PNG and SVG."""
    transitions = transitions_of(making.store, making.config, making["transitions"])
    transitions = transitions._replace(form="ratio", leave_own_question_out=False)
    for name, figure in diagnostic_charts(read_diagnostics(making.store, making["diagnostics"]), transitions).items():
        (making.directory / f"{name}.png").write_bytes(to_png(figure))
        (making.directory / f"{name}.svg").write_text(to_svg(figure, name), encoding="utf-8")
    return Built()


def names_of_traces(config: RunConfig) -> tuple[str, str]:
    """The artifacts that matrices are estimated from: traces and their labels."""
    return ("thinking-draws", "draw-annotations") if config.estimate.uses_draws else ("candidates", "annotations")


def labelled_traces_of(
    store: ArtifactStore,
    config: RunConfig,
    candidates: ArtifactRef,
    annotations: ArtifactRef,
    labels_per_segment: str = "",
) -> Iterator[TraceBatch]:
    """The annotated traces, batch by batch; with as many labels a segment as the config says, if it is not said."""
    return read_trace_batches(
        store.open_file(candidates, "candidates.parquet"),
        store.open_file(annotations, "annotations.parquet"),
        labels_per_segment=labels_per_segment or config.estimate.labels_per_segment,
        with_votes=config.estimate.estimator == "hidden",
        taxonomy=label_set_of(config).taxonomy,
    )


def transitions_of(store: ArtifactStore, config: RunConfig, transitions: ArtifactRef) -> Transitions:
    """The estimated matrices, and how weights are made of them."""
    matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
    return Transitions.of(matrices, config.reward, config.estimate.confidence, label_set_of(config).taxonomy)


def read_diagnostics(store: ArtifactStore, diagnostics: ArtifactRef) -> Diagnostics:
    """What :func:`diagnose_transitions` found."""
    return Diagnostics.from_json(store.open_file(diagnostics, DIAGNOSTICS).read_text(encoding="utf-8"))


def sensitivity_of(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> Sensitivity:
    """How far the weights move with other settings; nothing is stored."""
    require_chosen_traces(config, {"candidates": candidates})
    store = ArtifactStore(config.storage)
    survey = _survey(config, store, candidates, annotations, config.estimate.labels_per_segment)
    return weight_sensitivity(
        survey, config.estimate, config.reward.of_paper_form, taxonomy=label_set_of(config).taxonomy
    )


def _survey(
    config: RunConfig, store: ArtifactStore, candidates: ArtifactRef, annotations: ArtifactRef, labels_per_segment: str
) -> Survey:
    """The annotated traces with one or two labels a segment; the samples are of the same traces."""
    batches = labelled_traces_of(store, config, candidates, annotations, labels_per_segment)
    return survey_traces(batches, label_set_of(config).taxonomy.num_states, np.random.default_rng([config.seed, 8]))
