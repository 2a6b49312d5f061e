"""What :mod:`mralign_core.training.doctor` finds in the trainings of a run, from what the store has of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from mralign_core.config import TrainConfig
from mralign_core.errors import ArtifactError
from mralign_core.reporting.markdown import literal
from mralign_core.reporting.titles import variant_title
from mralign_core.schemas.base import Table
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.doctor import Fault, TrainingRecord, find_faults

TrainingHealth = Mapping[str, Sequence[Fault]]
"""Variant → what is wrong with its training."""
LengthsOf = Callable[[ArtifactRef | None], tuple[np.ndarray | None, np.ndarray | None]]
TRAINED_ON = ("training-traces", "candidates")
"""Artifacts that adapters are trained on: chosen traces, or all."""
UNTRAINED = "scores:on"
"""The answers of the model without an adapter."""
HEALTHY = "nothing that the doctor knows is wrong with it"


def examine(store: ArtifactStore, artifacts: Mapping[str, ArtifactRef]) -> TrainingHealth:
    """What is wrong with each training of a run.

    Args:
        store: where the run's artifacts are.
        artifacts: by the names that runs have for them: ``adapter:kto``; ``scores:on`` and ``scores:kto`` where answers
            have been scored; ``policy-logps:kto`` where ``train.trace_logps`` asked for it. What else counts is found
            as the adapter's parents.

    Raises:
        ArtifactError: an adapter is damaged.
    """
    return {variant: find_faults(record) for variant, record in read_trainings(store, artifacts).items()}


def read_trainings(store: ArtifactStore, artifacts: Mapping[str, ArtifactRef]) -> dict[str, TrainingRecord]:
    """Variant → what the store has of its training; what is gone is not known.

    Args:
        store: where the run's artifacts are.
        artifacts: as for :func:`examine`.

    Raises:
        ArtifactError: an adapter is damaged.
    """
    lengths = functools.cache(partial(_lengths, store))  # variants are trained on the same traces
    before = _answer_tokens(store, artifacts.get(UNTRAINED))
    return {
        variant: _with_length_correlation(
            _read_training(store, adapter, variant, lengths),
            _implicit_rewards(store, adapter, artifacts.get(f"policy-logps:{variant}")),
        )._replace(answers_before=before, answers_after=_answer_tokens(store, artifacts.get(f"scores:{variant}")))
        for kind, _, variant in (name.partition(":") for name in artifacts)
        if kind == "adapter" and (adapter := artifacts[f"adapter:{variant}"])
    }


def _read_training(store: ArtifactStore, adapter: ArtifactRef, variant: str, lengths: LengthsOf) -> TrainingRecord:
    """What there is of a training but for the answers after it."""
    manifest = store.manifest(adapter)
    settings = {**TrainConfig().fingerprint(), **manifest.fingerprint.get("settings", {})}
    parents = {each.stage: each for each in manifest.parents}
    positive, negative = lengths(next((parents[stage] for stage in TRAINED_ON if stage in parents), None))
    weights = _columns(store, parents.get("weights"), "weights.parquet", SEGMENT_WEIGHTS, ["weight", "clipped"])
    return TrainingRecord(
        variant,
        store.read_table(adapter, "metrics.parquet"),
        beta=settings["beta"],
        desirable_weight=settings["desirable_weight"],
        undesirable_weight=settings["undesirable_weight"],
        num_positive=manifest.counts.get("positive", 0),
        num_negative=manifest.counts.get("negative", 0),
        weights=None if weights is None else weights["weight"].to_numpy(),
        clipped=None if weights is None else weights["clipped"].to_numpy(),
        positive_lengths=positive,
        negative_lengths=negative,
    )


def _implicit_rewards(store: ArtifactStore, adapter: ArtifactRef, logps: ArtifactRef | None) -> pd.DataFrame | None:
    """Columns ``is_positive``, ``num_tokens`` and ``implicit_reward`` of each trace under an adapter."""
    after = _columns(store, logps, "policy.parquet", POLICY_LOGPS, ["trace_id", "num_tokens", "implicit_reward"])
    if after is None or logps is None:
        return None
    parents = {each.stage: each for each in store.manifest(logps).parents}
    if parents[adapter.stage].sha256 != adapter.sha256:
        return None
    traces = next((parents[stage] for stage in TRAINED_ON if stage in parents), None)
    labels = _columns(store, traces, "candidates.parquet", CANDIDATES, ["trace_id", "polarity"])
    if labels is None:
        return None
    polarity = after["trace_id"].map(labels.set_index("trace_id")["polarity"])
    return after.assign(is_positive=polarity == "positive")


def _with_length_correlation(record: TrainingRecord, implicit_rewards: pd.DataFrame | None) -> TrainingRecord:
    """As TRL's curves have it, here of all traces after the last step, so the same at all steps that are looked at."""
    if implicit_rewards is None or record.variant == "sft":
        return record
    import torch  # it and TRL take seconds to import, which a run without this table is spared

    from mralign_core.training.trl_kto import length_correlation

    rows = {
        "label": torch.tensor(implicit_rewards["is_positive"].to_numpy(dtype=bool)),
        "completion_mask": torch.tensor(implicit_rewards["num_tokens"].to_numpy(dtype=int))[:, None],
    }
    correlation = length_correlation(torch.tensor(implicit_rewards["implicit_reward"].to_numpy(dtype=float)), rows)
    return record._replace(metrics=record.metrics.assign(length_correlation=correlation.item()))


def health_lines(health: TrainingHealth) -> list[str]:
    """A line a fault, for a log or a terminal."""
    return [
        f"{variant_title(name)}: {each.name}: {each.sentence()}" for name, found in health.items() for each in found
    ]


def health_markdown(health: TrainingHealth) -> str:
    """The faults of each variant, for a page."""
    return "\n\n".join(
        f"**{variant_title(variant)}**\n\n" + ("\n".join(map(_bullet, found)) or f"- {HEALTHY}")
        for variant, found in health.items()
    )


def _bullet(fault: Fault) -> str:
    return f"- **{literal(fault.name)}**: {literal(fault.says)}. *Try:* {literal(fault.to_try)}."


def _columns(
    store: ArtifactStore, ref: ArtifactRef | None, file: str, table: Table, columns: list[str]
) -> pd.DataFrame | None:
    """Some columns of a table; None where there is no such artifact, or it is gone."""
    try:
        return None if ref is None else store.read_columns(ref, file, table, columns)
    except ArtifactError:
        return None


def _lengths(store: ArtifactStore, traces: ArtifactRef | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Completion tokens of the positive traces, and of the negative ones."""
    rows = _columns(store, traces, "candidates.parquet", CANDIDATES, ["polarity", "completion_ids"])
    if rows is None:
        return None, None
    lengths = rows["completion_ids"].map(len).to_numpy()
    return lengths[rows["polarity"] == "positive"], lengths[rows["polarity"] == "negative"]


def _answer_tokens(store: ArtifactStore, scores: ArtifactRef | None) -> np.ndarray | None:
    rows = _columns(store, scores, "scores.parquet", SCORES, ["num_tokens"])
    return None if rows is None else rows["num_tokens"].to_numpy()
