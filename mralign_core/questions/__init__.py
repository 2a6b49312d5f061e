"""Question sets: from files a user names to rows of the table contract, with errors that say what to fix."""

from mralign_core.questions.jsonl import Line, read_jsonl, refuse
from mralign_core.questions.loading import load_questions, question_key, read_question_sets, refuse_overlap

__all__ = [
    "Line",
    "load_questions",
    "question_key",
    "read_jsonl",
    "read_question_sets",
    "refuse",
    "refuse_overlap",
]
