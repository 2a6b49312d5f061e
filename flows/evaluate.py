"""Stage 6: measure every variant on held-out questions, and write the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefect import flow

from flows.annotate import annotate_all
from flows.fan_out import missing_shards, run_in_threads, run_shards
from flows.form import EvaluateForm
from mralign_core.config import RunConfig
from mralign_core.errors import StorageError, UserError
from mralign_core.evaluation.held_out_traces import variants_to_label
from mralign_core.evaluation.variants import BASELINES, WITH_SNIPPETS, adapter_of, variants_to_judge, variants_to_score
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.annotate import SHARDS_AT_ONCE, within_budget
from tasks.engine.graph import NOTHING, artifact_of
from tasks.engine.last_run import inputs_of, made_so_far, remember
from tasks.engine.naming import name_run
from tasks.engine.pool import make_on_pool
from tasks.engine.session import session
from tasks.engine.shards import Range, ranges_of, rows_of
from tasks.engine.task import as_arguments
from tasks.evaluate import collect_scores, compute_results, score_shard, write_report
from tasks.filed_report import file_report
from tasks.held_out import collect_held_out_annotations, gather_held_out_traces
from tasks.judge import collect_judgements, judge_shard
from tasks.publish import show_health, show_results
from tasks.servers import check_listed, make_room_for
from tasks.snippets import check_snippets, find_snippets
from tasks.train import traces_to_train_on
from tasks.versions import make_version

logger = logging.getLogger("mralign_core.evaluation")

Shard = tuple[str, list[int]]
"""A variant, and some held-out questions by their numbers."""


@flow(name="evaluate", flow_run_name=name_run)
def evaluate(
    config: EvaluateForm,
    artifacts: dict[str, ArtifactRef | None] | None = None,
    adapters: dict[str, ArtifactRef] | None = None,
) -> ArtifactRef:
    """Score the model as it is, with what else the config asks of it, and every adapter, on common random numbers.

    Args:
        config: a preset, and what differs from it.
        artifacts: what the report is made from, by name; the last run's when empty.
        adapters: variant → adapter; the last run's when empty.
    """
    given = {name.replace("_", "-"): ref for name, ref in (artifacts or {}).items()}
    given |= {f"adapter:{variant}": ref for variant, ref in (adapters or {}).items()}
    wanted = {name: given.get(name) for name in _needed(config, adapters)}
    inputs = inputs_of(config, wanted)
    trained = {name.partition(":")[2]: ref for name, ref in inputs.items() if name.startswith("adapter:")}
    made = {name: ref for name, ref in inputs.items() if not name.startswith("adapter:")}
    questions, model = made["evaluation-questions"], made["model"]
    variants = variants_to_score(config, list(trained))
    snippets = find_snippets(config, questions) if WITH_SNIPPETS.keys() & set(variants) else None
    if snippets:
        check_snippets(config, snippets, model)
    scores = score_variants(config, questions, model, trained, variants=variants, snippets=snippets)
    judgements = judge_variants(config, questions, scores)
    results = compute_results(config, scores=scores, judgements=judgements, evaluation_questions=questions)
    judged = {"scores": scores, "judgements": judgements}
    named = {f"{kind}:{variant}": ref for kind, refs in judged.items() for variant, ref in refs.items()}
    named |= {"snippets": snippets} if snippets else {}
    trained_on = traces_to_train_on(config, inputs) if config.questions.eval else {}
    named |= make_versions(config, {**inputs, **trained_on, **named, "results": results}, list(trained))
    remember(config, inputs, **named, results=results)
    shown, held_out, paid_for = label_if_possible(config, inputs, scores)
    made |= held_out
    report = write_report(shown, **as_arguments(made), adapter=trained, **judged, results=results, paid_for=paid_for)
    remember(config, inputs, **held_out, report=report)
    file_report(config, report)
    show_results(config, results, report)
    show_health(config, {**made_so_far(config, "policy-logps"), **inputs, **named})
    return report


def make_versions(config: RunConfig, made: Mapping[str, ArtifactRef], trained: Sequence[str]) -> dict[str, ArtifactRef]:
    """Name → the version of each trained variant that was evaluated; none where no question is held out.

    Args:
        config: a preset, and what differs from it.
        made: what the run has made, by name.
        trained: the trained variants.
    """
    versions = {}
    for variant in trained:
        if f"scores:{variant}" in made:
            part = {"variant": variant}
            inputs = {
                each.argument: made[name] for each in make_version.artifact.inputs for name in each.names(config, part)
            }
            versions[f"version:{variant}"] = make_version(config, **inputs, variant=variant)
    return versions


def _needed(config: RunConfig, adapters: Mapping[str, ArtifactRef] | None) -> list[str]:
    """The names of what the report is made from, without what this stage makes."""
    names = [
        name
        for each in write_report.artifact.inputs
        if each.name != "adapter" and artifact_of(each.name).stage != "evaluate"
        for name in each.names(config, NOTHING)
    ]
    return [*names, *(f"adapter:{variant}" for variant in adapters or config.train.variants)]


def score_variants(
    config: RunConfig,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapters: Mapping[str, ArtifactRef],
    *,
    variants: Sequence[str] | None = None,
    snippets: ArtifactRef | None = None,
) -> dict[str, ArtifactRef]:
    """Variant → its scores: think-off, think-on and each adapter where none are named; none where there is no held-out
    question.
    """
    if variants is None:
        variants = (*BASELINES, *adapters) if config.questions.eval else ()
    with session():
        made = _Scoring(config, questions, model, adapters, snippets)
        shards = [
            (variant, rows)
            for variant in variants
            for rows in missing_shards(collect_scores.work(**made.arguments(variant)))
        ]
        check_listed(config, _asked_for(shards, adapters))
        if config.evaluate.where == "deployment":
            _score_on_pool(made, shards)
        _score(made, shards)
        return {variant: collect_scores(**made.arguments(variant)) for variant in variants}


def _asked_for(shards: Sequence[Shard], adapters: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """The adapters that some shards are scored with."""
    wanted = {adapter_of(variant) for variant, _ in shards}
    return {variant: ref for variant, ref in adapters.items() if variant in wanted}


def judge_variants(
    config: RunConfig, questions: ArtifactRef, scores: Mapping[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Each variant → what the judges say of its answers; none where no judge is named."""
    calls = {
        variant: {"config": config, "scores": scores[variant], "evaluation_questions": questions, "variant": variant}
        for variant in (scores if variants_to_judge(config) else ())
    }
    with session():
        shards = [
            {**call, "rows": rows}
            for call in calls.values()
            for rows in missing_shards(collect_judgements.work(**call))
        ]
        run_in_threads(judge_shard, shards, SHARDS_AT_ONCE)
        return {variant: collect_judgements(**call) for variant, call in calls.items()}


class LabelledIfPossible(NamedTuple):
    """The config of the report, what :func:`label_held_out` made, and traces whose labels were paid for in part."""

    config: RunConfig
    made: dict[str, ArtifactRef]
    paid_for: ArtifactRef | None = None


def label_if_possible(
    config: RunConfig, made: Mapping[str, ArtifactRef], scores: Mapping[str, ArtifactRef]
) -> LabelledIfPossible:
    """What :func:`label_held_out` makes; where that can't be made, nothing, and a config without it.

    The labels are an extra of the report: a budget that is used up, or annotators that are out, cost it that part only.
    """
    try:
        return LabelledIfPossible(config, label_held_out(config, made, scores))
    except StorageError:  # nor could the report be written
        raise
    except (UserError, EndpointUnavailableError) as error:
        logger.warning(
            "the report does not have the labels of held-out thinking (evaluate.label_thinking: %s): %s. Replies that "
            "were paid for are kept; to add the rest, remedy this (a larger annotate.budget_usd, or an annotator that "
            "replies), and run again with --only evaluate",
            config.evaluate.label_thinking,
            " ".join(str(error).split()),
        )
    section = config.evaluate.model_copy(update={"label_thinking": "none"})
    gathered = gather_held_out_traces.work(config, **_to_gather(config, made, scores))
    paid_for = gathered.find(ArtifactStore(config.storage))
    return LabelledIfPossible(config.model_copy(update={"evaluate": section}), {}, paid_for)


def label_held_out(
    config: RunConfig, made: Mapping[str, ArtifactRef], scores: Mapping[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """The thinking of held-out answers, and its labels, by name; nothing where it is not to be labelled.

    Args:
        config: the run config.
        made: what the run has made, by name.
        scores: of each variant.
    """
    call = _to_gather(config, made, scores)
    if not call["scores"]:
        return {}
    traces = gather_held_out_traces(config, **call)
    for paid in ("candidates", "thinking-draws"):
        config = within_budget(config, made[paid]) if paid in made else config
    labels = annotate_all(config, traces, collect_held_out_annotations)
    return {"held-out-traces": traces, "held-out-annotations": labels}


def _to_gather(config: RunConfig, made: Mapping[str, ArtifactRef], scores: Mapping[str, ArtifactRef]) -> dict[str, Any]:
    """What the held-out thinkings that are to be labelled are gathered from."""
    wanted = {variant: scores[variant] for variant in variants_to_label(config) if variant in scores}
    return {"scores": wanted, "evaluation_questions": made["evaluation-questions"]}


@flow(name="score-shards", flow_run_name=name_run)
def score_shards(
    config: EvaluateForm,
    questions: ArtifactRef,
    model: ArtifactRef,
    adapters: dict[str, ArtifactRef],
    shards: list[tuple[str, list[Range]]],
    snippets: ArtifactRef | None = None,
) -> list[ArtifactRef]:
    """Score some shards; a pipeline with evaluate.where 'deployment' starts these runs.

    Args:
        config: a preset, and what differs from it.
        questions: artifact of the questions.
        model: artifact of the model.
        adapters: variant → adapter.
        shards: variant of each shard, and its questions as ranges of their numbers.
        snippets: artifact of the questions' snippets; for variants that read them.
    """
    made = _Scoring(config, questions, model, adapters, snippets)
    with session():
        return _score(made, [(variant, rows_of(ranges)) for variant, ranges in shards])


class _Scoring(NamedTuple):
    """What scores are made from."""

    config: RunConfig
    questions: ArtifactRef
    model: ArtifactRef
    adapters: Mapping[str, ArtifactRef]
    snippets: ArtifactRef | None

    def arguments(self, variant: str) -> dict[str, Any]:
        """The arguments of a task that scores a variant."""
        return {
            "config": self.config,
            "evaluation_questions": self.questions,
            "model": self.model,
            "adapter": self.adapters.get(adapter_of(variant)),
            "snippets": self.snippets,
            "variant": variant,
        }


def _score_on_pool(made: _Scoring, shards: Sequence[Shard]) -> None:
    """Score on the pool what is not scored yet, in ``evaluate.num_workers`` child runs."""
    make_on_pool(
        "score-shards/share-score-shards",
        [score_shard.work(**made.arguments(variant), rows=rows) for variant, rows in shards],
        lambda share: {
            "questions": made.questions,
            "model": made.model,
            "adapters": made.adapters,
            "shards": [(work.part["variant"], ranges_of(work.rows)) for work in share],
            "snippets": made.snippets,
        },
        config=made.config,
        section="evaluate",
        neighbours_together=True,  # a worker then loads few variants
    )


def _score(made: _Scoring, shards: Sequence[Shard]) -> list[ArtifactRef]:
    make_room_for(made.config, _asked_for(shards, made.adapters))
    calls = [{**made.arguments(variant), "rows": list(rows)} for variant, rows in shards]
    return run_shards(score_shard, calls, made.config.evaluate)
