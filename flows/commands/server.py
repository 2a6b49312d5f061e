"""Which Prefect server a shell run reports to: yours, the one ``make serve`` started, or an embedded one."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from flows.commands.door import PATIENT, QUIET
from flows.commands.embedded import start_embedded_server
from flows.commands.secret import SERVE_HOME, OwnServer, recognise
from mralign_core.errors import UserError

SERVE_API_URL = f"http://127.0.0.1:{os.environ.get('MRALIGN_PORT', '4200')}/api"
SETTINGS = {**QUIET, **PATIENT, "PREFECT_LOGGING_EXTRA_LOGGERS": "mralign_core"}


class NotServingError(UserError):
    """There is no server of this installation."""


class ServerAddress(NamedTuple):
    """Where a run's page is, in words for the end of the run."""

    ui_hint: str


EMBEDDED = ServerAddress(f"start it with `make serve`, then open {SERVE_API_URL.removesuffix('/api')}/runs")


@contextlib.contextmanager
def use_server() -> Iterator[ServerAddress]:
    """Point Prefect at a server, before it is imported.

    ``PREFECT_API_URL`` or a profile of the user's is taken as it is. Otherwise Prefect's home is ``.mralign/prefect``
    under the working directory, which ``make serve`` uses too: what the embedded server records can be seen there.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = _known_server() or _start_server()
    _tell_prefect()
    if address is EMBEDDED:
        from flows.commands.settling import settle_records  # imports Prefect, which can now know its server

        settle_records()
    yield address


def _known_server() -> ServerAddress | None:
    """The server that the user names, or has started, with what Prefect needs to reach it in the environment."""
    if url := os.environ.get("PREFECT_API_URL", ""):
        if not os.environ.get("PREFECT_API_AUTH_STRING") and (named := _own_server(url)):
            os.environ.update(named.environment())
        return ServerAddress(url.removesuffix("/api"))
    if os.environ.get("PREFECT_PROFILE") and (url := _configured_url()):
        return ServerAddress(url.removesuffix("/api"))
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".mralign/prefect").resolve())))
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder of it only, and else waits in vain
    if serving := _own_server(SERVE_API_URL):
        os.environ.update(serving.environment())
        return ServerAddress(SERVE_API_URL.removesuffix("/api"))
    files = [os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"), ".env", "prefect.toml", "pyproject.toml"]
    if any(_names_prefect(Path(file)) for file in files) and (url := _configured_url()):
        return ServerAddress(url.removesuffix("/api"))
    return None


def _start_server() -> ServerAddress:
    """An embedded server, in the environment."""
    embedded = start_embedded_server(_own_server, meanwhile=_import_libraries)
    # Where what this server records can be seen later: it has no UI itself.
    os.environ.setdefault("PREFECT_UI_URL", SERVE_API_URL.removesuffix("/api"))
    os.environ.update(embedded.environment())
    return EMBEDDED


def _tell_prefect() -> None:
    """Have Prefect read its settings anew where a command has imported it before its server was known."""
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _import_libraries() -> None:
    """Import what every flow needs and what takes seconds, but Prefect, which reads its settings when imported."""
    importlib.import_module("mralign_core.reporting.report")


def ui_link() -> str:
    """The link that opens the UI of ``make serve`` in a browser; it lets in whoever has it, until that server ends.

    Raises:
        NotServingError: it is not running.
    """
    if serving := _own_server(SERVE_API_URL):
        return serving.link()
    raise NotServingError(
        f"no server of this installation on {SERVE_API_URL.removesuffix('/api')}: start it with `make serve`; where it "
        "serves on another port, say MRALIGN_PORT=4300 mralign ui"
    )


def _own_server(api_url: str) -> OwnServer | None:
    """The server there if it is this installation's, started in this folder or in the checkout."""
    home = os.environ.get("PREFECT_HOME")
    return recognise(api_url, [Path(home) if home else Path(".mralign/prefect"), SERVE_HOME])


def _configured_url() -> str:
    """The server that a profile or another file of the user's names to Prefect; "" without one.

    Prefect is asked in a process of its own: in this one its settings would stay what they are when it is imported.
    """
    ask = "from prefect.settings import get_current_settings; print(get_current_settings().api.url or '')"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _names_prefect(file: Path) -> bool:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False
    return file.name == "prefect.toml" or "PREFECT_API_URL" in text or "tool.prefect" in text


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
