"""The gate of a retraining: what it decides, from the answers of challenger and champion."""

from __future__ import annotations

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import NothingNewError
from mralign_core.evaluation.held_out import with_strata
from mralign_core.judging.verdicts import scored_answers, weigh_verdicts
from mralign_core.retraining.gate import (
    GateDecision,
    compare_with_champion,
    decide_promotion,
    gate_rng,
)
from mralign_core.retraining.objections import label_objections, scoring_objections, training_objections
from mralign_core.retraining.promotion import PROMOTION_FILE, HeldOutUse, Promotion, comparison_name
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.versions.aliases import version_key
from mralign_core.versions.record import digests_of_questions
from mralign_core.versions.version import Version, read_version, trained_on
from tasks.engine.graph import Input, named_by_caller
from tasks.engine.plan import plan
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.judge import read_judge_failures, read_judgements
from tasks.train import chosen_traces

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
        Input("annotations", each=named_by_caller),
        Input("scores", each=named_by_caller),
        Input("judgements", each=named_by_caller),
    ),
    sources=(
        "mralign_core.retraining.promotion",
        "mralign_core.retraining.objections",
        "mralign_core.judging.verdicts",
        "mralign_core.evaluation.held_out",
    ),
)
def decide_on_promotion(making: Making) -> Built:
    """Decide whether the challenger takes the champion's place, or that of the base model where there is none."""
    version = read_version(making.store, making["version"].key)
    assert version is not None  # an input that was just found
    champion_id: str = making.part["champion_id"]
    champion = read_version(making.store, version_key(champion_id)) if champion_id else None
    promotion = _decide(making, version, champion)
    (making.directory / PROMOTION_FILE).write_text(promotion.model_dump_json(indent=1), encoding="utf-8")
    return Built(counts={"verdict": promotion.verdict})


def _decide(making: Making, version: Version, champion: Version | None) -> Promotion:
    store, gate = making.store, making.config.retrain.gate
    names = version.id, champion.id if champion else ""
    questions = making.table("evaluation-questions", "questions.parquet")
    gaps, gaps_of_champion = (_gaps(making, which, questions) for which in (CHALLENGER, CHAMPION))
    objections = [*training_objections(trained_on(store, version), questions), *_label_objections(making)]
    if objections or gaps:
        return Promotion.of(GateDecision("REJECT", [*objections, *gaps]), *names, is_final=not gaps)
    if champion and champion.adapter.sha256 == version.adapter.sha256:
        return Promotion.of(GateDecision("HOLD", ["it is the champion's own adapter, under another config"]), *names)
    if champion:
        gaps_of_champion += training_objections(trained_on(store, champion), questions)
    if gaps_of_champion:
        return Promotion.of(
            GateDecision("HOLD", [f"of the champion: {gap}" for gap in gaps_of_champion]), *names, is_final=False
        )
    scores, use = making.several("scores"), HeldOutUse(store, digests_of_questions(questions))
    comparison = comparison_name(scores[CHALLENGER], scores[CHAMPION])
    num_before = use.others(comparison)
    if num_before < gate.comparisons:
        use.note(comparison)
    ours, theirs = (_scored(making, which, questions) for which in (CHALLENGER, CHAMPION))
    gains = compare_with_champion(ours, theirs, confidence=gate.confidence, rng=gate_rng(making.config.seed))
    decision = decide_promotion(gains, gate, num_comparisons=num_before)
    return Promotion.of(decision, *names, gains, num_comparisons=num_before)


def read_promotion(store: ArtifactStore, promotion: ArtifactRef) -> Promotion:
    """What the gate decided."""
    return Promotion.model_validate(store.read_json(promotion, PROMOTION_FILE))


def _label_objections(making: Making) -> list[str]:
    """Signs that an annotator failed, on all traces, those that the champion's labels lack, or a retraining's."""
    store, given = making.store, making.several("annotations")
    asked = store.read_columns(making["candidates"], "candidates.parquet", CANDIDATES, ["trace_id"])
    labels = {
        which: store.read_columns(ref, "annotations.parquet", ANNOTATIONS, ["trace_id", "rule"])
        for which, ref in given.items()
    }
    traces = {which: set(table["trace_id"]) for which, table in labels.items()}
    earlier = [ids for which, ids in traces.items() if which not in (CHALLENGER, CHAMPION)]
    known, gate = traces.get(CHAMPION, ()), making.config.retrain.gate
    return label_objections(list(asked["trace_id"]), labels[CHALLENGER], gate, known, earlier)


def _gaps(making: Making, which: str, questions: pd.DataFrame) -> list[str]:
    """What of a model's evaluation is missing."""
    refs = [refs[which] for name in ("scores", "judgements") if which in (refs := making.several(name))]
    answers = making.store.read_table(refs[0], "scores.parquet")
    counts = [making.store.manifest(ref).counts for ref in refs]
    return scoring_objections(answers, questions, making.config.evaluate.num_draws, counts)


def _scored(making: Making, which: str, questions: pd.DataFrame) -> pd.DataFrame:
    """A model's answers that have a score, with what judges say of them, and their questions' own strata."""
    store, given = making.store, making.several("judgements")
    answers = with_strata(store.read_table(making.several("scores")[which], "scores.parquet"), questions)
    if which not in given:
        return scored_answers(answers, None)
    own = {which: given[which]}
    judges = [endpoint.model for endpoint in making.config.judge.endpoints]
    judged = weigh_verdicts(read_judgements(store, own), read_judge_failures(store, own), answers, judges)
    return scored_answers(answers, judged)


def why_not_trained(config: RunConfig) -> str:
    """Why the traces that the store has for a run leave too little to train on; "" where they do not, or are not there.

    Raises:
        ArtifactError: the version that ``retrain.beyond`` names is gone.
    """
    candidates = plan(config).made.get("candidates") if config.retrain.beyond else None
    if candidates is None:
        return ""
    try:
        chosen_traces(config, candidates)
    except NothingNewError as error:
        return str(error)
    return ""


def version_made(config: RunConfig) -> ArtifactRef | None:
    """The version that a run of this config would end with, where the store has all that the run would make."""
    return plan(config).made.get(f"version:{config.retrain.variant}")
