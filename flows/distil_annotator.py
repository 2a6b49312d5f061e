"""An annotator that learns from labels that were paid for or that people gave, and labels the rest at no price."""

from __future__ import annotations

from prefect import flow

from flows.form import DistilForm
from mralign_core.storage import ArtifactRef
from tasks.distil_annotator import distil_labels, learns_from, publish_distilled
from tasks.engine.last_run import inputs_of, remember
from tasks.engine.naming import name_run
from tasks.engine.task import as_arguments
from tasks.publish import show_distilled


@flow(name="distil-annotator", flow_run_name=name_run)
def distil_annotator(
    config: DistilForm,
    candidates: ArtifactRef | None = None,
    annotations: ArtifactRef | None = None,
) -> ArtifactRef:
    """Distil an annotator, and publish it: ``annotate.annotator_a: local/NAME`` uses it.

    Args:
        config: a preset, and what differs from it; section ``distil`` says what it learns from, and its name.
        candidates: artifact of the kept traces; the last run's when empty.
        annotations: artifact of their labels; the last run's when empty.
    """
    given = {"candidates": candidates, "annotations": annotations}
    inputs = inputs_of(config, {name: given[name] for name in learns_from(config)})
    distillation = distil_labels(config, **as_arguments(inputs))
    annotator = publish_distilled(config, distillation)
    remember(config, inputs, distillation=distillation)
    show_distilled(config, distillation, annotator)
    return annotator
