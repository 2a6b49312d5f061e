"""One task of a stage in this process, with no server: what ``mralign task`` calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.intake import resolve
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.graph import Artifact, Part, artifact_of, graph, named_by_caller
from tasks.engine.last_run import LastRun
from tasks.engine.run import Work
from tasks.engine.session import session
from tasks.engine.shards import lay_out


class Inputs:
    """The artifacts a task reads: the one named on the command line, else the last run's."""

    def __init__(self, config: RunConfig, named: Mapping[str, str]) -> None:
        self._config = config
        self._named = named
        self._last_run = LastRun(config)

    def __call__(self, name: str) -> ArtifactRef:
        """The artifact of this name.

        Raises:
            ArtifactError: there is none, or more than one fits.
        """
        if name in self._named:
            return ArtifactStore(self._config.storage).resolve(self._named[name])
        return self._last_run(name)


def run_one(config: RunConfig, stage: str, *, shard: int, variant: str, named: Mapping[str, str]) -> ArtifactRef:
    """Have the main artifact of a stage made; of one that is made in shards, one shard.

    Args:
        config: the run config; its references stand for what the last run of its name resolved them to.
        stage: which stage, or the name of an artifact.
        shard: which shard.
        variant: which variant, of what is made for each.
        named: artifact name → URI, ``stage/key`` or key prefix, in place of the last run's.

    Raises:
        ConfigError: there is no such shard or variant.
    """
    config = resolve(config, ArtifactStore(config.storage), prefers_recorded=True).config
    artifact = main_of(stage, config)
    if any(each.each is named_by_caller for each in artifact.inputs):
        raise ConfigError(
            f"{artifact.name} is not made by itself: its command is mralign {artifact.stage.replace('_', '-')}"
        )
    if not artifact.parts(config):
        raise ConfigError(f"{artifact.name} is not made under this config; mralign run --dry-run lists what is")
    inputs = Inputs(config, named)
    with session():
        part = _part(artifact, config, variant)
        work = Work(artifact, config, _inputs(artifact, config, part, inputs), part)
        return _make_shard(work, shard) if artifact.is_shard else work.produce().ref


def main_of(stage: str, config: RunConfig) -> Artifact:
    """The artifact of a name, or the main one of a stage.

    Raises:
        ConfigError: there is none.
    """
    everything = graph()
    for artifact in everything.values():
        if artifact.name == stage or (artifact.stage == stage and artifact.is_main(config)):
            return artifact
    raise ConfigError(f"no artifact {stage!r}: name a stage or one of {', '.join(everything)}")


def _inputs(artifact: Artifact, config: RunConfig, part: Part, inputs: Inputs) -> dict[str, ArtifactRef]:
    """What it reads; what no run remembers, because only its own stage reads it, is made here."""
    read: dict[str, ArtifactRef] = {}
    for each in artifact.inputs:
        for name in each.names(config, part):
            needed = artifact_of(name)
            if needed.is_remembered:
                read[each.role(name)] = inputs(name)
            else:
                read[each.role(name)] = Work(needed, config, _inputs(needed, config, {}, inputs)).produce().ref
    return read


def _part(artifact: Artifact, config: RunConfig, variant: str) -> dict[str, Any]:
    """The part with a variant.

    Raises:
        ConfigError: there is none.
    """
    if not artifact.part:
        return {}
    joined = [one for one in graph().values() if one.shards and one.shards.name == artifact.name]
    variants = [part["variant"] for part in (joined[0] if joined else artifact).parts(config)]
    if variant not in variants:
        raise ConfigError(f"--variant {variant}: {artifact.name} is made for {', '.join(variants)}")
    return {"variant": variant}


def _make_shard(work: Work, shard: int) -> ArtifactRef:
    """The shard of a number, of those that a run would use: found where it is there, else made."""
    joined = next(one for one in graph().values() if one.shards and one.shards.name == work.artifact.name)
    layout = lay_out(Work(joined, work.config, work.inputs, work.part), ArtifactStore(work.config.storage))
    shards = layout.in_order()
    if shard >= len(shards):
        raise ConfigError(f"--shard {shard}: there are {len(shards)} shards, numbered from 0")
    rows, found = shards[shard]
    return found or Work(work.artifact, work.config, work.inputs, work.part, tuple(rows)).produce().ref
