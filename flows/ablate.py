"""Ablations: several arms over worlds and alignment seeds, compared in pairs on the same questions."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import flow

from flows.annotate import annotate
from flows.evaluate import score_variants
from flows.form import AblateForm
from flows.generate import generate
from flows.prepare import Prepared, prepare
from flows.train import train_variants
from mralign_core.ablation.grid import (
    GridArm,
    Ground,
    arms_of,
    arms_on,
    grounds_of,
    require_comparable_sets,
    seeds_of,
    untrained,
    worlds_of,
)
from mralign_core.ablation.paired import Cell
from mralign_core.config import RunConfig
from mralign_core.errors import QualityGateError
from mralign_core.processes.memory import return_freed_memory
from mralign_core.storage import ArtifactRef
from tasks.ablate import ablate_on_pool, compare_arms, refusal, remember_refusal, write_ablation
from tasks.annotate import check_labellers
from tasks.engine.last_run import remember
from tasks.engine.naming import name_run
from tasks.engine.progress import progress
from tasks.estimate import estimate_transitions
from tasks.generate import select_thinking_draws
from tasks.intake import pin_references
from tasks.publish import own_page, show_ablation
from tasks.reward import weigh_segments


@flow(name="ablate", flow_run_name=name_run)
def ablate(config: AblateForm) -> ArtifactRef:
    """Train the arms of ``ablate.arms`` in every world under every seed, score them alike, and compare them in pairs.

    Args:
        config: a preset, and what differs from it; section ``ablate`` says which arms, worlds and seeds.
    """
    check_labellers(config)
    config = pin_references(config)
    # Refuse what can't be compared, before hours of work.
    arms_of(config)
    require_comparable_sets(config)
    if config.ablate.where == "deployment":
        ablate_on_pool(config)
    scores: dict[str, ArtifactRef] = {}
    refused: dict[int, str] = {}
    num_done = 0
    with progress("ablating worlds", "ablation") as report:
        for world, its_config in worlds_of(config).items():
            if num_done == config.ablate.num_worlds:
                break
            found = ablate_world(its_config)
            scores |= found
            refused |= {} if found else {world: refusal(its_config)}
            num_done += bool(found)
            return_freed_memory()
            report(num_done, config.ablate.num_worlds, f"world {world}")
    if num_done < config.ablate.num_worlds:
        reasons = "\n  ".join(refused.values())
        raise QualityGateError(f"more worlds were refused than ablate.max_refused_worlds allows:\n  {reasons}")
    ablation = compare_arms(config, scores, refused={str(world): why for world, why in refused.items()})
    remember(config, {}, ablation=ablation, **{"ablation-page": write_ablation(config, ablation)})
    show_ablation(config, ablation)
    return ablation


@flow(name="ablate-world", flow_run_name="{config.name}")
def ablate_world(config: AblateForm) -> dict[str, ArtifactRef]:
    """All arms and seeds of one world; an ablation with ablate.where 'deployment' starts these runs.

    Args:
        config: the config of the world.

    Returns:
        The scores of each ``Cell``, by its text; none when the world's model is refused.
    """
    with own_page():
        return _score_world(config)


def _score_world(config: RunConfig) -> dict[str, ArtifactRef]:
    if refusal(config):
        return {}
    grounds = [ground._replace(config=pin_references(ground.config)) for ground in grounds_of(config)]
    prepared: list[Prepared] = []
    for ground in grounds:  # all models first: a world is refused before anything is paid for
        try:
            prepared.append(prepare(ground.config))
        except QualityGateError as error:
            remember_refusal(ground.config, error)
            return {}
    scores: dict[str, ArtifactRef] = {}
    for ground, its_inputs in zip(grounds, prepared, strict=True):
        scores |= _score_ground(config, ground, its_inputs)
    return scores


def _score_ground(config: RunConfig, ground: Ground, prepared: Prepared) -> dict[str, ArtifactRef]:
    """The scores of the arms that share a model and traces, and of that model untrained."""
    questions, evaluation_questions, model = prepared
    candidates, generations, _ = generate(ground.config, questions, model, evaluation_questions)
    drawn = {"questions": questions, "model": model, "generations": generations}
    labelled = _label_traces(arms_on(ground, config), drawn, candidates)
    scores: dict[str, ArtifactRef] = {}
    for seeded in seeds_of(config):
        arms = arms_on(ground, seeded)
        adapters = {name: _adapter(arm, model, labelled[arm.config.estimate.traces]) for name, arm in arms.items()}
        found = score_variants(
            seeded.model_copy(update={"model": ground.config.model}), evaluation_questions, model, adapters
        )
        world = config.model.pocket.world_seed
        for name, ref in found.items():
            cell = name if name in adapters else untrained(name, ground.backbone)
            scores[str(Cell(world, seeded.seed, cell))] = ref
    return scores


def _label_traces(
    arms: Mapping[str, GridArm], drawn: Mapping[str, ArtifactRef | None], candidates: ArtifactRef
) -> dict[str, dict[str, ArtifactRef]]:
    """``estimate.traces`` of some arm → the traces and labels that its weights are made of, by name."""
    choices = {arm.config.estimate.traces: arm.config for arm in arms.values()}
    labelled: dict[str, dict[str, ArtifactRef]] = {}
    for choice in sorted(choices):  # all draws come first: they are labelled from what the budget leaves to them
        draws = select_thinking_draws(choices[choice], **drawn) if choices[choice].estimate.uses_draws else None
        annotations, draw_annotations = annotate(choices[choice], candidates, draws)
        labelled[choice] = {"candidates": candidates, "annotations": annotations}
        if draws and draw_annotations:
            labelled[choice] |= {"thinking_draws": draws, "draw_annotations": draw_annotations}
    return labelled


def _adapter(arm: GridArm, model: ArtifactRef, labelled: Mapping[str, ArtifactRef]) -> ArtifactRef:
    """The arm's adapter, trained here or on the GPU pool, with the weights of its own config."""
    transitions = estimate_transitions(arm.config, **labelled)
    weights = weigh_segments(arm.config, **labelled, transitions=transitions)
    traces = {name: labelled[name] for name in ("candidates", "annotations")}
    return train_variants(arm.config, {"model": model, **traces, "weights": weights})[arm.variant]
