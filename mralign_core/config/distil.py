"""Section ``distil``: an annotator that learns from labels that are there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mralign_core.addresses import LocalPath
from mralign_core.config.annotate import HUMAN_PREFIX
from mralign_core.config.base import OPERATIONAL, Section

LAST_RUN = "run"


class DistilConfig(Section):
    """A distilled annotator: what it learns from, and what it is called."""

    name: str = Field("distilled", pattern=r"^[a-z][a-z0-9_]{0,31}$", json_schema_extra=OPERATIONAL)
    """What a config calls it, behind `local/`: `annotate.annotator_a: local/NAME`."""
    labels: LocalPath = Field(LAST_RUN, min_length=1, json_schema_extra=OPERATIONAL)
    """What it learns from: `run` (the last run's consolidated labels), `human/NAME`, or a JSONL file of labelled
    traces."""
    encoder: LocalPath = ""
    """What gives vectors that it sees beside words: a folder with a causal language model, which reads whole traces, or
    a sentence-transformers model (a folder or a hub name; extra `embeddings`). Words alone when empty."""

    @property
    def teacher(self) -> Literal["run", "person", "file"]:
        """Who gave the labels."""
        if self.labels == LAST_RUN:
            return "run"
        return "person" if self.labels.startswith(HUMAN_PREFIX) else "file"
