"""The whole method, in order: from questions to an aligned, evaluated model."""

from __future__ import annotations

from prefect import flow

from flows.annotate import annotate
from flows.estimate import estimate
from flows.evaluate import evaluate
from flows.form import PipelineForm
from flows.generate import generate
from flows.prepare import prepare
from flows.reward import reward
from flows.train import train
from mralign_core.storage import ArtifactRef
from tasks.annotate import check_labellers
from tasks.engine.naming import name_run
from tasks.intake import note_models_in_replies, pin_references
from tasks.prepare import check_evaluation
from tasks.story import Story


@flow(name="mr-align", flow_run_name=name_run)
def pipeline(config: PipelineForm) -> ArtifactRef:
    """Align a reasoning model with facts, and report what it changed.

    Args:
        config: a preset, and what differs from it.
    """
    check_evaluation(config)
    check_labellers(config)
    config = pin_references(config)
    story = Story(config)
    questions, evaluation_questions, model = story.stage(prepare, config)
    candidates, generations, draws = story.stage(generate, config, questions, model, evaluation_questions)
    annotations, draw_annotations = story.stage(annotate, config, candidates, draws)
    note_models_in_replies(config, annotations)
    transitions, diagnostics = story.stage(estimate, config, candidates, annotations, draws, draw_annotations)
    weights = story.stage(reward, config, candidates, annotations, transitions, draws, draw_annotations)
    adapters = story.stage(train, config, model, candidates, annotations, weights)
    made = {
        "questions": questions,
        "evaluation-questions": evaluation_questions,
        "model": model,
        "generations": generations,
        "candidates": candidates,
        "annotations": annotations,
        "thinking-draws": draws,
        "draw-annotations": draw_annotations,
        "transitions": transitions,
        "diagnostics": diagnostics,
        "weights": weights,
    }
    report = story.stage(evaluate, config, made, adapters)
    story.end()
    return report
