"""Will a training job fit its device, and how long will it take: asked before the first step.

What one process holds is the sum of

* the frozen weights; where they are sharded, its share, and what a layer gathers while it runs;
* adapter, gradient and Adam's two moments: 16 bytes a trainable parameter, all float32;
* activations. They are measured: two short passes through the real model with its adapter, counting the storages
  that autograd keeps, give bytes a token. The backward pass adds the gradients of about one layer. With
  recomputation only the hidden states before the layers are kept, and one layer at a time is there in full;
* the logits of one chunk of the output head.

Time is operations over the matrix rate measured on the device, of which training reaches ``UTILISATION``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from mralign_core.config import TrainConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.loading import load_config, resolve_device
from mralign_core.training.lora import adapter_autocast

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
UTILISATION = 0.5
"""Share of the measured matrix rate that training reaches."""
MATMUL_SECONDS = 0.2
CGROUPS = Path("/sys/fs/cgroup")

Run = Callable[[int], object]
"""Makes one forward pass of so many tokens with gradients, and returns what keeps its graph alive."""


class Job(NamedTuple):
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
    head_chunk_tokens: int = 1024
    """Positions whose logits are in memory at one time."""

    @property
    def longest(self) -> tuple[str, int]:
        """Trace id and tokens of the longest row."""
        return max(self.lengths.items(), key=lambda item: item[1])

    def step_tokens(self, section: TrainConfig) -> int:
        """Most tokens that one process sees in an optimiser step: no pass can hold more."""
        rows = math.ceil(section.global_batch_size / self.num_processes)
        return sum(sorted(self.lengths.values())[-rows:])


class PassCost(NamedTuple):
    """What one forward pass of the model with its adapter keeps and computes."""

    bytes_per_token: float
    """Kept for the backward pass."""
    fixed_bytes: float
    """Kept whatever the number of tokens, such as adapter weights in the precision of the pass."""
    layer_bytes_per_token: float
    """One layer's part of the first."""
    hidden_bytes_per_token: float
    """The hidden states before all layers, which are what recomputation keeps."""
    operations_per_token: float
    """Multiplications and additions."""

    def activation_bytes(self, tokens: int, recompute: bool) -> int:
        """Peak of a forward and backward pass of so many tokens."""
        return round(self.fixed_bytes + tokens * self._peak_per_token(recompute))

    def tokens_within(self, budget: float, recompute: bool) -> int:
        """Most tokens whose activations stay within a budget of bytes."""
        return max(0, int((budget - self.fixed_bytes) / self._peak_per_token(recompute)))

    def _peak_per_token(self, recompute: bool) -> float:
        kept = self.hidden_bytes_per_token + self.layer_bytes_per_token if recompute else self.bytes_per_token
        return kept + self.layer_bytes_per_token


class Footprint(NamedTuple):
    """Bytes that one training process holds at its peak, bytes there are, and seconds that the job takes."""

    weights: int
    adapter: int
    activations: int
    head: int
    memory: int
    seconds_per_epoch: float
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
    """How the passes are made: most tokens in one, whether activations are recomputed, and the estimate behind it."""

    tokens_per_forward: int
    recompute: bool
    footprint: Footprint


def fit(section: TrainConfig, model: Any, job: Job, run: Run | None = None) -> Plan:
    """Choose tokens per pass and recomputation so that the job fits, and log what it needs.

    Fewer tokens per pass come first: they cost no operations. Recomputation comes where the longest row alone needs
    it. Neither changes a result beyond rounding.

    Args:
        section: the train section of the config.
        model: the base model with its adapter on its device, activations not recomputed.
        job: the rows and the device.
        run: the forward pass that training makes; otherwise one padded row through ``model``.

    Raises:
        ConfigError: the longest row alone does not fit.
    """
    cost = measure_pass(model, run)
    held = _held(model, job)
    trace_id, longest = job.longest
    recompute = decide_checkpointing(section, cost, held, longest)
    within = cost.tokens_within(held.activation_budget, recompute)
    wanted = min(section.tokens_per_forward, job.step_tokens(section))
    tokens = section.tokens_per_forward if within >= wanted else within
    footprint = held._replace(
        activations=cost.activation_bytes(max(longest, min(wanted, within)), recompute),
        **_seconds(section, model, job, cost, recompute),
    )
    if within < longest:
        raise ConfigError(_does_not_fit(footprint, section, trace_id, longest))
    if tokens < section.tokens_per_forward:
        logger.warning("train.tokens_per_forward %d does not fit; passes take %d", section.tokens_per_forward, tokens)
    logger.info("%s", describe(footprint, section, recompute))
    return Plan(tokens, recompute, footprint)


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


def measure_pass(model: Any, run: Run | None = None) -> PassCost:
    """Measure what a forward pass keeps, from two short ones, and count its operations.

    Args:
        model: the model with its adapter, activations not recomputed.
        run: see :func:`fit`.
    """
    few, many = (_kept_bytes(model, run or _padded_row(model), tokens) for tokens in MEASURED_TOKENS)
    bytes_per_token = max(1.0, (many - few) / (MEASURED_TOKENS[1] - MEASURED_TOKENS[0]))
    config = model.config
    return PassCost(
        bytes_per_token=bytes_per_token,
        fixed_bytes=max(0.0, many - bytes_per_token * MEASURED_TOKENS[1]),
        layer_bytes_per_token=bytes_per_token / config.num_hidden_layers,
        hidden_bytes_per_token=config.num_hidden_layers * config.hidden_size * model.dtype.itemsize,
        operations_per_token=_operations_per_token(model),
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
        model = AutoModelForCausalLM.from_config(load_config(path, revision), dtype=getattr(torch, dtype))
    needed = _weight_bytes_of_config(model, load_in_4bit) // num_shards
    free = free_memory(torch.device(resolve_device(device)))
    if needed > free * USABLE_SHARE:
        raise ConfigError(
            f"model.path {str(path)!r} in {dtype}: its weights take {_gigabytes(needed)} a device, and "
            f"{_gigabytes(free)} are free; {_ways_to_smaller_weights(load_in_4bit)}"
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
        f"of {_gigabytes(footprint.memory)}; about {_duration(footprint.seconds)} for {section.num_epochs} epochs"
    )


def out_of_memory_message(
    error: BaseException, lengths: Mapping[str, int], section: TrainConfig, *, tokens_per_forward: int, recompute: bool
) -> str:
    """Say which pass ran out of memory and what to change.

    Args:
        error: what PyTorch raised.
        lengths: tokens of each row of the pass, by trace id.
        section: the train section of the config.
        tokens_per_forward: the budget in force, which may be below the config's.
        recompute: whether activations were recomputed.
    """
    longest = max(lengths.values())
    ways = ["set train.on_out_of_memory to 'accumulate'"] if section.on_out_of_memory == "stop" else []
    if len(lengths) > 1:
        ways.append(f"lower train.tokens_per_forward below {sum(lengths.values())}")
    ways += _ways_to_smaller_passes(section, recompute, longest)
    return (
        f"out of memory in a pass of {len(lengths)} row(s), {sum(lengths.values())} tokens, the longest {longest} "
        f"(traces {', '.join(lengths)}; tokens_per_forward {tokens_per_forward}, activations "
        f"{'' if recompute else 'not '}recomputed): {'; or '.join(ways)}. {str(error).splitlines()[0]}"
    )


def _held(model: Any, job: Job) -> Footprint:
    """Everything but activations and time."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    head = model.get_output_embeddings()
    return Footprint(
        weights=_frozen_bytes(model, job.num_processes if job.is_sharded else 1),
        adapter=BYTES_PER_TRAINED * trained,
        activations=0,
        head=BYTES_PER_LOGIT * job.head_chunk_tokens * head.weight.shape[0],
        memory=free_memory(job.device, job.num_processes) + _bytes_on(model, job.device),
        seconds_per_epoch=0.0,
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
    local = [parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters()]
    return sum(_bytes(parameter) for parameter in local if parameter.device.type == device.type)


def _weight_bytes_of_config(model: PreTrainedModel, load_in_4bit: bool) -> int:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
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
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        # The storage is held until the end, so that its address can't be given to another one.
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(tokens)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


def _padded_row(model: Any) -> Run:
    def run(tokens: int) -> object:
        input_ids = torch.arange(tokens, device=model.device)[None] % model.config.vocab_size
        with adapter_autocast(model):
            return model(input_ids=input_ids, logits_to_keep=1, use_cache=False).logits

    return run


def _operations_per_token(model: Any) -> float:
    """Two for each weight that a token meets; attention over a short row adds a few percent and is left out."""
    met: float = sum(
        module.in_features * module.out_features for module in model.modules() if isinstance(module, nn.Linear)
    )
    config = model.config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    stacked = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 3)
    return 2.0 * (met + stacked * share)


def _seconds(section: TrainConfig, model: Any, job: Job, cost: PassCost, recompute: bool) -> dict[str, float]:
    """Forward, its gradient, recomputation and KL pass of every epoch; two reference passes once."""
    rows = job.rows_per_epoch / len(job.lengths)
    tokens = sum(job.lengths.values()) / job.num_processes
    forward = tokens * cost.operations_per_token / (UTILISATION * matrix_rate(model.config, model.dtype, job.device))
    per_epoch = rows * forward * (2 + recompute + (1 / section.kl_every if job.is_kto else 0))
    reference = 2 * forward if job.is_kto else 0.0
    return {"seconds_per_epoch": per_epoch, "seconds": section.num_epochs * per_epoch + reference}


def matrix_rate(config: Any, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the matrix product of the model's feed-forward layer, measured for a moment."""
    tokens = 8192 if device.type == "cuda" else 128
    width, inner = config.hidden_size, config.intermediate_size
    left = torch.randn(tokens, width, device=device, dtype=dtype)
    right = torch.randn(width, inner, device=device, dtype=dtype)
    _timed(left, right, 1)
    once = _timed(left, right, 1)
    times = max(1, min(1000, int(MATMUL_SECONDS / max(once, 1e-6))))
    return 2.0 * tokens * width * inner * times / _timed(left, right, times)


def _timed(left: Tensor, right: Tensor, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        left @ right
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - start


def _does_not_fit(footprint: Footprint, section: TrainConfig, trace_id: str, longest: int) -> str:
    recompute = section.gradient_checkpointing != "never"
    ways = _ways_to_smaller_passes(section, recompute, longest)
    return (
        f"training needs {_gigabytes(footprint.total)} for one pass of the longest row (trace {trace_id}, {longest} "
        f"tokens{', activations recomputed' if recompute else ''}) and the device has {_gigabytes(footprint.memory)}: "
        f"model {_gigabytes(footprint.weights)}, adapter and Adam {_gigabytes(footprint.adapter)}, activations and "
        f"logits {_gigabytes(footprint.activations + footprint.head)}; {'; or '.join(ways)}"
    )


def _ways_to_smaller_passes(section: TrainConfig, recompute: bool, longest: int) -> list[str]:
    ways = [] if recompute else ["set train.gradient_checkpointing to 'always'"]
    ways.append(f"set train.max_length below {longest} to leave out the longest rows")
    return [*ways, _ways_to_smaller_weights(section.load_in_4bit)]


def _ways_to_smaller_weights(load_in_4bit: bool) -> str:
    quantise = "" if load_in_4bit else "set train.load_in_4bit; or "
    return f"{quantise}name an FSDP file in train.accelerate_config; or take a smaller model"


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
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
