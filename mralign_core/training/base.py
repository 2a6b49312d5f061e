"""Load the base model to train on, or refuse it."""

from __future__ import annotations

from typing import Any

from mralign_core.errors import ConfigError
from mralign_core.generation.control_tokens import turn_end_id
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.training.footprint import check_weights_fit
from mralign_core.training.job import ReferenceJob
from mralign_core.training.workers import Workers


def load_base(job: ReferenceJob, workers: Workers) -> tuple[Any, int]:
    """The base model, and the token that ends a completion whose own end is not known.

    Args:
        job: names the model, its precision and its device.
        workers: the processes that share the model; where its weights are to be spread over them, it stays on the CPU.

    Raises:
        ConfigError: a precision that can't be trained or spread over devices, or weights that do not fit the device.
    """
    dtype, load_in_4bit = job.model.dtype, job.train.load_in_4bit
    if dtype == "float16":
        raise ConfigError("model.dtype 'float16' can't be trained without loss scaling: use 'bfloat16' or 'float32'")
    if load_in_4bit and workers.is_sharded:
        raise ConfigError(
            "train.load_in_4bit does not go with an FSDP file in train.accelerate_config: leave one of them out"
        )
    check_weights_fit(
        job.model_path,
        dtype,
        job.model.device,
        load_in_4bit=load_in_4bit,
        num_shards=workers.size if workers.is_sharded else 1,
        revision=job.revision,
    )
    # Weights that are to be spread over devices are loaded on the CPU: one device could not hold all of them.
    device = "cpu" if workers.is_sharded else job.model.device
    model, tokenizer = load_model_and_tokenizer(
        job.model_path, dtype, device, revision=job.revision, load_in_4bit=load_in_4bit
    )
    end = turn_end_id(tokenizer, getattr(model, "generation_config", None), model.config)
    if end is None:
        raise ConfigError(
            f"model.path {job.model_path!r}: its tokenizer has no end token, so the model could not learn where to "
            "stop; set eos_token in tokenizer_config.json"
        )
    return model, end
