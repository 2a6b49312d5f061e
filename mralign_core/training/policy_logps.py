"""Log-probabilities of the training traces under a trained adapter, beside those of the reference: which traces, and
which segments of them, the training moved, and how far.

Decisions:

* One forward pass over the traces and no more: what the reference says of them is stored already. The KL pairs of z0
  are left out. They would cost a second pass, and a pair's log-ratio is no divergence: it is negative as often as not.
* The KL of a trace is estimated from its own tokens: Σ (ρ − 1 − log ρ), ρ = policy / reference. No term is negative,
  and where a token was drawn from the reference at temperature 1 the mean of its term is KL(reference ‖ policy) of that
  token's distributions: E[ρ] = 1 there (Schulman, "Approximating KL divergence", 2020, k3). At another temperature, and
  of imported traces, it says how far the traces' own tokens have moved, and is no estimate of a divergence.

Shapes: N rows, T_i completion tokens of row i; in tensors B = 1 row, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor

from mralign_core.errors import OutOfMemory
from mralign_core.method import FloatArray
from mralign_core.method.objective import implicit_reward
from mralign_core.models.lora import HALF
from mralign_core.models.out_of_memory import with_less_memory
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.training.base import load_base
from mralign_core.training.examples import TrainingExample, build_examples, num_tokens
from mralign_core.training.job import ReferenceJob
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.memory import PassSize
from mralign_core.training.order import aligned_passes
from mralign_core.training.reference import OnRows, matched_rows, read_reference
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")


class PolicyJob(ReferenceJob):
    """What the log-probabilities under a trained adapter take."""

    adapter: Path
    """Its folder."""
    segment_weights: pd.DataFrame | None = Field(None, exclude=True)
    """Rows of table ``segment_weights``, where the adapter was trained with them."""
    reference: pd.DataFrame = Field(exclude=True)
    """Rows of table ``reference_logps``."""


def compute_policy_logps(
    job: PolicyJob, on_progress: OnRows | None = None, workers: Workers | None = None
) -> pd.DataFrame:
    """Log-probabilities of the training traces under an adapter: from tables and a base model to a table.

    Args:
        job: model, adapter, settings and traces.
        on_progress: called with the rows done and the rows in all.
        workers: the processes that share the model; each returns the whole table.

    Returns:
        Rows of table ``policy_logps``, of the traces that are short enough.

    Raises:
        ConfigError: see :func:`~mralign_core.training.base.load_base`.
        DataError: the reference is of other traces; or see :func:`~mralign_core.training.examples.build_examples`.
        OutOfMemory: and there are several processes, which have to start again together, or a row alone is too long.
    """
    workers = workers or Workers()
    model, end_token_id = load_base(job, workers)
    examples = build_examples(
        job.candidates, job.segment_weights, end_token_id=end_token_id, max_length=job.train.max_length
    ).kept
    reference = read_reference(job.reference, examples)
    policy = CompletionLogps(_with_adapter(model, job.adapter), workers)
    lengths = list(map(num_tokens, matched_rows(examples)))
    logps = with_less_memory(
        PassSize(job.train.tokens_per_forward),
        partial(_logps, policy, examples, lengths, workers, on_progress),
        partial(_smaller_passes, max(lengths), workers.size),
    )
    spans = dict(zip(job.candidates["trace_id"], job.candidates["segments"], strict=True))
    rows = [
        policy_row(example, spans[example.trace_id], before.numpy(), after)
        for example, before, after in zip(examples, reference.logps, logps, strict=True)
    ]
    return POLICY_LOGPS.require(pd.DataFrame(rows).astype(object))


def policy_row(
    example: TrainingExample, segments: Sequence[Any], reference_logps: FloatArray, policy_logps: FloatArray
) -> dict[str, Any]:
    """A row of table ``policy_logps``.

    Args:
        example: the trace, with the weight of each token.
        segments: their ``token_start`` and ``token_end``.
        reference_logps: (T,) log-probability of each completion token under the reference.
        policy_logps: (T,) the same under the adapter.

    Example:
        >>> trace = TrainingExample("t", "q", [1], [2, 3, 4], [2.0, 1.0, 1.0], True)
        >>> row = policy_row(trace, [{"token_start": 0, "token_end": 1}], np.log([0.2, 0.5, 0.5]),
        ...                  np.log([0.4, 0.5, 0.25]))
        >>> row["num_tokens"], round(row["implicit_reward"], 3)  # 2 log 2 + 0 − log 2
        (3, 0.693)
        >>> round(row["kl"], 3), round(row["segments"][0]["kl"], 3)  # 2 − 1 − log 2, and ½ − 1 + log 2 beside it
        (0.5, 0.307)
    """
    before, after = (np.asarray(logps, dtype=np.float64) for logps in (reference_logps, policy_logps))
    after_BT, before_BT, weights_BT = (torch.tensor(values)[None] for values in (after, before, example.weights))
    return {
        "trace_id": example.trace_id,
        **_sums(before, after),
        "implicit_reward": float(implicit_reward(after_BT, before_BT, weights_BT, torch.ones_like(after_BT))),
        "segments": [
            _sums(*(values[each["token_start"] : each["token_end"]] for values in (before, after))) for each in segments
        ],
        "logps": after.tolist(),
    }


def _sums(before: FloatArray, after: FloatArray) -> dict[str, Any]:
    logratios = after - before
    return {
        "num_tokens": len(after),
        "reference_logp": float(before.sum()),
        "policy_logp": float(after.sum()),
        "kl": float((np.expm1(logratios) - logratios).sum()),
    }


def _with_adapter(model: Any, adapter: Path) -> PeftModel:
    """The model with a trained adapter, computing as it did in training."""
    policy = PeftModel.from_pretrained(model, str(adapter), torch_device=str(model.device))
    if model.dtype in HALF:
        adapted: Iterator[Any] = (module for module in policy.modules() if isinstance(module, BaseTunerLayer))
        for module in adapted:
            module.cast_input_dtype_enabled = False  # as attach_lora has it: adapter_autocast does it without copies
    return policy


@torch.no_grad()
def _logps(
    policy: CompletionLogps,
    examples: Sequence[TrainingExample],
    lengths: Sequence[int],
    workers: Workers,
    on_progress: OnRows | None,
    size: PassSize,
) -> list[FloatArray]:
    """N arrays (T_i,), in passes of a size."""
    sizes = [len(example.completion_ids) for example in examples]
    flat = torch.zeros(sum(sizes), device=policy.device)
    parts, num_done = flat.split(sizes), 0
    passes = aligned_passes(range(len(examples)), lengths, size.tokens, workers.size, padded=not policy.is_packed)
    with policy.in_evaluation():
        for members, is_filler in passes[workers.rank]:
            logps: Tensor = policy(policy.batch([examples[row].row for row in members]))
            for row, part in zip(members, logps.split([sizes[row] for row in members]), strict=True):
                if not is_filler:
                    parts[row].copy_(part)
            num_done += len(members)
            if on_progress:
                on_progress(min(num_done * workers.size, len(examples)), len(examples))
    workers.add_up([flat])
    return [part.numpy() for part in flat.cpu().split(sizes)]


def _smaller_passes(longest: int, num_processes: int, size: PassSize, error: Exception) -> PassSize:
    smaller = size.smaller(longest, may_recompute=False)
    if smaller is None or num_processes > 1:
        raise OutOfMemory(
            f"out of memory in a pass over the traces after training, of up to {max(size.tokens, longest)} tokens, the "
            f"longest row has {longest}: lower train.tokens_per_forward, share the weights (train.accelerate_config, "
            f"with train.engine 'own'), or set train.trace_logps to false. {str(error).splitlines()[0]}",
            size.fields(smaller),
        ) from error
    logger.warning("out of memory in a pass over the traces: going on with %d tokens a pass", smaller.tokens)
    return smaller
