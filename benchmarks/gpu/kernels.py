"""The card's kernels against the CPU's numbers: attention row by row, the output head, packed rows, drawn tokens.

The CPU computes the same inputs in float32 or float64. Differences are relative: ‖card − CPU‖ / ‖CPU‖. A kernel that
looked into another row, or ahead, would be off by the order of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.findings import Findings, Setting
from benchmarks.gpu.shapes import small
from benchmarks.train_vs_trl.our_contender import attention_options, train_section
from benchmarks.train_vs_trl.workload import Workload, build_model, build_rows
from mralign_core.generation import Decoding
from mralign_core.generation.randomness import draw_tokens
from mralign_core.models.lora import attach_lora
from mralign_core.training.logps import CompletionLogps, head_logps
from mralign_core.training.packing import packed_attention

TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-4}
"""Relative differences that rounding may make: a few units in the last place of each precision."""
LOGP_TOLERANCE = 0.05
"""Of a log-probability, in nats, from a whole model in bfloat16."""
GRADIENT_TOLERANCE = 0.05
"""Relative difference of all of an adapter's gradients, from a whole model in bfloat16."""


class Sizes(NamedTuple):
    """Of the tensors that are compared."""

    row_lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    head_tokens: int
    width: int
    vocabulary: int
    drawn: int


CARD = Sizes((700, 333, 1, 64, 1024), 32, 8, 128, 1800, 64, 151_936, 64)
"""Attention and vocabulary of Qwen3-8B; so many tokens that the head takes more than one chunk of them."""
STAND_IN = Sizes((7, 3, 1, 12), 4, 2, 16, 24, 32, 300, 16)


def compare(setting: Setting, findings: Findings) -> None:
    """All of them."""
    sizes = STAND_IN if setting.is_stand_in else CARD
    device = torch.device(setting.device)
    for dtype in (torch.bfloat16, torch.float32):
        with findings.attempt(f"attention in {dtype}"):
            _attention(device, dtype, sizes, findings)
    with findings.attempt("output head"):
        _head(device, sizes, findings)
    with findings.attempt("packed rows"):
        _packing(setting, findings)
    with findings.attempt("adapter's gradients"):
        _adapter(setting, findings)
    with findings.attempt("drawing of tokens"):
        _drawing(device, sizes, findings)
    checks = findings.record["checks"]
    worst = max((each["found"] / each["limit"] if each["limit"] else each["found"] for each in checks), default=0)
    if setting.device == "cuda":
        is_varlen = any("varlen" in name for name in findings.record["values"].get("attention_bfloat16", []))
        findings.check("the variable-length kernel was not used", float(not is_varlen), 0)
    findings.say(f"{len(checks)} comparisons with the CPU, the largest difference {worst:.0%} of its limit")


def _attention(device: torch.device, dtype: torch.dtype, sizes: Sizes, findings: Findings) -> None:
    """:func:`packed_attention` and its gradients; on a card in bfloat16 that is the variable-length kernel."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(sizes.row_lengths)
    shapes = [(1, tokens, heads, sizes.head_dim) for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]  # as a model's projections lie
    slope = torch.randn((1, tokens, sizes.heads, sizes.head_dim), generator=generator).to(dtype)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        found = _with_gradients(inputs, slope, sizes.row_lengths, device, dtype)
    expected = _with_gradients(inputs, slope, sizes.row_lengths, torch.device("cpu"), torch.float32)
    names = {event.key for event in recorded.key_averages()}
    operators = sorted(each for each in names if "attention" in each.lower() or "attn" in each.lower())
    name = str(dtype).removeprefix("torch.")
    findings.value(f"attention_{name}", [each for each in operators if "backward" not in each.lower()])
    for what, card, cpu in zip(("output", "query", "key", "value"), found, expected, strict=True):
        kind = what if what == "output" else f"gradient of the {what}"
        findings.check(f"attention in {name}, {kind}", difference(card, cpu), TOLERANCE[dtype])


def _with_gradients(
    inputs: Sequence[Tensor], slope: Tensor, lengths: Sequence[int], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Output and the gradients of query, key and value, on the CPU."""
    query, key, value = (part.clone().to(device, dtype).requires_grad_() for part in inputs)
    heads = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    output, _ = packed_attention(torch.nn.Identity(), *heads, None, **attention_options(lengths, device))
    output.backward(slope.to(device, dtype))
    return [output.detach().cpu(), *(part.grad.cpu() for part in (query, key, value) if part.grad is not None)]


def _head(device: torch.device, sizes: Sizes, findings: Findings) -> None:
    """:func:`head_logps` and the slope that it sends back, in more than one chunk."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(sizes.head_tokens, sizes.width, generator=generator).bfloat16()
    weight = (torch.randn(sizes.vocabulary, sizes.width, generator=generator) / sizes.width**0.5).bfloat16()
    targets = torch.randint(sizes.vocabulary, (sizes.head_tokens,), generator=generator)
    logps, slopes = [], []
    for where, dtype in ((device, torch.bfloat16), (torch.device("cpu"), torch.float32)):
        states = hidden.clone().to(where, dtype).requires_grad_()
        found = head_logps(states, weight.to(where, dtype), None, targets.to(where))
        found.sum().backward()
        assert states.grad is not None
        logps.append(found.detach().cpu())
        slopes.append(states.grad.cpu())
    findings.check("log-probabilities of the head, in nats", float((logps[0] - logps[1]).abs().max()), 0.01)
    findings.check("slope of the head", difference(slopes[0], slopes[1]), TOLERANCE[torch.bfloat16])


def _packing(setting: Setting, findings: Findings) -> None:
    """A whole model in bfloat16, its rows packed, against the same model on the CPU in float32."""
    workload = small(setting, device="cpu")
    rows = [(row.prompt_ids, row.completion_ids) for row in build_rows(workload)]
    found = []
    for device, dtype in (("cpu", torch.float32), (setting.device, torch.bfloat16)):
        policy = CompletionLogps(_model_on(workload, device, dtype))
        with torch.no_grad():
            found.append(policy(policy.batch(rows)).cpu())
    findings.value("rows_are_packed", policy.is_packed)
    findings.check("rows are padded, not packed", float(not policy.is_packed), 0)
    apart = float((found[0] - found[1]).abs().max())
    findings.check("log-probabilities of packed rows, in nats", apart, LOGP_TOLERANCE)


def _model_on(workload: Workload, device: str, dtype: torch.dtype) -> Any:
    """A model whose weights bfloat16 can hold, so that they are the same in either precision."""
    return build_model(dataclasses.replace(workload, dtype="float32")).bfloat16().to(device, dtype)


def _adapter(setting: Setting, findings: Findings) -> None:
    """Gradients of a whole model's adapter, through maps, MLPs and norms that are one operation each, in bfloat16."""
    workload = small(setting, device="cpu")
    rows = build_rows(workload)
    section = train_section(workload, rows, {})
    gradients = []
    for device, dtype in (("cpu", torch.float32), (setting.device, torch.bfloat16)):
        policy = CompletionLogps(attach_lora(_model_on(workload, device, dtype), section, seed=0))
        adapter = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # a fresh adapter's second map is 0, and so is the gradient of the first
            for each in adapter:
                each.copy_(0.1 * torch.randn(each.shape, generator=generator))
        policy(policy.batch([(row.prompt_ids, row.completion_ids) for row in rows])).sum().backward()
        gradients.append(torch.cat([each.grad.flatten().float().cpu() for each in adapter if each.grad is not None]))
    findings.check("gradient of the adapter", difference(gradients[1], gradients[0]), GRADIENT_TOLERANCE)


def _drawing(device: torch.device, sizes: Sizes, findings: Findings) -> None:
    """:func:`draw_tokens` in float64: the same numbers draw the same tokens."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(sizes.drawn, sizes.vocabulary, generator=generator)
    numbers = torch.rand(sizes.drawn, generator=generator, dtype=torch.float64)
    for top_p in (1.0, 0.9):
        decoding = Decoding(temperature=0.6, top_p=top_p, top_k=0, max_new_tokens=1, seed=0)
        card = draw_tokens(logits.to(device), numbers.to(device), decoding).cpu()
        cpu = draw_tokens(logits, numbers, decoding)
        findings.check(f"drawn tokens that differ, top-p {top_p:g}", float((card != cpu).sum()), 0)


def difference(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())
