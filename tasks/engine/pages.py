"""Artifacts on the page of a run in the Prefect UI: a key is there once, whoever tells it again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact as StoredArtifact


def put_on_page(page: UUID, artifact: Artifact) -> None:
    """Create an artifact on a run's page, or put it in the place of the one that has its key there.

    So a stage that a run goes through twice, as in a world of an ablation or when a run is retried, is shown once.

    Args:
        page: id of the flow run.
        artifact: what to show, with a key.
    """
    there = artifacts_on_page(page, artifact.key)
    if not there:
        artifact.model_copy(update={"flow_run_id": page}).create()
        return
    data: Any = artifact.format()
    with get_client(sync_client=True) as client:
        client.update_artifact(there[0].id, ArtifactUpdate(data=data, description=artifact.description))


def artifacts_on_page(page: UUID, key: str | None = None) -> list[StoredArtifact]:
    """The artifacts of a run's page; those of a key, where one is given."""
    of_page = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[page]), key=ArtifactFilterKey(any_=[key]) if key else None
    )
    with get_client(sync_client=True) as client:
        return list(client.read_artifacts(artifact_filter=of_page))
