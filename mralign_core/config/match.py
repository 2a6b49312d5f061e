"""Section ``match``: which answers count as right."""

from __future__ import annotations

from typing import Literal

from mralign_core.config.base import Section
from mralign_core.method.matching import MatchRules


class MatchConfig(Section):
    """When an answer, or the thinking, names a gold answer (App. A.2; see docs/answer-matching.md)."""

    containment: Literal["words", "substring"] = "words"
    """Where a gold answer is looked for in a longer text: on word boundaries, or anywhere (the paper's substring)."""
    variants: bool = True
    """Numbers and dates count as equal in their common spellings: `1,000` and `one thousand`, `3rd` and `third`."""

    @property
    def rules(self) -> MatchRules:
        """The same for the functions of `mralign_core.method.matching`."""
        return MatchRules(self.containment, self.variants)
