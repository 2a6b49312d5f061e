"""What a run would find in the store and what it would compute, without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from mralign_core.config import RunConfig
from mralign_core.intake import resolve
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine import STAGES
from tasks.engine.graph import Artifact, Part, graph
from tasks.engine.run import Work, span
from tasks.engine.session import session
from tasks.engine.shards import lay_out, shard_of


class Planned(NamedTuple):
    """One artifact of a run. ``found`` is None when it would be computed; ``is_known`` is False when an input of it is
    not made yet, so that nobody can tell. ``num_to_ask`` counts traces, draws or answers that it lacks and asks again.
    """

    stage: str
    name: str
    found: ArtifactRef | None
    is_known: bool
    num_to_ask: int = 0

    @property
    def status(self) -> str:
        """In a few words."""
        if self.num_to_ask:
            units = {"generations": "draw(s)", "judgements": "answer(s)"}
            unit = next((unit for name, unit in units.items() if self.name.startswith(name)), "trace(s)")
            return f"{self.num_to_ask:,} {unit} to ask again"
        if self.found:
            return "cached"
        return "to compute" if self.is_known else "to compute after its inputs"


class Plan(NamedTuple):
    """Every artifact of a pipeline run, in order, and those that are there and finished, by name."""

    everything: list[Planned]
    made: dict[str, ArtifactRef]


def plan(config: RunConfig) -> Plan:
    """Follow the pipeline as far as the store holds its artifacts, with what a run would resolve its references to."""
    config = resolve(config, ArtifactStore(config.storage)).config
    store, made = ArtifactStore(config.storage), dict[str, ArtifactRef]()
    with session():
        everything = [
            planned
            for artifact in graph().values()
            if artifact.stage in STAGES and not artifact.is_shard
            for part in artifact.parts(config)
            for planned in look_up(artifact, config, part, store, made)
        ]
    return Plan(everything, made)


def is_made(config: RunConfig, name: str) -> bool:
    """Whether the store holds, finished, all that a run makes up to an artifact, with all its parts."""
    store, made = ArtifactStore(config.storage), dict[str, ArtifactRef]()
    before = takewhile(lambda one: one.name != name, graph().values())
    with session():
        for artifact in [*(one for one in before if not one.is_shard and one.stage in STAGES), graph()[name]]:
            for part in artifact.parts(config):
                inputs = inputs_of_part(artifact, config, part, made)
                work = inputs is not None and Work(artifact, config, inputs, part)
                found = work and work.find(store)
                if not work or not found or work.num_to_ask(store, found):
                    return False
                made[artifact.named(part)] = found
    return True


def look_up(
    artifact: Artifact, config: RunConfig, part: Part, store: ArtifactStore, made: dict[str, ArtifactRef]
) -> Iterator[Planned]:
    """What of a part is there, its shards first where it is not; notes in ``made`` what is finished."""
    name = artifact.named(part)
    inputs = inputs_of_part(artifact, config, part, made)
    if inputs is None:
        yield Planned(artifact.stage, name.replace(":", " "), None, False)
        return
    work = Work(artifact, config, inputs, part)
    found = work.find(store)
    num_to_ask = work.num_to_ask(store, found) if found else 0
    if found and not num_to_ask:
        made[name] = found
    elif artifact.shards:
        yield from _shards(work, store)
    yield Planned(artifact.stage, name.replace(":", " "), found, True, num_to_ask)


def _shards(joined: Work, store: ArtifactStore) -> Iterator[Planned]:
    layout, shard = lay_out(joined, store), shard_of(joined)
    label = " ".join([shard.artifact.name, *map(str, joined.part.values())])
    to_make = {row for rows in layout.missing for row in rows}
    for ref, ids in layout.of_rows(row for row in layout.shards if row not in to_make).used():
        yield Planned(shard.artifact.stage, f"{label} {len(ids)} rows", ref, True)
    for rows in layout.missing:
        work = Work(shard.artifact, shard.config, shard.inputs, shard.part, tuple(rows))
        found = work.find(store)
        num_to_ask = work.num_to_ask(store, found) if found else 0
        yield Planned(shard.artifact.stage, f"{label} {span(rows)}", found, True, num_to_ask)


def inputs_of_part(
    artifact: Artifact, config: RunConfig, part: Part, made: dict[str, ArtifactRef]
) -> dict[str, ArtifactRef] | None:
    """The inputs that a part reads, of what a run has made; None where one is not made yet."""
    inputs: dict[str, ArtifactRef] = {}
    for each in artifact.inputs:
        for name in each.names(config, part):
            if name not in made:
                return None
            inputs[each.role(name)] = made[name]
    return inputs
