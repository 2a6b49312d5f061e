"""Sampling from any causal language model of transformers, in slots that are refilled as rows finish.

What is guaranteed. The random number behind a token depends on nothing but the request, the seed and the
token's place (:func:`~mralign_core.generation.randomness.uniforms`); what a batch can still change is the
rounding of the logits, which differ by about 1e-6 between batch shapes in float32.

* On a CPU a draw does not depend on batch size, order, shard or restart: the model computes in float64,
  whatever the precision of its weights. What is left of rounding is a billion times smaller. Measured at
  temperature 1 on a random model (2 layers, width 96, 391 words), batch sizes from 1 to 256 compared: none of
  500,000 tokens differs; in float32 one of 240,000 did, and with it the rest of its draw. float64 costs about
  a fifth of the speed.
* On a GPU the model computes in its own precision. The same requests with the same batch size give the same
  draws on the same hardware, but in bfloat16 another batch size can change a token whose random number falls
  near an edge. Two models compared on the same requests still share their random numbers.

A CPU model is copied, with its adapter merged, so a sampler does not follow later changes of the caller's
model. The cache is preallocated (:mod:`.slot_cache`): transformers' growing one copies every key and value at
each step, and is 1.35 times slower there at 256 rows.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mralign_core.errors import ConfigError, OutOfMemory
from mralign_core.generation import Decoding, FollowUp, Sample, SampleRequest
from mralign_core.generation.answer_end import AnswerEnd
from mralign_core.generation.control_tokens import decode_tokens, end_token_ids
from mralign_core.generation.prompts import Prompt, render_request
from mralign_core.generation.randomness import draw_tokens, uniforms
from mralign_core.generation.slot_cache import SLOT_GROWTH, SlotCache
from mralign_core.models.families import Family
from mralign_core.models.out_of_memory import with_less_memory

logger = logging.getLogger("mralign_core.sampling")


class TransformersSampler:
    """A :class:`~mralign_core.generation.Sampler` over a transformers model in this process.

    Args:
        model: any causal language model, with a PEFT adapter or without.
        tokenizer: its tokenizer.
        batch_size: rows decoded together.
        family: how the model thinks.
        instruction: text before `Question: …` in the prompt; empty sends the bare question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        family: Family,
        instruction: str = "",
    ) -> None:
        refuse_other_attention(model)
        self.model: Any = _in_float64(model) if model.device.type == "cpu" else model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.instruction = instruction
        self.family = family
        self.end_ids = end_token_ids(tokenizer, family, getattr(model, "generation_config", None), model.config)
        self.answer_end = AnswerEnd(tokenizer, family)
        self.longest = longest_sequence(model)

    def draw(
        self, requests: Sequence[SampleRequest], decoding: Decoding, follow_up: FollowUp | None = None
    ) -> Iterator[tuple[SampleRequest, Sample]]:
        """Draw every request and those that follow; a free slot goes to the follow-up of the row that left it.

        Raises:
            ConfigError: a prompt leaves no room for ``decoding.max_new_tokens``.
        """
        prompt_of = partial(self._prompt, max_new_tokens=decoding.max_new_tokens)
        decoder = _SlotDecoder(
            self.model, self.batch_size, decoding, requests, prompt_of, self._is_finished, self.end_ids
        )
        for request, prompt, completion_ids, finish_reason, end in decoder.run():
            text = decode_tokens(self.tokenizer, completion_ids)
            sample = Sample(prompt.text, prompt.ids, completion_ids, text, finish_reason, end_token_id=end)
            if follow_up and (following := follow_up(request, sample)):
                decoder.waiting.appendleft(following)
            yield request, sample

    def has_room(self, request: SampleRequest, decoding: Decoding) -> bool:
        """Whether the prompt leaves room for ``decoding.max_new_tokens``."""
        return self._fits(self._render(request), decoding.max_new_tokens)

    def _render(self, request: SampleRequest) -> Prompt:
        return render_request(self.tokenizer, request, self.family, self.instruction)

    def _fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        return not self.longest or len(prompt.ids) + max_new_tokens <= self.longest

    def _prompt(self, request: SampleRequest, *, max_new_tokens: int) -> Prompt:
        prompt = self._render(request)
        if not self._fits(prompt, max_new_tokens):
            raise ConfigError(
                f"question {request.question_id!r} has {len(prompt.ids)} prompt tokens, and max_new_tokens is "
                f"{max_new_tokens}, but the model takes {self.longest} in all: lower max_new_tokens (in generate or "
                "evaluate), or take the question out"
            )
        return prompt

    def _is_finished(self, request: SampleRequest, prompt: Prompt, completion_ids: list[int]) -> bool:
        """Whether the last token ends the answer: what a model writes after that is never read."""
        last = len(completion_ids) - 1
        return (
            self.answer_end.in_tokens(completion_ids, request.thinking_mode, prompt.text, known_open=last) is not None
        )


def refuse_other_attention(model: Any) -> None:
    """Refuse a model with layers that keep another state than the keys and values of all tokens.

    Raises:
        ConfigError: the model has such layers, such as linear or chunked attention.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if others := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise _cannot_sample(f"has {', '.join(others)} layers")


def _cannot_sample(why: str) -> ConfigError:
    return ConfigError(
        f"sampler 'transformers' can't sample with this model: it {why}. Set generate.sampler to 'vllm' or 'endpoint', "
        "and evaluate.sampler to 'vllm'"
    )


def longest_sequence(model: Any) -> int:
    """Most tokens, prompt included, whose positions don't depend on the other rows; 0 where the config has no limit.

    Some RoPE types (``dynamic``, ``longrope``) change the frequencies of all rows once one is longer than the model
    was first trained on.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope if "rope_type" in rope else next((each for each in rope.values() if isinstance(each, dict)), {})
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    if kinds.get("rope_type") not in ("dynamic", "longrope"):
        return longest
    first = kinds.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(first or longest)


def _in_float64(model: Any) -> Any:
    adapted = hasattr(model, "merge_and_unload")
    if model.dtype == torch.float64 and not adapted:
        return model
    exact = copy.deepcopy(model).double()
    if adapted:
        # Merging loses nothing in float64; in bfloat16, on a GPU, it would round small updates away.
        exact = exact.merge_and_unload()
    # The default for mixtures of experts, torch's grouped_mm, has no float64.
    exact.set_experts_implementation("eager")
    return exact.eval()


@dataclass
class _Rows:
    """The state of the rows in S slots, right-aligned over L shared columns (see :mod:`.slot_cache`)."""

    cache: SlotCache
    mask: torch.Tensor
    """bool (S, L): the columns that hold a row's own tokens."""
    lengths: torch.Tensor
    """int64 (S,): tokens of each row, which is its next position."""
    logits: torch.Tensor
    """(S, V): of the next token."""
    owner: np.ndarray
    """int64 (S,): index of the request in the slot, or -1 when it is free."""
    uniforms: np.ndarray
    """float64 (S, max_new_tokens): the random numbers of each row."""

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.mask.shape[1]

    def keep(self, slots: np.ndarray, width: int) -> None:
        """Keep these slots and the last ``width`` columns; masked ones fill up on the left."""
        index = torch.as_tensor(slots, device=self.mask.device)
        self.cache.keep(index, width)
        mask = self.mask[index][:, max(0, self.width - width) :]
        self.mask = torch.nn.functional.pad(mask, (width - mask.shape[1], 0))
        self.lengths, self.logits = self.lengths[index], self.logits[index]
        self.owner, self.uniforms = self.owner[slots], self.uniforms[slots]

    def place(self, slots: np.ndarray, rows: _Rows) -> None:
        """Put other rows into these slots."""
        if rows.width > self.width:
            self.keep(np.arange(len(self.owner)), rows.width)
        index = torch.as_tensor(slots, device=self.mask.device)
        self.cache.place(index, rows.cache)
        self.mask[index] = torch.nn.functional.pad(rows.mask, (self.width - rows.width, 0))
        self.lengths[index], self.logits[index] = rows.lengths, rows.logits
        self.owner[slots], self.uniforms[slots] = rows.owner, rows.uniforms


Finished = tuple[SampleRequest, Prompt, list[int], str, int | None]


class _SlotDecoder:
    """Decodes requests in a fixed number of slots; a free slot is given to the next waiting request.

    ``waiting`` may grow while it runs. ``is_finished`` says whether a completion is over though the model has not
    drawn an end token.
    """

    def __init__(
        self,
        model: Any,
        num_slots: int,
        decoding: Decoding,
        requests: Iterable[SampleRequest],
        prompt_of: Callable[[SampleRequest], Prompt],
        is_finished: Callable[[SampleRequest, Prompt, list[int]], bool],
        end_ids: frozenset[int],
    ) -> None:
        self.model, self.num_slots, self.decoding = model, num_slots, decoding
        self.prompt_of, self.is_finished, self.end_ids = prompt_of, is_finished, end_ids
        self.waiting = deque(requests)
        self.under_way: dict[int, tuple[SampleRequest, Prompt, list[int]]] = {}
        self.num_admitted = 0
        self.rows: _Rows | None = None
        self.next_ids: torch.Tensor | None = None

    @torch.inference_mode()
    def run(self) -> Iterator[Finished]:
        """Decode to the end; yields each request as it finishes.

        Raises:
            OutOfMemory: one row alone is too much for the device.
        """
        while (finished := with_less_memory(self.num_slots, self._step, self._fewer_slots)) is not None:
            yield from finished

    def _step(self, num_slots: int) -> list[Finished] | None:
        """One token for each row in the slots: the requests that finished by it, or None when all is done."""
        self.num_slots = num_slots
        if self.rows is not None and self.next_ids is not None:
            next_ids, self.next_ids = self.next_ids, None
            self._advance(self.rows, next_ids)
        rows = self._admit()
        if rows is None:
            return None
        step = np.array([len(self.under_way[owner][2]) if owner >= 0 else 0 for owner in rows.owner.tolist()])
        uniform = torch.from_numpy(rows.uniforms[np.arange(len(step)), step]).to(rows.logits.device)
        self.next_ids = draw_tokens(rows.logits, uniform, self.decoding)
        return list(self._record(rows, self.next_ids.tolist()))

    def _fewer_slots(self, num_slots: int, error: Exception) -> int:
        """Half the slots, all of them free: what was under way begins again, and with it its random numbers.

        Raises:
            OutOfMemory: there is one slot only.
        """
        if num_slots == 1:
            raise OutOfMemory(
                "out of memory while sampling one row: lower max_new_tokens (in generate or evaluate), or take a "
                f"smaller model. {str(error).splitlines()[0]}"
            ) from error
        fewer = min(num_slots, max(2, len(self.under_way))) // 2
        self.rows = self.next_ids = None
        self.waiting.extendleft([request for request, *_ in reversed(self.under_way.values())])
        self.under_way.clear()
        logger.warning("out of memory while sampling: going on with %d row(s) at once; lower batch_size", fewer)
        return fewer

    def _admit(self) -> _Rows | None:
        """Fill free slots with waiting requests; returns the rows to decode, or None when all is done."""
        live = self.rows is not None and bool((self.rows.owner >= 0).any())
        if not self.waiting:
            return self.rows if live else None
        # A prefill costs about as much as a decoding step: wait until it serves several rows.
        if self.rows is None or not live:
            self.rows = self._prefill(min(self.num_slots, len(self.waiting)))
        elif (self.rows.owner < 0).sum() >= max(1, len(self.rows.owner) // 8):
            slots = np.flatnonzero(self.rows.owner < 0)[: len(self.waiting)]
            self.rows.place(slots, self._prefill(len(slots)))
        return self.rows

    def _prefill(self, num_rows: int) -> _Rows:
        """Run the prompts of the next waiting requests through the model."""
        admitted = [self.waiting.popleft() for _ in range(num_rows)]
        owners = range(self.num_admitted, self.num_admitted + num_rows)
        self.num_admitted += num_rows
        prompts = [self.prompt_of(request) for request in admitted]
        for owner, request, prompt in zip(owners, admitted, prompts, strict=True):
            self.under_way[owner] = (request, prompt, [])
        device = self.model.device
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        width = int(lengths.max())
        input_ids = torch.tensor([[0] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.arange(width) >= width - lengths[:, None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = SlotCache(self.model.config.get_text_config().num_hidden_layers)
        logits = self._forward(input_ids.to(device), mask.to(device), positions.to(device), cache)
        if any(layer.length != width for layer in cache.slot_layers):
            raise _cannot_sample("keeps a state of its own beside keys and values")
        if not bool(logits.isfinite().all()):
            raise _cannot_sample("computes NaN on prompts of different lengths")
        steps = self.decoding.max_new_tokens
        numbers = np.stack([uniforms(request, self.decoding.seed, steps) for request in admitted])
        return _Rows(cache, mask.to(device), lengths.to(device), logits, np.array(owners), numbers)

    def _record(self, rows: _Rows, next_ids: list[int]) -> Iterator[Finished]:
        """Append the drawn tokens; free the slots of rows that finished, and yield these."""
        for slot, (owner, token) in enumerate(zip(rows.owner.tolist(), next_ids, strict=True)):
            if owner < 0:
                continue
            request, prompt, completion_ids = self.under_way[owner]
            if token not in self.end_ids:
                completion_ids.append(token)
            if token in self.end_ids or self.is_finished(request, prompt, completion_ids):
                finish_reason = "stop"
            elif len(completion_ids) == self.decoding.max_new_tokens:
                finish_reason = "length"
            else:
                continue
            rows.owner[slot] = -1
            del self.under_way[owner]
            yield request, prompt, completion_ids, finish_reason, token if token in self.end_ids else None

    def _advance(self, rows: _Rows, next_ids: torch.Tensor) -> None:
        """Feed the drawn tokens to the model."""
        live = np.flatnonzero(rows.owner >= 0)
        if len(live) == 0:
            return
        needed = int(rows.lengths[torch.as_tensor(live, device=rows.lengths.device)].max())
        shrink = not self.waiting and len(live) <= len(rows.owner) // 2
        if shrink or rows.width > needed + SLOT_GROWTH // 2:
            kept = live if shrink else np.arange(len(rows.owner))
            next_ids = next_ids[torch.as_tensor(kept, device=next_ids.device)]
            rows.keep(kept, needed)
        rows.mask = torch.nn.functional.pad(rows.mask, (0, 1), value=True)
        # Free slots are fed too: their positions must stay inside what the model knows.
        positions = rows.lengths.clamp(max=needed)
        rows.logits = self._forward(next_ids[:, None], rows.mask, positions[:, None], rows.cache)
        rows.lengths = rows.lengths + 1

    def _forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: SlotCache
    ) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]
