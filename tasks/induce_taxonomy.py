"""A label set induced from the candidates, with the clusters behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.induction import Induction, induce_label_set
from mralign_core.label_sets import save_label_set
from mralign_core.llm import Ledger
from mralign_core.reporting.induction_figures import cluster_map
from mralign_core.reporting.style import to_png, to_svg
from mralign_core.storage import (
    LEFT_OUT,
    ArtifactRef,
    ArtifactStore,
    BatchRecords,
    LedgerRecords,
    ReplyStore,
    tree_digest,
)
from tasks.clients import run_name
from tasks.engine.progress import progress
from tasks.engine.run import Built, Produced, Work, stage_task

LABEL_SET, CLUSTERS, OPEN_LABELS, MAP_PNG, MAP_SVG = (
    "label_set.yaml",
    "clusters.json",
    "open_labels.csv",
    "cluster_map.png",
    "cluster_map.svg",
)
"""The files of the artifact."""


def label_set_work(config: RunConfig, candidates: ArtifactRef) -> Work:
    """The label set of a set of traces; of an embedder in a folder, the contents count."""
    folder = Path(config.induce.embedder)
    part = {"embedder_sha256": tree_digest(folder)} if folder.is_dir() else {}
    return Work("label-set", config, {"candidates": candidates}, part, config.induce.ask_again)


@stage_task("induce-label-set")
def induce_labels(config: RunConfig, candidates: ArtifactRef) -> Produced:
    """Label traces in open vocabulary, cluster the labels, name the clusters; every reply is kept."""
    work = label_set_work(config, candidates)

    def build(store: ArtifactStore, directory: Path) -> Built:
        records = LedgerRecords(store, f"induce/{work.key}")
        with progress("labelling in open vocabulary", "induce-taxonomy") as report:
            found = induce_label_set(
                store.read_table(candidates, "candidates.parquet"),
                config.induce,
                seed=config.seed,
                replies=ReplyStore(store),
                ledger=Ledger(records, run_name(), config.induce.budget_usd, "induce.budget_usd"),
                batches=BatchRecords(store),
                on_progress=report,
            )
        _write(found, directory)
        counts = {**found.counts, "failures": len(found.failures), LEFT_OUT: len(found.failures)}
        return Built(counts=counts, cost_usd=found.cost_usd)

    return work.produce(build)


def read_clusters(config: RunConfig, label_set: ArtifactRef) -> dict[str, Any]:
    """What ``clusters.json`` holds: ``counts``, ``labels`` (most frequent phrases first), ``noise``, ``failures``."""
    path = ArtifactStore(config.storage).open_file(label_set, CLUSTERS)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write(found: Induction, directory: Path) -> None:
    save_label_set(found.label_set, directory / LABEL_SET)
    found.open_labels.to_csv(directory / OPEN_LABELS, index=False)
    noise = found.open_labels[found.open_labels["is_noise"]]
    description = {
        "counts": found.counts,
        "labels": [{**label._asdict(), "num_instances": label.num_instances} for label in found.labels],
        "noise": _counts_by_label(noise),
        "too_rare": _counts_by_label(found.open_labels[~found.open_labels["is_kept"]]),
        "failures": found.failures,
    }
    text = json.dumps(description, ensure_ascii=False, indent=1)
    (directory / CLUSTERS).write_text(text, encoding="utf-8")
    figure = cluster_map(found.open_labels, found.label_set.taxonomy)
    (directory / MAP_PNG).write_bytes(to_png(figure))
    (directory / MAP_SVG).write_text(to_svg(figure, "cluster-map"), encoding="utf-8")


def _counts_by_label(rows: pd.DataFrame) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(rows["open_label"], rows["count"], strict=True)}
