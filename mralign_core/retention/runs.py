"""Every run that a store knows of: what it made, how it scored, what it paid, and what has become of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from mralign_core.llm.ledger import read_record
from mralign_core.retention.roots import NotedRun, Roots, is_heard_of, read_roots
from mralign_core.retraining.spending import account_names
from mralign_core.storage import ArtifactStore

LEDGER_RUN = re.compile(r"([0-9a-f]{8})-[0-9a-f]{6}")
"""Ends the name of a run's account: the beginning of the run's id, and a digest of what it may pay."""
RUN_ID_CHARS = 8
"""Characters of a run's id that accounts and claims name."""
STATE_BY_PRODUCT = {
    "report": "evaluated",
    "adapter": "trained",
    "weights": "weighed",
    "transitions": "estimated",
    "annotations": "annotated",
    "candidates": "generated",
    "ablation": "compared",
}
"""The last of these that a run made says how far it came; other runs have ``prepared``."""
SCORED = ("acc", "mis", "accuracy")


class RunLine(NamedTuple):
    """One run, as a table of runs shows it."""

    run: str
    config: str
    at: datetime
    """When its last stage ended (UTC)."""
    age_s: float
    state: str
    """How far it came; ``at work`` where it reports on a claim, and ``removed`` where what it made is gone."""
    scores: dict[str, dict[str, float]]
    """Variant → Acc and Mis, or accuracy, over all questions; empty where nothing was scored, or it is gone."""
    cost_usd: float
    """Dollars that it paid or may have paid for replies."""
    num_artifacts: int
    """Artifacts that it made, shards not counted."""


def list_runs(store: ArtifactStore, now: datetime, config: str = "") -> list[RunLine]:
    """All runs, the newest first.

    Args:
        store: where they are noted.
        now: for their ages (UTC).
        config: a config's name; runs of all when empty.

    Raises:
        ArtifactError: a record can't be read.
    """
    roots, paid = read_roots(store), _paid(store)
    runs = [noted for noted in roots.runs if config in ("", noted.config)]
    lines = [_line(store, noted, roots, paid, now) for noted in runs]
    return sorted(lines, key=lambda line: (line.at, line.run), reverse=True)


def _line(store: ArtifactStore, noted: NotedRun, roots: Roots, paid: Mapping[str, float], now: datetime) -> RunLine:
    record = noted.record
    made = [name for name in record.artifacts if record.made_by.get(name) == record.run]
    scores = _scores(store, noted)
    return RunLine(
        run=record.run,
        config=noted.config,
        at=record.at,
        age_s=(now - record.at).total_seconds(),
        state=_state(store, noted, made, roots),
        scores=scores,
        cost_usd=round(paid.get(_id_of_claims(record.run), 0.0), 6),
        num_artifacts=len(made),
    )


def _state(store: ArtifactStore, noted: NotedRun, made: list[str], roots: Roots) -> str:
    record = noted.record
    own = _id_of_claims(record.run)
    if own and any(claim.holder.run.endswith(f"-{own}") and is_heard_of(claim) for claim in roots.claims):
        return "at work"
    products = {name.partition(":")[0] for name in made}
    product = next((name for name in STATE_BY_PRODUCT if name in products), "")
    last = next((record.artifacts[name] for name in made if name.partition(":")[0] == product), None)
    if last and not store.files.exists(f"{last.path}/manifest.json"):
        return "removed"
    return STATE_BY_PRODUCT.get(product, "prepared")


def _id_of_claims(run: str) -> str:
    """What accounts and claims say of a run of Prefect's; empty of a process by itself, which they name otherwise."""
    return "" if run.startswith("local-") else run[:RUN_ID_CHARS]


def _scores(store: ArtifactStore, noted: NotedRun) -> dict[str, dict[str, float]]:
    """The headline scores of what the run itself evaluated."""
    record = noted.record
    ref = record.artifacts.get("results")
    if ref is None or record.made_by.get("results") != record.run:
        return {}
    if not store.files.exists(f"{ref.path}/manifest.json") or "summary.json" not in store.manifest(ref).files:
        return {}
    rows: list[dict[str, Any]] = store.read_json(ref, "summary.json")
    headline = [row for row in rows if row["stratum"] == rows[0]["stratum"]]
    return {
        row["variant"]: {name: row[name] for name in SCORED if row.get(name) is not None}
        for row in headline
        if any(row.get(name) is not None for name in SCORED)
    }


def paid_by_run(store: ArtifactStore, run: str) -> float:
    """Dollars that a run paid, or may have to pay, for labels, draws and verdicts, so far; 0 of a process by itself.

    Args:
        store: where the accounts are.
        run: its id, as records have it.
    """
    own = _id_of_claims(run)
    accounts = [name for name in account_names(store) if own and f"{own}-" in name.rpartition("/")[2]]
    return sum(_committed_usd(name, store.get_json(name)) for name in accounts)


def _paid(store: ArtifactStore) -> dict[str, float]:
    """Beginning of a run's id → dollars that it paid, over all accounts."""
    paid: dict[str, float] = defaultdict(float)
    for folder in sorted({name.rpartition("/")[0] for name in account_names(store)}):
        for run, record in store.list_any_json(folder).items():
            if match := LEDGER_RUN.search(run):
                paid[match[1]] += _committed_usd(run, record)
    return paid


def _committed_usd(run: str, record: dict[str, Any] | None) -> float:
    return sum(usage.committed_usd for usage in read_record(run, record).values())
