"""How far annotators agree: panels of models and sheets of people on the same candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.annotation.failures import FAILURES_FILE, read_failures
from mralign_core.comparison.agreement import compare
from mralign_core.comparison.annotation_sets import AnnotationSet, panel_sets, unite_equal
from mralign_core.comparison.panels import panel_note, rules_by_panel
from mralign_core.comparison.sheets import read_sheet
from mralign_core.config import RunConfig
from mralign_core.estimation.hidden_labels import OF_LABEL_SETS
from mralign_core.label_sets import label_set_of
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.agreement_tables import write_comparison
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.graph import Input, Part, named_by_caller
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, file_digests
from tasks.engine.task import artifact
from tasks.fields import all_but, clipped_ratios, labels, pick, without_pocket

CANDIDATE_COLUMNS = ["trace_id", "question_id", "polarity", "stratum", "segments"]
SHEET_COLUMNS = ["completion"]
"""Read besides where there are sheets; their items are recognised by it. The other columns are most of a trace."""
RUN = "run"
"""The panel of the run's own annotators."""


def _agreement(config: RunConfig) -> dict[str, Any]:
    return {
        "estimate": all_but(config.estimate, "num_resamples", "confidence", "permute_polarity", "traces"),
        "reward": clipped_ratios(config),
        "panels": {panel.name: panel.annotate.fingerprint() for panel in config.compare.panels},
        **pick(config.compare, "num_resamples", "confidence"),
        **labels(config),
        "seed": config.seed,
    }


def _contents(config: RunConfig, _: Part) -> dict[str, str]:
    sheets = _sheets(config)
    # A sheet that is not there must not find the comparison without it.
    return {**dict.fromkeys(sheets, "missing"), **file_digests(**sheets)}


@artifact(
    "agreement",
    stage="compare_annotators",
    inputs=(Input("candidates"), Input("annotations", each=named_by_caller)),
    fields=_agreement,
    details=_contents,
    sources=(
        "mralign_core.annotation.failures",
        "mralign_core.comparison.agreement",
        "mralign_core.comparison.panels",
        "mralign_core.comparison.sheets",
        "mralign_core.reporting.agreement_tables",
        "mralign_core.schemas.annotations",
        "mralign_core.schemas.candidates",
    ),
    without=without_pocket,
)
def compare_annotations(making: Making) -> Built:
    """Compare every pair of annotation sets, of panels (by name) and of people: agreement, κ, P and w."""
    config, store, panels = making.config, making.store, making.several("annotations")
    wanted = [*CANDIDATE_COLUMNS, *(SHEET_COLUMNS if config.compare.sheets else ())]
    traces = store.read_columns(making["candidates"], "candidates.parquet", CANDIDATES, wanted)
    columns = list(ANNOTATIONS.columns)
    tables = {
        name: store.read_columns(ref, "annotations.parquet", ANNOTATIONS, columns) for name, ref in panels.items()
    }
    taxonomy = label_set_of(config).taxonomy
    rated, sheet_notes = _read_sheets(config, traces, taxonomy)
    from_panels = [each for name, table in tables.items() for each in panel_sets(name, table, traces)]
    sets, equal = unite_equal([*from_panels, *rated])
    with progress("comparing annotation sets", "compare-annotators") as report:
        compared = compare(
            traces,
            sets,
            taxonomy,
            estimate=config.estimate,
            reward=config.reward.of_paper_form,
            num_resamples=config.compare.num_resamples,
            confidence=config.compare.confidence,
            seed=config.seed,
            on_progress=report,
        )
    same = {name: f"equals {other}, compared once" for name, other in equal.items()}
    notes = {**_panel_notes(config, store, panels), **sheet_notes, **same}
    if config.estimate.estimator == "hidden":
        notes["estimate.estimator"] = OF_LABEL_SETS
    write_comparison(making.directory, compared, notes=notes, rules=rules_by_panel(tables))
    return Built(counts={"sets": len(sets), "pairs compared": len(compared.pairs) // 4, **sheet_notes})


def read_agreement(config: RunConfig, agreement: ArtifactRef) -> dict[str, Any]:
    """What ``agreement.json`` holds."""
    return dict(ArtifactStore(config.storage).read_json(agreement, "agreement.json"))


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
    settings = {panel.name: panel.annotate for panel in config.compare.panels}
    return {
        name: panel_note(
            store.read_columns(ref, "raw_annotations.parquet", RAW_ANNOTATIONS, ["role", "model"]),
            read_failures(store.open_file(ref, FAILURES_FILE)),
            settings.get(name, config.annotate),
            config.annotate,
        )
        for name, ref in panels.items()
    }
