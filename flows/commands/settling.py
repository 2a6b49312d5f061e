"""Put right what the server believes of runs whose process is gone, and cancel what nobody waits for any more.

A run of the command line carries the identity of its process as a tag; a run of a worker has the worker's name as a
label, and the process has the run's id in its environment. A child of a run that is over or lost is cancelled, so that
no worker begins it. A run that does not show that it is of this host, or that is not of this project, is left alone: it
may be of another host, a container or another user, where its heartbeats tell of it, or of another program, whose
children may well outlive it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Literal
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Cancelling, Crashed, State

from mralign_core.processes.family import Identity, this_process

logger = logging.getLogger("mralign_core.settling")

Workers = Literal["none", "here", "elsewhere"]
"""Whether none of `make serve`'s workers lives, or they do on this host; of workers elsewhere nothing is known."""
TAG = "process "
"""Begins the tag that says which process a run of the command line is in."""
OURS = "mr-align"
"""The tag that all deployments of this project give their runs."""
PAGE = 200
BEGUN = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
UNFINISHED = (*BEGUN, StateType.SCHEDULED)
RUN_ID = "PREFECT__FLOW_RUN_ID"
"""In the environment of a worker's processes."""
WORKER = "prefect.worker.name"
"""The label by which a worker signs the runs that it takes."""


def worker_name(pool: str) -> str:
    """The name of the worker that `make serve` starts for a pool, by which its runs are known to be of this host."""
    return f"{pool}{_of_this_host()}"


def _of_this_host() -> str:
    return f" of make serve on {socket.gethostname()}"


def process_tag() -> str:
    """The tag for runs of this process."""
    return f"{TAG}{this_process()}"


def settle_lost_runs(client: SyncPrefectClient, workers: Workers) -> list[str]:
    """Settle every unfinished run whose process or whose parent is gone.

    Args:
        client: of the server.
        workers: where the workers are that take this server's runs.

    Returns:
        A line for each run, of what it is now.
    """
    return [_settle(client, run, state) for run, state in _Fates(client, workers).lost()]


def settle_records() -> None:
    """Settle the lost runs of the command line in the records of the embedded server, saying which."""
    try:
        with get_client(sync_client=True) as client:
            for line in settle_lost_runs(client, "elsewhere"):
                logger.warning("%s", line)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("runs whose process is gone may still show as Running: %r", error)


def crash_own_runs(client: SyncPrefectClient, message: str) -> list[str]:
    """End the unfinished runs of this process in the records, and cancel their children on pools.

    Args:
        client: of the server.
        message: why they ended.

    Returns:
        A line for each run, of what it is now.
    """
    own = _read(client, FlowRunFilter(tags=FlowRunFilterTags(all_=[process_tag()])))
    cancelled = [_settle(client, run, Cancelling(message=message)) for run in _children(client, own)]
    unfinished = [run for run in own if not _is_final(run)]
    return cancelled + [_settle(client, run, Crashed(message=message)) for run in unfinished]


class _Fates:
    """What became of runs."""

    def __init__(self, client: SyncPrefectClient, workers: Workers) -> None:
        self._client = client
        self._workers = workers
        self._runs = _read(client, _of_types(UNFINISHED))
        self._at_work = _runs_at_work()  # after the runs: one that begins between the two is not taken for lost
        self._parents: dict[UUID, FlowRun | None] = {}

    def lost(self) -> Iterator[tuple[FlowRun, State]]:
        """The runs to settle, and the state that fits each."""
        for run in self._runs:
            state = self._fate(run)
            # A process may have told the server how it ended after its run was read, and before it was looked for.
            if state and self._client.read_flow_run(run.id).state == run.state:
                yield run, state

    def _fate(self, run: FlowRun) -> State | None:
        is_cancelling = run.state is not None and run.state.type == StateType.CANCELLING
        parent = self._parent(run)
        if not self._is_ours(run):
            return None
        if self._has_no_process(run):
            gone = "Its process is gone."
            return Cancelled(message=gone) if is_cancelling else Crashed(message=gone)
        if run.deployment_id and parent and self._is_ours(parent) and self._is_over(parent) and not is_cancelling:
            return Cancelling(message=f"Its parent run {parent.name!r} is over.")  # a worker ends its process
        return None

    def _is_ours(self, run: FlowRun) -> bool:
        if run.deployment_id or run.parent_task_run_id is None:
            return OURS in run.tags or _identity(run) is not None
        parent = self._parent(run)
        return _identity(run) is not None or (parent is not None and self._is_ours(parent))

    def _is_over(self, run: FlowRun) -> bool:
        """Whether nobody is there any more to wait for this run's children."""
        parent = self._parent(run)
        return _is_final(run) or self._has_no_process(run) or (parent is not None and self._is_over(parent))

    def _has_no_process(self, run: FlowRun) -> bool:
        """Whether it must have a process, and has none."""
        if run.deployment_id:
            has_begun = run.state is not None and run.state.type in BEGUN
            may_begin = self._workers == "here" and not run.infrastructure_pid
            is_here = str(run.labels.get(WORKER, "")).endswith(_of_this_host())
            is_known = is_here and self._workers != "elsewhere" and not may_begin
            return has_begun and is_known and run.id not in self._at_work
        identity = _identity(run)
        if identity:
            return identity.is_here and not identity.is_running
        parent = self._parent(run)  # an ordinary subflow, in the process of its parent
        return parent is not None and (_is_final(parent) or self._has_no_process(parent))

    def _parent(self, run: FlowRun) -> FlowRun | None:
        if run.parent_task_run_id is None:
            return None
        if run.id not in self._parents:
            self._parents[run.id] = self._read_parent(run.parent_task_run_id)
        return self._parents[run.id]

    def _read_parent(self, task_run_id: UUID) -> FlowRun | None:
        try:
            caller = self._client.read_task_run(task_run_id)
            return self._client.read_flow_run(caller.flow_run_id) if caller.flow_run_id else None
        except ObjectNotFound:
            return None


def _settle(client: SyncPrefectClient, run: FlowRun, state: State) -> str:
    if not state.is_final():  # the server decides what cancelling means for a run that has not begun
        client.set_flow_run_state(run.id, state)
        return f"run {run.name!r} ({run.id}) is cancelled: {state.message}"
    client.set_flow_run_state(run.id, state, force=True)
    begun = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=list(BEGUN))))
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task_run in client.read_task_runs(flow_run_filter=of_run, task_run_filter=begun):
        client.set_task_run_state(task_run.id, Crashed(message=state.message), force=True)
    return f"run {run.name!r} ({run.id}) is {state.name} now: {state.message}"


def _identity(run: FlowRun) -> Identity | None:
    found = (Identity.parse(tag.removeprefix(TAG)) for tag in run.tags if tag.startswith(TAG))
    return next(found, None)


def _runs_at_work() -> set[UUID]:
    """The runs that have a worker's process on this host."""
    found = set()
    for process in psutil.process_iter():
        try:
            run_id = process.environ().get(RUN_ID)
            if run_id and process.status() != psutil.STATUS_ZOMBIE:
                found.add(UUID(run_id))
        except (psutil.Error, OSError, ValueError):
            continue
    return found


def _children(client: SyncPrefectClient, parents: list[FlowRun]) -> list[FlowRun]:
    """The unfinished runs of deployments that these runs started."""
    if not parents:
        return []
    of_parents = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id for run in parents]),
        state=_of_types(UNFINISHED).state,
    )
    return [run for run in _read(client, of_parents) if run.deployment_id]


def _of_types(types: tuple[StateType, ...]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))


def _read(client: SyncPrefectClient, which: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=which, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=PAGE, offset=len(found)
        )
        found += page
        if len(page) < PAGE:
            return found


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
