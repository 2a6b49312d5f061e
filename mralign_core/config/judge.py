"""Section ``judge``: the models that say whether an answer is truthful, or right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from mralign_core.config.base import OPERATIONAL, refuse_ignored
from mralign_core.config.endpoint import AskingSection, EndpointConfig


class JudgeConfig(AskingSection):
    """Judges of held-out answers: TruthfulQA's truthful and informative, SimpleQA's correct or not attempted."""

    endpoints: tuple[EndpointConfig, ...] = ()
    """One judge or several: what most of them say counts, in a tie what the first of these says. Without one, answers
    that need it are not scored. `similarity/ngrams` is an offline baseline that compares wordings; beside models it has
    no vote."""
    graded: tuple[str, ...] = ("simpleqa",)
    """Sets scored by exact match whose answers a judge grades too: correct, incorrect or not attempted."""
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
            fields = ("graded", *AskingSection.model_fields)
            refuse_ignored(self, "judge", fields, "when judge.endpoints names no judge")
        return self
