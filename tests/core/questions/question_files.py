"""Files of questions to test on, and the sets that are read from them."""

import gzip
import json

import pytest

from mralign_core.config import PocketConfig, QuestionsConfig
from mralign_core.errors import UserError
from mralign_core.questions.loading import read_question_sets
from mralign_core.schemas.questions import QUESTIONS

ROWS = [
    {"question": "Who wrote Emma?", "answer": ["Jane Austen", "Austen"]},
    {"question": "2+2?", "answer": 4},
    {"question": "日本の首都は？", "answer": "東京"},
]


def write(path, rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows).encode()
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def sets(**section):
    """What a ``questions`` section gives."""
    return read_question_sets(QuestionsConfig.model_validate(section), PocketConfig())


def questions(role="eval", /, **section):
    """The questions of one set, checked against the contract."""
    return QUESTIONS.require(sets(**{role: section}).questions)


def refusal(role="eval", /, **section):
    """The message of the error that a set gives."""
    with pytest.raises(UserError) as error:
        sets(**{role: section})
    assert str(error.value).startswith(f"questions.{role}")
    return str(error.value)
