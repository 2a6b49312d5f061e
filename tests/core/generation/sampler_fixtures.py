"""The samplers that keep one contract, opened as the pipeline opens them, each over the same tiny taught model."""

import contextlib
import importlib
import sys
from pathlib import Path

import torch
from model_server import ModelServer
from peft import LoraConfig, get_peft_model

from mralign_core.config import RunConfig
from mralign_core.generation.open_sampler import open_sampler
from mralign_core.llm.client import LLMClient
from mralign_core.models.adapter_files import StoredAdapter
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.locate import ModelLocation
from tests.kept_replies import MemoryReplyStore

STAND_IN = Path(__file__).resolve().parents[2] / "vllm_stand_in"


def opened(directory, *, stage="generate", adapter_dir=None, open_client=None, vllm=None, **generate):
    """A sampler by its config; what is not named for the stage is a field of section ``generate``."""
    values = {
        "questions": {"train": ["questions.jsonl"]},
        "model": {"path": str(directory), "dtype": "float32", "device": "cpu"},
        "generate": {"instruction": "", **({} if stage == "evaluate" else generate)},
        "evaluate": generate if stage == "evaluate" else {},
        "vllm": vllm or {},
    }
    location = ModelLocation(str(directory), "")
    config = RunConfig.model_validate(values)
    adapter = StoredAdapter("kto", "0" * 64, Path(adapter_dir)) if adapter_dir else None
    return open_sampler(config, location, stage=stage, adapter=adapter, open_client=open_client)


def endpoint_sampler(directory, server, replies=None):
    client = LLMClient(MemoryReplyStore() if replies is None else replies, concurrency=8, first_pause_s=0.01)
    endpoint = {"model": "hosted_vllm/taught", "api_base": server.url, "timeout_s": 20.0, "max_attempts": 1}
    return opened(directory, sampler="endpoint", endpoint=endpoint, open_client=lambda: client)


def transformers_sampler(directory, adapter_dir=None):
    return opened(directory, batch_size=5, stage="evaluate", adapter_dir=adapter_dir)


def vllm_sampler(directory, adapter_dir=None, **vllm):
    return opened(directory, sampler="vllm", stage="evaluate", adapter_dir=adapter_dir, vllm=vllm)


def save_adapter(directory, folder, *, std=0.3, seed=1):
    """Write a LoRA adapter of rank 20 that changes what the model says; one of ``std`` 0 changes nothing."""
    model, _ = load_model_and_tokenizer(directory, "float32", "cpu")
    adapted = get_peft_model(model, LoraConfig(r=20, lora_alpha=40, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name and std:
            weight.data.normal_(std=std, generator=generator)
    adapted.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def stand_in_for_vllm():
    """While it lasts, ``import vllm`` finds the stand-in."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "vllm"}
    sys.path.insert(0, str(STAND_IN))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(STAND_IN))
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules |= hidden


@contextlib.contextmanager
def model_server(directory, shows="tokens", **options):
    server = ModelServer(*load_model_and_tokenizer(directory, "float32", "cpu"), shows, **options)
    try:
        yield server
    finally:
        server.close()
