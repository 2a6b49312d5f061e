"""Log-probabilities under the reference (the model without adapter), computed once for all that trains on the rows.

The reference never changes, and neither do a row's tokens or its KL partner. So epochs, variants, ablations and
restarts share one table: for each row its own completion token by token, and the sum over its partner's completion.

Shapes: N rows, T_i completion tokens of row i.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mralign_core.errors import DataError, NoCandidatesError, OutOfMemory
from mralign_core.models.out_of_memory import with_less_memory
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.training.base import load_base
from mralign_core.training.examples import Row, TrainingExample, build_examples, num_tokens
from mralign_core.training.job import ReferenceJob
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.memory import PassSize
from mralign_core.training.order import aligned_passes
from mralign_core.training.pairs import kl_partners
from mralign_core.training.workers import Workers

logger = logging.getLogger("mralign_core.training")

OnRows = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


class Reference(NamedTuple):
    """What training needs of the reference, in the order of the examples."""

    partners: list[int]
    """(N,) the row whose completion stands behind each row's prompt in the KL pair."""
    logps: list[Tensor]
    """N tensors (T_i,), float32."""
    kl_logps: list[float]
    """(N,) log-probability of the pair's completion, summed over its tokens."""


def matched_rows(examples: Sequence[TrainingExample]) -> list[Row]:
    """Each prompt with its own completion."""
    return [example.row for example in examples]


def mismatched_rows(examples: Sequence[TrainingExample], partners: Sequence[int]) -> list[Row]:
    """Each prompt with its partner's completion."""
    pairs = zip(examples, partners, strict=True)
    return [(example.prompt_ids, examples[partner].completion_ids) for example, partner in pairs]


def reference_table(
    policy: CompletionLogps,
    examples: Sequence[TrainingExample],
    *,
    tokens_per_forward: int,
    workers: Workers | None = None,
    on_progress: OnRows | None = None,
) -> pd.DataFrame:
    """Compute the reference log-probabilities of all rows and KL pairs.

    Args:
        policy: the model; an adapter on it is switched off.
        examples: N rows.
        tokens_per_forward: most tokens in one forward pass.
        workers: the processes that share the rows; each returns the whole table.
        on_progress: called after each pass; the rows of the other processes are a guess.

    Returns:
        Rows of table ``reference_logps``, in the order of the examples.

    Raises:
        DataError: see :func:`~mralign_core.training.pairs.kl_partners`.
        OutOfMemory: and there are several processes, which have to start again together, or a row alone is too long.
    """
    partners = kl_partners(examples)
    rows = matched_rows(examples) + mismatched_rows(examples, partners)
    workers = workers or Workers()
    longest = max(map(num_tokens, rows))
    logps = with_less_memory(
        PassSize(tokens_per_forward),
        partial(_logps, policy, rows, workers, on_progress),
        partial(_smaller_passes, longest, workers.size),
    )
    frame = pd.DataFrame(
        {
            "trace_id": [example.trace_id for example in examples],
            "partner_trace_id": [examples[partner].trace_id for partner in partners],
            "logps": [row.astype(float).tolist() for row in logps[: len(examples)]],
            "kl_logp": [float(row.sum(dtype=np.float64)) for row in logps[len(examples) :]],
        }
    )
    return REFERENCE_LOGPS.require(frame)


def read_reference(table: pd.DataFrame, examples: Sequence[TrainingExample]) -> Reference:
    """The reference of some examples, from a table that may hold more.

    Raises:
        DataError: the table lacks a row, or was computed for other completions or other pairs.
    """
    stored = table.set_index("trace_id")
    partners = kl_partners(examples)
    for example, partner in zip(examples, partners, strict=True):
        name = example.trace_id
        if name not in stored.index:
            raise DataError(f"trace {name}: table 'reference_logps' has no such row; compute it for these candidates")
        if len(stored.at[name, "logps"]) != len(example.completion_ids):
            raise DataError(
                f"trace {name}: table 'reference_logps' has {len(stored.at[name, 'logps'])} tokens, the completion "
                f"{len(example.completion_ids)}; compute it for these candidates"
            )
        if stored.at[name, "partner_trace_id"] != examples[partner].trace_id:
            raise DataError(
                f"trace {name}: its KL pair in table 'reference_logps' is {stored.at[name, 'partner_trace_id']}, here "
                f"{examples[partner].trace_id}; compute the table for these candidates and this train.max_length"
            )
    rows = stored.loc[[example.trace_id for example in examples]]
    logps = [torch.tensor(np.asarray(values, dtype=np.float32)) for values in rows["logps"]]
    return Reference(partners, logps, [float(value) for value in rows["kl_logp"]])


def compute_reference(
    job: ReferenceJob, on_progress: OnRows | None = None, workers: Workers | None = None
) -> pd.DataFrame:
    """Reference log-probabilities of kept traces: from a table and a base model to a table.

    Args:
        job: model, settings and traces.
        on_progress: called with the rows done and the rows in all.
        workers: the processes that share the model.

    Returns:
        Rows of table ``reference_logps``, of the traces that are short enough.

    Raises:
        ConfigError: see :func:`~mralign_core.training.base.load_base`.
        NoCandidatesError: no trace is short enough.
        DataError: all traces ask one question; or see :func:`~mralign_core.training.examples.build_examples`.
    """
    workers = workers or Workers()
    model, end_token_id = load_base(job, workers)
    max_length = job.train.max_length
    examples = build_examples(job.candidates, None, end_token_id=end_token_id, max_length=max_length)
    if not examples.kept:
        raise NoCandidatesError(
            f"none of {len(job.candidates)} traces is within train.max_length {max_length}: raise it, or draw on "
            "more questions"
        )
    return reference_table(
        CompletionLogps(model, workers),
        examples.kept,
        tokens_per_forward=job.train.tokens_per_forward,
        workers=workers,
        on_progress=on_progress,
    )


def _smaller_passes(longest: int, num_processes: int, size: PassSize, error: Exception) -> PassSize:
    """The next smaller passes; see :func:`~mralign_core.models.out_of_memory.with_less_memory`.

    Raises:
        OutOfMemory: there are none, or several processes have to start again together.
    """
    smaller = size.smaller(longest, may_recompute=False)
    if smaller is None or num_processes > 1:
        raise OutOfMemory(
            f"out of memory in a reference pass of up to {max(size.tokens, longest)} tokens, the longest row has "
            f"{longest}: lower train.tokens_per_forward or train.max_length, set train.load_in_4bit, or share "
            f"the weights (train.accelerate_config, with train.engine 'own'). {str(error).splitlines()[0]}",
            size.fields(smaller),
        ) from error
    logger.warning("out of memory in a reference pass: going on with %d tokens a pass", smaller.tokens)
    return smaller


@torch.no_grad()
def _logps(
    policy: CompletionLogps, rows: Sequence[Row], workers: Workers, on_progress: OnRows | None, size: PassSize
) -> list[np.ndarray]:
    """Log-probability of each completion token of each row, in passes of a size."""
    lengths = list(map(num_tokens, rows))
    sizes = [len(completion) for _, completion in rows]
    flat = torch.zeros(sum(sizes), device=policy.device)
    parts, num_done = flat.split(sizes), 0
    passes = aligned_passes(range(len(rows)), lengths, size.tokens, workers.size, padded=not policy.is_packed)
    with policy.reference():
        for members, is_filler in passes[workers.rank]:
            logps = policy(policy.batch([rows[row] for row in members]))
            for row, part in zip(members, logps.split([sizes[row] for row in members]), strict=True):
                if not is_filler:
                    parts[row].copy_(part)
            num_done += len(members)
            if on_progress:
                on_progress(min(num_done * workers.size, len(rows)), len(rows))
    workers.add_up([flat])
    return [part.numpy() for part in flat.cpu().split(sizes)]
