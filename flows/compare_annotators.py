"""Would other annotators have labelled the traces alike, and what would that change? (App. B.3–B.5)"""

from __future__ import annotations

from prefect import flow

from flows.annotate import annotate_all
from flows.form import CompareForm
from mralign_core.storage import ArtifactRef
from tasks.compare_annotators import RUN, compare_annotations
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.publish import show_agreement


@flow(name="compare-annotators", flow_run_name=name_run)
def compare_annotators(
    config: CompareForm,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
) -> ArtifactRef:
    """Annotate the candidates with each panel of ``compare.panels``, and compare all annotation sets.

    Args:
        config: a preset, and what differs from it.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels, the run's own; the last run's when empty.
    """
    inputs = inputs_of(config, {"candidates": candidates, "annotations": annotations})
    candidates, panels = inputs["candidates"], {RUN: inputs["annotations"]}
    for panel in config.compare.panels:
        panels[panel.name] = annotate_all(config.model_copy(update={"annotate": panel.annotate}), candidates)
    agreement = compare_annotations(config, candidates, panels)
    remember(config, inputs, agreement=agreement)
    show_agreement(config, agreement)
    return agreement
