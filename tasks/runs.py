"""What the last run of a config made, so that one stage or one task can start where it ended."""

from __future__ import annotations

from mralign_core.config import RunConfig
from mralign_core.errors import ArtifactError
from mralign_core.storage import ArtifactRef, ArtifactStore

STAGES = ("prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate")
MADE_BY = {
    "questions": "prepare",
    "model": "prepare",
    "generations": "generate",
    "candidates": "generate",
    "annotations": "annotate",
    "transitions": "estimate",
    "diagnostics": "estimate",
    "rewards": "reward",
    "adapter": "train",
    "report": "evaluate",
}


def remember(config: RunConfig, **artifacts: ArtifactRef) -> None:
    """Note the artifacts of a run under the config's name."""
    store = ArtifactStore(config.storage)
    record = store.get_json(_record(config)) or {}
    store.put_json(_record(config), {**record, **{name: ref.model_dump() for name, ref in artifacts.items()}})


def last_run(config: RunConfig, name: str) -> ArtifactRef:
    """The artifact of the last run of this config's name.

    Raises:
        ArtifactError: no such run made one; the message names the stage to run first.
    """
    record = ArtifactStore(config.storage).get_json(_record(config)) or {}
    if name not in record:
        stage = MADE_BY[name.partition(":")[0]]
        raise ArtifactError(
            f"no run of config {config.name!r} in {config.storage.root} has made {name!r} yet: run stage {stage!r} "
            f"first (mralign run --config {config.name} --only {stage}), or name an artifact (--input {name}=…, where "
            "the command has it)"
        )
    return ArtifactRef.model_validate(record[name])


def last_adapters(config: RunConfig) -> dict[str, ArtifactRef]:
    """Variant → adapter of the last run."""
    return {variant: last_run(config, f"adapter:{variant}") for variant in config.train.variants}


def _record(config: RunConfig) -> str:
    return f"runs/{config.name}"
