"""Section ``compare``: other annotators of the same traces."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.annotate import AnnotateConfig
from mralign_core.config.base import OPERATIONAL, Section


class PanelConfig(Section):
    """Another panel of annotators for the same traces."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,23}$")
    """Short name of the panel, as tables and figures show it; `run` is the run's own."""
    annotate: AnnotateConfig = AnnotateConfig()
    """Its annotators and consolidation."""


class CompareConfig(Section):
    """Annotation sets to compare with the run's own: other annotators', and people's (App. B.3–B.5)."""

    panels: tuple[PanelConfig, ...] = ()
    """Other panels to annotate the same candidates with; their replies are cached and kept like the run's own."""
    sheets: tuple[LocalPath, ...] = Field((), json_schema_extra=OPERATIONAL)
    """Filled sheets of human raters, CSV files that `mralign compare-annotators --write-sheet` wrote."""
    num_resamples: int = Field(1000, ge=100, le=100_000)
    """Bootstrap resamples of questions behind each interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""

    @model_validator(mode="after")
    def _names_differ(self) -> CompareConfig:
        names = ["run", *(panel.name for panel in self.panels), *(Path(sheet).stem for sheet in self.sheets)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"compare: {repeated[0]!r} names two annotation sets ('run' is the run's own); rename one")
        return self
