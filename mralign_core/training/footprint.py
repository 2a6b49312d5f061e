"""Will a training job fit its device, and how long will it take: asked before the first step.

What one process holds is the sum of

* the frozen weights; where they are sharded, its share, and what a layer gathers while it runs;
* adapter, gradient and Adam's two moments: 16 bytes a trainable parameter, all float32;
* activations. They are measured: two short passes through the real model with its adapter, counting the storages
  that autograd keeps, give bytes a token. The backward pass adds the gradients of a layer and a quarter. With
  recomputation only the hidden states before the layers are kept, and one layer at a time is there in full;
* the logits of one chunk of the output head.

Time comes from forward passes of the same model on the same device, timed for a moment.

Against the peak of PyTorch's allocator on a CPU (small Qwen3, Qwen3-MoE and Llama, float32 and bfloat16) the estimate
of activations is 1.06 to 1.13 times the truth, with recomputation 1.17 to 1.42 times. Work space that kernels keep for
themselves is not in it. Estimates of time were 0.7 to 1.1 times the truth.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.models.load import load_model_config, resolve_device
from mralign_core.models.lora import adapter_autocast
from mralign_core.training.logps import chunk_elements
from mralign_core.training.memory import PassSize, ways_to_smaller_passes, ways_to_smaller_weights

logger = logging.getLogger("mralign_core.training")

MEASURED_TOKENS = (64, 128)
BYTES_PER_TRAINED = 16
"""Float32 weight, gradient and Adam's two moments."""
BYTES_PER_LOGIT = 12
"""Logits as the head gives them, in float32, and their gradient."""
NF4_BYTES = 0.516
"""A 4-bit weight, with one 8-bit scale for 64 of them and one float32 scale for 256 of those."""
USABLE_SHARE = 0.92
"""The rest is for fragments of the allocator and work space of the kernels."""
GRADIENT_LAYERS = 1.25
"""Of how many layers' activations the backward pass holds the gradients at a time, at most."""
BACKWARD = 1.6
"""Time of a backward pass over that of a forward pass without gradient, with frozen base weights."""
TIMED_SECONDS = 0.1
SHARDED_TOKENS = 2048
CGROUPS = Path("/sys/fs/cgroup")

Run = Callable[[int], object]
"""Makes one forward pass of so many tokens with gradients, and returns what keeps its graph alive."""


class TrainingLoad(NamedTuple):
    """What is trained on, and on what."""

    lengths: Mapping[str, int]
    """Tokens of prompt and completion of each row, by trace id."""
    device: torch.device
    rows_per_epoch: int
    """Rows seen in an epoch; more than there are means that they come again."""
    is_kto: bool = True
    """KTO also makes passes for the KL baseline and the reference; SFT does not."""
    num_processes: int = 1
    is_sharded: bool = False
    """Whether the processes share the frozen weights (FSDP), rather than hold a copy each."""

    @property
    def longest(self) -> tuple[str, int]:
        """Trace id and tokens of the longest row."""
        return max(self.lengths.items(), key=lambda item: item[1])

    def step_tokens(self, section: TrainConfig) -> int:
        """Most tokens that one process sees in an optimiser step: no pass can hold more."""
        rows = math.ceil(section.global_batch_size / self.num_processes)
        return sum(sorted(self.lengths.values())[-rows:])


class PassCost(NamedTuple):
    """What one forward pass of the model with its adapter keeps for its backward pass."""

    bytes_per_token: float
    """Kept for each token."""
    fixed_bytes: float
    """Kept whatever the number of tokens, such as adapter weights in the precision of the pass."""
    hidden_bytes_per_token: float
    """The hidden states before all layers, which are what recomputation keeps."""
    num_layers: int

    def activation_bytes(self, tokens: int, recompute: bool) -> int:
        """Peak of a forward and backward pass of so many tokens."""
        everything = self.fixed_bytes + tokens * self.bytes_per_token
        one_layer = everything / self.num_layers
        until_backward = tokens * self.hidden_bytes_per_token + one_layer if recompute else everything
        return round(until_backward + GRADIENT_LAYERS * one_layer)

    def tokens_within(self, budget: float, recompute: bool) -> int:
        """Most tokens whose activations stay within a budget of bytes."""
        fixed = self.activation_bytes(0, recompute)
        return max(0, int((budget - fixed) / (self.activation_bytes(1, recompute) - fixed)))


class Footprint(NamedTuple):
    """Bytes that one training process holds at its peak, bytes there are, and seconds that the job takes."""

    weights: int
    adapter: int
    activations: int
    head: int
    memory: int
    seconds: float

    @property
    def total(self) -> int:
        """Bytes needed."""
        return self.weights + self.adapter + self.activations + self.head

    @property
    def activation_budget(self) -> float:
        """Bytes that activations may take beside the rest."""
        return self.memory * USABLE_SHARE - self.weights - self.adapter - self.head


class Plan(NamedTuple):
    """How the passes are made, and the estimate behind it."""

    passes: PassSize
    footprint: Footprint


def plan_passes(section: TrainConfig, model: Any, load: TrainingLoad, run: Run | None = None) -> Plan:
    """Choose tokens per pass and recomputation so that the job fits, and log what it needs.

    Fewer tokens per pass come first: they cost no operations. Recomputation comes where the longest row alone needs
    it. Neither changes a result beyond rounding.

    Args:
        section: the train section of the config.
        model: the base model with its adapter on its device, activations not recomputed.
        load: the rows and the device.
        run: the forward pass that training makes; otherwise one padded row through ``model``.

    Raises:
        ConfigError: the longest row alone does not fit.
    """
    run = _with_own_random_state(run or _padded_row(model), load.device)
    wanted = min(section.tokens_per_forward, load.step_tokens(section))
    cost = measure_pass(model, run)
    held = _held(model, load, wanted)
    trace_id, longest = load.longest
    recompute = decide_checkpointing(section, cost, held, longest)
    within = cost.tokens_within(held.activation_budget, recompute)
    tokens = section.tokens_per_forward if within >= wanted else within
    pass_tokens = max(longest, min(wanted, within))
    footprint = held._replace(activations=cost.activation_bytes(pass_tokens, recompute))
    if within < longest:
        raise ConfigError(_does_not_fit(footprint, section, trace_id, longest))
    if tokens < section.tokens_per_forward:
        logger.warning("train.tokens_per_forward %d does not fit; passes take %d", section.tokens_per_forward, tokens)
    footprint = footprint._replace(seconds=_seconds(section, load, run, recompute))
    logger.info("%s", describe(footprint, section, recompute))
    return Plan(PassSize(tokens, recompute), footprint)


def decide_checkpointing(section: TrainConfig, cost: PassCost, held: Footprint, longest: int) -> bool:
    """Whether to recompute activations: as the config says, and by ``auto`` where the longest row needs it.

    Args:
        section: the train section of the config.
        cost: what a pass keeps.
        held: everything but activations.
        longest: tokens of the longest row.
    """
    if section.gradient_checkpointing != "auto":
        return section.gradient_checkpointing == "always"
    return cost.tokens_within(held.activation_budget, recompute=False) < longest


def measure_pass(model: Any, run: Run) -> PassCost:
    """Measure what a forward pass keeps, from two short ones.

    Args:
        model: the model with its adapter, activations not recomputed.
        run: see :func:`plan_passes`.
    """
    few, many = (_kept_bytes(model, run, tokens) for tokens in MEASURED_TOKENS)
    bytes_per_token = max(1.0, (many - few) / (MEASURED_TOKENS[1] - MEASURED_TOKENS[0]))
    config = model.config.get_text_config()
    return PassCost(
        bytes_per_token=bytes_per_token,
        fixed_bytes=max(0.0, many - bytes_per_token * MEASURED_TOKENS[1]),
        hidden_bytes_per_token=config.num_hidden_layers * config.hidden_size * model.dtype.itemsize,
        num_layers=config.num_hidden_layers,
    )


def check_weights_fit(
    path: str | Path,
    dtype: str,
    device: str = "auto",
    *,
    load_in_4bit: bool = False,
    num_shards: int = 1,
    revision: str = "",
) -> int:
    """Refuse a base model whose weights alone do not fit, from its configuration, before they are loaded.

    Args:
        path: folder or hub id of the base model.
        dtype: precision of the weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        load_in_4bit: whether the linear layers but the head take 4 bits a weight.
        num_shards: processes that share the weights; 1 where each holds all of them.
        revision: hub revision of the base model.

    Returns:
        Bytes that the weights take in one process.

    Raises:
        ConfigError: they are more than the device has free.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_model_config(path, revision), dtype=getattr(torch, dtype))
    needed = _weight_bytes_of_config(model, load_in_4bit) // num_shards
    free = free_memory(torch.device(resolve_device(device)))
    if needed > free * USABLE_SHARE:
        raise ConfigError(
            f"model.path {str(path)!r} in {dtype}: its weights take {_gigabytes(needed)} a device, and "
            f"{_gigabytes(free)} are free; {ways_to_smaller_weights(load_in_4bit)}"
        )
    return needed


def free_memory(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that this process may still take on a device.

    Args:
        device: a GPU, or the CPU, where limits of control groups count as well.
        num_processes: processes that share the host's memory; each has a GPU of its own.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    limits = [psutil.virtual_memory().available, *_cgroup_free()]
    return int(min(limits)) // num_processes


def describe(footprint: Footprint, section: TrainConfig, recompute: bool) -> str:
    """One line for people: what takes how much memory, and how long the job takes."""
    return (
        f"model {_gigabytes(footprint.weights)}, adapter and Adam {_gigabytes(footprint.adapter)}, activations"
        f"{' (recomputed)' if recompute else ''} and logits {_gigabytes(footprint.activations + footprint.head)}, "
        f"of {_gigabytes(footprint.memory)}; about {_duration(footprint.seconds)} for {section.num_epochs} epoch(s)"
    )


def _held(model: Any, load: TrainingLoad, tokens: int) -> Footprint:
    """Everything but activations and time."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    num_words = model.get_output_embeddings().weight.shape[0]
    return Footprint(
        weights=_frozen_bytes(model, load.num_processes if load.is_sharded else 1),
        adapter=BYTES_PER_TRAINED * trained,
        activations=0,
        head=BYTES_PER_LOGIT * min(chunk_elements(load.device), tokens * num_words),
        memory=free_memory(load.device, load.num_processes) + _bytes_on(model, load.device),
        seconds=0.0,
    )


def _frozen_bytes(model: nn.Module, num_shards: int) -> int:
    sizes = {name: _bytes(parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    total = sum(sizes.values())
    if num_shards == 1:
        return total
    # While a layer runs, it and the next one are gathered; embeddings and head stay so for the whole pass.
    in_layers = sum(size for name, size in sizes.items() if ".layers." in name)
    num_layers = len({name.split(".layers.")[1].split(".")[0] for name in sizes if ".layers." in name})
    return total // num_shards + 2 * in_layers // max(num_layers, 1) + total - in_layers


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _bytes_on(model: nn.Module, device: torch.device) -> int:
    return sum(_bytes(part) for part in map(_local, model.parameters()) if part.device.type == device.type)


def _local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter, which is all of it unless it is sharded."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _weight_bytes_of_config(model: PreTrainedModel, load_in_4bit: bool) -> int:
    head = model.get_output_embeddings()
    quantised = {
        id(module.weight)
        for module in model.modules()
        if load_in_4bit and isinstance(module, nn.Linear) and module is not head
    }
    return round(
        sum(
            parameter.numel() * (NF4_BYTES if id(parameter) in quantised else parameter.element_size())
            for parameter in model.parameters()
        )
    )


def _kept_bytes(model: nn.Module, run: Run, tokens: int) -> int:
    """Bytes of the distinct storages that autograd keeps in a forward pass, parameters left out."""
    storages: list[torch.UntypedStorage] = []

    def pack(tensor: Tensor) -> Tensor:
        storages.append(tensor.untyped_storage())
        return tensor.detach()  # a node that keeps its own output would hold itself, and all of the model, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(tokens)
    # By now weights that were gathered for a layer only are freed, so no two storages share an address.
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    parameters = {_local(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for address, size in sizes.items() if address not in parameters)


def _with_own_random_state(run: Run, device: torch.device) -> Run:
    """Dropout in a measured pass must not move the random numbers of the training that follows."""

    def undisturbed(tokens: int) -> object:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return run(tokens)

    return undisturbed


def _padded_row(model: Any) -> Run:
    def run(tokens: int) -> object:
        input_ids = torch.arange(tokens, device=model.device)[None] % model.config.vocab_size
        with adapter_autocast(model):
            return model(input_ids=input_ids, logits_to_keep=1, use_cache=False).logits

    return run


def _seconds(section: TrainConfig, load: TrainingLoad, run: Run, recompute: bool) -> float:
    """Of the job: in each epoch forward, its gradient, recomputation and KL pass; and two reference passes."""
    tokens = sum(load.lengths.values()) / load.num_processes
    forward = tokens * _seconds_per_token(run, load)
    kl_share = 1 / section.kl_every if load.is_kto else 0.0
    per_epoch = load.rows_per_epoch / len(load.lengths) * forward * (1 + BACKWARD + recompute + kl_share)
    reference = 2 * forward if load.is_kto else 0.0
    return section.num_epochs * per_epoch + reference


def _seconds_per_token(run: Run, load: TrainingLoad) -> float:
    """Time passes without gradient over ever longer rows, until the fixed cost of a pass does not show."""
    _, longest = load.longest
    # Processes that share the weights must make the same passes, or each would wait for the other's part.
    tokens = min(SHARDED_TOKENS if load.is_sharded else MEASURED_TOKENS[0], longest)
    while True:
        start = time.perf_counter()
        with torch.no_grad():
            run(tokens)
        if load.device.type == "cuda":
            torch.cuda.synchronize(load.device)
        seconds = time.perf_counter() - start
        if load.is_sharded or seconds > TIMED_SECONDS or tokens == longest:
            return seconds / tokens
        tokens = min(2 * tokens, longest)


def _does_not_fit(footprint: Footprint, section: TrainConfig, trace_id: str, longest: int) -> str:
    recompute = section.gradient_checkpointing != "never"
    ways = ways_to_smaller_passes(section, recompute, longest)
    return (
        f"training needs {_gigabytes(footprint.total)} for one pass of the longest row (trace {trace_id}, {longest} "
        f"tokens{', activations recomputed' if recompute else ''}) and the device has {_gigabytes(footprint.memory)}: "
        f"model {_gigabytes(footprint.weights)}, adapter and Adam {_gigabytes(footprint.adapter)}, activations and "
        f"logits {_gigabytes(footprint.activations + footprint.head)}; {'; or '.join(ways)}"
    )


def _cgroup_free() -> list[int]:
    """Bytes left under the limit of each control group that this process is in, version 1 or 2."""
    free = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        limit_file, usage_file = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        group = root / path.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            limit, usage = _read(folder / limit_file).strip(), _read(folder / usage_file).strip()
            if limit.isdigit() and usage.isdigit():
                free.append(int(limit) - int(usage) + _reclaimable(_read(folder / "memory.stat")))
    return free


def _reclaimable(statistics: str) -> int:
    """Bytes of cached files not in use, which a control group counts as used."""
    values = dict(line.split(" ", 1) for line in statistics.splitlines())
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
