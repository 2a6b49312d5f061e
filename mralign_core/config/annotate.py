"""Section ``annotate``: the annotators and their consolidation."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, refuse_ignored
from mralign_core.config.endpoint import AskingSection, EndpointConfig

HUMAN_PREFIX = "human/"
"""What names of people begin with."""
HUMAN_NAME = re.compile(r"human/[a-z][a-z0-9_]{0,31}(-[0-9a-f]{1,16})?")
LOCAL_PREFIX = "local/"
"""What names of distilled annotators begin with."""
LOCAL_NAME = re.compile(r"local/[a-z][a-z0-9_]{0,31}(-[0-9a-f]{1,16})?")
BY_EXCERPTS = ("escalate_context", "escalate_together")
ESCALATION = ("escalate_below", "escalate", *BY_EXCERPTS)
OFFLINE_PREFIXES = ("cue/", HUMAN_PREFIX, LOCAL_PREFIX)
"""What the names of annotators begin with that are asked nothing over the network."""


ROLES = ("annotator_a", "annotator_b", "adjudicator")


class AnnotateConfig(AskingSection):
    """Two annotators and an adjudicator label what each segment does (§3.1.2, App. B)."""

    source: Literal["annotators", "traces"] = Field("annotators", json_schema_extra=OPERATIONAL)
    """`annotators` asks for labels; `traces` takes those that the export in generate.traces_path has (`mralign
    export-data`) and asks nobody, but for labels of held-out thinking (evaluate.label_thinking)."""
    annotator_a: EndpointConfig = EndpointConfig(model="deepseek/deepseek-chat")
    """First annotator; `cue/a` is offline, `human/NAME` the labels that a person gave (`mralign rate`), and
    `local/NAME` an annotator that learned from such labels (`mralign distil-annotator`), which decides alone where
    it is sure."""
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
    escalate_below: float = Field(8.0, ge=0, le=10)
    """`local/NAME` only: what it is less sure of goes on to annotator_b and the adjudicator; 0 asks neither of them.
    Confidences are calibrated: of the labels given with 8, eight in ten were those it learned from. Another value asks
    anew about the traces of which other segments go on."""
    escalate: Literal["segments", "traces"] = "segments"
    """`local/NAME` only: what goes on, a segment that is not sure, or a whole trace whose segments are not on
    average. Unless `escalate_context` is set a trace is shown whole either way: `traces` costs less for as many
    segments, `segments` asks about the right ones."""
    escalate_context: int | None = Field(None, ge=0, le=1000)
    """`local/NAME` with `escalate: segments` only: show annotator_b and the adjudicator so many segments on either side
    of one that they are asked about, and not the whole trace; null shows the whole."""
    escalate_together: int = Field(1, ge=1, le=200)
    """With `escalate_context` only: put excerpts of several traces into one request, as long as it asks about no more
    segments than this; those of one trace are never parted. With 1, every trace has a request of its own."""
    cue_drop_prob: float = Field(0.1, ge=0, le=1)
    """Offline annotators only: probability of overlooking a cue, drawn per annotator and segment."""
    cue_flip_prob: float = Field(0.05, ge=0, le=1)
    """Offline annotators only: probability of replacing a label by another one."""

    @property
    def is_distilled(self) -> bool:
        """Whether annotator A is a distilled one."""
        return self.annotator_a.model.startswith(LOCAL_PREFIX)

    @property
    def endpoints(self) -> dict[str, EndpointConfig]:
        """The endpoint of each role that may have something to say."""
        asked = ("annotator_a",) if self.is_distilled and not self.escalate_below else ROLES
        return {role: getattr(self, role) for role in asked}

    def fingerprint(self) -> dict[str, Any]:
        """The fields that can change an output; those of excerpts only where they are set: other keys are older."""
        unset = {name for name in BY_EXCERPTS if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in super().fingerprint().items() if name not in unset}

    @model_validator(mode="after")
    def _annotators_that_can_heed_them(self) -> AnnotateConfig:
        if all(endpoint.model.startswith(OFFLINE_PREFIXES) for endpoint in self.endpoints.values()):
            names = ("show_gold_answers", "may_merge", *BY_EXCERPTS)
            refuse_ignored(self, "annotate", names, "when all annotators are offline")
        return self

    @model_validator(mode="after")
    def _a_distilled_annotator_comes_first(self) -> AnnotateConfig:
        for role in ROLES:
            endpoint: EndpointConfig = getattr(self, role)
            if not endpoint.model.startswith(LOCAL_PREFIX):
                continue
            if role != "annotator_a":
                raise ValueError(
                    f"annotate.{role}: {endpoint.model} is a distilled annotator, which decides first: name it as "
                    "annotate.annotator_a, and here who is asked about what it is not sure of"
                )
            _check_name(role, endpoint, LOCAL_NAME, "it was distilled under")
        if self.is_distilled and self.annotator_b.model.startswith(HUMAN_PREFIX):
            raise ValueError(
                f"annotate.annotator_b: {self.annotator_b.model} labelled whole traces, and {self.annotator_a.model} "
                "passes on only what it is not sure of: name the person as annotator_a, or a model as annotator_b"
            )
        if not self.is_distilled:
            refuse_ignored(self, "annotate", ESCALATION, "when annotate.annotator_a is no local/NAME")
        else:
            refuse_ignored(
                self, "annotate", ("may_merge",), "when annotate.annotator_a is local/NAME: nothing is merged"
            )
            if not self.escalate_below:
                names, why = ESCALATION[1:], "when annotate.escalate_below is 0: nobody else is asked"
                refuse_ignored(self, "annotate", names, why)
            if self.escalate == "traces":
                refuse_ignored(
                    self, "annotate", BY_EXCERPTS, "when annotate.escalate is 'traces', which are shown whole"
                )
            if self.escalate_context is None:
                refuse_ignored(self, "annotate", BY_EXCERPTS[1:], "without annotate.escalate_context")
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
            _check_name(role, endpoint, HUMAN_NAME, "was rated under")
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


def _check_name(role: str, endpoint: EndpointConfig, name: re.Pattern[str], known_as: str) -> None:
    kind = endpoint.model.partition("/")[0]
    if not name.fullmatch(endpoint.model):
        raise ValueError(
            f"annotate.{role}: {endpoint.model!r:.60} names nobody: write {kind}/NAME, with the name that {known_as}, "
            f"or {kind}/NAME-DIGEST"
        )
    if endpoint != EndpointConfig(model=endpoint.model):
        raise ValueError(f"annotate.{role}: nothing but the name has an effect on {endpoint.model}: remove it")
