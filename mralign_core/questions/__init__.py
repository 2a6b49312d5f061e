"""Question sets: known ones and a user's own, from files or the hub, to rows of the table contract.

A row that is no question is an error that says what to fix; what is aligned on is never what is evaluated on.
"""

from mralign_core.questions.jsonl import Line, read_jsonl, refuse
from mralign_core.questions.known_sets import KNOWN_SETS
from mralign_core.questions.loading import QuestionSets, answers_of, read_question_sets, repeated_ids
from mralign_core.questions.locating import LocatedSet, locate_sets
from mralign_core.questions.overlap import find_overlap, question_key, refuse_overlap

__all__ = [
    "KNOWN_SETS",
    "Line",
    "LocatedSet",
    "QuestionSets",
    "answers_of",
    "find_overlap",
    "locate_sets",
    "question_key",
    "read_jsonl",
    "read_question_sets",
    "refuse",
    "refuse_overlap",
    "repeated_ids",
]
