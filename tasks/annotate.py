"""Labels for every segment of every candidate, in shards that share one client, its limits and its budget."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.config import RunConfig
from mralign_core.label_sets import label_set_of
from mralign_core.llm.offline import is_offline
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN, ArtifactRef, ArtifactStore
from mralign_core.storage.tables import stream_table
from tasks.clients import read_account, save_account, shared_client
from tasks.engine.progress import progress
from tasks.engine.quarantine import join_shards, write_rows
from tasks.engine.run import Built, Produced, Work, shard_bounds, stage_task

logger = logging.getLogger("mralign_core.tasks")

FAILURES = "failures.json"
MOST_SHOWN = 120
"""Of a reply, in characters, that is shown as an example of its kind."""
SHARDS_AT_ONCE = 2
"""While the last requests of a shard are under way the next shard's fill the places they leave."""


def annotation_shards(config: RunConfig, candidates: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the candidates, one a shard."""
    return list(shard_bounds(candidates.rows or 0, config.annotate.shard_size))


def shard_work(config: RunConfig, candidates: ArtifactRef, start: int, end: int) -> Work:
    """The annotations of traces ``start`` to ``end``."""
    part = {"start": start, "end": end}
    return Work("annotations-shard", config, {"candidates": candidates}, part, config.annotate.ask_again)


def annotations_work(config: RunConfig, candidates: ArtifactRef) -> Work:
    """The annotations of all traces."""
    return Work("annotations", config, {"candidates": candidates}, ask_again=config.annotate.ask_again)


@stage_task("annotate-shard", "annotate {start}–{end}")
def annotate_shard(config: RunConfig, candidates: ArtifactRef, start: int, end: int) -> Produced:
    """Annotate traces ``start`` to ``end``; every reply is kept before it is read.

    A reply that can be used is never asked for again; of a stored shard that leaves traces out, only those are.
    """

    def build(store: ArtifactStore, directory: Path) -> Built:
        rows = store.read_rows(candidates, "candidates.parquet", start, end)
        client = shared_client(store, _ledger_name(candidates), config.annotate)
        with progress(f"annotating traces {start}–{end}", f"annotate-{start}") as report:
            result = annotate_traces(
                rows,
                config.annotate,
                seed=config.seed,
                label_set=label_set_of(config),
                client=client,
                on_progress=report,
            )
        save_account(store, _ledger_name(candidates), config.annotate)
        write_rows(directory, "annotations.parquet", result.annotations, ANNOTATIONS)
        write_rows(directory, "raw_annotations.parquet", result.raw, RAW_ANNOTATIONS)
        _write_failures(directory, result.failures.to_dict("records"))
        failures = result.failures.to_dict("records")
        return Built(ANNOTATIONS.name, _count(failures), result.cost_usd)

    return shard_work(config, candidates, start, end).produce(build)


@stage_task("collect-annotations")
def collect_annotations(config: RunConfig, candidates: ArtifactRef, shards: Sequence[ArtifactRef]) -> Produced:
    """Join the shards into one artifact, a shard in memory at a time: labels, raw replies, failures."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        files = {"annotations.parquet": ANNOTATIONS, "raw_annotations.parquet": RAW_ANNOTATIONS}
        join_shards(store, shards, directory, files)
        failures = [row for shard in shards for row in read_failures(store, shard)]
        _write_failures(directory, failures)
        for line in left_out_lines(failures):
            logger.warning("%s", line)
        rules: Counter[str] = Counter()
        for batch in stream_table(directory / "annotations.parquet", ANNOTATIONS, ["rule"], 100_000):
            rules.update(batch.column("rule").to_pylist())
        counts = {**dict(rules.most_common()), **_count(failures)}
        return Built(ANNOTATIONS.name, counts, deciding=("annotations.parquet",))

    return annotations_work(config, candidates).produce(build)


def read_ledger(config: RunConfig, candidates: ArtifactRef) -> pd.DataFrame:
    """What each run paid for these annotations: ``run, model`` and the fields of :class:`mralign_core.llm.Usage`."""
    return read_account(ArtifactStore(config.storage), _ledger_name(candidates))


def without_offline(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger without offline models: the report of an offline run does not depend on the run's name."""
    return ledger[~ledger["model"].map(is_offline).astype(bool)]


def read_failures(store: ArtifactStore, annotations: ArtifactRef) -> list[dict[str, Any]]:
    """What models failed on: a row a trace and role, with :data:`mralign_core.annotation.FAILURE_COLUMNS`."""
    return list(json.loads(store.open_file(annotations, FAILURES).read_text(encoding="utf-8")))


def left_out_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many traces were left out, a line for each kind of failure, with one reply that shows it."""
    lines = []
    by_kind = Counter(failure["kind"] for failure in failures)
    for kind, _ in by_kind.most_common():
        alike = [failure for failure in failures if failure["kind"] == kind]
        traces = len({failure["trace_id"] for failure in alike})
        first = alike[0]
        example = f"{first['role']} on {first['trace_id']}: {first['problem']}"
        reply = f"; its reply begins {first['reply'][:MOST_SHOWN]!r}" if first["reply"] else ""
        lines.append(f"{traces} trace(s) left out, {kind}: {example}{reply}")
    return lines


def _count(failures: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Failures, and traces that they leave out: one that any role refused for what it holds is not asked again."""
    left_out = {failure["trace_id"] for failure in failures}
    final = {failure["trace_id"] for failure in failures if failure["is_final"]}
    return {"failures": len(failures), LEFT_OUT: len(left_out), TO_ASK_AGAIN: len(left_out - final)}


def _write_failures(directory: Path, failures: Sequence[Mapping[str, Any]]) -> None:
    text = json.dumps(failures, ensure_ascii=False, indent=1)
    (directory / FAILURES).write_text(text, encoding="utf-8")


def _ledger_name(candidates: ArtifactRef) -> str:
    """One account for all annotation of these traces, whatever the settings: another threshold is the same money."""
    return f"annotate/{candidates.sha256}"
