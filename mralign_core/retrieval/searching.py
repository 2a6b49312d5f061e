"""The snippets of questions, as the table that all variants with retrieval read."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from mralign_core.config import PocketConfig
from mralign_core.retrieval import Retriever
from mralign_core.retrieval.bm25 import BM25Retriever
from mralign_core.retrieval.corpus import POCKET_CORPUS, pocket_pieces, read_pieces
from mralign_core.schemas.snippets import SNIPPETS


def open_retriever(
    corpus: str, pocket: PocketConfig, field: str, on_progress: Callable[[int, int], None] | None = None
) -> BM25Retriever:
    """An index of a collection.

    Args:
        corpus: a file or folder, or :data:`~mralign_core.retrieval.corpus.POCKET_CORPUS`.
        pocket: which pocket world that is.
        field: of the config that names it, for messages.
        on_progress: called as :class:`~mralign_core.retrieval.bm25.BM25Retriever` does.

    Raises:
        DataError: the collection can't be read; see :mod:`~mralign_core.retrieval.corpus`.
    """
    pieces = pocket_pieces(pocket) if corpus == POCKET_CORPUS else read_pieces(corpus, field)
    return BM25Retriever(pieces, on_progress)


def snippets_of_questions(
    retriever: Retriever,
    questions: pd.DataFrame,
    top_k: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The best snippets of each question, rows of :data:`~mralign_core.schemas.snippets.SNIPPETS`.

    Args:
        retriever: finds them.
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        top_k: most of a question.
        on_progress: called with questions done and asked for.
    """
    found = retriever.search(questions["question"].tolist(), top_k, on_progress)
    rows = [
        {"question_id": question_id, "rank": rank, **snippet._asdict()}
        for question_id, snippets in zip(questions["question_id"], found, strict=True)
        for rank, snippet in enumerate(snippets, start=1)
    ]
    return SNIPPETS.frame(rows)
