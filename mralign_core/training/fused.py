"""Linear maps with LoRA, the gated MLPs made of them, and norms, each as one operation with its gradient written out.

The sums are those of PEFT's and transformers' modules, with fewer tensors on the way. In float32 a map is multiplied by
as the sum W + s B A, made anew in each pass; in half precision, which that sum would blur, the adapter's product is
added in place, and so is its gradient. Of an MLP only the two products before the activation are kept, of a norm its
input, and what follows from them is computed again. An MLP or a norm is one of those if its class has the very code of
Llama's: others have the same parts, and clamp, scale or drop something between them. The base model is frozen: its
weights have no gradient.

Equations: y = x Wᵀ + b + s (x Aᵀ) Bᵀ; of an MLP y = down(silu(gate(x)) ∘ up(x)); of a norm y = w ∘ x / √(mean x² + ε).

Shapes: N tokens, I inputs, O outputs, R rank of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from mralign_core.models.lora import HALF

GATED_MLP = ("gate_proj", "up_proj", "down_proj")
"""Names of the maps of an MLP with a gate, in transformers."""
SILU = (nn.SiLU, SiLUActivation)


def fuse(model: nn.Module) -> list[nn.Module]:
    """Compute what can be as one operation from now on.

    Args:
        model: with its adapter; changed in place.

    Returns:
        The modules that are computed in another way than before.
    """
    modules: list[Any] = list(model.modules())
    mlps = list(filter(_is_fusible_mlp, modules))
    inside = {id(getattr(mlp, name)) for mlp in mlps for name in GATED_MLP}
    maps = [module for module in modules if _is_fusible(module) and id(module) not in inside]
    norms = list(filter(_is_fusible_norm, modules))
    ways = [(_mlp_forward, mlps), (_map_forward, maps), (_norm_forward, norms)]
    plain = [(way, module) for way, chosen in ways for module in chosen if not isinstance(module, _Fused)]
    for way, module in plain:
        # Another class, not a method of the module's own, which would refer to it and keep the model in memory.
        kind: Any = type(module)
        module.__class__ = _fused_class(kind, way)
    return [module for _, module in plain]


class _Fused:
    """What the classes are that :func:`fuse` makes."""

    plain: type[nn.Module]
    """The class that a module had before."""


@cache
def _fused_class(kind: type[nn.Module], way: Callable[..., Tensor]) -> type[nn.Module]:
    return type(kind.__name__, (_Fused, kind), {"plain": kind, "forward": way, "__module__": kind.__module__})


def _is_fusible(module: Any) -> bool:
    """Whether a module is a plain linear map with one plain adapter: no dropout, no variant of LoRA, no 4 bits."""
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear:
        return False
    names = list(module.lora_A)
    is_plain = len(names) == 1 and not module.lora_variant and not module.fan_in_fan_out
    return is_plain and module.lora_B[names[0]].bias is None and isinstance(module.lora_dropout[names[0]], nn.Identity)


def _is_fusible_mlp(module: Any) -> bool:
    if not (_has_code_of(LlamaMLP, module) and isinstance(module.act_fn, SILU)):
        return False
    maps: list[Any] = [getattr(module, name) for name in GATED_MLP]
    return all(_is_fusible(each) and each.base_layer.bias is None for each in maps)


def _is_fusible_norm(module: Any) -> bool:
    return _has_code_of(LlamaRMSNorm, module) and not module.weight.requires_grad


def _has_code_of(known: type[nn.Module], module: nn.Module) -> bool:
    """Whether a module, or the class that :func:`fuse` gave another to, computes by the same code as a known one."""
    kind: Any = module.plain if isinstance(module, _Fused) else type(module)
    code, other = getattr(kind.forward, "__code__", None), known.forward.__code__
    return code is not None and _what_runs(code) == _what_runs(other)


def _what_runs(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, code.co_consts[1:]  # the first is the docstring


def _is_adapted(module: Any) -> bool:
    """Whether its one adapter takes part now, and nothing else."""
    if not isinstance(module, LoraLinear) or module.disable_adapters or module.merged:
        return False
    return list(module.lora_A) == list(module.active_adapters)


def _map_forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or not _is_adapted(module):
        plain: Tensor = module.plain.forward(module, x, *args, **kwargs)
        return plain
    parts = _Map.of(module)
    rows = x.reshape(-1, x.shape[-1]).to(parts.weight.dtype)
    # The shape is given back out here: what a function returns as a view, its caller may not change in place.
    with torch.autocast(x.device.type, enabled=False):  # of a map in float32 inside a model in bfloat16
        y: Tensor = _LoraMap.apply(rows, parts.weight, module.base_layer.bias, *parts[1:])
    return y.view(*x.shape[:-1], y.shape[-1])


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    maps: list[Any] = [getattr(module, name) for name in GATED_MLP]
    if not all(map(_is_adapted, maps)):
        plain: Tensor = module.plain.forward(module, x)
        return plain
    gate, up, down = (_Map.of(each) for each in maps)
    rows = x.reshape(-1, x.shape[-1]).to(gate.weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _GatedMLP.apply(rows, *gate, *up, *down)
    return y.view(*x.shape[:-1], y.shape[-1])


def _norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != module.weight.dtype or module.weight.requires_grad:
        plain: Tensor = module.plain.forward(module, hidden_states)
        return plain
    y: Tensor = _RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)
    return y


class _Map(NamedTuple):
    """A linear map and its adapter."""

    weight: Tensor
    """(O, I)."""
    a: Tensor
    """(R, I)."""
    b: Tensor
    """(O, R)."""
    scale: float

    @classmethod
    def of(cls, module: Any) -> _Map:
        [name] = module.lora_A
        weight = module.base_layer.weight
        a, b = (each[name].weight.to(weight.dtype) for each in (module.lora_A, module.lora_B))
        return cls(weight, a, b, module.scaling[name])

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, I) → (N, O)."""
        if self._is_merged(x):
            return functional.linear(x, self._merged(), bias)
        return functional.linear(x, self.weight, bias).addmm_(self._low(x).t(), self.b.t(), alpha=self.scale)

    def to_low(self, slopes: Tensor) -> Tensor:
        """The gradient of A xᵀ, (R, N), from that of y."""
        return torch.mm(self.b.t(), slopes.t()).mul_(self.scale)

    def of_adapter(self, x: Tensor, slopes: Tensor, to_low: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of A and B."""
        return to_low @ x, torch.mm(self._low(x), slopes).mul_(self.scale).t()

    def add_to_inputs(self, total: Tensor | None, slopes: Tensor, to_low: Tensor) -> Tensor:
        """The gradient of x, in place of a total that it is added to."""
        is_merged = self._is_merged(slopes)
        weight = self._merged() if is_merged else self.weight
        total = torch.mm(slopes, weight) if total is None else total.addmm_(slopes, weight)
        return total if is_merged else total.addmm_(to_low.t(), self.a)

    def _is_merged(self, tokens: Tensor) -> bool:
        """Whether W + s B A is made: rounding does not blur it, and tokens are so many that it is quicker."""
        outputs, inputs = self.weight.shape
        is_exact = self.weight.dtype not in HALF and torch.get_float32_matmul_precision() == "highest"
        return is_exact and len(tokens) * (inputs + outputs) >= inputs * outputs

    def _merged(self) -> Tensor:
        return torch.addmm(self.weight, self.b, self.a, alpha=self.scale)

    def _low(self, x: Tensor) -> Tensor:
        # A xᵀ rather than x Aᵀ, here and above: with few rows first, a CPU multiplies two to five times as fast.
        return self.a @ x.t()


class _LoraMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, a, b)
        ctx.scale = scale
        return _Map(weight, a, b, scale)(rows, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b = ctx.saved_tensors
        each = _Map(weight, a, b, ctx.scale)
        to_low = each.to_low(slopes)
        to_x = each.add_to_inputs(None, slopes, to_low) if ctx.needs_input_grad[0] else None
        return to_x, None, None, *each.of_adapter(rows, slopes, to_low), None


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parts: Any) -> Tensor:
        size = len(_Map._fields)
        gate, up, down = (_Map._make(parts[start : start + size]) for start in range(0, len(parts), size))
        gates, ups = gate(rows), up(rows)
        tensors = [tensor for each in (gate, up, down) for tensor in each[:3]]
        ctx.save_for_backward(rows, gates, ups, *tensors)
        ctx.scales = [each.scale for each in (gate, up, down)]
        return down(functional.silu(gates).mul_(ups))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, ups, *tensors = ctx.saved_tensors
        weights = zip(tensors[::3], tensors[1::3], tensors[2::3], ctx.scales, strict=True)
        gate, up, down = map(_Map._make, weights)
        to_low = down.to_low(slopes)
        to_hidden = down.add_to_inputs(None, slopes, to_low)
        active = functional.silu(gates)
        of_down = down.of_adapter(active * ups, slopes, to_low)
        to_ups = active.mul_(to_hidden)
        to_gates = torch.ops.aten.silu_backward.grad_input(to_hidden.mul_(ups), gates, grad_input=to_hidden)
        to_low_gate, to_low_up = gate.to_low(to_gates), up.to_low(to_ups)
        of_gate = gate.of_adapter(rows, to_gates, to_low_gate)
        of_up = up.of_adapter(rows, to_ups, to_low_up)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gate.add_to_inputs(None, to_gates, to_low_gate)
            to_x = up.add_to_inputs(to_x, to_ups, to_low_up)
        return to_x, None, *of_gate, None, None, *of_up, None, None, *of_down, None


class _RMSNorm(torch.autograd.Function):
    """In float32 whatever the input, as transformers has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        factor = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, factor, weight)
        return (wide * factor).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, weight = ctx.saved_tensors
        wide, slopes = x.float(), (gradient * weight).float()
        along = (slopes * wide).mean(-1, keepdim=True).mul_(factor.square())
        return slopes.addcmul_(wide, along, value=-1).mul_(factor).to(x.dtype), None, None
