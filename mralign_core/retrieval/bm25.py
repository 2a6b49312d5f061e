"""BM25 over the pieces of a collection (Robertson and Zaragoza 2009, in Lucene's form; k1 1.5, b 0.75), by ``bm25s``.

Equal scores are told apart by the order of the pieces, so that the same collection gives the same snippets
everywhere; that is why the scores are ranked here and not by the library. The words of all pieces are held as numbers,
four bytes each; beside them the index takes eight bytes a piece and distinct word, and the texts their own size.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mralign_core.retrieval import Piece, Snippet
from mralign_core.retrieval.corpus import words_of

REPORT_EVERY = 1000
"""Pieces between two words on how far indexing is."""


class BM25Retriever:
    """A :class:`~mralign_core.retrieval.Retriever` by BM25.

    Args:
        pieces: what is searched in.
        on_progress: called with the pieces that are read, and then indexed, of all; while they are read nobody knows
            how many there are, and the total is as many.

    Example:
        >>> found = BM25Retriever([Piece("a", "The product of Bito is tea."), Piece("b", "Orsk is the seat of Bito.")])
        >>> [[snippet.document_id for snippet in each] for each in found.search(["seat of Bito", "who?"], top_k=5)]
        [['b', 'a'], []]
    """

    def __init__(self, pieces: Iterable[Piece], on_progress: Callable[[int, int], None] | None = None) -> None:
        from bm25s import BM25
        from bm25s.tokenization import Tokenized

        self._pieces: list[Piece] = []
        self._number_of: dict[str, int] = {}
        words = _Words()
        for piece in pieces:
            self._pieces.append(piece)
            words.add([self._number_of.setdefault(word, len(self._number_of)) for word in words_of(piece.text)])
            if on_progress and len(self._pieces) % REPORT_EVERY == 0:
                on_progress(len(self._pieces), len(self._pieces))
        words.on_progress = on_progress
        self._index = BM25(method="lucene", csc_backend="scipy")
        self._index.index(Tokenized(words, self._number_of), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self._pieces)

    def search(
        self, queries: Sequence[str], top_k: int, on_progress: Callable[[int, int], None] | None = None
    ) -> list[list[Snippet]]:
        """The best snippets of each query, the best first; none that has no word of it."""
        found = []
        for query in queries:
            numbers = [self._number_of[word] for word in words_of(query) if word in self._number_of]
            scores = self._index.get_scores_from_ids(numbers)
            found.append([Snippet(*self._pieces[place], float(scores[place])) for place in best_places(scores, top_k)])
            if on_progress:
                on_progress(len(found), len(queries))
        return found


def best_places(scores: NDArray[np.float32], top_k: int) -> list[int]:
    """The places of the highest scores above 0, the highest first; of equal ones the first.

    >>> best_places(np.array([0.5, 0.0, 2.0, 0.5, 0.5], np.float32), 3)
    [2, 0, 3]
    """
    least = np.partition(scores, -top_k)[-top_k] if len(scores) > top_k else 0
    places = np.flatnonzero((scores >= least) & (scores > 0))
    return [int(place) for place in places[np.lexsort((places, -scores[places]))][:top_k]]


class _Words(Sequence[list[int]]):
    """The words of each piece as numbers, end to end in one array: lists of them would take ten times the memory."""

    def __init__(self) -> None:
        self._numbers = array("i")
        self._ends = array("q", [0])
        self.on_progress: Callable[[int, int], None] | None = None

    def add(self, numbers: Sequence[int]) -> None:
        """Append a piece."""
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> list[int]:  # type: ignore[override]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._numbers[self._ends[place] : self._ends[place + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(len(self)):
            if self.on_progress and place % REPORT_EVERY == 0:
                self.on_progress(place, len(self))
            yield self[place]
