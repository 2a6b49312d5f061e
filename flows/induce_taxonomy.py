"""A label set of one's own: what moves do these traces make, in a model's own words? (App. B.1)"""

from __future__ import annotations

from prefect import flow

from flows.form import InduceForm
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import last_run
from tasks.engine.naming import name_run
from tasks.induce_taxonomy import induce_labels
from tasks.publish import show_label_set


@flow(name="induce-taxonomy", flow_run_name=name_run)
def induce_taxonomy(config: InduceForm, candidates: ArtifactRef | None = None) -> ArtifactRef:
    """Induce a label set; name its file in ``annotate.label_set`` to use it.

    Args:
        config: the run config; section ``induce`` says how.
        candidates: artifact of the kept traces; the last run's when empty.
    """
    label_set = induce_labels(config, candidates or last_run(config, "candidates"))
    show_label_set(config, label_set)
    return label_set
