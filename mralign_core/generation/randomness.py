"""How one token is drawn: counter-based random numbers, and the inverse of the filtered distribution.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from mralign_core.generation import Decoding, SampleRequest

NUCLEUS_GUESS = 32


def uniforms(request: SampleRequest, seed: int, num_steps: int) -> np.ndarray:
    """The random numbers of one draw: number t decides its token t.

    A Philox stream whose key is a 128-bit digest of (question_id, thinking_mode, draw, seed). Neither the
    model nor the batch has a part in it, so that two models compared on the same requests share their random
    numbers.

    Args:
        request: the draw.
        seed: seed of the run.
        num_steps: how many numbers to return.

    Returns:
        float64 of shape (num_steps,) in [0, 1); a longer call begins with the same numbers.

    Example:
        >>> request = SampleRequest("q1", "Who?", "on", 0)
        >>> bool((uniforms(request, 0, 3) == uniforms(request, 0, 9)[:3]).all())
        True
    """
    return np.random.Generator(np.random.Philox(key=_key(request, seed))).random(num_steps)


def request_seed(request: SampleRequest, seed: int) -> int:
    """The seed of one draw, for an engine that makes its own random numbers: 31 bits of the key of :func:`uniforms`.

    Example:
        >>> request = SampleRequest("q1", "Who?", "on", 0)
        >>> request_seed(request, 0) == request_seed(request._replace(draw=1), 0)
        False
    """
    return _key(request, seed) & 0x7FFFFFFF


def _key(request: SampleRequest, seed: int) -> int:
    key = json.dumps([request.question_id, request.thinking_mode, request.draw, seed]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")


def draw_tokens(logits_BV: torch.Tensor, uniform_B: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Draw one token a row: the inverse of its cumulative distribution, in the order of token ids.

    Args:
        logits_BV: next-token logits; the arithmetic is in float64 whatever their type.
        uniform_B: float64 in [0, 1), one number a row.
        decoding: temperature, top_k, top_p; temperature 0 takes the most probable token and no random number.

    Returns:
        int64 token ids of shape (B,).

    Example:
        >>> decoding = Decoding(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1, seed=0)
        >>> logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(3, 3)
        >>> draw_tokens(logits, torch.tensor([0.2, 0.3, 0.9], dtype=torch.float64), decoding).tolist()
        [0, 1, 2]
    """
    if decoding.temperature == 0:
        return logits_BV.argmax(-1)
    cumulative_BV = filtered_probs(logits_BV, decoding).cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    # Rounding may lift u · total to the total itself, which no token's cumulative mass exceeds.
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def filtered_probs(logits_BV: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Token probabilities after temperature, then top-k, then top-p, not renormalised.

    A token is kept by top-k when no more than k - 1 others are more probable, and by top-p when the tokens
    more probable than it hold less than ``top_p`` of the mass that top-k left. Tokens tied at the edge are
    all kept, so that rounding never decides between equals.

    Args:
        logits_BV: next-token logits.
        decoding: temperature above 0, top_k, top_p.

    Returns:
        float64 of shape (B, V); 0 where a token was filtered out.
    """
    probs_BV = (logits_BV.double() / decoding.temperature).softmax(-1)
    limit = min(decoding.top_k or probs_BV.shape[-1], probs_BV.shape[-1])
    if decoding.top_p < 1:
        floor_B1 = _nucleus_floor(probs_BV, limit, decoding.top_p)
    elif limit < probs_BV.shape[-1]:
        floor_B1 = probs_BV.topk(limit, dim=-1).values[:, -1:]
    else:
        return probs_BV
    return probs_BV.where(probs_BV >= floor_B1, 0.0)


def _nucleus_floor(probs_BV: torch.Tensor, limit: int, top_p: float) -> torch.Tensor:
    """The least probability in each row's nucleus (B, 1), among its ``limit`` most probable tokens."""
    # The nucleus is nearly always within the first few tokens: finding those costs far less than sorting a
    # vocabulary.
    for size in sorted({min(NUCLEUS_GUESS, limit), limit}):
        top_BK = probs_BV.topk(size, dim=-1).values
        mass_BK = top_BK.cumsum(-1)
        total_B1 = 1.0 if limit == probs_BV.shape[-1] else mass_BK[:, -1:]
        inside_BK = mass_BK - top_BK < top_p * total_B1
        if size == limit or not bool(inside_BK[:, -1].any()):
            break
    return top_BK.gather(-1, inside_BK.sum(-1, keepdim=True) - 1)
