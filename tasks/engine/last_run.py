"""What the last run of a config made, so that one stage or one task can start where it ended."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType

from prefect.runtime import flow_run

from mralign_core.config import RunConfig
from mralign_core.errors import ArtifactError
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecord, RunRecords
from tasks.engine.graph import stage_of
from tasks.engine.session import root_flow_run_id

_PROCESS = f"local-{uuid.uuid4()}"
"""This process, as a run without a flow."""


def remember(
    config: RunConfig, built_on: Mapping[str, ArtifactRef] = MappingProxyType({}), /, **made: ArtifactRef
) -> None:
    """Note under the config's name what a stage of this run made.

    A stage by itself, or one that took an input from the last run (:func:`inputs_of`), goes on from that: what it made
    is carried over, if it was built on the same. Other stages of a pipeline add to what their run has made.

    Args:
        config: the run config.
        built_on: what the stage was given, by name.
        made: what it made, by name.
    """
    records = RunRecords(ArtifactStore(config.storage), config.name)
    records.add(this_run(), built_on, made, goes_on=_is_by_itself(), traces_path=config.generate.traces_path)


class LastRun:
    """What the last run of a config's name made, as it was when this was first asked: always of one run.

    Args:
        config: the run config.
        run: this run, whatever others have made since; the last one when empty.
    """

    def __init__(self, config: RunConfig, run: str = "") -> None:
        self._config = config
        self.records = RunRecords(ArtifactStore(config.storage), config.name)
        self._run = run

    @functools.cached_property
    def record(self) -> RunRecord | None:
        """All of it; None where no run has made anything."""
        return (self.records.of(self._run) if self._run else None) or self.records.last()

    def __call__(self, name: str) -> ArtifactRef:
        """The artifact of a name.

        Raises:
            ArtifactError: the run did not make one; the message names the stage to run first.
        """
        if self.record is None or name not in self.record.artifacts:
            raise ArtifactError(self._missing(name))
        return self.record.artifacts[name]

    def _missing(self, name: str) -> str:
        config, stage = self._config, stage_of(name)
        remedy = (
            f"run stage {stage!r} first (mralign run --config {config.name} --only {stage}), or name an artifact "
            f"(--input {name}=…, where the command has it)"
        )
        if self.record is None:
            return f"no run of config {config.name!r} in {config.storage.root} has made {name!r} yet: {remedy}"
        earlier = (record.artifacts[name] for record in self.records.newest_first() if name in record.artifacts)
        hint = "".join(f"; the newest of an earlier run is {ref.stage}/{ref.key}" for ref in islice(earlier, 1))
        return (
            f"the last run of config {config.name!r} in {config.storage.root}, of {self.record.at:%Y-%m-%d %H:%M} "
            f"UTC, has not made {name!r}: {remedy}{hint}"
        )


def last_traces(config: RunConfig) -> str:
    """The file of traces that the last run of this config's name started from; empty where it sampled them itself."""
    record = LastRun(config).record
    return record.traces_path if record else ""


def made_so_far(config: RunConfig, kind: str) -> dict[str, ArtifactRef]:
    """Name → artifact of what this run, or the last where this one made nothing, has of a kind: ``adapter:kto`` …"""
    record = LastRun(config, this_run()).record
    artifacts = record.artifacts if record else {}
    return {name: ref for name, ref in artifacts.items() if name.partition(":")[0] == kind}


def last_run(config: RunConfig, name: str) -> ArtifactRef:
    """One artifact of the last run of this config's name; see :class:`LastRun`."""
    return LastRun(config)(name)


def inputs_of(config: RunConfig, given: Mapping[str, ArtifactRef | None]) -> dict[str, ArtifactRef]:
    """What a stage is given, and in place of what is None, what this run has made; else the last run's, all of one run.

    Raises:
        ArtifactError: the last run did not make one of them, or they do not belong together, as after a run of an
            earlier stage by itself; the message names the stage to run first.
    """
    inputs = {name: ref for name, ref in given.items() if ref is not None}
    if len(inputs) < len(given):
        run = this_run()
        last = LastRun(config, run)
        inputs = {name: inputs.get(name) or last(name) for name in given}
        _require_one_family(config, inputs)
        last.records.begin(run, inputs, last.record)
    return inputs


def _require_one_family(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> None:
    """Refuse inputs of which one was made from another artifact than the one that is beside it."""
    store = ArtifactStore(config.storage)
    for name, ref in inputs.items():
        stage = stage_of(name)
        for parent in store.manifest(ref).parents:
            beside = inputs.get(parent.stage)
            if beside and beside.sha256 != parent.sha256:
                raise ArtifactError(
                    f"{name!r} of config {config.name!r} was made from {parent.stage} {parent.key[:12]}, not from "
                    f"{beside.key[:12]}, which is beside it: run stage {stage!r} first (mralign run --config "
                    f"{config.name} --only {stage})"
                )


def this_run() -> str:
    """The run that is under way: the one that a user started, or this process."""
    return root_flow_run_id() or _PROCESS


def _is_by_itself() -> bool:
    """Whether this stage is all of its run, and not part of a pipeline's or an ablation's."""
    return this_run() in (flow_run.id, _PROCESS)
