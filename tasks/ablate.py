"""Comparing the arms of an ablation, and the worlds on which there are none to compare."""

from __future__ import annotations

import json
from typing import Any

from mralign_core.ablation.grid import arm_comparisons, arms_of, grounds_of, known_arms, worlds_of
from mralign_core.ablation.paired import Cell, Unit, cell_results, mean_differences, sets_left_out
from mralign_core.config import RunConfig
from mralign_core.errors import QualityGateError
from mralign_core.evaluation.metrics import METRICS
from mralign_core.reporting.ablation_figure import forest_plot
from mralign_core.reporting.ablation_findings import Ablation
from mralign_core.reporting.paper_tables import ablation_page
from mralign_core.reporting.style import to_png, to_svg
from mralign_core.schemas.ablation import ABLATION_DIFFERENCES, ABLATION_RESULTS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.engine.graph import Input, named_by_caller
from tasks.engine.pool import run_children
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import pick
from tasks.prepare import prepare_model

RESULTS, DIFFERENCES, REFUSED, LEFT_OUT, PAGE, FOREST_PNG, FOREST_SVG = (
    "results.parquet",
    "differences.parquet",
    "refused.json",
    "left_out.json",
    "ablation.md",
    "forest.png",
    "forest.svg",
)
"""The files of the artifacts: numbers, then page and figure."""
NUMBERS = ("difference", "std_error", "low", "high", "p_value")
ABLATE_WORLD = "ablate-world/share-ablate-world"


def _ablation_fields(config: RunConfig) -> dict[str, Any]:
    known = known_arms(config)
    arms = {name: list(known[name]) for name in config.ablate.arms}
    return {"arms": arms, **pick(config.ablate, "confidence", "smallest_effect"), **pick(config.model, "source")}


@artifact(
    "ablation",
    stage="ablate",
    part=("refused",),
    inputs=(Input("scores", each=named_by_caller),),
    fields=_ablation_fields,
    sources=("mralign_core.ablation.paired", "mralign_core.ablation.grid"),
)
def compare_arms(making: Making) -> Built:
    """Compute the paired differences of all arms with their intervals, from the scores of each ``Cell`` by its text.

    ``refused`` says of each world that is left out why.
    """
    config, store, refused = making.config, making.store, making.part["refused"]
    scores = making.several("scores")
    results = cell_results((Cell.parse(cell), store.read_table(ref, "scores.parquet")) for cell, ref in scores.items())
    left_out = sets_left_out(store.read_table(next(iter(scores.values())), "scores.parquet"))  # the same in every cell
    pairs = arm_comparisons(arms_of(config))
    differences = mean_differences(results, pairs, unit=_unit(config), confidence=config.ablate.confidence)
    write_table(making.directory, RESULTS, results.astype(object), ABLATION_RESULTS)
    write_table(making.directory, DIFFERENCES, differences.astype(object), ABLATION_DIFFERENCES)
    (making.directory / REFUSED).write_text(json.dumps(refused, ensure_ascii=False, indent=1), encoding="utf-8")
    (making.directory / LEFT_OUT).write_text(json.dumps(left_out, ensure_ascii=False, indent=1), encoding="utf-8")
    num_units = int(results[_unit(config)].nunique())
    counts = {f"{_unit(config)}s": num_units, "worlds refused": len(refused), "cells": len(results)}
    return Built(ABLATION_DIFFERENCES.name, counts)


@artifact(
    "ablation-page",
    stage="ablate",
    inputs=(Input("ablation"),),
    fields=_ablation_fields,
    sources=("mralign_core.reporting.paper_tables", "mralign_core.reporting.ablation_figure"),
)
def write_ablation(making: Making) -> Built:
    """Write the page to look at, and its figure."""
    ablation = read_ablation(making.config, making["ablation"])
    (making.directory / PAGE).write_text(f"# Ablation\n\n{ablation_page(ablation)}", encoding="utf-8")
    figure = forest_plot(ablation)
    (making.directory / FOREST_PNG).write_bytes(to_png(figure))
    (making.directory / FOREST_SVG).write_text(to_svg(figure, "forest"), encoding="utf-8")
    return Built()


def read_ablation(config: RunConfig, ref: ArtifactRef) -> Ablation:
    """What :func:`compare_arms` found under this config."""
    store = ArtifactStore(config.storage)
    refused = store.read_json(ref, REFUSED)
    results, differences = (
        store.read_table(ref, name).astype(dict.fromkeys(columns, float))
        for name, columns in ((RESULTS, METRICS), (DIFFERENCES, NUMBERS))
    )
    return Ablation(
        arms=arms_of(config),
        results=results,
        differences=differences,
        unit=_unit(config),
        confidence=config.ablate.confidence,
        smallest_effect=config.ablate.smallest_effect,
        is_pocket=config.model.source == "pocket",
        refused={int(world): why for world, why in refused.items()},
        left_out=store.read_json(ref, LEFT_OUT),
    )


def refusal(config: RunConfig) -> str:
    """Why a model of this pocket world was refused, the run's or an arm's; empty where none was, as far as is known."""
    if config.model.source != "pocket":
        return ""
    store = ArtifactStore(config.storage)
    records = [store.get_json(_refusal(ground.config)) or {} for ground in grounds_of(config)]
    return next((str(record["why"]) for record in records if "why" in record), "")


def remember_refusal(config: RunConfig, error: QualityGateError) -> None:
    """Note that this world's model did not pass, so that no later run trains it again to find out."""
    ArtifactStore(config.storage).put_json(_refusal(config), {"why": str(error)})


def ablate_on_pool(config: RunConfig) -> None:
    """Work off the worlds in child runs, all at once, and those that replace refused ones after them.

    Raises:
        ConfigError: there is no such deployment.
        RuntimeError: a child run did not complete; what it made is kept.
    """
    left, missing = list(worlds_of(config).values()), config.ablate.num_worlds
    while missing and left:
        together, left = left[:missing], left[missing:]
        parameters = [{"config": world.model_dump(mode="json")} for world in together]
        run_children(ABLATE_WORLD, parameters, field="ablate.where")
        missing = sum(bool(refusal(world)) for world in together)


def _refusal(config: RunConfig) -> str:
    return f"refused-worlds/{prepare_model.work(config).key}"


def _unit(config: RunConfig) -> Unit:
    return "world" if config.model.source == "pocket" else "seed"
