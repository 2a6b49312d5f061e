"""Measuring variants on held-out questions, and showing what a run did: tables, figures, the report."""

from mralign_core.evaluation.metrics import consistency_shifts, paired_differences, summarize
from mralign_core.reporting.figures import Transitions, to_png, to_svg
from mralign_core.reporting.report import ReportInputs, render_report
from mralign_core.reporting.run_findings import headline, sentences, summary_markdown, summary_table

__all__ = [
    "ReportInputs",
    "Transitions",
    "consistency_shifts",
    "headline",
    "paired_differences",
    "render_report",
    "sentences",
    "summarize",
    "summary_markdown",
    "summary_table",
    "to_png",
    "to_svg",
]
