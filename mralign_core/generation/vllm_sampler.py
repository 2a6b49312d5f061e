"""Sampling with a vLLM engine in this process (docs/samplers.md says how to install it).

What is guaranteed. Every draw has a random generator of its own, seeded by
:func:`~mralign_core.generation.randomness.request_seed`: which draws differ and which are the same does not depend on
order, shard or restart. The logits do depend on what else is decoded at the time, by rounding, unless vLLM runs with
``VLLM_BATCH_INVARIANT=1`` on hardware that it supports there. Two models don't share their random numbers as they do
with the transformers sampler, because vLLM spends one number a token of the vocabulary.

The engine's own loop (``add_request``, ``step``, ``abort_request``) is used rather than ``LLM.generate``: a follow-up
starts in the place that its predecessor left, and a completion ends with its answer, which a stop string can't say
because thinking may hold the same words. Written for vLLM 0.30 to 0.33; tests/vllm_stand_in records what is used of it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mralign_core.config import ModelConfig, VllmConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.generation import Decoding, FollowUp, Sample, SampleRequest
from mralign_core.generation.answer_end import AnswerEnd
from mralign_core.generation.control_tokens import decode_tokens
from mralign_core.generation.prompts import Prompt, render_request
from mralign_core.generation.randomness import request_seed
from mralign_core.models.adapter_files import rank_for_vllm, vllm_lora_room
from mralign_core.models.families import Family
from mralign_core.models.locate import ModelLocation


@dataclass
class _Row:
    """A request under way, and the tokens drawn for it so far."""

    request: SampleRequest
    prompt: Prompt
    completion_ids: list[int] = field(default_factory=list)


class VllmSampler:
    """A :class:`~mralign_core.generation.Sampler` over a vLLM engine, one draw at a time.

    Args:
        engine: a ``vllm.LLMEngine``; it lives as long as the sampler.
        tokenizer: tokenizer of the model.
        family: how the model thinks.
        instruction: text before `Question: …` in the prompt; empty sends the bare question.
        end_ids: tokens that end a completion.
        adapter: a ``LoRARequest``, for an engine that was opened for it.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        family: Family,
        instruction: str = "",
        end_ids: frozenset[int],
        adapter: Any = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.family = family
        self.instruction = instruction
        self.end_ids = end_ids
        self.adapter = adapter
        self.answer_end = AnswerEnd(tokenizer, family)
        self._numbers = itertools.count()
        self._drawing = threading.Lock()

    def draw(
        self, requests: Sequence[SampleRequest], decoding: Decoding, follow_up: FollowUp | None = None
    ) -> Iterator[tuple[SampleRequest, Sample]]:
        """Draw every request and those that follow; the engine decodes as many at once as its memory holds.

        Raises:
            DataError: prompts leave no room for a completion; names the questions.
        """
        if not self._drawing.acquire(blocking=False):
            raise RuntimeError("this sampler is in the middle of another draw: end or close that one first")
        rows: dict[str, _Row] = {}
        try:
            self._add(requests, decoding, rows)
            while rows:
                for request, sample in self._step(rows):
                    if follow_up and (following := follow_up(request, sample)):
                        self._add([following], decoding, rows)
                    yield request, sample
        finally:
            self.engine.abort_request(list(rows))
            self._drawing.release()

    def has_room(self, request: SampleRequest, decoding: Decoding) -> bool:
        """Whether the prompt leaves room for ``decoding.max_new_tokens`` in ``vllm.max_model_len``."""
        return len(self._prompt(request).ids) + decoding.max_new_tokens <= int(self.engine.model_config.max_model_len)

    def _is_short_enough(self, row: _Row) -> bool:
        """Whether some tokens can be drawn."""
        return len(row.prompt.ids) < int(self.engine.model_config.max_model_len)

    def _add(self, requests: Sequence[SampleRequest], decoding: Decoding, rows: dict[str, _Row]) -> None:
        """Hand requests to the engine."""
        from vllm import TokensPrompt

        added = [_Row(request, self._prompt(request)) for request in requests]
        self._refuse_too_long(added)
        for row in added:
            name = str(next(self._numbers))
            prompt = TokensPrompt(prompt_token_ids=row.prompt.ids)
            self.engine.add_request(name, prompt, self._sampling(row.request, decoding), lora_request=self.adapter)
            rows[name] = row

    def _prompt(self, request: SampleRequest) -> Prompt:
        return render_request(self.tokenizer, request, self.family, self.instruction)

    def _refuse_too_long(self, rows: Sequence[_Row]) -> None:
        longest = self.engine.model_config.max_model_len
        too_long = {row.request.question_id: len(row.prompt.ids) for row in rows if not self._is_short_enough(row)}
        if too_long:
            named = ", ".join(f"{name} ({length} tokens)" for name, length in too_long.items())
            raise DataError(
                f"{len(too_long)} question(s) leave no room for an answer in vllm.max_model_len {longest}: {named}; "
                "raise it, or take them out"
            )

    def _sampling(self, request: SampleRequest, decoding: Decoding) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            max_tokens=decoding.max_new_tokens,
            seed=request_seed(request, decoding.seed),
            stop_token_ids=sorted(self.end_ids),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _step(self, rows: dict[str, _Row]) -> Iterator[tuple[SampleRequest, Sample]]:
        """Decode one step; yields the requests that it finished, which it takes out of ``rows``."""
        for output in self.engine.step():
            row = rows.get(output.request_id)
            if row is None:
                continue
            [completion] = output.outputs
            seen = len(row.completion_ids)
            row.completion_ids += completion.token_ids
            end = self.answer_end.in_tokens(
                row.completion_ids, row.request.thinking_mode, row.prompt.text, known_open=seen
            )
            if end is None and not output.finished:
                continue
            if not output.finished:
                self.engine.abort_request([output.request_id])
            del rows[output.request_id]
            yield row.request, self._sample(row, end, completion.finish_reason)

    def _sample(self, row: _Row, end: int | None, finish_reason: str | None) -> Sample:
        if end is None and finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM gave up on question {row.request.question_id!r}: {finish_reason}")
        ids = row.completion_ids[:end]
        drawn = ids.pop() if ids and ids[-1] in self.end_ids else None
        reason = "stop" if end is not None or finish_reason == "stop" else "length"
        return Sample(
            row.prompt.text, row.prompt.ids, ids, decode_tokens(self.tokenizer, ids), reason, end_token_id=drawn
        )


def open_engine(
    location: ModelLocation, model: ModelConfig, section: VllmConfig, adapter_dir: Path | None
) -> tuple[Any, Any]:
    """Start an engine, for an adapter or without; starting takes a minute or so.

    Args:
        location: where the model is.
        model: its precision.
        section: tensor parallelism, memory, longest sequence.
        adapter_dir: PEFT adapter directory, or None.

    Returns:
        The ``vllm.LLMEngine``, and the ``LoRARequest`` that makes it use the adapter, None without one.

    Raises:
        ConfigError: vLLM is not installed.
    """
    try:
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sampler 'vllm' needs vLLM, which is not installed ({error}): docs/samplers.md says how to add it; or set "
            "the sampler to 'transformers' or 'endpoint'"
        ) from None
    limits = {"max_model_len": section.max_model_len} if section.max_model_len else {}
    arguments = EngineArgs(
        model=location.path,
        revision=location.revision or None,
        tokenizer_revision=location.revision or None,
        dtype=model.dtype,
        load_format="safetensors",
        trust_remote_code=False,
        tensor_parallel_size=section.tensor_parallel_size,
        gpu_memory_utilization=section.gpu_memory_utilization,
        enable_prefix_caching=True,
        disable_log_stats=True,
        **limits,
        **(_lora_options(adapter_dir) if adapter_dir else {}),
    )
    adapter = LoRARequest(adapter_dir.name, 1, str(adapter_dir)) if adapter_dir else None
    return LLMEngine.from_engine_args(arguments), adapter


def _lora_options(adapter_dir: Path) -> dict[str, Any]:
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": vllm_lora_room(rank_for_vllm(adapter_dir))}
