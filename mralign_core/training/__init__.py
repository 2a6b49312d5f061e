"""LoRA training with the weighted KTO objective, and its baselines (§3.2.1, Table 13)."""

from mralign_core.training.examples import Examples, TrainingExample, build_examples
from mralign_core.training.fit import TrainingResult, train_adapter

__all__ = ["Examples", "TrainingExample", "TrainingResult", "build_examples", "train_adapter"]
