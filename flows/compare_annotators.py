"""Would other annotators have labelled the traces alike, and what would that change? (App. B.3–B.5)"""

from __future__ import annotations

from prefect import flow

from flows.annotate import annotate_all
from flows.form import CompareForm
from mralign_core.storage import ArtifactRef
from tasks.annotate import require_rated
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
    others = {each.name: config.model_copy(update={"annotate": each.annotate}) for each in config.compare.panels}
    for its_config in others.values():  # all of them, before one is paid
        require_rated(its_config, candidates)
    panels |= {name: annotate_all(its_config, candidates) for name, its_config in others.items()}
    agreement = compare_annotations(config, candidates, panels)
    remember(config, inputs, agreement=agreement)
    show_agreement(config, agreement)
    return agreement
