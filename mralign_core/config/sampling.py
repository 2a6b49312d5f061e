"""What both stages that sample share: the vLLM engine, and what can't be set together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mralign_core.config.base import OPERATIONAL, Section

if TYPE_CHECKING:
    from mralign_core.config.evaluate import EvaluateConfig
    from mralign_core.config.generate import GenerateConfig


class VllmConfig(Section):
    """The vLLM engine, where it samples."""

    tensor_parallel_size: int = Field(1, ge=1, le=64, json_schema_extra=OPERATIONAL)
    """GPUs that share one model."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, json_schema_extra=OPERATIONAL)
    """Share of each GPU's memory that the engine may take."""
    max_model_len: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Longest prompt plus completion, in tokens; 0 takes the model's own."""


def refuse_equal_draws(section: GenerateConfig | EvaluateConfig, path: str) -> None:
    """Refuse several draws that can't differ."""
    if section.num_draws > 1 and section.temperature == 0:
        raise ValueError(
            f"{path}.num_draws is {section.num_draws}, but at {path}.temperature 0 all draws of a question are equal: "
            "set num_draws to 1, or raise the temperature"
        )


def refuse_vllm_in_threads(section: GenerateConfig | EvaluateConfig, path: str) -> None:
    """Refuse several threads for an engine that uses all GPUs from one."""
    if section.sampler == "vllm" and section.where == "threads":
        raise ValueError(
            f"{path}.where 'threads' can't be used with sampler 'vllm', whose one engine a process fills its GPUs by "
            "itself: set it to 'inline', or to 'deployment' for several hosts"
        )
