"""LoRA training with the weighted KTO objective, and its baselines (§3.2.1, Table 13)."""

from mralign_core.training.examples import Examples, TrainingExample, build_examples
from mralign_core.training.fit import TrainingResult, Watch, train_adapter
from mralign_core.training.reference import compute_reference

__all__ = [
    "Examples",
    "TrainingExample",
    "TrainingResult",
    "Watch",
    "build_examples",
    "compute_reference",
    "train_adapter",
]
