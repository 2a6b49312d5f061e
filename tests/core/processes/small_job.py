"""A job that processes train together, in seconds."""

from mralign_core.config import ModelConfig, TrainConfig
from mralign_core.training.job import TrainingJob
from tests.core.training.tiny import make_candidates, make_segment_weights

LONG = {"num_epochs": 24, "learning_rate": 1e-4, "tokens_per_forward": 40, "checkpoint_minutes": 0.005}
"""Settings of a training with enough steps and checkpoints that a process can be killed in the middle."""


def small_job(model_dir, directory, train, **fields):
    """A training of ``mr_align`` on nine traces.

    Args:
        model_dir: folder of the model.
        directory: where the adapter is written.
        train: settings of section ``train`` beside the adapter's size.
        fields: of the job.
    """
    candidates = make_candidates(9, num_questions=5)
    return TrainingJob(
        model_path=str(model_dir),
        train=TrainConfig(lora_r=4, lora_alpha=8, global_batch_size=8, max_length=64, **train),
        candidates=candidates,
        segment_weights=make_segment_weights(candidates),
        variant="mr_align",
        seed=0,
        directory=directory,
        facts={},
        **{"model": ModelConfig(path=str(model_dir), dtype="float32", cpu_threads=1), **fields},
    )
