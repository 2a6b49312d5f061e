"""Annotation of traces by two annotators and an adjudicator, language models or offline (§3.1.2, App. B)."""

from mralign_core.annotation.annotate import FAILURE_COLUMNS, AnnotationResult, ModelUsage, annotate_traces
from mralign_core.annotation.client import EndpointUnavailableError
from mralign_core.annotation.store import FolderReplyStore, MemoryReplyStore, ReplyStore

__all__ = [
    "FAILURE_COLUMNS",
    "AnnotationResult",
    "EndpointUnavailableError",
    "FolderReplyStore",
    "MemoryReplyStore",
    "ModelUsage",
    "ReplyStore",
    "annotate_traces",
]
