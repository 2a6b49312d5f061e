"""Tables and figures as artifacts, on the Prefect pages of a stage's run and of the pipeline run it is in.

They are for the eye: a server that can't take one must not stop the work, so failures are logged and passed
over.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec
from uuid import UUID

import pandas as pd
from matplotlib.figure import Figure
from prefect.artifacts import Artifact, ImageArtifact, MarkdownArtifact, TableArtifact
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from mralign_core.config import RunConfig
from mralign_core.evaluation import figures
from mralign_core.evaluation.findings import summary_markdown
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.evaluate import transitions_of

logger = logging.getLogger("mralign_core.publishing")
P = ParamSpec("P")


def for_the_eye(show: Callable[P, None]) -> Callable[P, None]:
    """Show only inside a flow run, and let no failure out."""

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        if FlowRunContext.get() is None:
            return
        try:
            show(*args, **kwargs)
        except Exception as error:
            logger.warning("%s: nothing shown on the run's page: %s", show.__name__, error)

    return shown


@for_the_eye
def show_yield(config: RunConfig, candidates: ArtifactRef) -> None:
    """What each step of the selection kept."""
    store = ArtifactStore(config.storage)
    rows = json.loads(store.open_file(candidates, "funnel.json").read_text())
    _table("yield", rows, "What each step of the selection kept, dropped, and why")
    _image("yield-figure", figures.yield_funnel(pd.DataFrame(rows)), "Yield of the selection")


@for_the_eye
def show_labels(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> None:
    """The label mix, and which rule decided."""
    store = ArtifactStore(config.storage)
    labels = store.read_table(annotations, "annotations.parquet")
    traces = store.read_table(candidates, "candidates.parquet")
    polarities = dict(zip(traces["trace_id"], traces["polarity"], strict=True))
    _image("label-mix", figures.label_mix(labels, polarities, PAPER_TAXONOMY), "What segments do, by polarity")
    rules = labels["rule"].value_counts().rename_axis("rule").reset_index(name="segments")
    _table("label-rules", rules.to_dict("list"), "Rule that decided each segment")


@for_the_eye
def show_transitions(config: RunConfig, transitions: ArtifactRef) -> None:
    """Heat-maps of P⁺ and P⁻ and of the weights they give."""
    matrices = transitions_of(ArtifactStore(config.storage), config, transitions)
    _image("transitions", figures.transition_heatmaps(matrices), "P⁺ and P⁻")
    _image("transition-weights", figures.weight_heatmaps(matrices), "Weights of single transitions")


@for_the_eye
def show_weights(config: RunConfig, rewards: ArtifactRef) -> None:
    """The distribution of segment weights."""
    frame = ArtifactStore(config.storage).read_table(rewards, "rewards.parquet")
    shares = {
        "segments": len(frame),
        "clipped": int(frame["clipped"].sum()),
        "mean weight": frame["weight"].mean(),
    }
    _table("weights", [shares], "Segment weights (Eq. 10)")


@for_the_eye
def show_training(config: RunConfig, adapters: Mapping[str, ArtifactRef]) -> None:
    """Training curves."""
    store = ArtifactStore(config.storage)
    metrics = {name: store.read_table(ref, "metrics.parquet") for name, ref in adapters.items()}
    _image("training-curves", figures.training_curves(metrics), "Loss, rewards and KL baseline by step")


@for_the_eye
def show_results(config: RunConfig, report: ArtifactRef) -> None:
    """The results table, and where the report is."""
    store = ArtifactStore(config.storage)
    folder = store.open_directory(report)
    text = f"Report: `{folder / 'report.html'}`\n"
    if (folder / "summary.json").exists():
        summary, differences = (pd.read_json(folder / f"{name}.json") for name in ("summary", "differences"))
        text += "\n" + summary_markdown(summary, differences)
        _image("results-figure", figures.difference_intervals(differences), "Differences with paired intervals")
    description = "What alignment changed on held-out questions"
    _publish(MarkdownArtifact(key="results", description=description, markdown=text))


def _table(key: str, rows: list[Any] | dict[Any, Any], description: str) -> None:
    _publish(TableArtifact(key=key, description=description, table=rows))


def _image(key: str, figure: Figure, description: str) -> None:
    """Prefect shows pictures by address; a data address holds the picture itself."""
    data = base64.b64encode(figures.to_png(figure)).decode()
    _publish(ImageArtifact(key=key, description=description, image_url=f"data:image/png;base64,{data}"))


def _publish(artifact: Artifact) -> None:
    """Prefect shows an artifact on the page of the run that made it; make one for the pipeline run too."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    pages = {str(context.flow_run.id)}
    if context.flow_run.deployment_id is None:  # a run on another pool is shown by its parent once more
        pages.add(flow_run.root_flow_run_id)
    for page in pages:
        artifact.model_copy(update={"flow_run_id": UUID(page)}).create()
