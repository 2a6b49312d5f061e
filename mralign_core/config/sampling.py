"""What both stages that sample share: the vLLM engine, a server, and what can't be set together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section, refuse_ignored
from mralign_core.config.endpoint import EndpointConfig

if TYPE_CHECKING:
    from mralign_core.config.evaluate import EvaluateConfig
    from mralign_core.config.generate import GenerateConfig


VLLM_PROVIDER = "hosted_vllm/"
"""What the name of a model begins with whose server is a vLLM of one's own."""
OWN_SERVER = EndpointConfig(model=f"{VLLM_PROVIDER}Qwen/Qwen3-8B", api_base="http://127.0.0.1:8000/v1")


class VllmConfig(Section):
    """The vLLM engine, where it samples: in this process, or in a server that the stage starts and stops."""

    tensor_parallel_size: int = Field(1, ge=1, le=64, json_schema_extra=OPERATIONAL)
    """GPUs that share one model."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, json_schema_extra=OPERATIONAL)
    """Share of each GPU's memory that the engine may take."""
    max_model_len: int = Field(0, ge=0, json_schema_extra=OPERATIONAL)
    """Longest prompt plus completion, in tokens; 0 takes the model's own."""
    environment: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """Virtual environment with a vLLM, from which a stage starts a server of its own and stops it; used with sampler
    `endpoint` where the endpoint is a `hosted_vllm/` model without api_base."""
    start_timeout_s: float = Field(900.0, gt=0, le=86_400, json_schema_extra=OPERATIONAL)
    """Seconds that such a server may take to start."""
    log_folder: LocalPath = Field(".mralign/vllm", min_length=1, json_schema_extra=OPERATIONAL)
    """Folder for what such a server prints, a file each."""

    def starts_for(self, section: GenerateConfig | EvaluateConfig) -> bool:
        """Whether a stage starts a server of its own."""
        is_ours = section.endpoint.model.startswith(VLLM_PROVIDER) and not section.endpoint.api_base
        return section.sampler == "endpoint" and is_ours and bool(self.environment)


def refuse_options_of_servers(section: GenerateConfig | EvaluateConfig, path: str, of_server: tuple[str, ...]) -> None:
    """Refuse what says how a server samples where none does, and what its endpoint says beside the section.

    Args:
        section: of the stage.
        path: its name.
        of_server: its fields that only sampler `endpoint` reads.
    """
    if section.sampler != "endpoint":
        refuse_ignored(section, path, of_server, f"when {path}.sampler is {section.sampler!r}")
    else:
        decoded = ("temperature", "max_output_tokens", "response_format")
        refuse_ignored(section.endpoint, f"{path}.endpoint", decoded, f"beside {path}.temperature and max_new_tokens")


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
