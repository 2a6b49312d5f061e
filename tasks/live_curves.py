"""The curves of a training that is under way, as a picture on the page of the run that its user started.

It is drawn anew at most every :data:`EVERY_S`, in a thread beside the training, and goes when the training ends: then
the stage shows the curves of all its variants.
"""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Iterator, Mapping
from uuid import UUID

from prefect.artifacts import ImageArtifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext

from mralign_core.reporting.curves_so_far import curves_so_far
from mralign_core.reporting.style import to_png
from mralign_core.reporting.titles import variant_title
from tasks.engine.pages import artifacts_on_page, kept_fresh, not_stopping, put_on_page
from tasks.engine.session import root_flow_run_id

EVERY_S = 30.0
FEWEST_ROWS = 2
"""A curve has two points or more."""


class LiveCurves:
    """The rows of one training, and their picture.

    Args:
        variant: what is trained.
        page: id of the run whose page shows them; None shows nothing.
    """

    def __init__(self, variant: str, page: UUID | None) -> None:
        self._variant = variant
        self._page = page
        self._rows: list[Mapping[str, float]] = []
        self._num_drawn = 0

    @property
    def key(self) -> str:
        """The artifact's."""
        return f"live-curves-{self._variant.replace('_', '-')}"

    def add(self, row: Mapping[str, float]) -> None:
        """Note a row of metrics."""
        self._rows.append(row)

    def draw(self) -> None:
        """Show all rows, if there are new ones."""
        rows = list(self._rows)
        if self._page is None or len(rows) < max(FEWEST_ROWS, self._num_drawn + 1):
            return
        png = base64.b64encode(to_png(curves_so_far(self._variant, rows))).decode()
        about = f"{variant_title(self._variant)} under way: step {int(rows[-1]['step']):,}"
        picture = ImageArtifact(key=self.key, description=about, image_url=f"data:image/png;base64,{png}")
        put_on_page(self._page, picture)
        self._num_drawn = len(rows)

    def remove(self) -> None:
        """Take the picture off the page."""
        if self._page is None or not self._num_drawn:
            return
        with get_client(sync_client=True) as client:
            for artifact in artifacts_on_page(self._page, self.key):
                client.delete_artifact(artifact.id)


@contextlib.contextmanager
def live_curves(variant: str) -> Iterator[LiveCurves]:
    """Show the curves of a training while it runs; what can't be shown does not stop it."""
    curves = LiveCurves(variant, _page())
    with kept_fresh("curves under way", curves.draw, EVERY_S, curves.remove, logging.DEBUG):
        yield curves


def _page() -> UUID | None:
    """Id of the run that a user started; None without one, as for a task outside a flow, or if it can't be told."""
    if (TaskRunContext.get() or FlowRunContext.get()) is None:
        return None
    with not_stopping("curves under way", logging.DEBUG):
        if run := root_flow_run_id():
            return UUID(run)
    return None
