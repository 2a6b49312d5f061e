"""The pipeline's graph: what each artifact is, said once, beside the function that builds it.

All else follows from it: the cache key, the plan of a dry run, one task by itself, what a run remembers, what goes to a
pool, and the picture (:func:`mermaid`). An artifact made in several (an adapter a variant) is one node; each of its
parts has a name such as ``adapter:sft``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import tasks
from mralign_core.config import AskAgain, RunConfig
from mralign_core.retention.plan import ShardKind
from mralign_core.storage import ArtifactRef, key_of
from mralign_core.storage.digests import function_digest, source_digest
from tasks.engine import STAGES

Part = Mapping[str, Any]
"""What tells an artifact from others of its kind: a variant, the rows of a shard."""
NOTHING: Part = MappingProxyType({})


def _always(_: RunConfig, __: Part) -> bool:
    return True


def named_by_caller(_: RunConfig) -> Sequence[str]:
    """For :class:`Input`: an analysis' flow says which parts are read, not the config."""
    return ()


@dataclass(frozen=True)
class Input:
    """An artifact that another is made from.

    Args:
        name: which.
        when: whether it is read, under a config and for a part.
        own_part: the field of the part (such as ``variant``) that says which one of several is read.
        own_value: which one that is, by the field's value; the one of the same name unless said otherwise.
        each: the parts that are read, of several; :func:`named_by_caller` where the call says which.
        is_keyed: whether its content is in the key; of what a shard's items are from it is not, since the items are.
        stands_for: the name of another of its kind, in whose place it is read; the build function knows it by that.
    """

    name: str
    when: Callable[[RunConfig, Part], bool] = _always
    own_part: str = ""
    own_value: Callable[[str], str] = str
    each: Callable[[RunConfig], Sequence[str]] | None = None
    is_keyed: bool = True
    stands_for: str = ""

    @property
    def argument(self) -> str:
        """The task's argument."""
        return self.name.replace("-", "_")

    @property
    def may_be_missing(self) -> bool:
        """Whether there are configs and parts under which nothing is read."""
        return self.when is not _always or self.each is not None

    def names(self, config: RunConfig, part: Part) -> list[str]:
        """The names under which a run knows the artifacts that are read."""
        if not self.when(config, part):
            return []
        if self.each:
            return [f"{self.name}:{which}" for which in self.each(config)]
        return [f"{self.name}:{self.own_value(part[self.own_part])}" if self.own_part else self.name]

    def role(self, name: str) -> str:
        """What an artifact of that name is called among the inputs: which of several it is, its own part says."""
        return self.stands_for or (self.name if self.own_part else name)


class Items(NamedTuple):
    """The questions, or traces, that an artifact has rows of, in order."""

    ids: list[str]
    """As its tables name them."""
    digests: list[str]
    """Of all about each that decides what is made of it."""


@dataclass(frozen=True)
class Shards:
    """How the rows of an artifact are made in shards, each of so many items; see :mod:`tasks.engine.shards`.

    Args:
        name: the artifact that is one shard.
        size: items a shard.
    """

    name: str
    size: Callable[[RunConfig], int]


@dataclass(frozen=True)
class OtherWay:
    """Another way to make an artifact, under configs that ask for it; keys of all others don't know of it.

    Args:
        when: which configs ask for it.
        build: writes the artifact's files, in place of its own function.
        sources: modules of the core that decide it, in place of its own.
    """

    when: Callable[[RunConfig], bool]
    build: Callable[..., Any]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """One kind of artifact.

    Args:
        name: also its folder in the store.
        stage: which makes it.
        build: writes its files.
        fields: the values of the config that decide it.
        details: what else decides it: contents of files that the config names, settings of the part.
        inputs: what it is made from.
        part: the fields of its part.
        sources: modules of the core that decide it, with all that they import.
        without: modules that they import and that this config does not use.
        without_of: modules of ``sources``, and folders of them, that this part does not use.
        parts: its parts in a run of the pipeline; one without fields where it is made once.
        shards: where its rows are made in shards.
        check: refuses inputs that belong to another config, for a config and the inputs.
        items: of a shard: the items that its rows are of, for a config and the inputs; the shard has some of them. The
            key has their digests, so that an item is found again whatever else it was asked with.
        ask_again: what of it a later run asks again, where models or their servers failed on it.
        named_by: artifacts that the config names and no stage makes, which it is made from too; their content is in
            ``fields``.
        is_main: whether it is what ``mralign task STAGE`` makes.
        is_remembered: whether a run notes it for what comes after its stage.
        is_shared: whether several machines make it together, under a config.
        other_way: how else it is made, under some configs.
        version: raised by hand where nothing else shows a change.
    """

    name: str
    stage: str
    build: Callable[..., Any]
    fields: Callable[[RunConfig], Mapping[str, Any]]
    details: Callable[[RunConfig, Part], Mapping[str, Any]] = lambda _, __: NOTHING
    inputs: tuple[Input, ...] = ()
    part: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    without: Callable[[RunConfig], Sequence[str]] = lambda _: ()
    without_of: Callable[[Part], Sequence[str]] = lambda _: ()
    parts: Callable[[RunConfig], Sequence[Part]] = lambda _: (NOTHING,)
    shards: Shards | None = None
    check: Callable[[RunConfig, Mapping[str, ArtifactRef]], None] = lambda _, __: None
    items: Callable[[RunConfig, Mapping[str, ArtifactRef]], Items] | None = None
    ask_again: Callable[[RunConfig], AskAgain] = lambda _: "never"
    named_by: Callable[[RunConfig], Sequence[ArtifactRef]] = lambda _: ()
    is_main: Callable[[RunConfig], bool] = lambda _: False
    is_remembered: bool = True
    is_shared: Callable[[RunConfig], bool] = lambda _: False
    other_way: OtherWay | None = None
    version: int = 1
    _digests: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_shard(self) -> bool:
        """Whether it is known to a run only by what is joined from it."""
        return self.items is not None

    def fingerprint(self, config: RunConfig, part: Part) -> dict[str, Any]:
        """The values that decide it."""
        return {**self.fields(config), **self.details(config, part), **part}

    def key(self, config: RunConfig, inputs: Mapping[str, ArtifactRef], part: Part) -> str:
        """Its cache key: the digest of all that decides it.

        Args:
            config: the run config.
            inputs: by name, those of several as ``name:which``.
            part: which part.
        """
        is_keyed = {each.stands_for or each.name: each.is_keyed for each in self.inputs}
        return key_of(
            name=self.name,
            version=self.version,
            sources=self._source_digests(self.way(config), (*self.without(config), *self.without_of(part))),
            fields=self.fingerprint(config, part),
            inputs={name: ref.sha256 for name, ref in inputs.items() if is_keyed[name.partition(":")[0]]},
        )

    def way(self, config: RunConfig) -> OtherWay:
        """How it is made under a config: its own function and sources, or the other way's."""
        if self.other_way and self.other_way.when(config):
            return self.other_way
        return OtherWay(lambda _: True, self.build, self.sources)

    def _source_digests(self, way: OtherWay, without: tuple[str, ...]) -> dict[str, str]:
        known = (*way.sources, *without)
        if known not in self._digests:
            digests = {module: source_digest(module, without) for module in way.sources}
            self._digests[known] = digests | {"build": function_digest(way.build)}
        return self._digests[known]

    def named(self, part: Part) -> str:
        """The name under which a run knows a part of it."""
        return ":".join([self.name, *(str(part[name]) for name in self.part if not self.is_shard)])


_ARTIFACTS: dict[str, Artifact] = {}


def register(artifact: Artifact) -> None:
    """Add an artifact to the graph.

    Raises:
        TypeError: another function builds one of this name; a programming error.
    """
    known = _ARTIFACTS.setdefault(artifact.name, artifact)
    if known.build.__qualname__ != artifact.build.__qualname__ or known.build.__module__ != artifact.build.__module__:
        raise TypeError(f"artifact {artifact.name!r} is built by {known.build.__qualname__} and again")


def graph() -> Mapping[str, Artifact]:
    """All artifacts by name, after those that they are made from; of the pipeline first, stage by stage."""
    for module in pkgutil.iter_modules(tasks.__path__, "tasks."):
        importlib.import_module(module.name)
    ordered: dict[str, Artifact] = {}

    def add(artifact: Artifact) -> None:
        for each in artifact.inputs:
            add(_ARTIFACTS[each.name])
        if artifact.shards:
            add(_ARTIFACTS[artifact.shards.name])
        ordered.setdefault(artifact.name, artifact)

    for artifact in sorted(_ARTIFACTS.values(), key=_place):
        add(artifact)
    return ordered


def shard_kinds() -> dict[str, ShardKind]:
    """What the shards of each kind are for, by name: a store that is cleared up has to know."""
    everything = graph()
    return {
        name: ShardKind(
            joined=frozenset(one.name for one in everything.values() if one.shards and one.shards.name == name),
            keyed=frozenset(each.name for each in shard.inputs if each.is_keyed),
        )
        for name, shard in everything.items()
        if shard.is_shard
    }


def artifact_of(name: str) -> Artifact:
    """The artifact that a name such as ``adapter:sft`` is a part of.

    Raises:
        KeyError: there is none.
    """
    kind = name.partition(":")[0]
    return _ARTIFACTS[kind] if kind in _ARTIFACTS else graph()[kind]


def stage_of(name: str) -> str:
    """The stage that makes an artifact; "" of a name that no artifact has."""
    kind = name.partition(":")[0]
    return artifact_of(kind).stage if kind in graph() else ""


def _place(artifact: Artifact) -> tuple[int, str, int]:
    """The stage, and within it the place in the code: which module was imported first changes no order."""
    rank = STAGES.index(artifact.stage) if artifact.stage in STAGES else len(STAGES)
    return rank, artifact.build.__module__, artifact.build.__code__.co_firstlineno


def mermaid() -> str:
    """The graph as a Mermaid flowchart, a box a stage; dashed arrows are read under some configs only."""
    everything = [artifact for artifact in graph().values() if not artifact.is_shard]
    return "\n".join(["flowchart LR", *_boxes(everything), *_arrows(everything)])


def _boxes(artifacts: Sequence[Artifact]) -> Iterator[str]:
    for stage in dict.fromkeys(artifact.stage for artifact in artifacts):
        yield f"  subgraph {stage}"
        yield from (f"    {one.name}" for one in artifacts if one.stage == stage)
        yield "  end"


def _arrows(artifacts: Sequence[Artifact]) -> Iterator[str]:
    for artifact in artifacts:
        for each in artifact.inputs:
            yield f"  {each.name} {'-->' if each.when is _always else '-.->'} {artifact.name}"
