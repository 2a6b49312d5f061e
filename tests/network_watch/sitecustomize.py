"""Writes down whom a Python process talks to, other than this machine: the file is named by NETWORK_WATCH.

Python imports this at its start where this folder is in PYTHONPATH, which children inherit.
"""

import ipaddress
import os
import socket
import sys


def _is_here(host):
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified


def _watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host or ""
    if not _is_here(host):
        with open(os.environ["NETWORK_WATCH"], "a") as log:
            log.write(f"{event} {host} {' '.join(sys.orig_argv)[:300]}\n")


if "NETWORK_WATCH" in os.environ:
    sys.addaudithook(_watch)
