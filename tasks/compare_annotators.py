"""How far annotators agree: panels of models and sheets of people on the same candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.comparison.agreement import compare
from mralign_core.comparison.annotation_sets import AnnotationSet, panel_sets, unite_equal
from mralign_core.comparison.sheets import read_sheet
from mralign_core.config import AnnotateConfig, RunConfig
from mralign_core.label_sets import label_set_of
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.agreement_tables import write_comparison
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.progress import progress
from tasks.engine.run import Built, Produced, Work, file_digests, stage_task

CANDIDATE_COLUMNS = ["trace_id", "polarity", "stratum", "segments"]
SHEET_COLUMNS = ["completion"]
"""Read besides where there are sheets; their items are recognised by it. The other columns are most of a trace."""
RUN = "run"
"""The panel of the run's own annotators."""


def agreement_work(config: RunConfig, candidates: ArtifactRef, panels: Mapping[str, ArtifactRef]) -> Work:
    """The comparison of panels' annotations (by panel name) with each other and with the filled sheets."""
    inputs = {"candidates": candidates, **{f"annotations:{name}": ref for name, ref in panels.items()}}
    sheets = _sheets(config)
    # A sheet that is not there must not find the comparison without it.
    return Work("agreement", config, inputs, {**dict.fromkeys(sheets, "missing"), **file_digests(**sheets)})


@stage_task("compare-annotations")
def compare_annotations(config: RunConfig, candidates: ArtifactRef, panels: Mapping[str, ArtifactRef]) -> Produced:
    """Compare every pair of annotation sets: agreement, κ, P and w."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        wanted = [*CANDIDATE_COLUMNS, *(SHEET_COLUMNS if config.compare.sheets else ())]
        traces = store.read_columns(candidates, "candidates.parquet", CANDIDATES, wanted)
        tables = {
            name: store.read_columns(ref, "annotations.parquet", ANNOTATIONS, list(ANNOTATIONS.columns))
            for name, ref in panels.items()
        }
        taxonomy = label_set_of(config).taxonomy
        rated, sheet_notes = _read_sheets(config, traces, taxonomy)
        from_panels = [each for name, table in tables.items() for each in panel_sets(name, table, traces)]
        sets, equal = unite_equal([*from_panels, *rated])
        with progress("comparing annotation sets", "compare-annotators") as report:
            found = compare(
                traces,
                sets,
                taxonomy,
                estimate=config.estimate,
                reward=config.reward,
                num_resamples=config.compare.num_resamples,
                confidence=config.compare.confidence,
                seed=config.seed,
                on_progress=report,
            )
        same = {name: f"equals {other}, compared once" for name, other in equal.items()}
        notes = {**_panel_notes(config, store, panels), **sheet_notes, **same}
        write_comparison(directory, found, notes=notes, rules=_rules(tables))
        return Built(counts={"sets": len(sets), "pairs compared": len(found.pairs) // 4, **sheet_notes})

    return agreement_work(config, candidates, panels).produce(build)


def read_agreement(config: RunConfig, agreement: ArtifactRef) -> dict[str, Any]:
    """What ``agreement.json`` holds."""
    path = ArtifactStore(config.storage).open_file(agreement, "agreement.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _sheets(config: RunConfig) -> dict[str, str]:
    """The path of each rater's sheet, by the name of its annotation set."""
    return {Path(path).stem: path for path in config.compare.sheets}


def _read_sheets(
    config: RunConfig, candidates: pd.DataFrame, taxonomy: Taxonomy
) -> tuple[list[AnnotationSet], dict[str, str]]:
    """The raters' annotation sets, and a note on how much each rated."""
    read = {name: read_sheet(Path(path), candidates, taxonomy) for name, path in _sheets(config).items()}
    notes = {
        name: f"{sheet.num_items} segments in the sheet, {sheet.num_not_rated} not rated"
        for name, sheet in read.items()
    }
    return [AnnotationSet(name, sheet.rows) for name, sheet in read.items()], notes


def _panel_notes(config: RunConfig, store: ArtifactStore, panels: Mapping[str, ArtifactRef]) -> dict[str, str]:
    """Of each panel: its models, the settings in which it differs from the run's, and how many traces it failed on."""
    settings = {panel.name: panel.annotate for panel in config.compare.panels}
    notes = {}
    for name, ref in panels.items():
        raw = store.read_columns(ref, "raw_annotations.parquet", RAW_ANNOTATIONS, ["role", "model"])
        models = raw.groupby("role")["model"].unique().map(", ".join)
        failures = json.loads(store.open_file(ref, "failures.json").read_text(encoding="utf-8"))
        other = _differences(settings[name], config.annotate) if name in settings else []
        failed = f"{len({failure['trace_id'] for failure in failures})} traces failed"
        notes[name] = "; ".join([*(f"{role} {model}" for role, model in models.items()), *other, failed])
    return notes


def _differences(panel: AnnotateConfig, run: AnnotateConfig) -> list[str]:
    """Settings, besides the models, that differ from the run's."""
    ours, theirs = panel.fingerprint(), run.fingerprint()
    plain = [name for name, value in ours.items() if not isinstance(value, dict)]
    return [f"{name} {ours[name]} (run: {theirs[name]})" for name in plain if ours[name] != theirs[name]]


def _rules(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a panel and rule: how many segments it decided."""
    rows = [
        {"panel": name, "rule": str(rule), "segments": int(count), "share": count / len(table)}
        for name, table in tables.items()
        for rule, count in table["rule"].value_counts().items()
    ]
    return pd.DataFrame(rows, columns=["panel", "rule", "segments", "share"])
