"""Snippets of a text collection that share words with a question: the collection, and the search in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """A piece of a document, short enough to be shown whole."""

    document_id: str
    text: str


class Snippet(NamedTuple):
    """A piece that a search found; of two, the one with the higher score shares more, and rarer, words with it."""

    document_id: str
    text: str
    score: float


class Retriever(Protocol):
    """Anything that finds snippets."""

    def search(
        self, queries: Sequence[str], top_k: int, on_progress: Callable[[int, int], None] | None = None
    ) -> list[list[Snippet]]:
        """The best snippets of each query, the best first; fewer than ``top_k`` where fewer have anything of it.

        Args:
            queries: texts.
            top_k: most snippets a query.
            on_progress: called with queries done and asked for.
        """
        ...
