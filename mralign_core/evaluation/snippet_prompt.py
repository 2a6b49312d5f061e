"""Questions with snippets of a text collection, as variants with retrieval are asked them.

Decision: the snippets stand between the question and its repetition, because they are long and not to be trusted: what
is to be answered is read before them, and is the last thing that is read. They come into the prompt as part of the
question, so that control tokens that they spell out are text (:mod:`mralign_core.generation.prompts`), and random
numbers, which go by the question's id, are those of the variant without snippets.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

SNIPPET_PROMPT = "with_snippets.v1"
"""The version of the text below; any change of it makes new keys."""
_TEXT = """{question}

Passages that a search found for this question; some may be of no use, or wrong:

{snippets}

Once more, the question: {question}"""


def question_with_snippets(question: str, texts: Sequence[str]) -> str:
    r"""A question with snippets; the bare question where there are none.

    >>> print(question_with_snippets("Who?", ["Ada wrote\n\n[2] it.", "Bo."]).replace("\n\n", "\n"))
    Who?
    Passages that a search found for this question; some may be of no use, or wrong:
    [1] Ada wrote [2] it.
    [2] Bo.
    Once more, the question: Who?
    """
    shown = "\n\n".join(f"[{number}] {' '.join(text.split())}" for number, text in enumerate(texts, start=1))
    return _TEXT.format(question=question, snippets=shown) if texts else question


def with_snippets(questions: pd.DataFrame, snippets: pd.DataFrame) -> pd.DataFrame:
    """Questions whose text has their snippets in it.

    Args:
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        snippets: rows of :data:`~mralign_core.schemas.snippets.SNIPPETS`, of these questions or more.
    """
    texts = snippets.sort_values("rank").groupby("question_id")["text"].agg(list).to_dict()
    asked = zip(questions["question_id"], questions["question"], strict=True)
    return questions.assign(question=[question_with_snippets(text, texts.get(name, ())) for name, text in asked])
