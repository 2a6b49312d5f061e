"""Segments as vectors by a causal language model that reads their trace: what a middle layer makes of their tokens.

Layers in the middle say most of what a text does; the last ones are about the next token. A segment's vector is the
mean over its tokens, each of which has seen what comes before it, up to a window.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mralign_core.errors import ConfigError
from mralign_core.method import FloatArray

WINDOW = 1024
"""Most tokens at a time. A quarter of them was read before, so that all but a trace's first tokens have context."""


def holds_language_model(path: str) -> bool:
    """Whether a folder holds a causal language model that is no sentence-transformers model.

    >>> holds_language_model("/nowhere")
    False
    """
    folder = Path(path)
    if not path or not (folder / "config.json").is_file() or (folder / "modules.json").exists():
        return False
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in named)


def load_context_encoder(path: str, field: str, otherwise: str) -> Callable[[Sequence[str]], FloatArray]:
    """What gives the vectors of the segments of one trace, shape (segments, dimensions).

    Args:
        path: a folder with a causal language model, its weights as safetensors.
        field: of the config, or the option, that names the model.
        otherwise: what to do in place of it, for messages.

    Raises:
        ConfigError: the model can't be loaded; or, later, a vector is not finite.
    """
    import torch

    from mralign_core.models.load import load_model_and_tokenizer

    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    try:
        model, tokenizer = load_model_and_tokenizer(path, dtype)
    except ConfigError as error:
        raise ConfigError(f"{field}: {path!r} can't be loaded ({error}); name another model, or {otherwise}") from None
    base = model.base_model
    config = base.config.get_text_config()
    middle, most = config.num_hidden_layers // 2, getattr(config, "max_position_embeddings", WINDOW)
    one_at_a_time = threading.Lock()  # a tokenizer can't be used by two threads
    if hasattr(base, "layers"):  # what comes after is not looked at
        base.layers = base.layers[: middle + 1]

    def states(ids: Sequence[int]) -> FloatArray:
        with torch.inference_mode():
            read = base(torch.tensor([list(ids)], device=base.device), use_cache=False, output_hidden_states=True)
        found: FloatArray = read.hidden_states[middle][0].double().cpu().numpy()
        return found

    def encode(texts: Sequence[str]) -> FloatArray:
        with one_at_a_time:
            ids = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
            vectors = mean_states([each or [tokenizer.eos_token_id or 0] for each in ids], states, min(WINDOW, most))
        if not np.isfinite(vectors).all():
            raise ConfigError(f"{field}: {path!r} gave a vector that is not finite: give another model, or {otherwise}")
        return vectors

    return encode


def mean_states(
    segments: Sequence[Sequence[int]], states: Callable[[Sequence[int]], FloatArray], window: int = WINDOW
) -> FloatArray:
    """The mean state of each segment's tokens, each read with a quarter of a window before it if there are so many.

    Args:
        segments: token ids of each, none of them empty.
        states: of some tokens that follow on each other, shape (tokens, dimensions).
        window: most tokens at a time.
    """
    ids = [each for segment in segments for each in segment]
    parts, done = [], 0
    while done < len(ids):
        start = max(0, done - window // 4)
        read = ids[start : start + window]
        parts.append(states(read)[done - start :])
        done = start + len(read)
    starts = np.cumsum([0, *(len(segment) for segment in segments[:-1])])
    sums = np.add.reduceat(np.concatenate(parts), starts, axis=0)
    means: FloatArray = sums / np.array([len(segment) for segment in segments])[:, None]
    return means
