"""Weights for every segment from the ratios of transition probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mralign_core.config import RunConfig
from mralign_core.estimation.alterations import make_weigher, weigh_corpus
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.label_sets import label_set_of
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import TableWriter
from tasks.engine.graph import Input, Part
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.estimate import labelled_traces_of, require_chosen_traces, uses_draws
from tasks.fields import all_but, labels, pick, without_pocket


def _weighing(config: RunConfig) -> dict[str, Any]:
    left_out, permutes = config.reward.leave_own_question_out, config.estimate.permute_polarity
    has_chance = config.reward.placebo != "none" or (left_out and permutes)
    return {
        **config.reward.fingerprint(),
        **pick(config.estimate, "labels_per_segment", "confidence"),
        **({"estimate": all_but(config.estimate, "num_resamples", "traces")} if left_out or permutes else {}),
        **labels(config),
        "seed": config.seed if has_chance else None,
    }


def _counts_draws_anew(config: RunConfig, part: Part) -> bool:
    return uses_draws(config, part) and (config.reward.leave_own_question_out or config.estimate.permute_polarity)


@artifact(
    "weights",
    stage="reward",
    inputs=(
        Input("candidates"),
        Input("annotations"),
        Input("transitions"),
        Input("thinking-draws", when=_counts_draws_anew),
        Input("draw-annotations", when=_counts_draws_anew),
    ),
    fields=_weighing,
    sources=(
        "mralign_core.estimation.reading",
        "mralign_core.estimation.alterations",
        "mralign_core.estimation.matrices",
        "mralign_core.estimation.weights",
    ),
    without=without_pocket,
    check=partial(require_chosen_traces, name="transitions"),
    is_main=lambda _: True,
)
def weigh_segments(making: Making) -> Built:
    """Weigh each segment by how much likelier its move is in traces of its polarity (Eq. 10)."""
    config, traces = making.config, making.file("candidates", "candidates.parquet")
    read = partial(labelled_traces_of, making.store, config, making["candidates"], making["annotations"])
    estimated = read
    if making.get("thinking-draws"):
        draws, labels_of_draws = making["thinking-draws"], making["draw-annotations"]
        estimated = partial(labelled_traces_of, making.store, config, draws, labels_of_draws)
    matrices = TransitionMatrices.load(making.file("transitions", "transitions.npz"))
    taxonomy = label_set_of(config).taxonomy
    section, estimate = config.reward, config.estimate
    weigher = make_weigher(estimated, matrices, estimate, section, seed=config.seed, taxonomy=taxonomy, weighed=read)
    num_clipped = 0
    with TableWriter(making.directory / "weights.parquet", SEGMENT_WEIGHTS) as table:
        for columns in weigh_corpus(read(), weigher, config.reward, seed=config.seed, candidates=traces):
            table.write(columns)
            num_clipped += int(np.asarray(columns["clipped"]).sum())
    return Built(SEGMENT_WEIGHTS.name, {**weigher.counts, "clipped": num_clipped})
