"""Stands in for vLLM where it can't be installed: the part of its interface that the project uses, over a real model.

Names, parameters and defaults are those of vLLM 0.30 to 0.33, less what the project leaves alone, so that an argument
that vLLM does not know is a TypeError here too. ``test_vllm_sampler`` compares them with the installed vLLM's, where
there is one. A step brings several tokens of each request, as vLLM's may, and few requests run at once.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypedDict

from tiny_engine import stream
from transformers import AutoConfig, GenerationConfig

from mralign_core.models.load import load_model_and_tokenizer
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = [
    "CompletionOutput",
    "EngineArgs",
    "LLMEngine",
    "LoRARequest",
    "RequestOutput",
    "SamplingParams",
    "TokensPrompt",
]

TOKENS_A_STEP = 3
MOST_AT_ONCE = 4


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class EngineArgs:
    model: str
    tokenizer: str | None = None
    trust_remote_code: bool = False
    load_format: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float = 0.92
    revision: str | None = None
    tokenizer_revision: str | None = None
    disable_log_stats: bool = False
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: object
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    def __init__(self, request_id, prompt, prompt_token_ids, prompt_logprobs, outputs, finished):
        self.request_id, self.prompt, self.prompt_token_ids = request_id, prompt, prompt_token_ids
        self.prompt_logprobs, self.outputs, self.finished = prompt_logprobs, outputs, finished


@dataclass
class _Running:
    prompt_ids: list
    params: SamplingParams
    tokens: object
    num_tokens: int = 0


class LLMEngine:
    def __init__(self, arguments):
        self.arguments = arguments
        self._models = {}
        self.end_ids = _end_ids(arguments.model)
        own = AutoConfig.from_pretrained(arguments.model).max_position_embeddings
        self.model_config = SimpleNamespace(max_model_len=arguments.max_model_len or own)
        self.requests = {}

    @classmethod
    def from_engine_args(cls, engine_args, usage_context=None, stat_loggers=None, enable_multiprocessing=False):
        return cls(engine_args)

    def add_request(
        self,
        request_id,
        prompt,
        params,
        arrival_time=None,
        lora_request=None,
        tokenization_kwargs=None,
        trace_headers=None,
        priority=0,
        session_id=None,
        prompt_text=None,
    ):
        if not isinstance(request_id, str):
            raise TypeError(f"request_id must be a string, got {type(request_id)}")
        ids = prompt["prompt_token_ids"]
        if len(ids) >= self.model_config.max_model_len:
            raise ValueError("the prompt is longer than the maximum model length")
        params = params.checked()
        tokens = stream(
            self._model(lora_request),
            ids,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(0, params.top_k),
            seed=params.seed,
            end_ids=self.end_ids | set(params.stop_token_ids),
        )
        assert request_id not in self.requests
        self.requests[request_id] = _Running(ids, params, tokens)
        return request_id

    def abort_request(self, request_ids, internal=False):
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def has_unfinished_requests(self):
        return bool(self.requests)

    def step(self):
        running = list(itertools.islice(self.requests.items(), MOST_AT_ONCE))
        return [self._advance(request_id, request) for request_id, request in running]

    def _advance(self, request_id, request):
        most = min(request.params.max_tokens, self.model_config.max_model_len - len(request.prompt_ids))
        room = min(TOKENS_A_STEP, most - request.num_tokens)
        ids = list(itertools.islice(request.tokens, room))
        request.num_tokens += len(ids)
        ends = self.end_ids | set(request.params.stop_token_ids)
        reason = "stop" if ids and ids[-1] in ends else "length" if request.num_tokens == most else None
        if reason:
            del self.requests[request_id]
        assert request.params.output_kind is RequestOutputKind.DELTA, "only this kind is stood in for"
        completion = CompletionOutput(0, "", ids, None, None, reason)
        return RequestOutput(request_id, None, request.prompt_ids, None, [completion], reason is not None)

    def _model(self, lora_request: LoRARequest | None):
        if lora_request is not None:
            self._check(lora_request)
        path = lora_request.lora_path if lora_request else None
        if path not in self._models:
            model, _ = load_model_and_tokenizer(self.arguments.model, self.arguments.dtype, "cpu", path)
            self._models[path] = model.double()
        return self._models[path]

    def _check(self, lora_request):
        if not self.arguments.enable_lora:
            raise ValueError(f"Got lora_request {lora_request} but LoRA is not enabled!")
        rank = json.loads((Path(lora_request.lora_path) / "adapter_config.json").read_text())["r"]
        if rank > self.arguments.max_lora_rank:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self.arguments.max_lora_rank}.")


def _end_ids(path):
    ends = GenerationConfig.from_pretrained(path).eos_token_id
    return set(ends if isinstance(ends, list) else [ends])
