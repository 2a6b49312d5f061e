"""The samplers that keep one contract, opened as the pipeline opens them, each over the same tiny taught model."""

import contextlib
import importlib
import sys
from pathlib import Path

from model_server import ModelServer

from mralign_core.config import RunConfig
from mralign_core.generation.open_sampler import open_sampler
from mralign_core.llm.client import LLMClient
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
    return open_sampler(config, location, stage=stage, adapter_dir=adapter_dir, open_client=open_client)


def endpoint_sampler(directory, server, replies=None):
    client = LLMClient(MemoryReplyStore() if replies is None else replies, concurrency=8, first_pause_s=0.01)
    endpoint = {"model": "hosted_vllm/taught", "api_base": server.url, "timeout_s": 20.0, "max_attempts": 1}
    return opened(directory, sampler="endpoint", endpoint=endpoint, open_client=lambda: client)


def transformers_sampler(directory, adapter_dir=None):
    return opened(directory, batch_size=5, stage="evaluate", adapter_dir=adapter_dir)


def vllm_sampler(directory, adapter_dir=None, **vllm):
    return opened(directory, sampler="vllm", stage="evaluate", adapter_dir=adapter_dir, vllm=vllm)


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
