"""The gate of a retraining: what it decides, from the answers of challenger and champion."""

from __future__ import annotations

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.judging.verdicts import scored_answers, weigh_verdicts
from mralign_core.retraining.gate import (
    GateDecision,
    compare_with_champion,
    decide_promotion,
    gate_rng,
)
from mralign_core.retraining.objections import label_objections, scoring_objections, training_objections
from mralign_core.retraining.promotion import PROMOTION_FILE, HeldOutUse, Promotion
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.versions.version import read_version, trained_on
from tasks.engine.graph import Input, named_by_caller
from tasks.engine.plan import plan
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.judge import read_judge_failures, read_judgements

CHALLENGER, CHAMPION = "challenger", "champion"


@artifact(
    "promotion",
    stage="retrain",
    part=("variant", "champion_id"),
    fields=lambda config: {"gate": config.retrain.gate.model_dump(mode="json"), "seed": config.seed},
    inputs=(
        Input("version", own_part="variant"),
        Input("evaluation-questions"),
        Input("candidates"),
        Input("annotations"),
        Input("scores", each=named_by_caller),
        Input("judgements", each=named_by_caller),
    ),
    sources=(
        "mralign_core.retraining.promotion",
        "mralign_core.retraining.objections",
        "mralign_core.judging.verdicts",
    ),
)
def decide_on_promotion(making: Making) -> Built:
    """Decide whether the challenger takes the champion's place, or that of the base model where there is none."""
    config, store = making.config, making.store
    version = read_version(store, making["version"].key)
    assert version is not None  # an input that was just found
    champion_id: str = making.part["champion_id"]
    questions = making.table("evaluation-questions", "questions.parquet")
    objections = [
        *training_objections(trained_on(store, version), questions),
        *_gaps(making, CHALLENGER, questions),
        *label_objections(
            store.manifest(making["annotations"]).counts, making["candidates"].rows or 0, config.retrain.gate
        ),
    ]
    champion = read_version(store, champion_id.rpartition("-")[2]) if champion_id else None
    models = version.adapter.sha256, champion.adapter.sha256 if champion else ""
    use, gains = HeldOutUse(store, making["evaluation-questions"]), None
    num_before = use.others(*models)
    if objections:
        decision = GateDecision("REJECT", objections)
    elif models[0] == models[1]:
        decision = GateDecision("HOLD", ["it is the champion's own adapter, asked for with another config"])
    elif gaps := _gaps(making, CHAMPION, questions):
        decision = GateDecision("HOLD", [f"of the champion, {gap}" for gap in gaps])
    else:
        use.note(*models)
        gate, rng = config.retrain.gate, gate_rng(config.seed)
        ours, theirs = (_scored(making, which) for which in (CHALLENGER, CHAMPION))
        gains = compare_with_champion(ours, theirs, confidence=gate.confidence, rng=rng)
        decision = decide_promotion(gains, gate, num_comparisons=num_before)
    promotion = Promotion.of(decision, version.id, champion_id, gains, num_before)
    (making.directory / PROMOTION_FILE).write_text(promotion.model_dump_json(indent=1), encoding="utf-8")
    return Built(counts={"verdict": promotion.verdict})


def read_promotion(store: ArtifactStore, promotion: ArtifactRef) -> Promotion:
    """What the gate decided."""
    return Promotion.model_validate(store.read_json(promotion, PROMOTION_FILE))


def _gaps(making: Making, which: str, questions: pd.DataFrame) -> list[str]:
    """What of a model's evaluation is missing."""
    refs = [refs[which] for name in ("scores", "judgements") if which in (refs := making.several(name))]
    answers = making.store.read_table(refs[0], "scores.parquet")
    counts = [making.store.manifest(ref).counts for ref in refs]
    return scoring_objections(answers, questions, making.config.evaluate.num_draws, counts)


def _scored(making: Making, which: str) -> pd.DataFrame:
    """A model's answers that have a score, with what judges say of them."""
    store, given = making.store, making.several("judgements")
    answers = store.read_table(making.several("scores")[which], "scores.parquet")
    if which not in given:
        return scored_answers(answers, None)
    own = {which: given[which]}
    judges = [endpoint.model for endpoint in making.config.judge.endpoints]
    judged = weigh_verdicts(read_judgements(store, own), read_judge_failures(store, own), answers, judges)
    return scored_answers(answers, judged)


def version_made(config: RunConfig) -> ArtifactRef | None:
    """The version that a run of this config would end with, where the store has all that the run would make."""
    return plan(config).made.get(f"version:{config.retrain.variant}")


def check_retraining(config: RunConfig) -> None:
    """Refuse a config whose retraining could decide nothing.

    Raises:
        ConfigError: no question is held out, or the variant is not trained.
    """
    if not config.questions.eval:
        raise ConfigError("questions.eval names no set, so no model can be compared with the champion: name one")
    if config.retrain.variant not in config.train.variants:
        raise ConfigError(
            f"retrain.variant {config.retrain.variant!r} is not among train.variants "
            f"({', '.join(config.train.variants)}): add it, or name one of them"
        )
