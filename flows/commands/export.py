"""A trained adapter out of the store, as it is or merged, with its results: what ``mralign export`` calls.

Unless told otherwise it is that of the version that ``retrain.alias`` names; where it names none, the last run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd
from pydantic import ValidationError

from flows.commands.versions import version_named
from mralign_core.config import ModelConfig, RunConfig, Variant
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.models.locate import limit_threads, locate_model
from mralign_core.models.names import told_model_name
from mralign_core.reporting.run_findings import Results, read_results
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.export import export_adapter, export_merged, read_adapter_config
from mralign_core.training.export_card import RunFacts, serve_adapter, serve_merged
from mralign_core.versions.aliases import Aliases
from mralign_core.versions.version import TRAINING_TRACES, Version, candidates_behind, resolve_version
from tasks.engine.one_task import Inputs

DEFAULT: Variant = "mr_align"
"""The variant of the last run that is exported where none is named."""


class Exported(NamedTuple):
    """What became of the results, how vLLM serves it, and what merging cost ("" when nothing was merged)."""

    results: str
    serve: str
    rounding: str = ""


class Chosen(NamedTuple):
    """Which adapter is exported, and why in words; ``version`` is None where it is the last run's."""

    variant: Variant
    version: Version | None
    why: str


class _Source(NamedTuple):
    """An adapter, the config's section of its model, and what is known of it."""

    adapter: ArtifactRef
    model: ModelConfig
    confidence: float
    results: Results | None
    told: str


def choose(
    config: RunConfig, version: str, variant: Variant | None, inputs: Mapping[str, str], alias: str = ""
) -> Chosen:
    """Which adapter to export: the version that is asked for, else what ``retrain.alias`` names, else the last run's.

    Args:
        config: says which store, which alias, and which base model the version that it names must be of.
        version: an alias, or a version's name; "" where none is asked for.
        variant: which variant; None where none is asked for.
        inputs: artifacts that the command names (``--input``), which then count, beside the last run's.
        alias: the alias that is asked for, which must name a version; "" for the config's, which need not.

    Raises:
        ArtifactError: there is no such version, or it is damaged; the alias that is asked for names none.
        ConfigError: the version is of another variant than the one asked for, or more than one thing says what to take.
    """
    store = ArtifactStore(config.storage)
    if version and alias:
        raise ConfigError("export: --version and --alias both say which version; leave one of them out")
    if (version or alias) and inputs:
        option = "--version" if version else "--alias"
        raise ConfigError(f"export: {option} names adapter and results already; leave out --input")
    if version or alias:
        chosen = resolve_version(store, version) if version else version_named(store, alias)
        if variant and chosen.record.variant != variant:
            raise ConfigError(f"--variant {variant}: version {chosen.name} is of variant {chosen.record.variant}")
        return _of(chosen, f"{chosen.name}, as asked" if version else _named_by(chosen, alias))
    if inputs:
        named = (name.partition(":")[2] for name in inputs if name.startswith("adapter:"))
        return Chosen(variant or cast(Variant, next(named, DEFAULT)), None, "none: what --input names")
    return _of_alias(config, store, variant)


def export(config: RunConfig, of: Inputs, chosen: Chosen, directory: Path, *, merge: bool) -> Exported:
    """Write an adapter, or the model it makes, to a folder.

    Args:
        config: the run config.
        of: finds the last run's adapter and report.
        chosen: which adapter.
        directory: a new or empty folder.
        merge: write the base model with the adapter merged into it.

    Raises:
        ArtifactError: there is no such adapter, or what it was made from is gone.
        ConfigError: the folder has files already.
    """
    store = ArtifactStore(config.storage)
    source = _of_version(config, store, chosen.version) if chosen.version else _of_last_run(config, store, of, chosen)
    made_from = _parents(store, source.adapter)
    run = _run_facts(store, source, made_from.get(TRAINING_TRACES) or made_from["candidates"])
    folder = store.open_directory(source.adapter)
    model = locate_model(store.open_directory(made_from["model"]))
    if not merge:
        export_adapter(folder, directory, source.model, chosen.variant, run)
        serve = serve_adapter(model.path, chosen.variant, read_adapter_config(folder), str(directory))
        return Exported(source.told, serve)
    limit_threads(source.model)
    told = export_merged(folder, directory, model.path, source.model, chosen.variant, run, revision=model.revision)
    return Exported(source.told, serve_merged(source.model.dtype, str(directory)), told)


def _of_alias(config: RunConfig, store: ArtifactStore, variant: Variant | None) -> Chosen:
    """The version that the config's alias names, if it is of what the config trains; else the last run's adapter."""
    alias = config.retrain.alias
    if Aliases(store).current(alias) is None:
        why = f"none: alias {alias} names no version (mralign promote), so the last run's"
        return Chosen(variant or DEFAULT, None, why)
    found, model, other = version_named(store, alias), told_model_name(config.model), ""
    if found.record.base_model != model:  # a store may hold those of several configs
        other = f"base model, {found.record.base_model}"
    elif variant and found.record.variant != variant:
        other = f"variant, {found.record.variant}"
    if other:
        why = f"none: {found.name}, which alias {alias} names, is of another {other}, so the last run's"
        return Chosen(variant or DEFAULT, None, why)
    return _of(found, _named_by(found, alias))


def _named_by(version: Version, alias: str) -> str:
    return f"{version.name}, which alias {alias} names"


def _of(version: Version, why: str) -> Chosen:
    return Chosen(cast(Variant, version.record.variant), version, why)


def _of_version(config: RunConfig, store: ArtifactStore, version: Version) -> _Source:
    """A version has its own results, and its own base model, whatever this config and its last run are."""
    asked, model = version.record.config, config.model
    if version.record.base_model != told_model_name(model):
        try:
            model = ModelConfig.model_validate({**asked["model"], "device": model.device})
        except ValidationError as error:
            raise ConfigError(
                f"version {version.name} is of base model {version.record.base_model}, and this release does not read "
                f"the model section that it was made with; name a config of that model (--config): {error}"
            ) from error
    results = read_results(store.open_directory(version.parent("results")))
    told = f"from version {version.name}" if results else "left out: no question has a gold answer"
    return _Source(version.adapter, model, asked["evaluate"]["confidence"], results, told)


def _of_last_run(config: RunConfig, store: ArtifactStore, of: Inputs, chosen: Chosen) -> _Source:
    adapter = of(f"adapter:{chosen.variant}")
    results, told = _results_of(store, of, adapter)
    return _Source(adapter, config.model, config.evaluate.confidence, results, told)


def _run_facts(store: ArtifactStore, source: _Source, traces: ArtifactRef) -> RunFacts:
    candidates = candidates_behind(store, traces)
    return RunFacts(
        questions=store.read_table(_parents(store, candidates)["questions"], "questions.parquet"),
        funnel=pd.DataFrame(store.read_json(traces, "funnel.json")),
        summary=source.results.summary if source.results else None,
        differences=source.results.differences if source.results else None,
        confidence=source.confidence,
    )


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
