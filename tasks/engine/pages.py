"""Artifacts on the page of a run in the Prefect UI: a key is there once, whoever tells it again."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact as StoredArtifact

logger = logging.getLogger("mralign_core.pages")
REMOVE_S = 5.0
"""For what is kept fresh to be taken away; a cancelled run does not wait longer."""


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


@contextlib.contextmanager
def not_stopping(what: str, level: int = logging.WARNING) -> Iterator[None]:
    """Go on where something of a page can't be shown: it is for the eye.

    Args:
        what: is not shown then.
        level: at which the log says so.
    """
    try:
        yield
    except Exception as error:
        logger.log(level, "the run's page lacks its %s: %s", what, error)


@contextlib.contextmanager
def kept_fresh(
    what: str, show: Callable[[], None], every_s: float, remove: Callable[[], None], level: int = logging.WARNING
) -> Iterator[None]:
    """Show something on a page, at once and every so many seconds, while work goes on, and take it away at its end.

    Args:
        what: it is.
        show: shows it as it is now; called in a thread beside the work.
        every_s: seconds between two calls.
        remove: takes it off the page; called in that thread.
        level: see :func:`not_stopping`, which holds for both.
    """
    ended = threading.Event()

    def refresh() -> None:
        is_over = False
        while not is_over:
            with not_stopping(what, level):
                show()
            is_over = ended.wait(every_s)
        with not_stopping(what, level):
            remove()

    thread = threading.Thread(target=copy_context().run, args=(refresh,), name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(REMOVE_S)
