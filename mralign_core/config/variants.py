"""Sections ``evaluate.retrieval`` and ``evaluate.self_refine``: variants beside think-off, think-on and adapters."""

from __future__ import annotations

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored


class RetrievalConfig(Section):
    """Think-on and MR-ALIGN with snippets of a text collection before the question (docs/variants.md)."""

    corpus: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """A folder or file of texts (.txt, .md, or .jsonl with a document's `text` a line, each also .gz), or `pocket`, the
    facts of the pocket world; empty for no such variants."""
    top_k: int = Field(5, ge=1, le=100)
    """Snippets a question, the same for every variant: those that share most with it by BM25."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> RetrievalConfig:
        if not self.corpus:
            refuse_ignored(self, "evaluate.retrieval", ("top_k",), "without evaluate.retrieval.corpus")
        return self


class SelfRefineConfig(Section):
    """The model as it is, asked for feedback on its own answers and to mend them (Madaan et al. 2023)."""

    rounds: int | None = Field(None, ge=0, le=10)
    """Most rounds of feedback and refinement after the first answer, which is that of think-on; empty for no such
    variant."""
