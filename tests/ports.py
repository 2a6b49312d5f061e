"""Ports for servers that a test starts, outside the range that the system takes for outgoing connections.

A port of that range may be taken between the moment it was found free and the moment its server listens: a run of
tests makes thousands of connections, and a server of eight ports that starts in two seconds loses that race at times.
"""

import os
import random
import socket

RANGE = range(15_000, 32_000)
_random = random.Random(os.urandom(8))  # processes that start together look at different ones


def free_ports(count):
    """Different ports of 127.0.0.1 at which nothing listens."""
    found = []
    for port in _random.sample(RANGE, len(RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports between {RANGE.start} and {RANGE.stop}")


def free_port():
    return free_ports(1)[0]
