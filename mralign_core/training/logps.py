"""Log-probabilities of completion tokens under the model, without ever holding the logits of a batch.

The output head is frozen, so the gradient that a token's log-probability sends back to its hidden state h depends on
nothing that comes later: ∂ log p(y|h) / ∂h = W_y − Σ_k p_k W_k. It is computed chunk by chunk in the forward pass,
beside the log-probability, and kept (as large as h); the backward pass only scales it. That is two products with the
vocabulary instead of three, and no logits outlive their chunk.

Shapes: C completion tokens, D width of the model, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from mralign_core.models.lora import HALF, adapter_autocast
from mralign_core.training.examples import Row
from mralign_core.training.fused import fuse
from mralign_core.training.packing import PACKED, Batch, make_batch
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits held at once, by kind of device: few enough for a CPU's cache, enough to keep a GPU busy."""
HEAD_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config fields of models that do more to the hidden states than their head's product."""
PROBE_LENGTHS = ((3, 5), (2, 9), (4, 4))
"""Prompt and completion tokens of the rows on which the fast way is compared with the plain one."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest difference in a log-probability that rounding may make, by precision of the model."""


def head_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Log-probability of each target token under a linear output head that is not trained.

    Args:
        hidden: (C, D) hidden states.
        weight: (V, D).
        bias: (V,) or None.
        targets: (C,) token ids.

    Returns:
        (C,) in float32, or float64 where ``hidden`` is.

    Example:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> head_logps(hidden, weight, None, torch.tensor([1])).exp().tolist()
        [0.5]
    """
    logps: Tensor = _HeadLogps.apply(hidden, weight, bias, targets)
    return logps


def chunk_elements(device: torch.device) -> int:
    """Logits held at once on a device."""
    return CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"])


class _HeadLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        size = max(1, chunk_elements(hidden.device) // len(weight))
        slopes = torch.empty_like(hidden) if needs_gradient else None
        logps = []
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            target = targets[part, None]
            logits = _wide_logits(hidden[part], weight, bias)
            logits.sub_(logits.amax(-1, keepdim=True))
            chosen = logits.gather(1, target)
            total = logits.exp_().sum(-1, keepdim=True)
            logps.append((chosen - total.log())[:, 0])
            if slopes is not None:
                minus_probs = logits.div_(-total)
                minus_probs.scatter_add_(1, target, torch.ones_like(target, dtype=logits.dtype))
                torch.mm(minus_probs.to(weight.dtype), weight, out=slopes[part])
        ctx.save_for_backward(slopes)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return gradients[0][:, None].to(slopes.dtype) * slopes, None, None, None


def _wide_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits in float32 or wider: rounded to bfloat16, they would blur log-ratios by more than a step moves them.

    The sums of products are float32 on any device; a GPU hands them over before it rounds them.
    """
    if hidden.dtype not in HALF:
        return functional.linear(hidden, weight, bias)
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.is_cuda:
            logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            logits = hidden.float() @ weight.float().t()
        return logits if bias is None else logits + bias


class CompletionLogps(nn.Module):
    """A model as a function from rows to the log-probabilities of their completion tokens.

    Where the model allows, rows are packed and the head is applied in chunks. Where it does not (sliding windows,
    recurrent layers, capped logits), rows are padded and the model makes its logits. Which one it is, is found by
    comparing both on a few made-up rows.

    Args:
        model: a causal language model, with or without an adapter.
        workers: the processes over which its frozen weights are spread here, where they are sharded.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, workers: Workers | None = None) -> None:
        super().__init__()
        self.model = model
        self._causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.is_packed = False
        if workers and workers.is_sharded:
            workers.shard(self, self.layers)
        fuse(model)
        with self.in_evaluation():
            self.is_packed = self._can_pack()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(self._causal.base_model.layers)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors of rows, given as prompt and completion ids, as :meth:`forward` takes them."""
        return make_batch(rows, self.device, padded=not self.is_packed)

    def forward(self, batch: Batch) -> Tensor:
        """(C,) log-probabilities, in float32 or wider."""
        with adapter_autocast(self.model):
            if not self.is_packed:
                logits = self._causal(**batch.model_inputs, use_cache=False).logits.flatten(0, 1)[batch.positions]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                return -functional.cross_entropy(logits, batch.targets, reduction="none")
            hidden = self._causal.base_model(**batch.model_inputs, use_cache=False).last_hidden_state
            head = self._causal.get_output_embeddings()
            return head_logps(hidden[0, batch.positions], head.weight, head.bias, batch.targets)

    def made_up_pass(self, tokens: int) -> Tensor:
        """A forward pass of one row of so many tokens, to measure what it keeps."""
        logps: Tensor = self(self.batch([([0], [0] * (tokens - 1))]))
        return logps

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The model without its adapter, in evaluation mode."""
        without = self.model.disable_adapter() if isinstance(self.model, PeftModel) else contextlib.nullcontext()
        with self.in_evaluation(), without:
            yield

    @contextlib.contextmanager
    def in_evaluation(self) -> Iterator[None]:
        """Without dropout."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def _can_pack(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        vocabulary = self._causal.get_input_embeddings().num_embeddings
        ids = [torch.randint(vocabulary, (sum(pair),), generator=generator).tolist() for pair in PROBE_LENGTHS]
        rows = [(row[:start], row[start:]) for row, (start, _) in zip(ids, PROBE_LENGTHS, strict=True)]
        config = self._causal.config.get_text_config()
        changes = [name for name in HEAD_CHANGES if getattr(config, name, None) not in (None, 1, 1.0)]
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if changes or kinds:
            self._warn_of_padding(f"its config has {', '.join([*changes, *sorted(kinds)])}")
            return False
        plain = self._causal.config._attn_implementation
        plain = "sdpa" if plain == PACKED else plain
        self._causal.set_attn_implementation(plain)
        expected = self(self.batch(rows))
        try:
            self._causal.set_attn_implementation(PACKED)
            self.is_packed = True
            packed = self(self.batch(rows))
            if (packed - expected).abs().max() <= TOLERANCE[self._causal.dtype]:
                return True
            reason = f"log-probabilities differ by {(packed - expected).abs().max():.2g}"
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = str(error)
        self._causal.set_attn_implementation(plain)
        self.is_packed = False
        self._warn_of_padding(reason)
        return False

    def _warn_of_padding(self, reason: str) -> None:
        name = type(self._causal).__name__
        logger.warning("%s: rows are padded instead of packed, which is slower (%s)", name, reason)
