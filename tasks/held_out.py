"""Labels for the thinking of held-out answers, where it is compared before and after training (Fig. 4)."""

from __future__ import annotations

from collections import Counter

from mralign_core.config import RunConfig
from mralign_core.evaluation.held_out_traces import held_out_traces, variants_to_label
from mralign_core.schemas.held_out_traces import HELD_OUT_TRACES
from mralign_core.storage.quarantine import write_rows
from tasks.annotate import LABELLED, TRACES_FILE, collect_annotations
from tasks.engine.graph import Input, Part, Shards
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact


def labels_held_out(config: RunConfig, _: Part) -> bool:
    """Whether the thinking of held-out answers is labelled."""
    return bool(variants_to_label(config))


@artifact(
    "held-out-traces",
    stage="evaluate",
    parts=lambda config: ({},) if variants_to_label(config) else (),
    inputs=(Input("scores", each=variants_to_label), Input("evaluation-questions")),
    fields=lambda _: {},
    sources=("mralign_core.evaluation.held_out_traces",),
)
def gather_held_out_traces(making: Making) -> Built:
    """Gather the thinking of held-out answers, of think-on and of aligned variants, as traces to label."""
    scores = [making.store.read_table(ref, "scores.parquet") for ref in making.several("scores").values()]
    traces = held_out_traces(scores, making.table("evaluation-questions", "questions.parquet"))
    write_rows(making.directory, TRACES_FILE, traces, HELD_OUT_TRACES)
    return Built(HELD_OUT_TRACES.name, dict(Counter(traces["variant"])))


@artifact(
    "held-out-annotations",
    stage="evaluate",
    parts=lambda config: ({},) if variants_to_label(config) else (),
    inputs=(Input("held-out-traces", stands_for="candidates"),),
    shards=Shards("annotations-shard", lambda config: config.annotate.shard_size),
    **LABELLED,
)
def collect_held_out_annotations(making: Making) -> Built:
    """Join the labels of the thinking of held-out answers."""
    built: Built = collect_annotations.artifact.build(making)
    return built
