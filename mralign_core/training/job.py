"""What is to be trained, in one frozen value: base model, settings, and the tables of earlier stages.

A stage makes one, and training takes it as it is, in this process (:mod:`.fit`, :mod:`.reference`) or in those of
``train.accelerate_config`` (:mod:`mralign_core.processes.launch`, which writes it to files and reads it back).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ConfigDict, Field

from mralign_core.config import ModelConfig, Section, StorageConfig, TrainConfig, Variant


class ReferenceJob(Section):
    """What the reference log-probabilities take."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model_path: str
    """Folder or hub id of the base model."""
    revision: str = ""
    """Hub revision of the base model; empty for the newest."""
    model: ModelConfig
    """The model section of the config: its name, not ``model_path``, is recorded as the base model."""
    train: TrainConfig
    """The train section of the config."""
    candidates: pd.DataFrame = Field(exclude=True)
    """Rows of table ``candidates``."""


class TrainingJob(ReferenceJob):
    """What an adapter takes."""

    variant: Variant
    seed: int
    """Of the adapter's initial weights, the order of the rows, and dropout."""
    segment_weights: pd.DataFrame | None = Field(None, exclude=True)
    """Rows of table ``segment_weights``; for ``mr_align`` only, the baselines ignore weights."""
    reference: pd.DataFrame | None = Field(None, exclude=True)
    """Rows of table ``reference_logps``; computed first where there are none. SFT needs none."""
    directory: Path
    """Where the adapter goes; only the main process writes."""
    facts: dict[str, Any]
    """For the model card by name, such as the yield of the earlier stages: JSON values."""
    storage: StorageConfig | None = None
    """The store that keeps the checkpoints; None keeps none."""
    key: str = ""
    """Cache key of the adapter, under which they are kept."""
