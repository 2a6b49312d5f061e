"""What goes from a store and what stays: a pure function of what is there, what is named, and a policy.

An artifact stays if it is a root, or one that stays was made from it. Roots are versions, what aliases and pins name,
question files that were taken in, labels that people published, what the newest runs noted, what was made lately, and
what a live claim makes or reads.

A shard is reached by no lineage: what is joined from shards was made from their inputs, and a later run looks its items
up among all shards of their line. So a shard stays as long as an artifact stays that is joined from its kind, with the
same config fields and the same keyed inputs. What its items came from is in no key, so it does not stay on a shard's
account.

Checkpoints go as soon as their adapter is there. What was begun and never finished goes after the grace period.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

from mralign_core.config import RetentionConfig
from mralign_core.distillation.published import DISTILLED_STAGE
from mralign_core.errors import ArtifactError
from mralign_core.intake.arrivals import ARRIVALS
from mralign_core.retention.contents import Contents, Stored
from mralign_core.retention.roots import AliasTarget, NotedRun, Roots, is_orphan
from mralign_core.schemas.human_labels import HUMAN_LABELS_STAGE
from mralign_core.storage.keeping import ADAPTER, CHECKPOINT, COLLECTOR, claim_name
from mralign_core.versions.aliases import version_key
from mralign_core.versions.record import VERSION

PROMOTION = "promotion"
UNFINISHED, DAMAGED, CLAIM, NOTE_OF_SHARD, TEMPORARY = "(unfinished)", "(damaged)", "(claims)", "(notes)", "(temporary)"
NAMED_BY_CONFIGS = {
    HUMAN_LABELS_STAGE: "labels that a person gave",
    DISTILLED_STAGE: "a distilled annotator",
}
"""Stage → why its artifacts stay."""
HOUR_S, DAY_S = 3600.0, 86_400.0


class ShardKind(NamedTuple):
    """What the shards of one kind are for."""

    joined: frozenset[str]
    """Artifacts that are joined from them."""
    keyed: frozenset[str]
    """Artifacts whose content is in a shard's key; its items stand for the others."""


Shards = Mapping[str, ShardKind]
NO_SHARDS: Shards = MappingProxyType({})


class Going(NamedTuple):
    """Something that goes."""

    kind: str
    """The artifact's name, or a word in brackets."""
    path: str
    """Of its folder or file, relative to the root."""
    num_bytes: int
    name: str = ""
    """``stage/key`` whose claim is to be had before it is removed; of a note, that of its shard."""
    wave: int = 0
    """What goes together, after all of the waves before: artifacts after all that were made from them."""
    upload: str = ""
    """Of an upload in parts, what names it."""


@dataclass(frozen=True)
class RemovalPlan:
    """What goes and what stays.

    Args:
        going: in the order of their removal.
        kept: path of each artifact that stays, with the reason.
        num_bytes_kept: bytes of these.
    """

    going: tuple[Going, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    num_bytes_kept: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that go."""
        return sum(each.num_bytes for each in self.going)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind → how many go, and their bytes; the largest first."""
        counts, sizes = Counter(each.kind for each in self.going), Counter[str]()
        for each in self.going:
            sizes[each.kind] += each.num_bytes
        return {kind: (counts[kind], sizes[kind]) for kind, _ in sizes.most_common()}


def plan_gc(
    contents: Contents, roots: Roots, policy: RetentionConfig, now: datetime, shards: Shards = NO_SHARDS
) -> RemovalPlan:
    """Say what goes.

    Args:
        contents: what is in the store.
        roots: what is named, and what is worked on.
        policy: what to keep besides.
        now: for the ages of runs; those of artifacts are by the store's clock.
        shards: kind of shard → what it is for; a shard of another kind is an artifact as others are.

    Raises:
        ArtifactError: an artifact that stays has a damaged manifest, so what it was made from isn't known; or an
            alias names no version.
    """
    named = named_paths(roots, policy, now)
    kept = _Reach(contents, shards)
    kept.add(named)
    kept.add(_at_work(contents, roots, shards))
    kept.add(_recent(contents, policy))
    kept.add(_arrived(contents))
    kept.add(_named_by_configs(contents))
    kept.add(_decisions(contents, kept.why))
    kept.add_shards()
    going = [*_dead_claims(roots), *_artifacts_to_go(contents, kept.why)]
    going += _leftovers(contents, roots, policy, kept.why, wave=len(going) + 1)
    size = sum(contents.artifacts[path].num_bytes for path in kept.why)
    return RemovalPlan(tuple(going), kept.why, size)


def named_paths(roots: Roots, policy: RetentionConfig, now: datetime) -> dict[str, str]:
    """Path of each artifact that somebody or a policy names, with the reason; it may be gone.

    Raises:
        ArtifactError: an alias names no version.
    """
    named: dict[str, str] = {}
    for run in _recent_runs(roots.runs, policy, now):
        for name, ref in run.record.artifacts.items():
            named.setdefault(ref.path, f"{name} of run {run.record.run[:8] or 'unnamed'} of {run.config}")
    for claim in roots.claims:
        if claim.holder.run != COLLECTOR and not is_orphan(claim):
            named.update(dict.fromkeys(map(str, claim.holder.reads), f"{claim.holder} reads it"))
    unnamed = list(roots.versions)
    for alias in roots.aliases:
        if not (path := _version(roots.versions, alias.target)):
            _require_gone(alias)
            continue
        named[path] = f"alias {alias.alias}" if alias.is_current else named.get(path, f"alias {alias.alias}, before")
        unnamed = [each for each in unnamed if each != path]
    named.update(dict.fromkeys(unnamed[: policy.unnamed_versions], "a version"))
    named.update({pin.artifact.path: f"pinned: {pin.why}" if pin.why else "pinned" for pin in roots.pins})
    return named


class _Reach:
    """What stays, with the reason of each, as roots are added."""

    def __init__(self, contents: Contents, shards: Shards) -> None:
        self._artifacts = contents.artifacts
        self._shards = shards
        self.why: dict[str, str] = {}

    def add(self, roots: Mapping[str, str]) -> None:
        """Keep these, where they are there, and all that they were made from."""
        to_visit = [(path, why) for path, why in roots.items() if path in self._artifacts]
        while to_visit:
            path, why = to_visit.pop()
            if path in self.why:
                continue
            self.why[path] = why
            stored = self._artifacts[path]
            because = why if why.startswith("for ") else f"for {stored.name[: len(stored.stage) + 9]}, {why}"
            to_visit += [(parent, because) for parent in self._parents(stored) if parent in self._artifacts]

    def add_shards(self) -> None:
        """Keep the shards of what stays; what they keep may be of use to other shards."""
        num_before = -1
        while num_before < len(self.why):
            num_before = len(self.why)
            users: dict[str, list[Stored]] = defaultdict(list)
            for path in self.why:
                users[self._artifacts[path].stage].append(self._artifacts[path])
            for stored in self._artifacts.values():
                if stored.path not in self.why and (kind := self._shards.get(stored.stage)):
                    joined = [each for stage in kind.joined for each in users[stage]]
                    if user := next((each for each in joined if _is_of_line(stored, each, kind)), None):
                        self.add({stored.path: f"a shard of the line of {user.name[: len(user.stage) + 9]}"})

    def _parents(self, stored: Stored) -> Iterator[str]:
        if stored.problem:
            raise ArtifactError(
                f"{stored.path} stays ({self.why[stored.path]}), and what it was made from is not known, so nothing is "
                f"removed: run its stage again, or remove that folder ({stored.problem})"
            )
        kind = self._shards.get(stored.stage)
        for parent in stored.manifest.parents if stored.manifest else ():
            if kind is None or parent.stage in kind.keyed:
                yield parent.path


def _is_of_line(shard: Stored, joined: Stored, kind: ShardKind) -> bool:
    """Whether what is joined may have rows of a shard: they agree in all fields that both have, and in keyed inputs."""
    if shard.manifest is None or joined.manifest is None:
        return False
    ours, theirs = shard.manifest, joined.manifest
    if any(ours.fingerprint[name] != theirs.fingerprint[name] for name in ours.fingerprint.keys() & theirs.fingerprint):
        return False
    inputs = [
        {(ref.stage, ref.sha256) for ref in manifest.parents if ref.stage in kind.keyed} for manifest in (ours, theirs)
    ]
    return inputs[0] == inputs[1]


def _recent_runs(runs: Iterable[NotedRun], policy: RetentionConfig, now: datetime) -> Iterator[NotedRun]:
    """The newest runs of each config's name, and those of the last days."""
    of_config: dict[str, list[NotedRun]] = defaultdict(list)
    for run in runs:
        of_config[run.config].append(run)
    oldest = now - max(timedelta(days=policy.days), timedelta(hours=policy.grace_hours))
    for of_one in of_config.values():
        newest_first = sorted(of_one, key=lambda run: run.record.at, reverse=True)
        yield from (run for place, run in enumerate(newest_first) if place < policy.runs or run.record.at >= oldest)


def _version(versions: Iterable[str], target: str) -> str:
    """The path of the version of an id; "" where there is none."""
    key = version_key(target)
    return next((path for path in versions if path.split("/")[-2] == key), "")


def _require_gone(alias: AliasTarget) -> None:
    """Let an alias have named what is no more, and not name it."""
    if alias.is_current:
        raise ArtifactError(
            f"alias {alias.alias!r} names {alias.target!r}, and there is no such {VERSION} in the store, so "
            "nothing is removed: move the alias to one that is there"
        )


def _at_work(contents: Contents, roots: Roots, shards: Shards) -> dict[str, str]:
    """What live claims make: begun artifacts, checkpoints of the training, and the shards made before and beside."""
    makers = {claim.name: claim.holder for claim in roots.live_claims if claim.holder.run != COLLECTOR}
    kinds = {name.rpartition("/")[0] for name in makers}
    found = {}
    for stored in contents.artifacts.values():
        claimed, kind = claim_name(stored.name), shards.get(stored.stage)
        if claimed in makers:
            found[stored.path] = f"{makers[claimed]} works on it"
        elif kind and kinds & {stored.stage, *kind.joined}:
            found[stored.path] = "a run works on its like"
    return found


def _arrived(contents: Contents) -> dict[str, str]:
    """Question files that runs took in, which are small: what a run goes by where the bucket is out of reach."""
    arrived = (path for path, stored in contents.artifacts.items() if stored.stage == ARRIVALS and stored.is_finished)
    return dict.fromkeys(arrived, "question files that a run took in")


def _named_by_configs(contents: Contents) -> dict[str, str]:
    """What a config may name at any time, and with it the traces behind it: labels of people, distilled annotators."""
    return {
        path: why
        for stage, why in NAMED_BY_CONFIGS.items()
        for path, one in contents.artifacts.items()
        if one.stage == stage and one.is_finished
    }


def _decisions(contents: Contents, kept: Collection[str]) -> dict[str, str]:
    """What the gate decided about versions that stay: they are in the lineage of nothing."""
    return {
        stored.path: f"what was decided about {parent.stage}/{parent.key[:8]}"
        for stored in contents.artifacts.values()
        if stored.stage == PROMOTION and stored.manifest
        for parent in stored.manifest.parents
        if parent.stage == VERSION and parent.path in kept
    }


def _recent(contents: Contents, policy: RetentionConfig) -> dict[str, str]:
    """What was written lately, by the store's clock; of what is over or was never finished, only within the grace."""
    grace_s = policy.grace_hours * HOUR_S
    days_s = max(policy.days * DAY_S, grace_s)
    trained = {stored.key for stored in contents.artifacts.values() if stored.stage == ADAPTER and stored.is_finished}
    found = {}
    for stored in contents.artifacts.values():
        is_over = stored.stage.startswith(f"{CHECKPOINT}/") and stored.stage.rpartition("/")[2] in trained
        limit_s = days_s if stored.is_finished and not is_over else grace_s
        if stored.age_s < limit_s:
            found[stored.path] = f"made within {limit_s / DAY_S:g} days"
    return found


def _artifacts_to_go(contents: Contents, kept: Mapping[str, str]) -> list[Going]:
    """Artifacts that do not stay, wave by wave: whatever ends the removal, what is left has what it was made from."""
    condemned = {path: stored for path, stored in contents.artifacts.items() if path not in kept}
    num_users = Counter(parent for stored in condemned.values() for parent in _parents_in(stored, condemned))
    wave, number, going = [path for path in condemned if not num_users[path]], 0, []
    while condemned:
        wave = wave or list(condemned)  # a circle, which no keys could make
        for path in sorted(wave):
            stored = condemned.pop(path)
            going.append(Going(_kind(stored), path, stored.num_bytes, claim_name(stored.name), number))
        parents = [parent for path in wave for parent in _parents_in(contents.artifacts[path], condemned)]
        num_users.subtract(parents)
        wave, number = [path for path in dict.fromkeys(parents) if not num_users[path]], number + 1
    return going


def _parents_in(stored: Stored, among: Mapping[str, Stored]) -> list[str]:
    parents = stored.manifest.parents if stored.manifest else ()
    return [path for path in dict.fromkeys(parent.path for parent in parents) if path in among]


def _kind(stored: Stored) -> str:
    if stored.problem:
        return DAMAGED
    return stored.stage.partition("/")[0] if stored.is_finished else UNFINISHED


def _dead_claims(roots: Roots) -> list[Going]:
    """They go first, as they stand in the way of removing what they name."""
    return [Going(CLAIM, claim.path, claim.size, wave=-1) for claim in roots.claims if is_orphan(claim)]


def _leftovers(
    contents: Contents, roots: Roots, policy: RetentionConfig, kept: Mapping[str, str], wave: int
) -> Iterator[Going]:
    """Notes of shards that are no more, and what killed processes left."""
    makers = {claim.name for claim in roots.live_claims}
    shards = {contents.artifacts[path].name for path in kept} | makers
    for path, (name, size) in contents.notes.items():
        if name not in shards:
            yield Going(NOTE_OF_SHARD, path, size, name, wave)
    for file in contents.temporaries:
        if file.upload and _is_made(file.path, makers):
            continue
        if file.path.startswith("tmp/") or file.age_s >= policy.grace_hours * HOUR_S:
            yield Going(TEMPORARY, file.path, file.size, wave=wave, upload=file.upload)


def _is_made(path: str, makers: Collection[str]) -> bool:
    """Whether somebody makes the artifact that a file belongs to."""
    folder = path.partition("/data/")[0].rpartition("/")[0]
    return claim_name(folder.removeprefix("artifacts/")) in makers
