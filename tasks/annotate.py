"""Labels for every segment of every candidate, in shards that share one client, its limits and its budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from mralign_core.annotation.annotate import annotate_traces, together
from mralign_core.annotation.failures import (
    count_failures,
    left_out_lines,
    write_failures,
)
from mralign_core.annotation.human import HumanLabels
from mralign_core.annotation.labeller import Labeller, require_labelled
from mralign_core.annotation.quoting import NothingKept, Quote, evenly_spaced, quote_annotation, rows_beside, spent_usd
from mralign_core.config import RunConfig
from mralign_core.config.annotate import ESCALATION, HUMAN_PREFIX
from mralign_core.distillation.annotator import LocalLabeller
from mralign_core.distillation.published import find_annotator, open_annotator
from mralign_core.evaluation.held_out_traces import variants_to_label
from mralign_core.exporting.paths import traces_file
from mralign_core.exporting.restoring import check_export, require_labels, restore_labels
from mralign_core.label_sets import label_set_of
from mralign_core.llm.offline import is_offline
from mralign_core.llm.store import KeepsReplies
from mralign_core.rating.human_sets import human_labels_of, read_human_labels
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.held_out_traces import HELD_OUT_TRACES
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore
from mralign_core.storage.quarantine import write_rows
from mralign_core.storage.tables import stream_table
from tasks.clients import read_account, save_account, shared_client, turn
from tasks.engine.graph import Input, Items, OtherWay, Shards
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, file_digests, span
from tasks.engine.session import session
from tasks.engine.shards import items_in, join, lay_out, ranges_of
from tasks.engine.task import artifact
from tasks.failures import join_failures
from tasks.fields import TRANSPORT, labels

logger = logging.getLogger("mralign_core.tasks")

SHARDS_AT_ONCE = 2
"""While the last requests of a shard are under way the next shard's fill the places they leave."""
TRACES_FILE = "candidates.parquet"
"""Whatever the traces are that are labelled."""
BY_PEOPLE, BY_DISTILLED = "mralign_core.annotation.human", "mralign_core.distillation.annotator"
SOURCES = (
    "mralign_core.annotation.annotate",
    "mralign_core.annotation.failures",
    "mralign_core.annotation.cue",
    BY_PEOPLE,
    BY_DISTILLED,
)


def takes_labels(config: RunConfig) -> bool:
    """Whether labels of the candidates are those that their export has."""
    return config.annotate.source == "traces"


def _has_cue(config: RunConfig) -> bool:
    return any(endpoint.model.startswith("cue/") for endpoint in config.annotate.endpoints.values())


def _has_people(config: RunConfig) -> bool:
    return any(endpoint.model.startswith(HUMAN_PREFIX) for endpoint in config.annotate.endpoints.values())


def _people(config: RunConfig) -> dict[str, ArtifactRef]:
    """Role → the labels of the person who is that annotator, the same ones throughout a stage.

    None where labels come with the traces: people labelled no held-out thinking, so that none is asked.
    """
    if takes_labels(config) or not _has_people(config):
        return {}
    store, models = ArtifactStore(config.storage), [each.model for each in config.annotate.endpoints.values()]
    with session() as shared:
        key = store.root_uri, *models
        found: dict[str, ArtifactRef] = shared.once("people", key, lambda: human_labels_of(store, config.annotate))
    return found


def _distilled(config: RunConfig) -> dict[str, ArtifactRef]:
    """Annotator A, where it is a distilled one, the same throughout a stage."""
    if not config.annotate.is_distilled:
        return {}
    store, model = ArtifactStore(config.storage), config.annotate.annotator_a.model
    with session() as shared:
        found: ArtifactRef = shared.once(
            "distilled", (store.root_uri, model), lambda: find_annotator(store, model, "annotate.annotator_a")
        )
    return {"annotator_a": found}


def _asked_distilled(config: RunConfig) -> dict[str, ArtifactRef]:
    """The same where it is asked; of labels that come with the traces, for held-out thinking alone."""
    is_asked = not takes_labels(config) or variants_to_label(config)
    return _distilled(config) if is_asked else {}


def check_labellers(config: RunConfig) -> None:
    """Refuse, before anything is spent, a person who published no labels, and a distilled annotator that is not there.

    Raises:
        ConfigError: it names the annotator, and what to do.
    """
    _people(config)
    _asked_distilled(config)


def _labellers(config: RunConfig) -> dict[str, Labeller]:
    """The annotators whose labels are at hand."""
    return {**_human_labels(config), **_distilled_annotators(config)}


def _human_labels(config: RunConfig) -> dict[str, HumanLabels]:
    """What these people said."""
    if not (people := _people(config)):
        return {}
    store, taxonomy = ArtifactStore(config.storage), label_set_of(config).taxonomy
    with session() as shared:
        named = ((role, config.annotate.endpoints[role].model, ref.path) for role, ref in people.items())
        key = store.root_uri, *named, *taxonomy.labels
        found: dict[str, HumanLabels] = shared.once(
            "human labels", key, lambda: read_human_labels(store, people, config.annotate, taxonomy)
        )
    return found


def _distilled_annotators(config: RunConfig) -> dict[str, LocalLabeller]:
    store, taxonomy = ArtifactStore(config.storage), label_set_of(config).taxonomy
    found = {}
    for role, ref in _distilled(config).items():
        open_it = partial(open_annotator, store, ref, taxonomy, f"annotate.{role}")
        with session() as shared:
            annotator = shared.once("distilled annotator", (store.root_uri, ref.path, *taxonomy.labels), open_it)
        found[role] = LocalLabeller(config.annotate.endpoints[role].model, ref.sha256, annotator)
    return found


def require_rated(config: RunConfig, candidates: ArtifactRef) -> None:
    """Refuse traces that a person who is an annotator did not label, before others are asked about any.

    Raises:
        ConfigError: the person published no labels.
        DataError: it names the traces.
    """
    _require_labelled(config, {"candidates": candidates})


def _require_labelled(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> None:
    if people := _human_labels(config):  # a distilled annotator can label anything
        store, traces = ArtifactStore(config.storage), inputs["candidates"]
        with session() as shared:  # every shard asks for it
            columns = ["trace_id", "completion", "segments"]
            shared.once(
                "labelled by people",
                (traces.path, *(each.sha256 for each in people.values())),
                lambda: require_labelled(people, store.read_columns(traces, TRACES_FILE, CANDIDATES, columns)),
            )


def _annotation(config: RunConfig) -> dict[str, Any]:
    fields = config.annotate.fingerprint()
    if not _has_cue(config):
        fields = {name: value for name, value in fields.items() if not name.startswith("cue_")}
    people = {role: ref.sha256 for role, ref in _people(config).items()}
    said: dict[str, Any] = {"human_labels": people} if people else {}
    if takes_labels(config):
        said |= file_digests(traces=traces_file(config.generate.traces_path))
    if distilled := _asked_distilled(config):
        said["distilled"] = distilled["annotator_a"].sha256
    if not config.annotate.is_distilled:
        fields = {name: value for name, value in fields.items() if name not in ESCALATION}
    return {**fields, **labels(config), **said, "seed": config.seed if _has_cue(config) else None}


def _not_used(config: RunConfig) -> tuple[str, ...]:
    cue = () if _has_cue(config) else ("mralign_core.annotation.cue",)
    human = () if _has_people(config) else (BY_PEOPLE,)
    distilled = () if config.annotate.is_distilled else (BY_DISTILLED,)
    return (*cue, *human, *distilled, *TRANSPORT)


LABELLED: dict[str, Any] = {
    "fields": _annotation,
    "sources": SOURCES,
    "without": _not_used,
    "ask_again": lambda config: config.annotate.ask_again,
    "named_by": lambda config: [*_people(config).values(), *_asked_distilled(config).values()],
    "check": _require_labelled,
}
"""What decides labels, in a shard and joined."""


def restore_shard(making: Making) -> Built:
    """Take the labels of some traces from the export that they are of; held-out thinking has none there."""
    if making["candidates"].table == HELD_OUT_TRACES.name:
        built: Built = annotate_shard.artifact.build(making)
        return built
    path, rows = making.config.generate.traces_path, making.work.rows
    with session() as shared:  # every shard asks for it
        shared.once("export", path, lambda: check_export(path))
    require_labels(path, label_set_of(making.config).taxonomy.labels, "annotate.source")
    trace_ids = [making.work.items.ids[row] for row in rows]
    annotations, failures = restore_labels(path, trace_ids)
    write_rows(making.directory, "annotations.parquet", annotations, ANNOTATIONS)
    write_rows(making.directory, "raw_annotations.parquet", RAW_ANNOTATIONS.frame(()), RAW_ANNOTATIONS)
    write_failures(making.directory, failures)
    return Built(ANNOTATIONS.name, count_failures(failures))


def _traces(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> Items:
    path = ArtifactStore(config.storage).open_file(inputs["candidates"], TRACES_FILE)
    table = HELD_OUT_TRACES if inputs["candidates"].table == HELD_OUT_TRACES.name else CANDIDATES
    with session() as shared:  # every shard asks for them
        items: Items = shared.once("traces", path, lambda: items_in(path, table, "trace_id"))
    return items


@artifact(
    "annotations-shard",
    stage="annotate",
    run_name="annotate {rows}",
    inputs=(Input("candidates", is_keyed=False),),
    items=_traces,
    is_main=lambda _: True,
    other_way=OtherWay(
        takes_labels,
        restore_shard,
        ("mralign_core.exporting.restoring", "mralign_core.schemas.held_out_traces", *SOURCES),
    ),
    **LABELLED,
)
def annotate_shard(making: Making) -> Built:
    """Annotate some traces; every reply is kept before it is read.

    A reply that can be used is never asked for again; of a stored shard that leaves traces out, only those are.
    """
    config, store, rows = making.config, making.store, making.work.rows
    read = partial(store.read_rows, making["candidates"], TRACES_FILE)
    account = ledger_name(making["candidates"])
    client = shared_client(store, account, config.annotate)
    with (
        turn(store, account, config.annotate),
        progress(f"annotating traces {span(rows)}", f"annotate-{rows[0]}") as report,
    ):
        result = annotate_traces(
            together([read(start, end) for start, end in ranges_of(rows)]),
            config.annotate,
            seed=config.seed,
            label_set=label_set_of(config),
            client=client,
            labellers=_labellers(config),
            on_progress=report,
        )
    save_account(store, account, config.annotate)
    write_rows(making.directory, "annotations.parquet", result.annotations, ANNOTATIONS)
    write_rows(making.directory, "raw_annotations.parquet", result.raw, RAW_ANNOTATIONS)
    failures = result.failures.to_dict("records")
    write_failures(making.directory, failures)
    return Built(ANNOTATIONS.name, count_failures(failures), result.cost_usd)


@artifact(
    "annotations",
    stage="annotate",
    inputs=(Input("candidates"),),
    shards=Shards("annotations-shard", lambda config: config.annotate.shard_size),
    **LABELLED,
)
def collect_annotations(making: Making) -> Built:
    """Join the labels of all traces, raw replies and failures, a few traces in memory at a time."""
    layout = lay_out(making.work, making.store)
    files = {"annotations.parquet": ANNOTATIONS, "raw_annotations.parquet": RAW_ANNOTATIONS}
    join(making.store, layout, making.directory, files, "trace_id")
    failures = join_failures(making, layout, "trace_id")
    for line in left_out_lines(failures):
        logger.warning("%s", line)
    rules: Counter[str] = Counter()
    for batch in stream_table(making.directory / "annotations.parquet", ANNOTATIONS, ["rule"], 100_000):
        rules.update(batch.column("rule").to_pylist())
    counts = {**dict(rules.most_common()), **count_failures(failures)}
    return Built(ANNOTATIONS.name, counts, deciding=("annotations.parquet",))


@artifact(
    "draw-annotations",
    stage="annotate",
    parts=lambda config: ({},) if config.estimate.uses_draws else (),
    inputs=(Input("thinking-draws", stands_for="candidates"),),
    shards=Shards("annotations-shard", lambda config: config.annotate.shard_size),
    **LABELLED,
)
def collect_draw_annotations(making: Making) -> Built:
    """Join the labels of the thinking draws; of a draw that is a candidate too, they are found."""
    built: Built = collect_annotations.artifact.build(making)
    return built


def quote_annotations(config: RunConfig, candidates: ArtifactRef) -> tuple[list[Quote], float]:
    """What these annotations will still ask and cost, by model, and the dollars they have cost so far.

    Of many traces, from evenly spaced ones. Where labels come with the traces, nobody is asked.
    """
    if takes_labels(config) and candidates.table != HELD_OUT_TRACES.name:
        return [], spent_usd(read_ledger(config, candidates))
    require_rated(config, candidates)
    read = partial(ArtifactStore(config.storage).read_rows, candidates, TRACES_FILE)
    return _quote(config, read, candidates.rows or 0), spent_usd(read_ledger(config, candidates))


def quote_draws(config: RunConfig, thinking_draws: ArtifactRef, candidates: ArtifactRef) -> tuple[list[Quote], float]:
    """The same of the labels that the thinking draws need beside those of the candidates."""
    store = ArtifactStore(config.storage)
    draws, quoted = (
        store.read_columns(ref, TRACES_FILE, CANDIDATES, ["trace_id"])["trace_id"].tolist()
        for ref in (thinking_draws, candidates)
    )
    rows = rows_beside(draws, quoted)

    def read(start: int, end: int) -> pd.DataFrame:
        ranges = ranges_of(rows[start:end])
        return together([store.read_rows(thinking_draws, TRACES_FILE, *each) for each in ranges])

    quotes = _quote(config, read, len(rows)) if rows else []
    return quotes, spent_usd(read_ledger(config, thinking_draws))


def quote_held_out(config: RunConfig, candidates: ArtifactRef, num_traces: int) -> list[Quote]:
    """What labels of so many held-out thinkings will ask and cost before there are any: each is taken for one of the
    candidates.
    """
    read = partial(ArtifactStore(config.storage).read_rows, candidates, TRACES_FILE)
    return _quote(config, read, candidates.rows or 0, scaled_to=num_traces, replies=NothingKept())


def _quote(
    config: RunConfig,
    read: Callable[[int, int], pd.DataFrame],
    num_traces: int,
    *,
    scaled_to: int | None = None,
    replies: KeepsReplies | None = None,
) -> list[Quote]:
    with progress("counting tokens", "quote") as report:
        return quote_annotation(
            evenly_spaced(read, num_traces),
            config.annotate,
            seed=config.seed,
            label_set=label_set_of(config),
            replies=replies or ReplyStore(ArtifactStore(config.storage)),
            num_traces=num_traces if scaled_to is None else scaled_to,
            labellers=_labellers(config),
            on_progress=report,
        )


def within_budget(config: RunConfig, candidates: ArtifactRef) -> RunConfig:
    """The config with what the candidates' labels leave of ``annotate.budget_usd``, for the draws, whose account is
    another.
    """
    budget_usd = config.annotate.budget_usd
    if budget_usd is None:
        return config
    left_usd = max(0.0, budget_usd - spent_usd(read_ledger(config, candidates)))
    return config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": left_usd})})


def read_ledger(config: RunConfig, candidates: ArtifactRef) -> pd.DataFrame:
    """What each run paid for these annotations: ``run, model`` and the fields of a ledger's ``Usage``."""
    return read_account(ArtifactStore(config.storage), ledger_name(candidates))


def without_offline(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger without offline models: the report of an offline run does not depend on the run's name."""
    return ledger[~ledger["model"].map(is_offline).astype(bool)]


def ledger_name(candidates: ArtifactRef) -> str:
    """One account for all annotation of these traces, whatever the settings: another threshold is the same money."""
    return f"annotate/{candidates.sha256}"
