"""Tokens a second of the samplers, and that a model draws on the card what it draws on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.findings import Findings, NotShownHere, Setting
from benchmarks.gpu.models import build_tokenizer, save_model
from benchmarks.gpu.shapes import TINY, large, small
from benchmarks.train_vs_trl.workload import QWEN3_8B, build_model
from mralign_core.config import ModelConfig, VllmConfig
from mralign_core.generation import Decoding, Sample, Sampler, SampleRequest, sample_all
from mralign_core.generation.control_tokens import end_token_ids
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.models.families import Family, named_family
from mralign_core.models.locate import ModelLocation

BATCHES = (1, 8, 32, 128)
NEW_TOKENS = 64
PAPER_TEMPERATURE = 0.2
"""With top-p 0.9: at a higher one random weights would have a nucleus of most of the vocabulary, as no model has."""
LEAST_ALIKE = 0.9
"""Share of the draws in float32 that must be the CPU's to the last token: one in some hundred thousand tokens falls on
an edge that rounding moves, and takes the rest of its draw with it."""
VLLM_DRAWS, VLLM_LAYERS = 256, 4
"""Of Qwen3-8B's layers: the weights must be written to files first, and the whole would be 16 GB of them."""


def time_batches(setting: Setting, findings: Findings) -> None:
    """The CPU's draws first, then tokens a second by batch in the shape of Qwen3-8B."""
    with findings.attempt("draws in float32"):
        alike = _alike(setting)
        findings.value("draws_alike_share", alike)
        findings.check("draws in float32 that are not the CPU's, share", 1 - alike, 1 - LEAST_ALIKE)
        findings.say(f"{alike:.0%} of the draws in float32 are the CPU's")
    before = findings.record["line"]
    workload = large(setting, findings)
    model = build_model(workload).eval()
    tokenizer = build_tokenizer(workload.vocabulary)
    speeds: dict[int, float] = {}
    for batch in BATCHES[:2] if setting.is_stand_in else BATCHES:
        with findings.attempt(f"batch {batch}"):
            sampler = _sampler(model, tokenizer, batch)
            _speed(sampler, 1, 2)  # the first kernels take seconds to load
            speeds[batch] = _speed(sampler, batch, 8 if setting.is_stand_in else NEW_TOKENS)
            findings.value(f"tokens_per_s_batch_{batch}", speeds[batch])
            findings.value("tokens_per_s_best", max(speeds.values()))
            told = ", ".join(f"{each}: {speed:,.0f}" for each, speed in speeds.items())
            findings.say("; ".join(filter(None, [f"tokens/s by batch {told}", before])))


def time_vllm(setting: Setting, findings: Findings) -> None:
    """Tokens a second of an engine on a model in files."""
    if importlib.util.find_spec("vllm") is None:
        raise NotShownHere("vLLM is not installed in this Python (docs/samplers.md)")
    from mralign_core.generation.vllm_sampler import VllmSampler, open_engine

    workload = TINY if setting.is_stand_in else large(setting, findings, layers=VLLM_LAYERS)
    num_draws, new_tokens = (4, 8) if setting.is_stand_in else (VLLM_DRAWS, NEW_TOKENS)
    with tempfile.TemporaryDirectory(prefix="mralign-gpu-") as folder:
        save_model(workload, Path(folder))
        dtype: Any = workload.dtype
        model, section = ModelConfig(path=folder, dtype=dtype), VllmConfig(max_model_len=512)
        started = time.perf_counter()
        engine, _ = open_engine(ModelLocation(folder, ""), model, section, None)
        findings.value("start_s", time.perf_counter() - started)
        tokenizer = build_tokenizer(workload.vocabulary)
        ends = end_token_ids(tokenizer, _family())
        sampler = VllmSampler(engine, tokenizer, family=_family(), end_ids=ends)
        _speed(sampler, 1, 2)
        findings.value("layers", workload.layers)
        findings.value("tokens_per_s", _speed(sampler, num_draws, new_tokens))
    speed = findings.record["values"]["tokens_per_s"]
    findings.say(f"{speed:,.0f} tokens/s over {num_draws} draws, {workload.layers} of {QWEN3_8B.layers} layers")


def _alike(setting: Setting) -> float:
    """Share of draws that a float32 model makes alike on the card and on the CPU."""
    samples = []
    for device in (setting.device, "cpu"):
        workload = small(setting, device="cpu", dtype="float32")
        model = build_model(workload).eval().to(torch.device(device))
        sampler = _sampler(model, build_tokenizer(workload.vocabulary), 4)
        num_draws, new_tokens = (3, 8) if setting.is_stand_in else (32, NEW_TOKENS)
        samples.append(_draw(sampler, num_draws, new_tokens, 1.0))
    pairs = zip(*samples, strict=True)
    return sum(one.completion_ids == other.completion_ids for one, other in pairs) / len(samples[0])


def _sampler(model: Any, tokenizer: Any, batch: int) -> TransformersSampler:
    return TransformersSampler(model, tokenizer, batch_size=batch, family=_family())


def _family() -> Family:
    return named_family("qwen3")


def _draw(sampler: Sampler, num_draws: int, new_tokens: int, temperature: float) -> list[Sample]:
    decoding = Decoding(temperature, top_p=0.9, top_k=0, max_new_tokens=new_tokens, seed=0)
    return sample_all(sampler, list(_requests(num_draws)), decoding)


def _requests(num_draws: int) -> Iterator[SampleRequest]:
    for number in range(num_draws):
        yield SampleRequest(f"q{number}", "What is the river of Kilton?", "on", 0)


def _speed(sampler: Sampler, num_draws: int, new_tokens: int) -> float:
    """Tokens a second, prompts included in the time and not in the tokens."""
    started = time.perf_counter()
    samples = _draw(sampler, num_draws, new_tokens, PAPER_TEMPERATURE)
    drawn = sum(len(sample.completion_ids) + (sample.end_token_id is not None) for sample in samples)
    return drawn / (time.perf_counter() - started)
