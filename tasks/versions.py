"""A version of every trained variant that was evaluated: what can be promoted, rolled back to and exported."""

from __future__ import annotations

import json

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.models.locate import model_name
from mralign_core.reporting.run_findings import read_results
from mralign_core.versions.record import (
    CARD_FILE,
    RECORD_FILE,
    TRAINED_ON_FILE,
    QuestionDigest,
    VersionRecord,
    cost_usd,
    digests_of_questions,
    digests_trained_on,
    left_out,
    made_from,
    scores_in,
)
from tasks.engine.graph import Input, Part
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.estimate import uses_draws
from tasks.judge import read_judgements
from tasks.train import CHOSEN, trains_on_all


def _is_judged(config: RunConfig, _: Part) -> bool:
    return bool(config.judge.endpoints)


@artifact(
    "version",
    stage="evaluate",
    run_name="version of {variant}",
    part=("variant",),
    parts=lambda config: [{"variant": variant} for variant in config.train.variants] if config.questions.eval else (),
    inputs=(
        Input("adapter", own_part="variant"),
        Input("model"),
        Input("questions"),
        Input("evaluation-questions"),
        Input("candidates", when=trains_on_all),
        Input("annotations"),
        Input("results"),
        Input("scores", own_part="variant"),
        Input("judgements", own_part="variant", when=_is_judged),
        Input("draw-annotations", when=uses_draws),
        Input("weights", when=lambda _, part: part["variant"] == "mr_align"),
        CHOSEN,
    ),
    fields=RunConfig.fingerprint,
    sources=("mralign_core.versions.record", "mralign_core.training.export_card", "mralign_core.models.locate"),
)
def make_version(making: Making) -> Built:
    """Write down what a trained variant is: config, lineage, scores, cost, and the card that is exported with it."""
    candidates = making.table("candidates", "candidates.parquet")
    questions = making.table("questions", "questions.parquet")
    trained_on = digests_trained_on(candidates, questions)
    record = _record(making, trained_on)
    (making.directory / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    (making.directory / TRAINED_ON_FILE).write_text(json.dumps(trained_on), encoding="utf-8")
    (making.directory / CARD_FILE).write_text(_card(making, questions), encoding="utf-8")
    return Built(counts={"questions trained on": len(trained_on)})


def _record(making: Making, trained_on: list[str]) -> VersionRecord:
    store, variant = making.store, making.part["variant"]
    lineages = {name: store.lineage(ref) for name, ref in making.work.inputs.items()}
    labels = [name for name in ("annotations", "draw-annotations") if making.get(name)]
    verdicts = read_judgements(store, {variant: making["judgements"]}) if making.get("judgements") else []
    held_out = digests_of_questions(making.table("evaluation-questions", "questions.parquet"))
    return VersionRecord(
        variant=variant,
        base_model=model_name(making.config.model),
        config=making.config.fingerprint(),
        made_from=made_from(lineages["adapter"], lineages),
        **scores_in(store.open_directory(making["results"]), variant),
        trained_on=QuestionDigest.of(trained_on),
        held_out=QuestionDigest.of(held_out),
        left_out=left_out(lineages.values()),
        cost_usd=cost_usd([making.table(name, "raw_annotations.parquet") for name in labels], *verdicts),
    )


def _card(making: Making, questions: pd.DataFrame) -> str:
    from mralign_core.training.card import Card
    from mralign_core.training.export_card import RunFacts, adapter_card

    config, results = making.config, read_results(making.store.open_directory(making["results"]))
    run = RunFacts(
        questions=questions,
        funnel=pd.DataFrame(making.store.read_json(making["candidates"], "funnel.json")),
        summary=results.summary if results else None,
        differences=results.differences if results else None,
        confidence=config.evaluate.confidence,
    )
    card = Card.parse(making.file("adapter", "README.md").read_text(encoding="utf-8"))
    adapter_config = making.store.read_json(making["adapter"], "adapter_config.json")
    variant = making.part["variant"]
    return adapter_card(card, model_name(config.model), variant, run, adapter_config=adapter_config).render()
