"""Comparing annotation sets: what both labelled, how far they agree, what that does to P and w (App. B.3–B.5)."""

from mralign_core.comparison.agreement import Comparison, compare
from mralign_core.comparison.annotation_sets import AnnotationSet, Joined, join, panel_sets, unite_equal
from mralign_core.comparison.sheets import RatedSheet, read_sheet, write_sheet

__all__ = [
    "AnnotationSet",
    "Comparison",
    "Joined",
    "RatedSheet",
    "compare",
    "join",
    "panel_sets",
    "read_sheet",
    "unite_equal",
    "write_sheet",
]
