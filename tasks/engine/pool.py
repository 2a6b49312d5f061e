"""Hand work to the GPU work pool: child runs of a deployment, whose artifacts the caller then finds in the store."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import deployment
from prefect.states import Cancelling
from pydantic_core import to_jsonable_python

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, StorageError
from mralign_core.storage import ArtifactStore
from tasks.engine.naming import name_of, queue_of
from tasks.engine.progress import progress
from tasks.engine.run import Work
from tasks.engine.session import root_flow_run_id

logger = logging.getLogger("mralign_core.pool")
POLL_S = 5.0


def make_on_pool(
    deployment_name: str,
    works: Sequence[Work],
    parameters: Callable[[Sequence[Work]], Mapping[str, Any]],
    *,
    config: RunConfig,
    section: str,
    neighbours_together: bool = False,
) -> None:
    """Have artifacts made by child runs of a deployment, those that are not finished, and wait.

    Args:
        deployment_name: flow and deployment.
        works: what is to be made.
        parameters: what a child is given besides the config, to make its share.
        config: the run config.
        section: its section that asks for the pool; the child does its share in its own process.
        neighbours_together: give each child neighbours, rather than every n-th.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: a child run did not complete; what it made is kept.
    """
    if deployment.name == deployment_name.partition("/")[2]:
        return  # this is the run on the pool: a child of its own would wait for this run's place on the pool
    store = ArtifactStore(config.storage)
    missing = [work for work in works if not work.is_finished(store)]
    if not missing:
        return
    asked = getattr(config, section)
    inline = config.model_copy(update={section: asked.model_copy(update={"where": "inline"})}).model_dump(mode="json")
    num_children = min(getattr(asked, "num_workers", 1), len(missing))
    size = math.ceil(len(missing) / num_children)
    shares = (
        [missing[first : first + size] for first in range(0, len(missing), size)]
        if neighbours_together
        else [missing[number::num_children] for number in range(num_children)]
    )
    with progress(f"{section} on the pool", f"{section}-on-pool") as report:
        left = list(missing)

        def look() -> None:
            left[:] = [work for work in left if not work.is_finished(store)]
            report(len(missing) - len(left), len(missing))

        calls = [{"config": inline, **to_json(parameters(share))} for share in shares]
        run_children(deployment_name, calls, field=f"{section}.where", look=look)


def to_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a flow as the server takes them: artifacts as their JSON form."""
    return {name: to_jsonable_python(value) for name, value in parameters.items()}


def run_children(
    name: str, parameters: Sequence[Mapping[str, Any]], *, field: str, look: Callable[[], None] | None = None
) -> None:
    """Start a run of a deployment for each set of parameters, and wait for all of them.

    An error here, or the cancellation of this run, cancels those that are under way.

    Args:
        name: flow and deployment.
        parameters: of each run.
        field: config field that asks for it, for messages.
        look: called while waiting, a few times a minute.
    """
    children: list[UUID] = []
    try:
        for number, each in enumerate(parameters):
            children.append(_start(name, each, number, field))
        _wait(name, children, look)
    except BaseException:
        _cancel(children)
        raise


def _start(name: str, parameters: Mapping[str, Any], number: int, field: str) -> UUID:
    root = root_flow_run_id()
    run_name = f"{name_of(root)}-{name.partition('/')[0]}-{number}"
    queue = queue_of(root)  # what is urgent is so on all pools
    try:
        # Typed as perhaps a coroutine, because the same function serves async callers; here it is not one.
        run = cast(
            FlowRun,
            run_deployment(name, parameters=dict(parameters), flow_run_name=run_name, work_queue_name=queue, timeout=0),
        )
    except ObjectNotFound:
        raise ConfigError(
            f"{field} is 'deployment', but this Prefect server has no deployment {name!r}: run `make serve` or "
            f"`prefect deploy --all`, or set {field} to 'inline'"
        ) from None
    return run.id


def _wait(name: str, children: Sequence[UUID], look: Callable[[], None] | None) -> None:
    ended: dict[UUID, FlowRun] = {}
    has_warned = False
    with get_client(sync_client=True) as client:
        while len(ended) < len(children):
            time.sleep(POLL_S)
            for run in _read(client, [child for child in children if child not in ended]):
                if run.state is not None and run.state.is_final():
                    ended[run.id] = run
                elif run.state is not None and run.state.name == "Late" and not has_warned:
                    has_warned = True
                    logger.warning(
                        "no worker has taken run %r of %s yet: is one started on its pool, and free?", run.name, name
                    )
            if look:
                with contextlib.suppress(StorageError):  # it is for the eye; the runs go on
                    look()
    failed = [run for run in ended.values() if run.state is None or not run.state.is_completed()]
    if failed:
        listed = ", ".join(f"{run.name!r} ended as {run.state and run.state.name}" for run in failed)
        raise RuntimeError(f"{listed}: see the log of that run; what it finished is kept, and run again goes on there")
    logger.info("%d run(s) of %s completed on the pool", len(children), name)


def _read(client: SyncPrefectClient, children: Sequence[UUID]) -> list[FlowRun]:
    """The runs as the server knows them; none while it is out of reach, which the runs themselves outlast."""
    try:
        return [client.read_flow_run(child) for child in children]
    except httpx.TransportError as error:
        logger.warning("the Prefect server is out of reach (%s); still waiting", error)
        return []


def _cancel(children: Sequence[UUID]) -> None:
    """Cancel what is under way; the error that led here matters more than one of telling the server."""
    with get_client(sync_client=True) as client:
        for child in children:
            try:
                run = client.read_flow_run(child)
                if run.state is None or not run.state.is_final():
                    client.set_flow_run_state(child, Cancelling())
            except (httpx.HTTPError, PrefectException) as error:
                logger.warning("run %s could not be cancelled (%r): cancel it in the UI", child, error)
