"""The whole method, in order: from questions to an aligned, evaluated model."""

from __future__ import annotations

from prefect import flow

from flows.annotate import annotate
from flows.estimate import estimate
from flows.evaluate import evaluate
from flows.generate import generate
from flows.prepare import prepare
from flows.reward import reward
from flows.train import train
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.intake import note_models_in_replies, pin_references
from tasks.prepare import check_evaluation


@flow(name="mr-align", flow_run_name="{config.name}")
def pipeline(config: RunConfig) -> ArtifactRef:
    """Align a reasoning model with facts, and report what it changed.

    Args:
        config: the run config; empty fields keep the paper's values.
    """
    check_evaluation(config)
    config = pin_references(config)
    questions, evaluation_questions, model = prepare(config)
    candidates, generations, draws = generate(config, questions, model, evaluation_questions)
    annotations, draw_annotations = annotate(config, candidates, draws)
    note_models_in_replies(config, annotations)
    transitions, diagnostics = estimate(config, candidates, annotations, draws, draw_annotations)
    weights = reward(config, candidates, annotations, transitions, draws, draw_annotations)
    adapters = train(config, model, candidates, annotations, weights)
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
    return evaluate(config, made, adapters)
