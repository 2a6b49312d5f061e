"""What a run would find in the store and what it would compute, without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd

from mralign_core.annotation.quoting import Quote, quote_annotation
from mralign_core.config import RunConfig
from mralign_core.generation.forecast import Load, Rates, estimate_load
from mralign_core.generation.sampling import Tally
from mralign_core.label_sets import label_set_of
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore
from tasks.annotate import annotation_shards, annotations_work, read_ledger
from tasks.annotate import shard_work as annotation_shard_work
from tasks.diagnose import diagnostics_work
from tasks.engine.graph import RECIPES
from tasks.engine.progress import progress
from tasks.engine.run import Work
from tasks.estimate import transitions_work
from tasks.evaluate import (
    BASELINES,
    evaluation_shards,
    report_work,
    scores_shard_work,
    scores_work,
    variants_to_score,
)
from tasks.generate import candidates_work, generation_shards, generations_work, training_questions
from tasks.generate import shard_work as generation_shard_work
from tasks.prepare import model_work, questions_work
from tasks.reward import rewards_work
from tasks.train import adapter_work, needs_reference, reference_work

QUOTED_TRACES, QUOTED_TOGETHER = 500, 25
"""A quote looks at about so many traces, so many neighbours at a time."""


class Planned(NamedTuple):
    """One artifact of a run. ``found`` is None when it would be computed; ``is_known`` is False when an input of it is
    not made yet, so that nobody can tell. ``num_to_ask`` counts traces, or draws, that it lacks and that are asked
    again.
    """

    stage: str
    name: str
    found: ArtifactRef | None
    is_known: bool
    num_to_ask: int = 0

    @property
    def status(self) -> str:
        """In a few words."""
        if self.num_to_ask:
            unit = "draw(s)" if self.name.startswith("generations") else "trace(s)"
            return f"{self.num_to_ask:,} {unit} to ask again"
        if self.found:
            return "cached"
        return "to compute" if self.is_known else "to compute after its inputs"


def quote_annotations(config: RunConfig) -> tuple[list[Quote], float] | None:
    """What annotation will still ask and cost, and the dollars it has cost so far; None when it can't be known yet."""
    planner = _Planner(config)
    list(planner.prepare()), list(planner.generate())
    candidates = planner.has.get("candidates")
    if candidates is None:
        return None
    ledger = read_ledger(config, candidates)
    return _quote(config, candidates), float(ledger[["cost_usd", "set_aside_usd", "lost_usd"]].to_numpy().sum())


class SamplingLoad(NamedTuple):
    """What sampling takes by number of hosts, and whether the rates were measured on this run's own shards."""

    by_hosts: dict[int, Load]
    rates: Rates
    is_measured: bool


def sampling_load(config: RunConfig, planned: Sequence[Planned], tokens_per_second: float) -> SamplingLoad | None:
    """What sampling will take on 1, 8 and ``generate.num_workers`` hosts; None before the questions are loaded."""
    store = ArtifactStore(config.storage)
    found = {each.name: each.found for each in planned if each.found}
    if "questions" not in found or config.generate.source == "traces":
        return None
    sampled = [ref for name, ref in found.items() if name.startswith("generations")]
    tally = sum((Tally.of(store.manifest(ref).counts) for ref in sampled), Tally())
    rates = Rates.assumed(config.generate)
    if tally.questions:
        rates = Rates(tally.draws / tally.questions, tally.tokens / tally.questions)
    num_questions = len(training_questions(config, found["questions"]))
    return SamplingLoad(
        {
            num_hosts: estimate_load(
                num_questions, config.generate, rates, tokens_per_second=tokens_per_second, num_hosts=num_hosts
            )
            for num_hosts in sorted({1, 8, config.generate.num_workers})
        },
        rates,
        bool(tally.questions),
    )


def plan(config: RunConfig) -> list[Planned]:
    """Every artifact of a pipeline run, in order."""
    planner = _Planner(config)
    return [
        *planner.prepare(),
        *planner.generate(),
        *planner.annotate(),
        *planner.train(),
        *planner.evaluate(),
    ]


class _Planner:
    """Follows the pipeline as far as the store holds its artifacts."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.store = ArtifactStore(config.storage)
        self.has: dict[str, ArtifactRef] = {}
        self._draws = ["generations"] if config.generate.source == "sample" else []

    def prepare(self) -> Iterator[Planned]:
        yield self.look("questions", partial(questions_work, self.config))
        yield self.look("model", partial(model_work, self.config))

    def generate(self) -> Iterator[Planned]:
        start = ("questions", "model")
        if self.config.generate.source == "traces":
            without_draws = partial(candidates_work, self.config, generations=None)
            yield self.look("candidates", without_draws, *start)
            return
        if self.has.keys() >= set(start):
            for first, last in generation_shards(self.config, *(self.has[name] for name in start)):
                make = partial(generation_shard_work, self.config, start=first, end=last)
                yield self.look("generations-shard", make, *start, part=f"{first}–{last}")
        yield self.look("generations", partial(generations_work, self.config), *start)
        yield self.look("candidates", partial(candidates_work, self.config), *start, "generations")

    def annotate(self) -> Iterator[Planned]:
        if "candidates" in self.has:
            for first, last in annotation_shards(self.config, self.has["candidates"]):
                make = partial(annotation_shard_work, self.config, start=first, end=last)
                yield self.look("annotations-shard", make, "candidates", part=f"{first}–{last}")
        traces = ("candidates", "annotations")
        yield self.look("annotations", partial(annotations_work, self.config), "candidates")
        yield self.look("transitions", partial(transitions_work, self.config), *traces)
        yield self.look("diagnostics", partial(diagnostics_work, self.config), *traces, "transitions")
        yield self.look("rewards", partial(rewards_work, self.config), *traces, "transitions")

    def train(self) -> Iterator[Planned]:
        traces = ("model", "candidates", "annotations")
        if needs_reference(self.config.train.variants):
            yield self.look("reference-logps", partial(reference_work, self.config), *traces)
        for variant in self.config.train.variants:
            make = partial(adapter_work, self.config, variant)
            extra = {"sft": [], "kto": ["reference-logps"], "mr_align": ["reference-logps", "rewards"]}[variant]
            yield self.look("adapter", make, *traces, *extra, part=variant)

    def evaluate(self) -> Iterator[Planned]:
        variants = variants_to_score(self.config, self.has["questions"]) if "questions" in self.has else ()
        for variant in variants:
            inputs = ["questions", "model", *([] if variant in BASELINES else [f"adapter:{variant}"])]
            joined = self.look("scores", partial(scores_work, self.config, variant), *inputs, part=variant)
            for first, last in evaluation_shards(self.config, self.has["questions"]) if not joined.found else ():
                make = partial(scores_shard_work, self.config, variant, start=first, end=last)
                yield self.look("scores-shard", make, *inputs, part=f"{variant} {first}–{last}")
            yield joined
        adapters = [f"adapter:{variant}" for variant in self.config.train.variants]
        scores = [f"scores:{variant}" for variant in variants]
        made = (*RECIPES["report"].inputs, "diagnostics", *self._draws)
        yield self.look("report", self._report, *made, *adapters, *scores)

    def look(self, name: str, make: Callable[..., Work], *inputs: str, part: str = "") -> Planned:
        """Look one artifact up, when all its inputs are there."""
        stage, label = RECIPES[name].stage, f"{name} {part}".strip()
        if not all(entry in self.has for entry in inputs):
            return Planned(stage, label, None, False)
        work = make(*(self.has[entry] for entry in inputs))
        found = work.find(self.store)
        num_to_ask = work.num_to_ask(self.store, found) if found else 0
        if found and not num_to_ask:
            self.has[f"{name}:{part}" if part else name] = found
        return Planned(stage, label, found, True, num_to_ask)

    def _report(self, *_: ArtifactRef) -> Work:
        def of(kind: str) -> dict[str, ArtifactRef]:
            return {name.partition(":")[2]: ref for name, ref in self.has.items() if name.startswith(f"{kind}:")}

        artifacts = {name: self.has[name] for name in (*RECIPES["report"].inputs, "diagnostics", *self._draws)}
        return report_work(self.config, artifacts, of("adapter"), of("scores"))


def _quote(config: RunConfig, candidates: ArtifactRef) -> list[Quote]:
    """What these annotations will still ask and cost, by model; of many traces, from evenly spaced ones."""
    store, num_traces = ArtifactStore(config.storage), candidates.rows or 0
    starts = range(0, num_traces, max(QUOTED_TOGETHER, num_traces // (QUOTED_TRACES // QUOTED_TOGETHER)))
    parts = [store.read_rows(candidates, "candidates.parquet", start, start + QUOTED_TOGETHER) for start in starts]
    with progress("counting tokens", "quote") as report:
        return quote_annotation(
            pd.concat(parts, ignore_index=True),
            config.annotate,
            seed=config.seed,
            label_set=label_set_of(config),
            replies=ReplyStore(store),
            num_traces=num_traces,
            on_progress=report,
        )
