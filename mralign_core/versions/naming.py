"""Versions by what people call them: a version's own names, or the run that made them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mralign_core.errors import ArtifactError
from mralign_core.storage import ArtifactStore
from mralign_core.storage.records import RunRecord, RunRecords
from mralign_core.versions.version import Version, read_version, read_versions, resolve_version

FEW = 6
"""How many are compared where none is named."""


def named_versions(store: ArtifactStore, names: Sequence[str], run_ids: Iterable[str] = ()) -> list[Version]:
    """The versions that some names mean, each once, the newest first; the newest few where nothing is named.

    Args:
        store: where they are.
        names: an alias, a version's name or key or the beginning of one, or the name of a config, whose last run's
            versions are meant.
        run_ids: runs whose versions are meant too.

    Raises:
        ArtifactError: a name fits nothing, or several versions.
    """
    if not names and not run_ids:
        return read_versions(store)[:FEW]
    wanted = set(run_ids)
    found = [version for name in names for version in _of_name(store, name)]
    if wanted:
        records = (record for config in config_names(store) for record in RunRecords(store, config).newest_first())
        found += [version for record in records if record.run in wanted for version in _of_run(store, record)]
    each = {version.id: version for version in found}
    return sorted(each.values(), key=lambda version: (version.made_at, version.id), reverse=True)


def config_names(store: ArtifactStore) -> list[str]:
    """The names of all configs that a run was noted under."""
    return sorted({name.partition("/")[0] for name in store.list_json("runs")})


def _of_name(store: ArtifactStore, name: str) -> list[Version]:
    last = RunRecords(store, name).last() if name in config_names(store) else None
    return _of_run(store, last) if last else [resolve_version(store, name)]


def _of_run(store: ArtifactStore, record: RunRecord) -> list[Version]:
    refs = [ref for name, ref in record.artifacts.items() if name.startswith("version:")]
    if not refs:
        raise ArtifactError(f"run {record.run} has made no version yet: it has not come to its evaluation")
    return [version for ref in refs if (version := read_version(store, ref.key))]
