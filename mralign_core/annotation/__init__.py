"""Annotation of traces by two annotators and an adjudicator, language models or offline (§3.1.2, App. B)."""

from mralign_core.annotation.annotate import FAILURE_COLUMNS, AnnotationResult, annotate_traces

__all__ = ["FAILURE_COLUMNS", "AnnotationResult", "annotate_traces"]
