"""A retraining that can be left alone: the pipeline on what is new, the gate, and the champion's alias."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import flow
from prefect.events import emit_event
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.evaluate import judge_variants, score_variants
from flows.pipeline import pipeline
from mralign_core.config import RunConfig
from mralign_core.errors import AliasMovedError, BudgetError
from mralign_core.reporting.promotion_findings import promotion_markdown, promotion_sentence
from mralign_core.retraining.history import Retraining, RetrainingEnd, Retrainings
from mralign_core.retraining.promotion import Promotion
from mralign_core.retraining.spending import check_month
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.versions.aliases import Aliases, version_name
from mralign_core.versions.version import Version, read_version, resolve_version
from tasks.engine.last_run import LastRun, this_run
from tasks.engine.session import run_name
from tasks.intake import pin_references
from tasks.publish import show_promotion
from tasks.retention import clear_store
from tasks.retrain import CHALLENGER, CHAMPION, check_retraining, decide_on_promotion, read_promotion, version_made

logger = logging.getLogger("mralign_core.retraining")
EVENTS = "mralign.retraining"
"""What the names of events begin with, such as ``mralign.retraining.promoted``."""
VERDICT_OUTCOMES: dict[str, RetrainingEnd] = {"PROMOTE": "promoted", "HOLD": "held", "REJECT": "rejected"}


class Approval(RunInput):
    """A person's answer, as the form of a paused run asks for it."""

    approve: bool = Field(False, description="Whether the new model takes the champion's place.")
    by: str = Field("", description="Your name, for the alias' history.")
    note: str = Field("", description="Why, for the alias' history.")


@flow(name="weekly-retrain", flow_run_name="{config.name}")
def weekly_retrain(config: RunConfig) -> str:
    """Train on what is there now, compare the new model with the champion, and promote it if it is shown to be better.

    Ends in one line where nothing has changed since the last one. What it came to is an event
    (``mralign.retraining.promoted``, ``.held``, ``.rejected``, ``.nothing-new``, ``.quiet``, ``.over-budget``), which
    automations can act on.

    Args:
        config: the run config; section ``retrain`` says what the new model must show.
    """
    check_retraining(config)
    store = ArtifactStore(config.storage)
    try:
        check_month(store, config.retrain.budget_usd_a_month, datetime.now(UTC))
    except BudgetError as error:
        _end(config, store, "over-budget", None, [str(error)])
        raise
    config = pin_references(config)
    if told := _end_without_news(config, store):
        return told
    pipeline(config)
    last = LastRun(config, this_run())
    version = read_version(store, last(f"version:{config.retrain.variant}").key)
    assert version is not None  # the pipeline has just made it
    return _act(config, store, version, _decide(config, store, version, last))


def _end_without_news(config: RunConfig, store: ArtifactStore) -> str:
    """The end of a retraining whose model is there and was decided on already; "" where there is something to do."""
    made = version_made(config)
    version = read_version(store, made.key) if made else None
    if version is None:
        return ""
    history, entry = Retrainings(store, config.name), Aliases(store).current(config.retrain.alias)
    decided = history.decided_on(version.id)
    if entry and entry.to == version.id and not decided:  # it was killed between the alias and its record
        return _end(config, store, "promoted", version, [entry.why], entry.from_ or "")
    champion = entry.to if entry else ""
    if champion != version.id and champion not in {one.compared_with for one in decided}:
        return ""
    told = _end(config, store, "nothing-new", version, [f"{version.name} has all of it, and was decided on"])
    quiet = history.num_quiet()
    if quiet % config.retrain.quiet_runs == 0:
        _emit(config, "quiet", {"message": f"nothing new in {quiet} retrainings of {config.name}"})
    return told


def _decide(config: RunConfig, store: ArtifactStore, version: Version, last: LastRun) -> ArtifactRef:
    """Have the champion, or the base model where there is none, answer the same questions, and the gate decide."""
    variant, questions = config.retrain.variant, last("evaluation-questions")
    entry = Aliases(store).current(config.retrain.alias)
    champion = resolve_version(store, config.retrain.alias) if entry else None
    if champion is None:
        theirs, scores = "on", {"on": last("scores:on")}
    else:
        theirs = champion.record.variant
        scores = score_variants(
            config, questions, champion.parents["model"], {theirs: champion.adapter}, variants=[theirs]
        )
    judged = judge_variants(config, questions, scores)
    judgements = {CHALLENGER: last(f"judgements:{variant}"), CHAMPION: judged[theirs]} if judged else {}
    promotion: ArtifactRef = decide_on_promotion(
        config,
        version=version.ref,
        evaluation_questions=questions,
        candidates=last("candidates"),
        annotations=last("annotations"),
        scores={CHALLENGER: last(f"scores:{variant}"), CHAMPION: scores[theirs]},
        judgements=judgements,
        variant=variant,
        champion_id=champion.id if champion else "",
    )
    show_promotion(config, promotion)
    return promotion


def _act(config: RunConfig, store: ArtifactStore, version: Version, ref: ArtifactRef) -> str:
    """Move the alias where the gate says so, and a person where one is asked, and note what the retraining came to."""
    promotion = read_promotion(store, ref)
    logger.info("%s", promotion_sentence(promotion))
    for reason in promotion.reasons:
        logger.info("- %s", reason)
    outcome, reasons, compared_with = VERDICT_OUTCOMES[promotion.verdict], promotion.reasons, promotion.champion
    if promotion.verdict == "PROMOTE":
        approval = _ask(config, promotion) if config.retrain.mode == "ask" else Approval(approve=True)
        if approval.approve:
            by, why = approval.by or f"run {run_name()}", approval.note or "; ".join(reasons)
            try:
                Aliases(store).move(config.retrain.alias, version.id, expected=compared_with or None, by=by, why=why)
            except AliasMovedError as error:
                entry = Aliases(store).current(config.retrain.alias)
                if entry is None or entry.to != version.id:  # else a retraining at the same time has promoted it
                    outcome, reasons = "held", [f"{error}; the next retraining compares it with the new champion"]
        else:
            outcome, reasons = "held", [f"not approved: {approval.note or 'without a note'}", *reasons]
    return _end(config, store, outcome, version, reasons, compared_with)


def _ask(config: RunConfig, promotion: Promotion) -> Approval:
    """What a person says of a promotion; after the time-out, no."""
    form = Approval.with_initial_data(description=promotion_markdown(promotion))
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=round(3600 * config.retrain.ask_timeout_h))
    except FlowPauseTimeout:
        return Approval(note=f"nobody answered within {config.retrain.ask_timeout_h:g} hours (mralign promote does it)")
    return answer or Approval(note="the run was resumed without an answer")


def _end(
    config: RunConfig,
    store: ArtifactStore,
    outcome: RetrainingEnd,
    version: Version | None,
    reasons: list[str],
    compared_with: str = "",
) -> str:
    """Note what a retraining came to, tell it as an event, and return it as a line."""
    entry = Aliases(store).current(config.retrain.alias)
    champion = entry.to if entry else ""
    one = Retraining(
        run=this_run(),
        outcome=outcome,
        version=version.id if version else "",
        compared_with=compared_with,
        champion=champion,
        reasons=reasons,
    )
    Retrainings(store, config.name).add(one)
    names = version_name(champion) if champion else "none"
    line = f"{outcome}: {'; '.join(reasons)} (champion: {names})"
    logger.info("retraining of config %r %s", config.name, line)
    _emit(config, outcome, {**one.model_dump(mode="json"), "message": line})
    if config.retrain.clears_store:
        clear_store(config)
    return line


def _emit(config: RunConfig, what: str, payload: dict[str, object]) -> None:
    """An event of this config's retrainings; a server that can't take it must not undo what was decided."""
    resource = {"prefect.resource.id": f"{EVENTS}.{config.name}", "prefect.resource.name": config.name}
    try:
        emit_event(f"{EVENTS}.{what}", resource=resource, payload=payload)
    except Exception as error:
        logger.warning("the event %s.%s could not be sent: %s", EVENTS, what, error)
