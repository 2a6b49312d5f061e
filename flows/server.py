"""Which Prefect server a shell run reports to: yours, the one ``make serve`` started, or an embedded one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx

from flows.embedded import start_embedded_server

SERVE_API_URL = f"http://127.0.0.1:{os.environ.get('MRALIGN_PORT', '4200')}/api"
EMBEDDED = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # The embedded server takes 20 to 36 s to start on a busy machine; Prefect gives it 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "mralign_core",
}


class ServerAddress(NamedTuple):
    """Where a run's page is, in words for the end of the run."""

    ui_hint: str


@contextlib.contextmanager
def use_server() -> Iterator[ServerAddress]:
    """Point Prefect at a server, before it is imported.

    ``PREFECT_API_URL`` or a profile of the user's is taken as it is. Otherwise Prefect's home is ``.mralign/prefect``
    under the working directory, which ``make serve`` uses too: what the embedded server records can be seen there.
    """
    for name, value in EMBEDDED.items():
        os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL") or os.environ.get("PREFECT_PROFILE"):
        yield ServerAddress(os.environ.get("PREFECT_API_URL", "in your Prefect profile").removesuffix("/api"))
        return
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".mralign/prefect").resolve())))
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder of it only, and else waits in vain
    if _is_serving(SERVE_API_URL):
        os.environ["PREFECT_API_URL"] = SERVE_API_URL
        yield ServerAddress(SERVE_API_URL.removesuffix("/api"))
        return
    os.environ["PREFECT_API_URL"] = start_embedded_server(_is_serving)
    from flows.settling import settle_records  # imports Prefect, which can now know its server

    settle_records()
    yield ServerAddress(f"start it with `make serve`, then open {SERVE_API_URL.removesuffix('/api')}/runs")


def wait_for_records(state: Any, timeout_s: float = 20.0) -> None:
    """Wait until the server has recorded every task run of a finished flow run.

    Task runs reach the server as events; an embedded server that stops with the process would lose the last ones.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    flow_run_id: UUID | None = state.state_details.flow_run_id
    if flow_run_id is None:
        return
    deadline = time.monotonic() + timeout_s
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            family = [flow_run_id, *_children(client, flow_run_id)]
            of_family = FlowRunFilter(id=FlowRunFilterId(any_=family))
            runs = client.read_task_runs(
                flow_run_filter=of_family, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=200
            )
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(0.5)


def _children(client: Any, flow_run_id: UUID) -> list[UUID]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort

    parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
    order = FlowRunSort.START_TIME_ASC
    return [run.id for run in client.read_flow_runs(flow_run_filter=parent, sort=order, limit=100)]


def _is_serving(api_url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{api_url}/health", timeout=1.0).status_code == 200
    return False
