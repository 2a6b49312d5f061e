"""A trained adapter out of the store, as it is or merged, with its run's results: what ``mralign export`` calls."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mralign_core.config import RunConfig, Variant
from mralign_core.errors import ArtifactError
from mralign_core.models.locate import limit_threads, locate_model
from mralign_core.reporting.run_findings import Results, read_results
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.export import export_adapter, export_merged, read_adapter_config
from mralign_core.training.export_card import RunFacts, serve_adapter, serve_merged
from tasks.engine.one_task import Inputs


class Exported(NamedTuple):
    """What became of the results, how vLLM serves it, and what merging cost ("" when nothing was merged)."""

    results: str
    serve: str
    rounding: str = ""


def export(config: RunConfig, of: Inputs, variant: Variant, directory: Path, *, merge: bool) -> Exported:
    """Write an adapter, or the model it makes, to a folder.

    Args:
        config: the run config.
        of: finds the adapter and the report.
        variant: what was trained.
        directory: a new or empty folder.
        merge: write the base model with the adapter merged into it.

    Raises:
        ArtifactError: there is no such adapter, or what it was made from is gone.
        ConfigError: the folder has files already.
    """
    store = ArtifactStore(config.storage)
    adapter = of(f"adapter:{variant}")
    made_from = _parents(store, adapter)
    run, results = _run_facts(config, store, of, adapter, made_from["candidates"])
    folder = store.open_directory(adapter)
    model = locate_model(store.open_directory(made_from["model"]))
    if not merge:
        export_adapter(folder, directory, config.model, variant, run)
        return Exported(results, serve_adapter(model.path, variant, read_adapter_config(folder), str(directory)))
    limit_threads(config.model)
    told = export_merged(folder, directory, model.path, config.model, variant, run, revision=model.revision)
    return Exported(results, serve_merged(config.model.dtype, str(directory)), told)


def _run_facts(
    config: RunConfig, store: ArtifactStore, of: Inputs, adapter: ArtifactRef, candidates: ArtifactRef
) -> tuple[RunFacts, str]:
    """The facts, and what became of the results."""
    results, told = _results_of(store, of, adapter)
    facts = RunFacts(
        questions=store.read_table(_parents(store, candidates)["questions"], "questions.parquet"),
        funnel=pd.DataFrame(store.read_json(candidates, "funnel.json")),
        summary=results.summary if results else None,
        differences=results.differences if results else None,
        confidence=config.evaluate.confidence,
    )
    return facts, told


def _results_of(store: ArtifactStore, of: Inputs, adapter: ArtifactRef) -> tuple[Results | None, str]:
    """The results, if they are of just this adapter, and what became of them."""
    try:
        report = of("report")
    except ArtifactError as error:
        return None, f"left out: {error}"
    made_from = store.manifest(report).parents
    if adapter.sha256 not in {parent.sha256 for parent in made_from}:
        return None, f"left out: {report.uri} reports on another adapter; run `mralign run --only evaluate` again"
    ref = next((parent for parent in made_from if parent.stage == "results"), None)
    results = read_results(store.open_directory(ref)) if ref else None
    if results is None:
        return None, f"left out: {report.uri} has none, since no question has a gold answer"
    return results, f"from {report.uri}"


def _parents(store: ArtifactStore, ref: ArtifactRef) -> dict[str, ArtifactRef]:
    return {parent.stage: parent for parent in store.manifest(ref).parents}
