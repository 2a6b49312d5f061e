"""A worker of processes that ends cancelled runs in seconds: ``python -m deployments.worker --pool a800 --limit 1``.

It takes the options of ``prefect worker start``, and is that command but for two things, which Prefect 3.8 has no
settings for: a cancelled run's process has :data:`GRACE_S` to end, in place of 30 s, and is looked at every second, in
place of every three; and no Python is started to import the flow, and with it torch, for the sake of hooks that no flow
of this project has. While these last, the run is "Cancelling".
"""

from __future__ import annotations

import functools
import sys
from typing import Any
from uuid import UUID

from prefect.runner._process_manager import ProcessManager
from prefect.runner._workspace_hook_runner import WorkspaceHookRunner

GRACE_S = 6.0
"""For a run to end its children, tell the server and flush its log; Prefect looks every second."""


def hasten_cancelling() -> None:
    """Change Prefect's runner in this process, as the module says. Can go when Prefect has settings for both."""
    ProcessManager.kill = _within_grace(ProcessManager.kill)  # type: ignore[method-assign]
    WorkspaceHookRunner._run = _run_no_hook  # type: ignore[method-assign,assignment]


def _within_grace(kill: Any) -> Any:
    @functools.wraps(kill)
    async def kill_sooner(
        self: ProcessManager, flow_run_id: UUID, grace_seconds: float = GRACE_S, *, force: bool = False
    ) -> None:
        await kill(self, flow_run_id, min(grace_seconds, GRACE_S), force=force)

    return kill_sooner


async def _run_no_hook(self: WorkspaceHookRunner, *_: Any) -> None:
    """No flow of this project has hooks (a test sees to it)."""


def main() -> None:
    """Be the worker."""
    from prefect.cli import app

    hasten_cancelling()
    sys.argv = ["prefect", "worker", "start", "--type", "process", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
