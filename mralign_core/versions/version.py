"""Versions as the store has them: read, listed, and found by what people call them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from mralign_core.errors import ArtifactError
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE
from mralign_core.versions.aliases import ALIAS_NAME, Aliases, version_key, version_name
from mralign_core.versions.record import RECORD_FILE, TRAINED_ON_FILE, VERSION, VersionRecord

logger = logging.getLogger("mralign_core.versions")

TRAINING_TRACES = "training-traces"
"""The kind of artifact that traces chosen to train on are, where not all candidates were."""
MOST_LISTED = 10
FULL_ID = re.compile(r".+-[0-9a-f]{64}")
"""Of a version, as aliases have it: it needs no search."""


@dataclass(frozen=True)
class Version:
    """A trained adapter that was evaluated: an immutable artifact."""

    ref: ArtifactRef
    """The version's own artifact."""
    made_at: datetime
    """When it was published (UTC)."""
    parents: Mapping[str, ArtifactRef]
    """Kind of artifact → the one it was made from: adapter, model, candidates, annotations, scores, results, …"""
    record: VersionRecord
    """What it says of itself."""

    @property
    def id(self) -> str:
        """Its name in full: what aliases name it by."""
        return f"{self.record.variant}-{self.ref.key}"

    @property
    def name(self) -> str:
        """Its name for people."""
        return version_name(self.id)

    @property
    def adapter(self) -> ArtifactRef:
        """What was trained."""
        return self.parent("adapter")

    @property
    def traces(self) -> ArtifactRef:
        """The traces that it was trained on, all that there were or those chosen of them."""
        return self.parents.get(TRAINING_TRACES) or self.parent("candidates")

    def parent(self, kind: str) -> ArtifactRef:
        """The artifact of a kind that it was made from.

        Raises:
            ArtifactError: it was made without one.
        """
        if kind not in self.parents:
            raise ArtifactError(f"version {self.name} was made without an artifact {kind!r}")
        return self.parents[kind]


def read_version(store: ArtifactStore, key: str) -> Version | None:
    """The version of a key; None, with a warning in the log, where it is damaged or gone."""
    ref = store.find(VERSION, key)
    if ref is None:
        return None
    try:
        manifest = store.manifest(ref)
        record = VersionRecord.model_validate(store.read_json(ref, RECORD_FILE))
    except (ArtifactError, ValidationError) as error:
        logger.warning("not using version %s: %s", ref.uri, error)
        return None
    return Version(ref, manifest.created_at, {parent.stage: parent for parent in manifest.parents}, record)


def read_versions(store: ArtifactStore) -> list[Version]:
    """All versions that are whole, the newest first."""
    with ThreadPoolExecutor(1 if store.files.is_local else REQUESTS_AT_ONCE) as readers:
        found = list(readers.map(lambda key: read_version(store, key), store.keys(VERSION)))
    return sorted(filter(None, found), key=lambda version: (version.made_at, version.id), reverse=True)


def resolve_version(store: ArtifactStore, text: str) -> Version:
    """The version that an alias, a name, a key, or an unambiguous prefix of these last two means.

    Raises:
        ArtifactError: none or several fit, or the one that an alias names is damaged or gone; with the remedy.
    """
    if ALIAS_NAME.fullmatch(text) and (entry := Aliases(store).current(text)):
        named = read_version(store, version_key(entry.to))
        if named is None:
            raise ArtifactError(
                f"alias {text!r} names {version_name(entry.to)}, which is damaged or gone in {store.root_uri}: run its "
                "pipeline again, or move the alias (mralign rollback, mralign promote)"
            )
        return named
    if FULL_ID.fullmatch(text) and (version := read_version(store, version_key(text))) and version.id == text:
        return version
    versions = read_versions(store)
    fitting = [one for one in versions if text and (one.id.startswith(text) or one.ref.key.startswith(text))]
    if len(fitting) != 1:
        what = f"{len(fitting)} versions fit" if fitting else "no alias or version fits"
        listed = "\n  ".join(one.name for one in (fitting or versions)[:MOST_LISTED]) or "(none yet)"
        raise ArtifactError(f"{what} {text!r} in {store.root_uri}; versions:\n  {listed}")
    return fitting[0]


def candidates_behind(store: ArtifactStore, traces: ArtifactRef) -> ArtifactRef:
    """All traces that some were chosen of; the same where these are all."""
    if traces.stage != TRAINING_TRACES:
        return traces
    return next(parent for parent in store.manifest(traces).parents if parent.stage == "candidates")


def trained_on(store: ArtifactStore, version: Version) -> frozenset[str]:
    """The questions that a version was trained on, as ``question_digests`` of :mod:`mralign_core.versions.record`."""
    return frozenset(store.read_json(version.ref, TRAINED_ON_FILE))
