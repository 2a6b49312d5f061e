"""Which files a run's tables are in: of a config's last run, of one run, or of all that an artifact was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mralign_core.errors import ArtifactError
from mralign_core.evaluation.metrics import order_variants
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.retention.roots import read_runs
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecord, RunRecords
from mralign_core.storage.lineage import Lineage

FILES = {
    "questions": "questions.parquet",
    "evaluation-questions": "questions.parquet",
    "generations": "generations.parquet",
    "candidates": "candidates.parquet",
    "thinking-draws": "candidates.parquet",
    "annotations": "annotations.parquet",
    "draw-annotations": "annotations.parquet",
    "weights": "weights.parquet",
    "reference-logps": "reference.parquet",
    "policy-logps": "policy.parquet",
    "scores": "scores.parquet",
    "held-out-traces": "candidates.parquet",
    "held-out-annotations": "annotations.parquet",
    "judgements": "judgements.parquet",
    "results": "flips.parquet",
}
"""Kind of artifact → the file of its main table, of those that are shown."""
RAW_FILE = "raw_annotations.parquet"
"""Beside the annotations: every reply."""
RUN_ID = re.compile(r"(local-)?[0-9a-f][0-9a-f-]{5,}")
"""What a run's id, or the beginning of one, looks like."""


@dataclass(frozen=True)
class RunTables:
    """The artifacts of a run.

    Args:
        store: where they are.
        title: what the run is called.
        artifacts: by the names that runs have for them, such as ``candidates`` or ``scores:kto``.
    """

    store: ArtifactStore
    title: str
    artifacts: Mapping[str, ArtifactRef]
    _opened: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether the run made a table."""
        return name in self.artifacts

    def file(self, name: str, file: str = "") -> str:
        """The path of a table's file on this machine; an artifact of a bucket is fetched, once.

        Args:
            name: of the artifact.
            file: in it; that of its main table when empty.

        Raises:
            ArtifactError: the run did not make it, or it is damaged.
        """
        if name not in self.artifacts:
            raise ArtifactError(f"{self.title} has no {name!r}; it has {', '.join(self.artifacts) or 'nothing'}")
        wanted = name, file or FILES[name.partition(":")[0]]
        if wanted not in self._opened:
            self._opened[wanted] = str(self.store.open_file(self.artifacts[name], wanted[1]))
        return self._opened[wanted]

    def has_file(self, name: str, file: str = "") -> bool:
        """Whether the run made a table and its artifact has the file, which those of some configs lack."""
        wanted = file or FILES[name.partition(":")[0]]
        return name in self.artifacts and wanted in self.store.manifest(self.artifacts[name]).files

    @cached_property
    def variants(self) -> list[str]:
        """The variants whose answers there are, in the paper's order."""
        return order_variants([name.partition(":")[2] for name in self.artifacts if name.startswith("scores:")])

    @cached_property
    def looked_at(self) -> list[str]:
        """The trained variants whose traces were looked at after training (``train.trace_logps``), in that order."""
        return order_variants([name.partition(":")[2] for name in self.artifacts if name.startswith("policy-logps:")])

    @cached_property
    def labelled(self) -> list[str]:
        """The variants whose thinking on held-out questions is labelled, in that order."""
        if not (self.has("held-out-traces") and self.has("held-out-annotations")):
            return []
        gathered = {ref.sha256 for ref in self.store.manifest(self.artifacts["held-out-traces"]).parents}
        return [name for name in self.variants if self.artifacts[f"scores:{name}"].sha256 in gathered]

    @cached_property
    def weighing(self) -> Mapping[str, Any]:
        """The settings that its weights were made with; empty without weights."""
        ref = self.artifacts.get("weights")
        return self.store.manifest(ref).fingerprint if ref else {}

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The label set that its traces were labelled with."""
        ref = self.artifacts.get("annotations") or self.artifacts.get("draw-annotations")
        known: Mapping[str, Any] = self.store.manifest(ref).fingerprint.get("label_set", {}) if ref else {}
        if not known:
            return PAPER_TAXONOMY
        names = known["labels"]
        return Taxonomy(
            tuple(names),
            dict(zip(names, known["macro_strategies"], strict=True)),
            dict(zip(names, known["definitions"], strict=True)),
        )


def find_run(store: ArtifactStore, name: str) -> RunTables:
    """The tables of what a name means.

    Args:
        store: where they are.
        name: a config's name, of which the last run is taken; a run's id, or the beginning of one; or what
            :meth:`ArtifactStore.resolve` accepts, as ``report/3f9a``: the tables that it was made from. Of a store with
            runs, the newest one when empty.

    Raises:
        ArtifactError: nothing is called so, or several are.
    """
    if not name:
        return _newest(store)
    is_plain = "/" not in name and name.strip(".")  # a name of "." or ".." names a folder
    if is_plain and (record := RunRecords(store, name).last()):
        return _of_record(store, name, record)
    if RUN_ID.fullmatch(name):
        fitting = [noted for noted in read_runs(store) if noted.record.run.startswith(name)]
        if len(fitting) == 1:
            return _of_record(store, fitting[0].config, fitting[0].record)
        if fitting:
            raise ArtifactError(
                f"{len(fitting)} runs begin with {name!r}: give more of the id (mralign runs lists them)"
            )
    try:
        ref = store.resolve(name)
    except ArtifactError as error:
        known = ", ".join(sorted({noted.config for noted in read_runs(store)})) or "none"
        raise ArtifactError(
            f"no config or run of {store.root_uri} is called {name!r} (configs that have runs: {known}), and {error}"
        ) from None
    return _of_artifact(store, ref)


def _newest(store: ArtifactStore) -> RunTables:
    noted = max(read_runs(store), key=lambda each: each.record.at, default=None)
    if noted is None:
        raise ArtifactError(f"no run is noted in {store.root_uri}: run a pipeline first (mralign run --config pocket)")
    return _of_record(store, noted.config, noted.record)


def _of_record(store: ArtifactStore, config: str, record: RunRecord) -> RunTables:
    artifacts = dict(record.artifacts)
    for name, ref in record.artifacts.items():
        if name.startswith("adapter:") and "reference-logps" not in artifacts:
            parents = store.manifest(ref).parents if store.files.exists(f"{ref.path}/manifest.json") else []
            artifacts |= {each.stage: each for each in parents if each.stage == "reference-logps"}
    return RunTables(store, f"{config}, run of {record.at:%Y-%m-%d %H:%M} UTC", artifacts)


def _of_artifact(store: ArtifactStore, ref: ArtifactRef) -> RunTables:
    """Of two artifacts of one kind that lead to it, the nearer one."""
    found: dict[str, ArtifactRef] = {}
    level = [store.lineage(ref)]
    while level:
        names = {_name(each): each.ref for each in level if each.manifest}
        found = {**names, **found}
        level = [parent for each in level for parent in each.parents]
    return RunTables(store, f"{ref.stage} {ref.key[:12]}", {**_made_beside(store, found), **found})


def _made_beside(store: ArtifactStore, found: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """The traces after training, which nothing is made from: as runs noted them with these adapters."""
    beside = {}
    for noted in read_runs(store) if any(name.startswith("adapter:") for name in found) else ():
        for name, ref in noted.record.artifacts.items():
            adapter = name.replace("policy-logps:", "adapter:")
            if adapter != name and adapter in found and found[adapter] == noted.record.artifacts.get(adapter):
                beside[name] = ref
    return beside


def _name(lineage: Lineage) -> str:
    """The name that a run has for an artifact: those that are made for each variant say of which they are."""
    variant = lineage.manifest.fingerprint.get("variant") if lineage.manifest else None
    return f"{lineage.ref.stage}:{variant}" if variant else lineage.ref.stage
