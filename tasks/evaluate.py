"""Scores of every variant on held-out questions, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.estimation import TransitionMatrices
from mralign_core.evaluation.metrics import paired_differences, summarize
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.funnel import imbalance
from mralign_core.generation.outcomes import draws_table
from mralign_core.generation.scoring import score_answers
from mralign_core.label_sets import label_set_of
from mralign_core.models.locate import model_name
from mralign_core.reporting.matrix_figures import Transitions
from mralign_core.reporting.report import ReportInputs, render_report
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.annotate import read_ledger, without_offline
from tasks.diagnose import read_diagnostics
from tasks.engine.progress import progress
from tasks.engine.quarantine import join_shards, read_quarantine, write_rows
from tasks.engine.run import Built, Produced, Work, shard_bounds, stage_task
from tasks.generate import read_draws
from tasks.sampling import sampler_of

BASELINES = ("off", "on")


def evaluation_questions(config: RunConfig, questions: ArtifactRef) -> pd.DataFrame:
    """The held-out questions."""
    frame = ArtifactStore(config.storage).read_table(questions, "questions.parquet")
    return frame[frame["split"] == "eval"].reset_index(drop=True)


def variants_to_score(config: RunConfig, questions: ArtifactRef) -> tuple[str, ...]:
    """Think-off, think-on and the trained variants; none where there is no held-out question."""
    return () if evaluation_questions(config, questions).empty else (*BASELINES, *config.train.variants)


def evaluation_shards(config: RunConfig, questions: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the held-out questions, one a shard."""
    return list(shard_bounds(len(evaluation_questions(config, questions)), config.evaluate.shard_size))


def scores_work(
    config: RunConfig,
    variant: str,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapter: ArtifactRef | None = None,
) -> Work:
    """The scores of one variant."""
    return Work("scores", config, _inputs(questions, model, adapter), {"variant": variant})


def scores_shard_work(
    config: RunConfig,
    variant: str,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapter: ArtifactRef | None = None,
    *,
    start: int,
    end: int,
) -> Work:
    """The scores of one variant on held-out questions ``start`` to ``end``."""
    part = {"variant": variant, "start": start, "end": end}
    return Work("scores-shard", config, _inputs(questions, model, adapter), part)


def shards_to_score(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, adapters: Mapping[str, ArtifactRef]
) -> list[tuple[str, int, int]]:
    """Variant and row range of each shard, of the baselines and adapters whose scores are not there yet."""
    store = ArtifactStore(config.storage)
    bounds = evaluation_shards(config, questions)
    return [
        (variant, *bound)
        for variant in (*BASELINES, *adapters)
        if scores_work(config, variant, questions, model, adapters.get(variant)).find(store) is None
        for bound in bounds
    ]


def report_work(
    config: RunConfig,
    artifacts: Mapping[str, ArtifactRef],
    adapters: Mapping[str, ArtifactRef],
    scores: Mapping[str, ArtifactRef],
) -> Work:
    """The report over everything a run has made."""
    inputs = {
        **artifacts,
        **{f"adapter:{name}": ref for name, ref in adapters.items()},
        **{f"scores:{name}": ref for name, ref in scores.items()},
    }
    return Work("report", config, inputs)


@stage_task("score-shard", "evaluate {variant} {start}–{end}")
def score_shard(
    config: RunConfig,
    variant: str,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapter: ArtifactRef | None,
    start: int,
    end: int,
) -> Produced:
    """Answer held-out questions ``start`` to ``end`` with one variant.

    The random numbers of the transformers sampler are the same for every variant.
    """

    def build(store: ArtifactStore, directory: Path) -> Built:
        rows = _benchmarks_as_strata(evaluation_questions(config, questions)).iloc[start:end]
        requests = [
            SampleRequest(row.question_id, row.question, _mode(variant), draw)
            for row in rows.itertuples()
            for draw in range(config.evaluate.num_draws)
        ]
        sampler = sampler_of(store, config, model, stage="evaluate", adapter=adapter)
        with progress(f"evaluating {variant} {start}–{end}", f"evaluate-{re.sub('[^a-z0-9]', '-', variant)}") as report:
            samples = sample_all(sampler, requests, Decoding.of(config.evaluate, config.seed), report)
        frame = score_answers(requests, samples, rows, sampler.family, config.match.rules)
        write_rows(directory, "scores.parquet", frame.assign(variant=variant), SCORES)
        return Built(SCORES.name)

    return scores_shard_work(config, variant, questions, model, adapter, start=start, end=end).produce(build)


@stage_task("collect-scores", "collect scores of {variant}")
def collect_scores(
    config: RunConfig,
    variant: str,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapter: ArtifactRef | None,
    shards: Sequence[ArtifactRef],
) -> Produced:
    """Join the shards of a variant into one table."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        join_shards(store, shards, directory, {"scores.parquet": SCORES})
        return Built(SCORES.name)

    return scores_work(config, variant, questions, model, adapter).produce(build)


@stage_task("write-report")
def write_report(
    config: RunConfig,
    artifacts: Mapping[str, ArtifactRef],
    adapters: Mapping[str, ArtifactRef],
    scores: Mapping[str, ArtifactRef],
) -> Produced:
    """Compute the metrics with their paired intervals, and write the page to look at."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        inputs = gather(store, config, artifacts, adapters, scores)
        for name in ("summary", "differences"):
            frame = getattr(inputs, name)
            if frame is not None:
                frame.to_json(directory / f"{name}.json", orient="records", indent=1)
        (directory / "report.html").write_text(render_report(inputs), encoding="utf-8")
        return Built(counts={"variants": len(scores)})

    return report_work(config, artifacts, adapters, scores).produce(build)


def gather(
    store: ArtifactStore,
    config: RunConfig,
    artifacts: Mapping[str, ArtifactRef],
    adapters: Mapping[str, ArtifactRef],
    scores: Mapping[str, ArtifactRef],
) -> ReportInputs:
    """Read everything that the report shows."""
    raw = store.read_table(artifacts["annotations"], "raw_annotations.parquet")
    answers = [store.read_table(ref, "scores.parquet") for ref in scores.values()]
    joined = pd.concat(answers, ignore_index=True) if answers else None
    scored = joined[joined["em_answer"].notna()] if joined is not None else None
    if scored is not None and scored.empty:
        scored = None
    questions = evaluation_questions(config, artifacts["questions"])
    annotate, evaluate = config.annotate, config.evaluate
    rng = np.random.default_rng([config.seed, 6])
    digests = {**artifacts, **{f"adapter {name}": ref for name, ref in adapters.items()}}
    return ReportInputs(
        run={
            "model": model_name(config.model),
            "seed": str(config.seed),
            "held-out questions": str(len(questions)),
            "annotators": ", ".join(endpoint.model for endpoint in annotate.endpoints.values()),
        },
        notes=[
            *filter(None, [imbalance(store.manifest(artifacts["candidates"]).counts)]),
            *_notes(config, store.manifest(artifacts["questions"]).counts, joined, scored),
        ],
        funnel=pd.DataFrame(json.loads(store.open_file(artifacts["candidates"], "funnel.json").read_text())),
        draws=draws_table(read_draws(store, artifacts["generations"])) if "generations" in artifacts else None,
        draws_are_partial=config.generate.draws == "sequential",
        candidates=store.read_table(artifacts["candidates"], "candidates.parquet"),
        annotations=store.read_table(artifacts["annotations"], "annotations.parquet"),
        transitions=transitions_of(store, config, artifacts["transitions"]),
        diagnostics=read_diagnostics(store, artifacts["diagnostics"]) if "diagnostics" in artifacts else None,
        rewards=store.read_table(artifacts["rewards"], "rewards.parquet"),
        training={name: store.read_table(ref, "metrics.parquet") for name, ref in adapters.items()},
        scores=scored,
        questions=questions,
        summary=summarize(scored) if scored is not None else None,
        differences=paired_differences(
            scored, num_resamples=evaluate.num_resamples, confidence=evaluate.confidence, rng=rng
        )
        if scored is not None
        else None,
        confidence=evaluate.confidence,
        costs=_costs(raw),
        ledger=without_offline(read_ledger(config, artifacts["candidates"])),
        quarantine=_set_aside(store, artifacts, scores),
        artifacts={name: ref.sha256 for name, ref in digests.items()},
        config=config.fingerprint(),
        taxonomy=label_set_of(config).taxonomy,
    )


def _inputs(questions: ArtifactRef, model: ArtifactRef, adapter: ArtifactRef | None) -> dict[str, ArtifactRef]:
    return {"questions": questions, "model": model, **({"adapter": adapter} if adapter else {})}


def _benchmarks_as_strata(questions: pd.DataFrame) -> pd.DataFrame:
    """Questions of several sets are reported set by set, those of one by its own strata."""
    return questions.assign(stratum=questions["source"]) if questions["source"].nunique() > 1 else questions


def _mode(variant: str) -> str:
    return "off" if variant == "off" else "on"


def transitions_of(store: ArtifactStore, config: RunConfig, transitions: ArtifactRef) -> Transitions:
    """The estimated matrices, and how weights are made of them."""
    matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
    return Transitions.of(matrices, config.reward, config.estimate.confidence, label_set_of(config).taxonomy)


def _notes(
    config: RunConfig, asked: Mapping[str, Any], answers: pd.DataFrame | None, scored: pd.DataFrame | None
) -> list[str]:
    notes = []
    if taken_out := asked.get("taken out of train"):
        notes.append(
            f"{taken_out} training question(s) are evaluated on too and were taken out (questions.on_overlap: drop); "
            "overlap.json beside the questions names them."
        )
    if config.generate.source == "traces":
        notes.append(
            "The traces were imported. Their polarity is given in the file or judged by whether the answer is right; "
            "no think-off draws stand against them, as the paper's selection asks."
        )
    if answers is None:
        notes.append("There are no held-out questions (questions.eval is empty), so nothing was evaluated.")
    elif unscored := answers["question_id"].nunique() - (0 if scored is None else scored["question_id"].nunique()):
        notes.append(
            f"{unscored} held-out questions have no gold answer (such as LongFact's): they were answered, and their "
            "answers are in the artifacts, but they are in none of the figures below, which compare with a gold answer."
        )
    return notes


def _costs(raw: pd.DataFrame) -> pd.DataFrame:
    grouped = raw.groupby(["role", "model"], as_index=False)
    return grouped.agg(
        requests=("reply", "size"),
        prompt_tokens=("prompt_tokens", "sum"),
        completion_tokens=("completion_tokens", "sum"),
        cost_usd=("cost_usd", "sum"),
    )


def _set_aside(
    store: ArtifactStore, artifacts: Mapping[str, ArtifactRef], scores: Mapping[str, ArtifactRef]
) -> pd.DataFrame | None:
    """What was left out: rows that broke a contract, and traces that an annotator failed on; counted by reason."""
    refs = [*artifacts.values(), *scores.values()]
    rows = [
        {"where": f"table {row['table']}", "what": row["column"], "reason": row["reason"]}
        for ref in refs
        for row in read_quarantine(store, ref)
    ]
    failures = json.loads(store.open_file(artifacts["annotations"], "failures.json").read_text())
    example = {
        (f["role"], f["kind"]): f"{f['problem']}; e.g. {f['trace_id']}: {f['reply']}" for f in reversed(failures)
    }
    rows += [{"where": "annotate", "what": f["role"], "reason": example[f["role"], f["kind"]]} for f in failures]
    if not rows:
        return None
    return pd.DataFrame(rows).groupby(["where", "what", "reason"]).size().rename("rows").reset_index()
