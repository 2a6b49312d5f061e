"""Texts as vectors by a sentence-transformers model, of a local folder or a hub name (extra ``embeddings``)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mralign_core.errors import ConfigError


def load_sentence_encoder(path: str, field: str, otherwise: str) -> Callable[[Sequence[str]], NDArray[np.float64]]:
    """What gives unit vectors, shape (texts, dimensions); a vector that is all 0 stays so.

    Args:
        path: a local folder or a hub name; weights must be safetensors, since pickled ones could run code.
        field: of the config, or the option, that names the model.
        otherwise: what to do in place of it, for messages.

    Raises:
        ConfigError: the package is not there, or the model can't be loaded; or, later, a vector is not finite.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"{field} {path!r} needs package sentence-transformers: pip install 'mr-align[embeddings]', or {otherwise}"
        ) from None
    try:
        model = SentenceTransformer(path, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{field}: no sentence-transformers model with safetensors weights could be loaded from {path!r} "
            f"({error}); give a local folder or a hub name, or {otherwise}"
        ) from None

    one_at_a_time = threading.Lock()  # a tokenizer can't be used by two threads

    def encode(texts: Sequence[str]) -> NDArray[np.float64]:
        with one_at_a_time:
            vectors = np.asarray(model.encode(list(texts), show_progress_bar=False), dtype=np.float64)
        if not np.isfinite(vectors).all():
            raise ConfigError(f"{field}: {path!r} gave a vector that is not finite: give another model, or {otherwise}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return unit

    return encode
