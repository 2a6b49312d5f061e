"""Section ``annotate``: the annotators and their consolidation."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, refuse_ignored
from mralign_core.config.endpoint import AskingSection, EndpointConfig

HUMAN_PREFIX = "human/"
"""What names of people begin with."""
HUMAN_NAME = re.compile(r"human/[a-z][a-z0-9_]{0,31}(-[0-9a-f]{1,16})?")
OFFLINE_PREFIXES = ("cue/", HUMAN_PREFIX)
"""What the names of annotators begin with that are asked nothing over the network."""


class AnnotateConfig(AskingSection):
    """Two annotators and an adjudicator label what each segment does (§3.1.2, App. B)."""

    source: Literal["annotators", "traces"] = Field("annotators", json_schema_extra=OPERATIONAL)
    """`annotators` asks for labels; `traces` takes those that the export in generate.traces_path has (`mralign
    export-data`) and asks nobody, but for labels of held-out thinking (evaluate.label_thinking)."""
    annotator_a: EndpointConfig = EndpointConfig(model="deepseek/deepseek-chat")
    """First annotator; `cue/a` is offline, and `human/NAME` the labels that a person gave (`mralign rate`)."""
    annotator_b: EndpointConfig = EndpointConfig(model="openai/gpt-4o")
    """Second annotator; its confidences are taken where both agree. `cue/b` is offline, `human/NAME` a person."""
    adjudicator: EndpointConfig = EndpointConfig(model="openai/gpt-5")
    """Decides segments that the two leave with fewer than two labels. `cue/adjudicator` is offline."""
    label_set: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """YAML file of the labels to use (see `mralign induce-taxonomy`); empty or `paper` uses the paper's 15."""
    show_gold_answers: bool = True
    """Show annotators and adjudicator the question's gold answers (the paper), or hide them, so that no label can
    follow from whether the thinking is right. Offline annotators look at none."""
    may_merge: bool = True
    """Let annotators join neighbouring segments into one step (the paper). Off, they are asked to label each segment by
    itself, and a server of one's own is given a schema that leaves none out: small models need both. Offline
    annotators never merge."""
    confidence_threshold: float = Field(7.0, ge=0, le=10)
    """A label that only one annotator gave is added only when its confidence exceeds this (strictly)."""
    cue_drop_prob: float = Field(0.1, ge=0, le=1)
    """Offline annotators only: probability of overlooking a cue, drawn per annotator and segment."""
    cue_flip_prob: float = Field(0.05, ge=0, le=1)
    """Offline annotators only: probability of replacing a label by another one."""

    @property
    def endpoints(self) -> dict[str, EndpointConfig]:
        """The endpoint of each role."""
        return {role: getattr(self, role) for role in ("annotator_a", "annotator_b", "adjudicator")}

    @model_validator(mode="after")
    def _annotators_that_can_heed_them(self) -> AnnotateConfig:
        if all(endpoint.model.startswith(OFFLINE_PREFIXES) for endpoint in self.endpoints.values()):
            refuse_ignored(self, "annotate", ("show_gold_answers", "may_merge"), "when all annotators are offline")
        return self

    @model_validator(mode="after")
    def _people_annotate(self) -> AnnotateConfig:
        for role, endpoint in self.endpoints.items():
            if not endpoint.model.startswith(HUMAN_PREFIX):
                continue
            if role == "adjudicator":
                raise ValueError(
                    f"annotate.adjudicator: {endpoint.model} can't adjudicate, since nobody rated disputes: name a "
                    "model, and the person as an annotator"
                )
            if not HUMAN_NAME.fullmatch(endpoint.model):
                raise ValueError(
                    f"annotate.{role}: {endpoint.model!r:.60} names nobody: write human/NAME, with the name that was "
                    "rated under, or human/NAME-DIGEST"
                )
            if endpoint != EndpointConfig(model=endpoint.model):
                raise ValueError(f"annotate.{role}: nothing but the name has an effect on {endpoint.model}: remove it")
        return self

    @model_validator(mode="after")
    def _one_model_one_set_of_limits(self) -> AnnotateConfig:
        limits = ("requests_per_minute", "tokens_per_minute")
        by_model: dict[tuple[str, str], EndpointConfig] = {}
        for role, endpoint in self.endpoints.items():
            other = by_model.setdefault((endpoint.model, endpoint.api_base), endpoint)
            either_in_batches = endpoint.use_batch_api or other.use_batch_api
            if not either_in_batches and any(getattr(endpoint, name) != getattr(other, name) for name in limits):
                raise ValueError(
                    f"annotate.{role}: model {endpoint.model} has other limits in another role; give equal"
                )
        return self
