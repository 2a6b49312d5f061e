"""``accelerate launch``, for processes of one host such that they find each other on loopback only.

They do so through a store that anyone who reaches its port can read and change, and torch has it listen on all
addresses of the host.
"""

from __future__ import annotations

import socket
import sys
from datetime import timedelta
from typing import Any

import accelerate.commands.launch
import torch.distributed
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

from mralign_core.processes.supervise import Lifeline

LOOPBACK = "127.0.0.1"


def loopback_store(
    _: str, port: int, world_size: int, is_master: bool, timeout: timedelta, **options: Any
) -> torch.distributed.TCPStore:
    """The store of the processes of one host; see :class:`torch.distributed.TCPStore`.

    Args:
        port: where it listens.
        world_size: number of launchers: one.
        is_master: whether it is to listen.
        timeout: of its operations.
        options: others of torch's.
    """
    if is_master:  # torch takes the descriptor, and closes it
        options["master_listen_fd"] = socket.create_server((LOOPBACK, port)).detach()
    return torch.distributed.TCPStore(LOOPBACK, port, world_size, is_master, timeout, **options)


def main(_: Lifeline, *arguments: str) -> None:
    """Run ``accelerate launch`` with these arguments; processes of several machines can't meet on loopback."""
    if "--machine_rank" not in arguments:
        static_tcp_rendezvous.TCPStore = loopback_store  # type: ignore[misc, assignment]
    sys.argv[1:] = arguments
    accelerate.commands.launch.main()
