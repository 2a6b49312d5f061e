"""A retraining that can be left alone: the pipeline on what is new, the gate, and the champion's alias."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from flows.evaluate import judge_variants, score_variants
from flows.form import RetrainForm
from flows.pipeline import pipeline
from mralign_core.config import RunConfig
from mralign_core.errors import AliasMovedError, BudgetError, NothingNewError, StorageError
from mralign_core.intake import pin_champion
from mralign_core.reporting.promotion_findings import promotion_markdown, promotion_sentence
from mralign_core.retraining.base_models import why_other_base
from mralign_core.retraining.checks import check_held_out, check_retraining
from mralign_core.retraining.history import Retraining, RetrainingEnd, Retrainings
from mralign_core.retraining.promotion import Promotion
from mralign_core.retraining.spending import check_month
from mralign_core.storage import ArtifactRef, ArtifactStore, Holder, key_of
from mralign_core.storage.claims import Contest
from mralign_core.storage.keeping import kept
from mralign_core.versions.aliases import Aliases, version_key, version_name
from mralign_core.versions.version import Version, read_version, resolve_version
from tasks.engine.last_run import LastRun, this_run
from tasks.engine.naming import name_run
from tasks.engine.session import run_name
from tasks.intake import pin_references
from tasks.publish import show_promotion, show_trend
from tasks.registry import bring_registry_up_to_date
from tasks.retention import clear_store
from tasks.retrain import (
    CHALLENGER,
    CHAMPION,
    decide_on_promotion,
    read_promotion,
    version_made,
    why_not_trained,
)

logger = logging.getLogger("mralign_core.retraining")
EVENTS = "mralign.retraining"
"""What the names of events begin with, such as ``mralign.retraining.promoted``."""
LEASES = 1.5
"""For as many leases of its claim another retraining is watched, to see whether it is alive."""
POLL_S, AFTER_SILENCE_S = 5, 600
"""Between two looks for a person's answer or another's end; from our time-out to Prefect's, which fails the run."""
VERDICT_OUTCOMES: dict[str, RetrainingEnd] = {"PROMOTE": "promoted", "HOLD": "held", "REJECT": "rejected"}


class Approval(RunInput):
    """A person's answer, as the form of a paused run asks for it."""

    approve: bool = Field(False, description="Whether the new model takes the champion's place.")
    by: str = Field("", description="Your name, for the alias' history.")
    note: str = Field("", description="Why, for the alias' history.")


asks_here: ContextVar[Callable[[RunConfig, Promotion], Approval] | None] = ContextVar("asks_here", default=None)
"""Asks a person where no page shows a paused run's form, as on an embedded server."""


@flow(name="mr-align", flow_run_name=name_run)  # the name that its deployment has had, and users' edits with it
def weekly_retrain(config: RetrainForm) -> str:
    """Train on what is there now, compare the new model with the champion, and promote it if it is shown to be better.

    Ends in one line where nothing has changed since the last one. What it came to is an event
    (``mralign.retraining.promoted``, ``.held``, ``.rejected``, ``.nothing-new``, ``.quiet``, ``.over-budget``), which
    automations can act on.

    Args:
        config: a preset, and what differs from it; section ``retrain`` says what the new model must show.
    """
    check_retraining(config)
    with at_it_alone(config) as other:
        return _retrain(config) if other is None else f"nothing done: {other} is retraining {config.retrain.alias!r}"


def _retrain(config: RunConfig) -> str:
    store = ArtifactStore(config.storage)
    config = pin_champion(pin_references(config), store, this_run())
    check_held_out(config)
    if told := _end_without_news(config, store):
        return told
    try:
        check_month(store, config.retrain.budget_usd_a_month, datetime.now(UTC))
        pipeline(config)
        return _decide_and_act(config, store)
    except NothingNewError as error:
        return _end_quietly(config, store, _champion(config, store), str(error))
    except BudgetError as error:
        _end(config, store, "over-budget", None, [str(error)])
        raise


def _decide_and_act(config: RunConfig, store: ArtifactStore) -> str:
    """What becomes of the model that the pipeline has just made."""
    last = LastRun(config, this_run())
    version = read_version(store, last(f"version:{config.retrain.variant}").key)
    assert version is not None  # the pipeline has just made it
    champion = _champion(config, store)
    if why := _why_not_compared(config, store, version, champion):
        return _end(config, store, "held", version, [why], champion.id if champion else "")
    with kept(store, run_name(), [version.ref.path]):  # a person may be asked for weeks
        return _act(config, store, version, _decide(config, version, champion, last))


def _champion(config: RunConfig, store: ArtifactStore) -> Version | None:
    """The version that the alias names; None where it names none.

    Raises:
        ArtifactError: that version is damaged or gone.
    """
    return resolve_version(store, config.retrain.alias) if Aliases(store).current(config.retrain.alias) else None


def _end_without_news(config: RunConfig, store: ArtifactStore) -> str:
    """The end of a retraining whose model is there and was decided on already, or that has too little to train on; ""
    where there is something to do.
    """
    if why := why_not_trained(config):
        return _end_quietly(config, store, _champion(config, store), why)
    made = version_made(config)
    version = read_version(store, made.key) if made else None
    if version is None:
        return ""
    entry = Aliases(store).current(config.retrain.alias)
    if not (entry and entry.to == version.id) and not _was_left(config, store, version):
        decided = Retrainings(store, config.name).decided_on(version.id)
        now = (entry.to if entry else "", _gate_digest(config), True)
        if now not in {(one.compared_with, one.gate, one.is_final) for one in decided}:
            return ""
    return _end_quietly(config, store, version, f"{version.name} has all of it, and was decided on")


def _end_quietly(config: RunConfig, store: ArtifactStore, version: Version | None, why: str) -> str:
    """The end of a retraining without news; where one was killed between the alias and its record, that one's end."""
    history, entry = Retrainings(store, config.name), Aliases(store).current(config.retrain.alias)
    is_champion = entry is not None and version is not None and entry.to == version.id
    if entry and is_champion and entry.by.startswith(_mover(config)) and not history.decided_on(entry.to):
        return _end(config, store, "promoted", version, [entry.why], entry.from_ or "")
    told = _end(config, store, "nothing-new", version, [why])
    quiet = history.num_quiet()
    if quiet % config.retrain.quiet_runs == 0:
        _emit(config, "quiet", {"message": f"nothing new in {quiet} retrainings of {config.name}"})
    return told


def _gate_digest(config: RunConfig) -> str:
    """What tells the margins of a decision from others."""
    return key_of(gate=config.retrain.gate.model_dump())


def _was_left(config: RunConfig, store: ArtifactStore, version: Version) -> bool:
    """Whether the alias has named a version and was moved away: only a person brings it back."""
    return version.id in {entry.to for entry in Aliases(store).history(config.retrain.alias)[:-1]}


def _why_not_compared(config: RunConfig, store: ArtifactStore, version: Version, champion: Version | None) -> str:
    """Why two versions are not compared; "" where they are."""
    if champion is None:
        return ""
    if champion.id == version.id:
        return "it is the champion"
    if _was_left(config, store, version):
        return "the champion took its place before, and only a person brings it back: mralign promote"
    return why_other_base(store, version, champion)


def _decide(config: RunConfig, version: Version, champion: Version | None, last: LastRun) -> ArtifactRef:
    """Have the champion, or the base model where there is none, answer the same questions, and the gate decide."""
    variant, questions = config.retrain.variant, last("evaluation-questions")
    theirs, scores = champion.record.variant if champion else "on", {"on": last("scores:on")}
    labels = {CHALLENGER: last("annotations"), **_labels_since(config, version, champion)}
    if champion:
        model = champion.parents["model"]
        scores = score_variants(config, questions, model, {theirs: champion.adapter}, variants=[theirs])
        labels |= {CHAMPION: champion.parents["annotations"]}
    judged = judge_variants(config, questions, scores)
    judgements = {CHALLENGER: last(f"judgements:{variant}"), CHAMPION: judged[theirs]} if judged else {}
    promotion: ArtifactRef = decide_on_promotion(
        config,
        version=version.ref,
        evaluation_questions=questions,
        candidates=last("candidates"),
        annotations=labels,
        scores={CHALLENGER: last(f"scores:{variant}"), CHAMPION: scores[theirs]},
        judgements=judgements,
        variant=variant,
        champion_id=champion.id if champion else "",
    )
    show_promotion(config, promotion)
    return promotion


def _labels_since(config: RunConfig, version: Version, champion: Version | None) -> dict[str, ArtifactRef]:
    """The labels of each earlier version that was compared with the same champion, as far as they are there."""
    store, found = ArtifactStore(config.storage), {}
    for version_id in Retrainings(store, config.name).versions_since(champion.id if champion else ""):
        one = read_version(store, version_key(version_id)) if version_id != version.id else None
        if one and store.files.exists(f"{one.parents['annotations'].path}/manifest.json"):
            found[version_id] = one.parents["annotations"]
    return found


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
            by, why = approval.by or f"{_mover(config)}, run {run_name()}", approval.note or "; ".join(reasons)
            try:
                Aliases(store).move(config.retrain.alias, version.id, expected=compared_with or None, by=by, why=why)
            except AliasMovedError as error:
                entry = Aliases(store).current(config.retrain.alias)
                if entry is None or entry.to != version.id:  # else another retraining has promoted it
                    outcome, reasons = "held", [f"{error}; the next retraining compares it with the new champion"]
        else:
            outcome, reasons = "held", [f"not approved: {approval.note or 'without a note'}", *reasons]
    return _end(config, store, outcome, version, reasons, compared_with, is_final=promotion.is_final)


def _mover(config: RunConfig) -> str:
    """How this config's retrainings begin to sign a move."""
    return f"retraining {config.name!r}"


def _ask(config: RunConfig, promotion: Promotion) -> Approval:
    """What a person says of a promotion; after the time-out, no.

    Prefect ends a paused run as failed when its own time-out is over, so this answers the form a while before.
    """
    if ask := asks_here.get():
        return ask(config, promotion)
    hours = config.retrain.ask_timeout_h
    silence = Approval(note=f"nobody answered within {hours:g} hours; mralign promote does it by hand")
    form = Approval.with_initial_data(description=promotion_markdown(promotion))
    answering = threading.Timer(3600 * hours, copy_context().run, [_answer, flow_run.id, silence])
    answering.daemon = True
    answering.start()
    try:
        return pause_flow_run(
            wait_for_input=form, timeout=round(3600 * hours) + AFTER_SILENCE_S, poll_interval=POLL_S
        ) or Approval(note="resumed without an answer")
    finally:
        answering.cancel()


def _answer(run_id: str, approval: Approval) -> None:
    """Resume a paused run with an answer."""
    with get_client(sync_client=True) as client:
        client.resume_flow_run(UUID(run_id), run_input=approval.model_dump())


@contextlib.contextmanager
def at_it_alone(config: RunConfig) -> Iterator[Holder | None]:
    """Yield None to the one retraining of an alias that is at work, and to others who that is.

    A limit of the deployment would not do: Prefect gives it back while a run waits for a person, and then ends the run.
    """
    store = ArtifactStore(config.storage)
    contest = Contest(store.claims(run_name()), f"retraining/{config.retrain.alias}")
    deadline = time.monotonic() + LEASES * config.storage.claim_lease_s
    try:
        # One that was lost with its host is given up after its lease.
        while (claim := contest.attempt()) is None and time.monotonic() < deadline:
            time.sleep(min(POLL_S, config.storage.claim_lease_s / 4))
    except StorageError as error:
        logger.warning("can't see whether another retraining is at work: %s", error)
        yield None
        return
    if claim is None:
        yield contest.holder or Holder()
        return
    try:
        yield None
    finally:
        claim.release()


def _end(
    config: RunConfig,
    store: ArtifactStore,
    outcome: RetrainingEnd,
    version: Version | None,
    reasons: list[str],
    compared_with: str = "",
    *,
    is_final: bool = True,
) -> str:
    """Note what a retraining came to, tell it as an event, and return it as a line."""
    entry = Aliases(store).current(config.retrain.alias)
    champion = entry.to if entry else ""
    one = Retraining(
        run=this_run(),
        outcome=outcome,
        version=version.id if version else "",
        compared_with=compared_with,
        gate=_gate_digest(config),
        is_final=is_final,
        champion=champion,
        reasons=reasons,
    )
    Retrainings(store, config.name).add(one)
    names = version_name(champion) if champion else "none"
    line = f"{outcome}: {'; '.join(reasons)} (champion: {names})"
    logger.info("retraining of config %r %s", config.name, line)
    _emit(config, outcome, {**one.model_dump(mode="json"), "message": line})
    show_trend(config)
    bring_registry_up_to_date(config)
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
