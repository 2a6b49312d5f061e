"""Open labels as vectors whose cosine says how alike two labels are (App. B.1; the paper: bge-m3).

Departure: the default is offline and lexical. It sees that "check claim" and "check the claim" are alike, not
that "verify statement" means the same; use a sentence-transformers model or an endpoint for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mralign_core.annotation.replies import ReplyProblem
from mralign_core.config import InduceConfig
from mralign_core.errors import DataError
from mralign_core.llm import background
from mralign_core.llm.client import Client
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.request import Request
from mralign_core.models.sentence_encoder import load_sentence_encoder

NGRAM_RANGE = (2, 4)
"""Lengths of the character n-grams of the lexical embedder, in characters."""


class Embedded(NamedTuple):
    """Unit vectors, shape (labels, dimensions), and what was paid for them."""

    vectors: NDArray[np.float64]
    cost_usd: float = 0.0


def embed(phrases: Sequence[str], section: InduceConfig, client: Client | None = None) -> Embedded:
    """Embed open labels with the configured embedder.

    Args:
        phrases: normalised open labels.
        section: names the embedder.
        client: what asks the embeddings endpoint, a client with service
            :class:`~mralign_core.induction.embedding_endpoint.Embeddings`; needed for embedder ``endpoint`` only.

    Raises:
        ConfigError: a sentence-transformers model can't be loaded.
        DataError: the embedder gave something that is no vector for a label.
    """
    if section.embedder == "ngrams":
        return Embedded(embed_ngrams(phrases))
    if section.embedder == "endpoint":
        assert client is not None
        return _embed_remotely(phrases, section, client)
    encode = load_sentence_encoder(section.embedder, "induce.embedder", "set it to ngrams or endpoint")
    return Embedded(_unit(encode(phrases)))


def embed_ngrams(phrases: Sequence[str]) -> NDArray[np.float64]:
    """TF-IDF of character n-grams inside words: a lexical baseline.

    Returns:
        Unit vectors, shape (phrases, n-grams).

    >>> a, b, c = embed_ngrams(["check claim", "check the claim", "recall fact"])
    >>> bool(a @ b > 0.5 > a @ c)
    True
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAM_RANGE).fit_transform(phrases)
    return np.asarray(vectors.toarray(), dtype=np.float64)


def _embed_remotely(phrases: Sequence[str], section: InduceConfig, client: Client) -> Embedded:
    from mralign_core.annotation.annotate import gather_all

    size = section.embedding_batch_size
    batches = [phrases[start : start + size] for start in range(0, len(phrases), size)]
    answers = background.run(lambda _: gather_all([_embed_batch(batch, section, client) for batch in batches]))
    widths = {len(vectors[0]) for vectors, _ in answers}
    if len(widths) > 1:
        raise DataError(f"induce.embedding: {section.embedding.model} gave vectors of different lengths: {widths}")
    vectors = np.array([vector for vectors, _ in answers for vector in vectors])
    return Embedded(_unit(vectors), sum(cost_usd for _, cost_usd in answers))


async def _embed_batch(batch: Sequence[str], section: InduceConfig, client: Client) -> tuple[list[list[float]], float]:
    """Vectors of a batch, asked for once more when they can't be used, and what was paid for them.

    Where those that an earlier run kept can't be used, all is asked again.
    """
    from mralign_core.induction import embedding_endpoint as api

    cost_usd, problem = 0.0, ""
    for turn, ask_again in ((0, False), (1, False), (0, True), (1, True)):
        request = Request(section.embedding, api.text_messages(batch), api.PARAMS, turn)
        received = await client.complete(request, ask_again=ask_again)
        cost_usd += 0.0 if received.cached else received.cost_usd
        if received.failed:
            raise EndpointUnavailableError(
                f"induce.embedding: {section.embedding.model} gave no vectors: {received.problem}; replies so far are "
                "kept, run again to go on"
            )
        try:
            return api.parse_vectors(received.reply, len(batch)), cost_usd
        except ReplyProblem as error:
            problem = str(error)
            if turn == 1 and not received.cached:
                break
    raise DataError(f"induce.embedding: the reply of {section.embedding.model} can't be used: {problem}")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not lengths.all():
        raise DataError("induce.embedder gave a vector that is not finite or is all 0: use another model")
    unit: NDArray[np.float64] = vectors / lengths
    return unit
