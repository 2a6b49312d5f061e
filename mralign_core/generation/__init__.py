"""Sampling from a reasoning model in both thinking modes, and the selection of training traces (§3.1.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from mralign_core.config import EvaluateConfig, GenerateConfig

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

    from mralign_core.models.families import Family


class SampleRequest(NamedTuple):
    """One draw to make."""

    question_id: str
    question: str
    thinking_mode: str
    draw: int


class Sample(NamedTuple):
    """One draw made: ``completion_ids`` is the truth, ``completion`` its decoded text, both without the end token.

    ``token_source`` says whether the model drew these very tokens, or an engine gave only text, which was then encoded.
    ``end_token_id`` is the end token that ended it; None where none was drawn, or none is known. A draw that an engine
    failed to make has finish reason ``failed`` and no completion.
    """

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: str
    finish_reason: str
    token_source: Literal["sampled", "encoded"] = "sampled"
    end_token_id: int | None = None


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


FollowUp = Callable[[SampleRequest, Sample], SampleRequest | None]
"""Which request, if any, a finished one leads to."""


class Sampler(Protocol):
    """Anything that turns requests into samples.

    A sample is a function of (model, question, thinking mode, draw, seed) alone: not of the batch, the order of the
    requests, the shard, or a restart, as far as the engine can promise it (each says in its docstring how far).
    """

    tokenizer: PreTrainedTokenizerBase
    family: Family

    def draw(
        self, requests: Sequence[SampleRequest], decoding: Decoding, follow_up: FollowUp | None = None
    ) -> Iterator[tuple[SampleRequest, Sample]]:
        """Make every draw that is asked for, and those that follow from them; yields each as it finishes.

        ``follow_up`` is called once for every finished draw, before it is yielded; the request it returns is drawn
        too. Closing the iterator abandons what is under way.
        """
        ...

    def has_room(self, request: SampleRequest, decoding: Decoding) -> bool:
        """Whether the prompt of a request leaves the model room for a completion, as far as is known."""
        ...


def sample_all(
    sampler: Sampler,
    requests: Sequence[SampleRequest],
    decoding: Decoding,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Sample distinct requests, in the order given; ``on_progress(done, total)`` is called as they finish."""
    samples: dict[SampleRequest, Sample] = {}
    for request, sample in sampler.draw(requests, decoding):
        samples[request] = sample
        if on_progress:
            on_progress(len(samples), len(requests))
    return [samples[request] for request in requests]
