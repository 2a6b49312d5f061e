"""The processes that train one adapter together: this one alone, or those that ``accelerate launch`` started.

The base model is frozen and the adapter is small, so the adapter is whole in every process and its gradients are added
up once a step (data parallel). Where the base model does not fit one device, its weights are spread over all (FSDP2)
and gathered layer by layer; nothing else changes. Every process then has to make the same number of passes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, such as for the main one to write a checkpoint. The launcher notices a dead
one at once."""


@dataclass(frozen=True)
class Workers:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1
    is_sharded: bool = False
    """Whether the base model's weights are spread over the processes."""
    device: torch.device = CPU
    """Where this process computes, and what it sends the others lies; the CPU for one that is alone."""

    @classmethod
    def from_environment(cls) -> Workers:
        """Join the processes that ``accelerate launch`` started; alone where there are none."""
        if "RANK" not in os.environ:
            return cls()
        if torch.cuda.is_available() and not _is_set("ACCELERATE_USE_CPU"):
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            device = CPU
            dist.init_process_group("gloo", timeout=PATIENCE)
        size = dist.get_world_size()
        return cls(dist.get_rank(), size, size > 1 and _is_set("ACCELERATE_USE_FSDP"), device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def lowest(self, *values: int) -> list[int]:
        """The lowest of each value over all processes, where they must decide alike."""
        if self.size == 1:
            return list(values)
        lowest = torch.tensor(values, device=self.device)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        return lowest.tolist()

    def leave(self) -> None:
        """Wait until all are done, and part."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def shard(self, policy: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Spread the frozen weights of a model over the processes, where they are sharded; the adapter stays whole.

        The model may be on the CPU: one layer after another goes to the device, which never holds more than one whole.

        Args:
            policy: the module whose forward is called.
            layers: parts to gather one after another.
        """
        if not self.is_sharded:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(self.device.type, (self.size,))
        adapter = {parameter for parameter in policy.parameters() if parameter.requires_grad}
        for parameter in adapter:
            parameter.data = parameter.data.to(self.device)
        for module in (*layers, policy):
            fully_shard(module, mesh=mesh, ignored_params=adapter)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
