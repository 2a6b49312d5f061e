"""The worker of processes: a run that does not heed its end is killed within seconds, not thirty."""

import asyncio
import sys
import time
from typing import Any
from uuid import uuid4

import anyio
from prefect.runner._process_manager import ProcessHandle, ProcessManager
from prefect.runner._workspace_hook_runner import WorkspaceHookRunner

from deployments import worker

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def test_a_run_that_is_deaf_to_its_end_is_killed_within_the_grace(monkeypatch):
    monkeypatch.setattr(ProcessManager, "kill", ProcessManager.kill)  # both are put back
    monkeypatch.setattr(WorkspaceHookRunner, "_run", WorkspaceHookRunner._run)
    monkeypatch.setattr(worker, "GRACE_S", 1.0)
    worker.hasten_cancelling()

    async def kill():
        run = uuid4()
        async with ProcessManager() as manager, await anyio.open_process([sys.executable, "-c", DEAF]) as process:
            assert process.stdout
            await process.stdout.receive()
            await manager.add(run, ProcessHandle(process))
            began = time.monotonic()
            await manager.kill(run, grace_seconds=30)
            await process.wait()
            run_hook: Any = WorkspaceHookRunner._run
            await run_hook(None, "cancellation", None, None)  # nothing is started, nothing read
            return time.monotonic() - began

    assert asyncio.run(kill()) < 5
