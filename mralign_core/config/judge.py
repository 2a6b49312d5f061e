"""Section ``judge``: the models that say whether an answer is truthful, right, or made of supported claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from mralign_core.addresses import LocalPath, Url
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored
from mralign_core.config.endpoint import AskingSection, EndpointConfig


class EvidenceConfig(Section):
    """Where passages come from that the claims of LongFact's answers are checked against (docs/judges.md)."""

    corpus: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """A folder or file of texts as for `evaluate.retrieval.corpus`, or `pocket`; searched in by BM25."""
    search: Url = ""
    """Address of a search over HTTP, in place of a collection: it is posted `{"query", "top_k"}` and answers
    `{"results": [{"text", "title", "url"}]}`. The environment variable MRALIGN_SEARCH_API_KEY holds its key."""
    top_k: int = Field(10, ge=1, le=100)
    """Passages a claim."""

    @property
    def is_named(self) -> bool:
        """Whether claims can be checked."""
        return bool(self.corpus or self.search)

    @model_validator(mode="after")
    def _one_source(self) -> EvidenceConfig:
        if self.corpus and self.search:
            raise ValueError("judge.evidence: corpus and search are both given: remove one")
        if not self.is_named:
            refuse_ignored(self, "judge.evidence", ("top_k",), "without judge.evidence.corpus or search")
        return self


class JudgeConfig(AskingSection):
    """Judges of held-out answers: TruthfulQA's truthful and informative, SimpleQA's correct or not attempted, and
    LongFact's supported claims.
    """

    endpoints: tuple[EndpointConfig, ...] = ()
    """One judge or several: what most of them say counts, in a tie what the first of these says. Without one, answers
    that need it are not scored. `similarity/ngrams` is an offline baseline that compares wordings; beside models it has
    no vote."""
    graded: tuple[str, ...] = ("simpleqa",)
    """Sets scored by exact match whose answers a judge grades too: correct, incorrect or not attempted."""
    evidence: EvidenceConfig = EvidenceConfig()
    """What the claims of LongFact's answers are checked against; without it, they are not counted."""
    shard_size: int = Field(1024, ge=1, json_schema_extra=OPERATIONAL)
    """Questions, with a variant's answers to them, in one shard (one task run)."""

    @field_validator("endpoints", mode="before")
    @classmethod
    def _one_judge_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @model_validator(mode="after")
    def _judges_differ(self) -> JudgeConfig:
        names = [endpoint.model for endpoint in self.endpoints]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"judge.endpoints names {repeated} twice, and verdicts go by the name: name each once")
        if not names:
            fields = ("graded", "evidence", *AskingSection.model_fields)
            refuse_ignored(self, "judge", fields, "when judge.endpoints names no judge")
        if self.evidence.is_named and all(name.startswith("similarity/") for name in names):
            raise ValueError(
                "judge.evidence has no effect: the baseline of similarity lists no claims. Name a model in "
                "judge.endpoints, or remove it"
            )
        return self
