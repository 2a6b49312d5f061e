"""What a run starts from: its config with every reference pinned, and what is new of its questions."""

from __future__ import annotations

import logging

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.errors import ArtifactError
from mralign_core.intake import (
    NewQuestions,
    Resolutions,
    changed_references,
    model_in_reply,
    new_questions,
    resolve,
    with_replies,
)
from mralign_core.schemas.annotations import RAW_ANNOTATIONS
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore, RunRecord, RunRecords
from tasks.engine.last_run import this_run

logger = logging.getLogger("mralign_core.intake")
REPLIES_LOOKED_AT = 8
"""Of each model: what they name as the model that wrote them."""


def pin_references(config: RunConfig) -> RunConfig:
    """The config of this run with every floating reference pinned, once a run; recorded in the store.

    Raises:
        DataError: see :func:`mralign_core.intake.resolving.resolve`.
        ConfigError: the same.
        StorageError: the same.
    """
    return resolve(config, ArtifactStore(config.storage), run=this_run()).config


def what_is_new(config: RunConfig, questions: ArtifactRef, evaluation_questions: ArtifactRef) -> NewQuestions:
    """What of this run's questions is new, against the last run of the config's name that went to its end.

    A run that was broken off has not trained on its questions: after it, they are still new.

    Args:
        config: the run config.
        questions: artifact of this run's questions.
        evaluation_questions: artifact of its held-out questions.
    """
    store, before = ArtifactStore(config.storage), last_finished(config)
    names = ("questions", "evaluation-questions")
    old = {name: before.artifacts[name] for name in names if name in before.artifacts} if before else {}
    since = f"the run of {before.at:%Y-%m-%d %H:%M} UTC" if before else ""
    found = [
        new_questions(
            _earlier_questions(store, old[name]) if name in old else None,
            store.read_table(ref, "questions.parquet"),
            since,
        )
        for name, ref in zip(names, (questions, evaluation_questions), strict=True)
    ]
    return NewQuestions({name: news for each in found for name, news in each.sets.items()}, since)


def _earlier_questions(store: ArtifactStore, ref: ArtifactRef) -> pd.DataFrame | None:
    """The questions of an earlier run; None where they are gone, so that all of this run's count as new."""
    try:
        return store.read_table(ref, "questions.parquet")
    except ArtifactError as error:
        logger.warning("what is new can't be told against the last run: %s", error)
        return None


def changed_references_of(config: RunConfig) -> list[str]:
    """A line for each reference beside the questions (model, label set, prompts, endpoints) that stands for something
    else than in the last run of the config's name that went to its end; none where that has no record.
    """
    records, before = Resolutions(ArtifactStore(config.storage), config.name), last_finished(config)
    earlier, now = records.of(before.run) if before else None, records.of(this_run())
    lines = changed_references(earlier, now) if earlier and now else []
    return [line for line in lines if not line.startswith("questions.")]


def last_finished(config: RunConfig) -> RunRecord | None:
    """The record of the last run of the config's name, other than this one, that wrote its report."""
    records = RunRecords(ArtifactStore(config.storage), config.name).newest_first()
    return next((one for one in records if one.run != this_run() and one.made_by.get("report") == one.run), None)


def tell_what_is_new(config: RunConfig, questions: ArtifactRef, evaluation_questions: ArtifactRef) -> NewQuestions:
    """:func:`what_is_new`, said in one line of the log, with what else stands for something new."""
    news = what_is_new(config, questions, evaluation_questions)
    logger.info("config %r: %s", config.name, "; ".join([str(news), *changed_references_of(config)]))
    return news


def note_models_in_replies(config: RunConfig, annotations: ArtifactRef) -> None:
    """Add to this run's record what the annotators' replies name as their model, where they name one.

    Args:
        config: the run config.
        annotations: artifact of the labels.
    """
    store = ArtifactStore(config.storage)
    records = Resolutions(store, config.name)
    resolution = records.of(this_run())
    if resolution is None or not any(one.kind == "endpoint" for one in resolution.references):
        return
    asked = store.read_columns(annotations, "raw_annotations.parquet", RAW_ANNOTATIONS, ["role", "request_digest"])
    replies, digests = ReplyStore(store), dict[str, list[str]]()
    for role, digest in zip(asked["role"], asked["request_digest"], strict=True):
        digests.setdefault(f"annotate.{role}", []).append(digest)
    named = {
        field: [model_in_reply(replies.get(digest)) for digest in of_role[-REPLIES_LOOKED_AT:]]
        for field, of_role in digests.items()
    }
    references = with_replies(resolution.references, named)
    if references != resolution.references:
        last = records.last()
        is_last = last is not None and last.run == resolution.run
        records.keep(resolution.model_copy(update={"references": references}), is_last=is_last)
