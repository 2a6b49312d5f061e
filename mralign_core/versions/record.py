"""What a version says of itself: the config it was asked for with, what it was made from, what it scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, field_validator

from mralign_core.evaluation.variants import BASELINES
from mralign_core.method.extraction import with_options
from mralign_core.questions.overlap import question_key, question_keys
from mralign_core.redaction import redacted
from mralign_core.reporting.inputs import annotation_costs
from mralign_core.storage.artifact import LEFT_OUT
from mralign_core.storage.digests import key_of
from mralign_core.storage.lineage import Lineage

VERSION = "version"
"""The kind of artifact that a version is."""
RECORD_FILE, CARD_FILE, TRAINED_ON_FILE = "version.json", "card.md", "trained_on.json"
DIGEST_OF_QUESTION = 16
"""Characters of a question's digest."""


class QuestionDigest(BaseModel):
    """Which questions, in few characters."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    number: int
    """How many, of those that differ."""
    sha256: str
    """Digest of all of them, whatever their order."""

    @classmethod
    def of(cls, digests: Sequence[str]) -> QuestionDigest:
        """That of questions by their :func:`question_digests`."""
        return cls(number=len(digests), sha256=key_of(questions=sorted(digests)))


class VersionRecord(BaseModel):
    """What ``version.json`` holds. It has no time and no path, so that the same run gives the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    variant: str
    """What was trained, such as `mr_align`."""
    base_model: str
    """Name of the model that the adapter belongs to."""
    config: dict[str, Any]
    """The config that asked for it, without secrets and without fields that change no result."""
    made_from: dict[str, str]
    """Kind of artifact → `kind/key/digest`, of the adapter, of all that it was made from and of what measured it."""
    scores: list[dict[str, Any]]
    """Rows of the results' summary, of this variant and of the model before training; null where undefined."""
    differences: list[dict[str, Any]]
    """Rows of the results' paired differences of this variant, with their intervals."""
    trained_on: QuestionDigest
    """The questions whose traces it was trained on."""
    held_out: QuestionDigest
    """The questions that measured it."""
    left_out: dict[str, int]
    """Kind of artifact → traces or answers that it lacks because models or their servers failed on them."""
    cost_usd: float
    """Dollars that its labels and the verdicts on its answers cost, whenever they were paid."""

    @field_validator("config")
    @classmethod
    def _without_secrets(cls, config: dict[str, Any]) -> dict[str, Any]:
        return dict(redacted(config))


def question_digests(texts: Iterable[str]) -> list[str]:
    """Digests of questions, sorted, each once: the same for questions that differ in case, spacing or punctuation.

    Example:
        >>> question_digests(["Who wrote Emma?", "who wrote emma"]) == question_digests(["Who wrote Emma"])
        True
    """
    keys = {question_key(text) for text in texts}
    return sorted(hashlib.sha256(key.encode()).hexdigest()[:DIGEST_OF_QUESTION] for key in keys)


def digests_of_questions(questions: pd.DataFrame) -> list[str]:
    """:func:`question_digests` of rows of table ``questions``; of a choice, also of its text without options."""
    return question_digests(key for keys in question_keys(questions) for key in keys)


def digests_trained_on(candidates: pd.DataFrame, questions: pd.DataFrame) -> list[str]:
    """:func:`question_digests` of what was trained on.

    Args:
        candidates: rows of table ``candidates``, the traces that were aligned on.
        questions: rows of table ``questions`` that they were drawn from; of those that have no trace, none counts.
    """
    drawn = questions[questions["question_id"].isin(candidates["question_id"])]
    bare = [
        text.removesuffix(with_options("", options))
        for text, options in zip(drawn["question"], drawn["options"], strict=True)
    ]
    return question_digests([*candidates["question"], *bare])


def made_from(adapter: Lineage, beside: Mapping[str, Lineage]) -> dict[str, str]:
    """Kind → ``kind/key/digest`` of the adapter and all that it was made from, and of what else made the version.

    Args:
        adapter: its lineage.
        beside: the version's other inputs, by kind.
    """
    found = {one.ref.stage: one.ref.path for one in _ancestors(adapter)}
    found |= {kind: one.ref.path for kind, one in beside.items()}
    return {kind: path.removeprefix("artifacts/") for kind, path in sorted(found.items())}


def left_out(lineages: Iterable[Lineage]) -> dict[str, int]:
    """Kind → what it lacks, of all artifacts of some lineages that lack something."""
    everything = {one.ref.path: one for lineage in lineages for one in _ancestors(lineage)}.values()
    found: dict[str, int] = {}
    for one in everything:
        lacks = int(one.manifest.counts.get(LEFT_OUT, 0)) if one.manifest else 0
        if lacks:
            found[one.ref.stage] = found.get(one.ref.stage, 0) + lacks
    return dict(sorted(found.items()))


def cost_usd(replies: Sequence[pd.DataFrame], judgements: pd.DataFrame | None = None) -> float:
    """Dollars that labels and verdicts cost.

    Args:
        replies: rows of table ``raw_annotations``; a trace that is in an earlier set counts once.
        judgements: rows of table ``judgements``, of which equal answers share a request; None where nothing was judged.
    """
    labels = float(annotation_costs(*replies)["cost_usd"].sum()) if replies else 0.0
    if judgements is None:
        return round(labels, 6)
    asked = judgements[judgements["answered"].astype(bool)].drop_duplicates(["judge", "request_digest"])
    return round(labels + float(asked["cost_usd"].sum()), 6)


def scores_in(results: Path, variant: str) -> dict[str, list[dict[str, Any]]]:
    """The ``scores`` and ``differences`` of a variant in a folder of results; none where nothing could be scored."""
    if not (results / "summary.json").is_file():
        return {"scores": [], "differences": []}
    summary, differences = (json.loads((results / f"{name}.json").read_text()) for name in ("summary", "differences"))
    shown = (*BASELINES, variant)
    return {
        "scores": [row for row in summary if row["variant"] in shown],
        "differences": [row for row in differences if row["variant"] == variant],
    }


def _ancestors(lineage: Lineage) -> Iterator[Lineage]:
    yield lineage
    for parent in lineage.parents:
        yield from _ancestors(parent)
