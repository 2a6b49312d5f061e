"""Sampling from a reasoning model in both thinking modes, and the selection of training traces (§3.1.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mralign_core.config import EvaluateConfig, GenerateConfig


class SampleRequest(NamedTuple):
    """One draw to make."""

    question_id: str
    question: str
    thinking_mode: str
    draw: int


class Sample(NamedTuple):
    """One draw made: ``completion_ids`` is the truth, ``completion`` its decoded text, both without the end token."""

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: str
    finish_reason: str


class Decoding(NamedTuple):
    """How tokens are drawn. ``top_k`` 0 and ``top_p`` 1 switch the filter off; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, section: GenerateConfig | EvaluateConfig, seed: int) -> Decoding:
        """The decoding that a config section asks for."""
        top_k = section.top_k if isinstance(section, EvaluateConfig) else 0
        return cls(section.temperature, section.top_p, top_k, section.max_new_tokens, seed)


class Sampler(Protocol):
    """Anything that turns requests into samples.

    A sample is a function of (model, question, thinking mode, draw, seed) alone: not of the batch, the order of the
    requests, the shard, or a restart. The random numbers do not depend on the model, so that two models compared on
    the same requests share them.
    """

    def sample(
        self,
        requests: Sequence[SampleRequest],
        decoding: Decoding,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """Sample every request, in the order given; ``on_progress(done, total)`` is called as rows finish."""
        ...
