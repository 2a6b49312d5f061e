"""Stage 0: the questions and the model."""

from __future__ import annotations

from typing import NamedTuple

from prefect import flow

from flows.form import PrepareForm
from mralign_core.evaluation.variants import WITH_SNIPPETS, variants_to_score
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import remember
from tasks.engine.naming import name_run
from tasks.engine.plan import is_made
from tasks.intake import pin_references, tell_what_is_new
from tasks.prepare import check_prompts, check_training, load_evaluation_questions, load_questions, prepare_model
from tasks.snippets import check_snippets, find_snippets


class Prepared(NamedTuple):
    """Where a run starts from."""

    questions: ArtifactRef
    evaluation_questions: ArtifactRef
    model: ArtifactRef


@flow(name="prepare", flow_run_name=name_run)
def prepare(config: PrepareForm) -> Prepared:
    """Load the questions and the model; on the pocket default, build the world and train its model.

    Args:
        config: a preset, and what differs from it.
    """
    config = pin_references(config)
    prepared = Prepared(load_questions(config), load_evaluation_questions(config), prepare_model(config))
    check_prompts(config, prepared.questions, prepared.model, prepared.evaluation_questions)
    if config.evaluate.sampler == "endpoint" and WITH_SNIPPETS.keys() & set(variants_to_score(config)):
        check_snippets(config, find_snippets(config, prepared.evaluation_questions), prepared.model)
    if not is_made(config, "adapter"):
        check_training(config, prepared.model)
    remember(config, {}, **{name.replace("_", "-"): ref for name, ref in prepared._asdict().items()})
    tell_what_is_new(config, prepared.questions, prepared.evaluation_questions)
    return prepared
