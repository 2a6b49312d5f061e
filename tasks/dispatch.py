"""Hand the train stage to the GPU work pool: a child run of deployment ``train/train``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.train import adapter_work

logger = logging.getLogger("mralign_core.dispatch")
TRAIN_DEPLOYMENT = "train/train"


def run_on_pool(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> None:
    """Train on the pool what is not trained yet, and wait; the caller finds the adapters in the store afterwards.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: the child run did not complete.
    """
    if deployment.name == TRAIN_DEPLOYMENT.partition("/")[2]:
        return  # this is the run on the pool: a child of its own would wait for this run's place on the pool
    store = ArtifactStore(config.storage)
    if all(adapter_work(config, variant, **inputs).find(store) for variant in config.train.variants):
        return
    inline = config.model_copy(update={"train": config.train.model_copy(update={"where": "inline"})})
    parameters = {
        "config": inline.model_dump(mode="json"),
        **{name: ref.model_dump(mode="json") for name, ref in inputs.items()},
    }
    try:
        # Typed as perhaps a coroutine, because the same function serves async callers; here it is not one.
        child = cast(
            FlowRun, run_deployment(TRAIN_DEPLOYMENT, parameters=parameters, flow_run_name=f"{config.name}-train")
        )
    except ObjectNotFound:
        raise ConfigError(
            f"train.where is 'deployment', but this Prefect server has no deployment {TRAIN_DEPLOYMENT!r}: run "
            "`make serve` or `prefect deploy --all`, or set train.where to 'inline'"
        ) from None
    if child.state is None or not child.state.is_completed():
        raise RuntimeError(f"training run {child.name!r} ended as {child.state and child.state.name}: see its log")
    logger.info("training run %r completed on the pool", child.name)
