"""A label set induced from the candidates, with the clusters behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mralign_core.config import RunConfig
from mralign_core.induction.inducing import Induction, induce_label_set
from mralign_core.label_sets import save_label_set
from mralign_core.llm.ledger import Ledger
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
from tasks.engine.graph import Input, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.session import run_name
from tasks.engine.task import artifact
from tasks.fields import TRANSPORT

LABEL_SET, CLUSTERS, OPEN_LABELS, MAP_PNG, MAP_SVG = (
    "label_set.yaml",
    "clusters.json",
    "open_labels.csv",
    "cluster_map.png",
    "cluster_map.svg",
)
"""The files of the artifact."""


def _embedder(config: RunConfig, _: Part) -> dict[str, str]:
    """Of an embedder in a folder, the contents count."""
    folder = Path(config.induce.embedder)
    return {"embedder_sha256": tree_digest(folder)} if folder.is_dir() else {}


@artifact(
    "label-set",
    stage="induce_taxonomy",
    inputs=(Input("candidates"),),
    fields=lambda config: {**config.induce.fingerprint(), "seed": config.seed},
    details=_embedder,
    without=lambda _: ("mralign_core.annotation.human", *TRANSPORT),
    sources=("mralign_core.induction.inducing", "mralign_core.reporting.induction_figures"),
    ask_again=lambda config: config.induce.ask_again,
)
def induce_labels(making: Making) -> Built:
    """Label traces in open vocabulary, cluster the labels, name the clusters; every reply is kept."""
    config, store = making.config, making.store
    records = LedgerRecords(store, f"induce/{making.work.key}")
    with progress("labelling in open vocabulary", "induce-taxonomy") as report:
        induced = induce_label_set(
            making.table("candidates", "candidates.parquet"),
            config.induce,
            seed=config.seed,
            replies=ReplyStore(store),
            ledger=Ledger(records, run_name(), config.induce.budget_usd, "induce.budget_usd"),
            batches=BatchRecords(store),
            on_progress=report,
        )
    _write(induced, making.directory)
    counts = {**induced.counts, "failures": len(induced.failures), LEFT_OUT: len(induced.failures)}
    return Built(counts=counts, cost_usd=induced.cost_usd)


def read_clusters(config: RunConfig, label_set: ArtifactRef) -> dict[str, Any]:
    """What ``clusters.json`` holds: ``counts``, ``labels`` (most frequent phrases first), ``noise``, ``failures``."""
    return dict(ArtifactStore(config.storage).read_json(label_set, CLUSTERS))


def _write(induced: Induction, directory: Path) -> None:
    save_label_set(induced.label_set, directory / LABEL_SET)
    induced.open_labels.to_csv(directory / OPEN_LABELS, index=False)
    text = json.dumps(induced.description(), ensure_ascii=False, indent=1)
    (directory / CLUSTERS).write_text(text, encoding="utf-8")
    figure = cluster_map(induced.open_labels, induced.label_set.taxonomy)
    (directory / MAP_PNG).write_bytes(to_png(figure))
    (directory / MAP_SVG).write_text(to_svg(figure, "cluster-map"), encoding="utf-8")
