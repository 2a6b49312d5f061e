"""What ``bin/vllm`` of an environment runs in tests: ``serve`` with vLLM's arguments, over a real tiny model."""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE / "core" / "generation")]


def install(environment):
    """Put a program ``vllm`` that runs this file into a new environment; returns the environment."""
    program = Path(environment, "bin", "vllm")
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    program.chmod(0o755)
    return environment


def serve():
    from model_server import AdapterServer

    from mralign_core.models.load import load_model_and_tokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    for name in ("served-model-name", "host", "dtype", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "tensor-parallel-size", "max-loras", "max-lora-rank", "max-model-len"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    for name in ("enable-lora", "enable-prefix-caching"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(given.model, given.dtype, "cpu")
    is_told = given.enable_lora and os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    server = AdapterServer(
        model,
        tokenizer,
        base=given.served_model_name,
        is_told=is_told,
        port=given.port,
        key=os.environ["VLLM_API_KEY"],
    )
    server.serving.join()


if __name__ == "__main__":
    serve()
