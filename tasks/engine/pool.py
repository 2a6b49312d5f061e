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

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, StorageError
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.progress import progress
from tasks.evaluate import scores_shard_work, shards_to_score
from tasks.generate import generation_shards, shard_work
from tasks.train import adapter_work, needs_reference, reference_work

logger = logging.getLogger("mralign_core.dispatch")
POLL_S = 5.0
TRAIN, GENERATE, EVALUATE = "train/train", "generate-shards/generate-shards", "score-shards/score-shards"


def train_on_pool(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> None:
    """Train on the pool what is not trained yet, and wait.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: the child run did not complete.
    """
    if deployment.name == TRAIN.partition("/")[2]:
        return  # this is the run on the pool: a child of its own would wait for this run's place on the pool
    store = ArtifactStore(config.storage)
    traces = {name: inputs[name] for name in ("model", "candidates", "annotations")}
    variants = config.train.variants
    reference = reference_work(config, **traces).find(store) if needs_reference(variants) else None
    if (reference or not needs_reference(variants)) and all(
        adapter_work(config, variant, **inputs, reference=reference).find(store) for variant in variants
    ):
        return
    run_children(TRAIN, [_parameters(config, "train", inputs)], field="train.where")


def generate_on_pool(config: RunConfig, questions: ArtifactRef, model: ArtifactRef) -> None:
    """Sample on the pool the shards that are not finished yet, in ``generate.num_workers`` child runs, and wait.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: a child run did not complete; what its shards made is kept.
    """
    store = ArtifactStore(config.storage)
    shards = generation_shards(config, questions, model)
    missing = [shard for shard in shards if not shard_work(config, questions, model, *shard).is_finished(store)]
    if not missing:
        return
    parameters = _parameters(config, "generate", {"questions": questions, "model": model})
    shares = [missing[worker :: config.generate.num_workers] for worker in range(config.generate.num_workers)]
    with progress("sampling shards on the pool", "generation-shards") as report:

        def look() -> None:
            missing[:] = [
                shard for shard in missing if not shard_work(config, questions, model, *shard).is_finished(store)
            ]
            report(len(shards) - len(missing), len(shards))

        run_children(
            GENERATE,
            [{**parameters, "shards": share} for share in shares if share],
            field="generate.where",
            look=look,
        )


def evaluate_on_pool(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, adapters: Mapping[str, ArtifactRef]
) -> None:
    """Score on the pool what is not scored yet, in ``evaluate.num_workers`` child runs, and wait.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: a child run did not complete; what its shards made is kept.
    """
    store = ArtifactStore(config.storage)
    missing = [
        (variant, start, end)
        for variant, start, end in shards_to_score(config, questions, model, adapters)
        if not scores_shard_work(config, variant, questions, model, adapters.get(variant), start=start, end=end).find(
            store
        )
    ]
    if not missing:
        return
    parameters = _parameters(config, "evaluate", {"questions": questions, "model": model})
    parameters["adapters"] = {name: ref.model_dump(mode="json") for name, ref in adapters.items()}
    # Neighbours together: a worker then loads few variants.
    size = math.ceil(len(missing) / config.evaluate.num_workers)
    shares = [missing[first : first + size] for first in range(0, len(missing), size)]
    run_children(EVALUATE, [{**parameters, "shards": share} for share in shares], field="evaluate.where")


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
    run_name = f"{parameters['config']['name']}-{name.partition('/')[2]}-{number}"
    try:
        # Typed as perhaps a coroutine, because the same function serves async callers; here it is not one.
        run = cast(FlowRun, run_deployment(name, parameters=dict(parameters), flow_run_name=run_name, timeout=0))
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


def _parameters(config: RunConfig, stage: str, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
    """What a child is given: the config, with this stage in its own process, and its inputs."""
    section = getattr(config, stage).model_copy(update={"where": "inline"})
    return {
        "config": config.model_copy(update={stage: section}).model_dump(mode="json"),
        **{name: ref.model_dump(mode="json") for name, ref in inputs.items()},
    }
