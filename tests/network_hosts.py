"""Hosts of a test: network namespaces that reach each other by a bridge, and nothing else.

What they share runs on the *hub*, where the test itself is meanwhile. Each command of a host has process numbers and a
host name of its own, and a clock that may be set apart.
"""

import atexit
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
HUB_ADDRESS = "10.77.0.1"
CLOCK = Path(__file__).with_name("clock_apart.c")
IN_HOST = 'hostname "$0"; exec "$@"'


class Host:
    """One host.

    Args:
        name: its host name.
        number: 1 to 200, of its address.
        network: what the namespaces' names begin with.
    """

    def __init__(self, name, number, network):
        self.name, self.address = name, f"10.77.0.{number + 1}"
        self._hub, self._namespace = f"{network}-hub", f"{network}-{number}"
        self._link = f"to-{number}"
        _ip("netns", "add", self._namespace)
        _ip(
            "-n", self._hub, "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace
        )
        _ip("-n", self._hub, "link", "set", self._link, "master", "bridge", "up")
        _ip("-n", self._namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self._namespace, "link", "set", device, "up")

    def start(self, *command, env=None, clock_s=0, **options):
        """Start a command there, whose clock is some seconds ahead."""
        environment = {**(os.environ if env is None else env)}
        if clock_s:
            environment |= {"LD_PRELOAD": str(_clock_library()), "CLOCK_APART_S": str(clock_s)}
        apart = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = ["ip", "netns", "exec", self._namespace, *apart, "sh", "-c", IN_HOST, self.name, *map(str, command)]
        return subprocess.Popen(words, env=environment, **options)

    def cut(self):
        """Take its link down: packets are lost, and nobody is told."""
        _ip("-n", self._hub, "link", "set", self._link, "down")

    def mend(self):
        """Bring its link up again."""
        _ip("-n", self._hub, "link", "set", self._link, "up")

    def remove(self):
        """Kill what runs there, and take it away."""
        for pid in _ip("netns", "pids", self._namespace).split():
            os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", self._namespace)


def why_not():
    """Why this machine can have no such hosts; "" where it can."""
    if os.getuid():
        return "only root makes network namespaces"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "iproute2 or unshare is not installed"
    name = f"mra{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces can't be made here: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


def has_clocks():
    """Whether hosts' clocks can be set apart here."""
    return shutil.which("cc") is not None


@functools.cache
def _clock_library():
    folder = Path(tempfile.mkdtemp(prefix="mr-align-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "clock.so", CLOCK, "-ldl"], check=True)
    return folder / "clock.so"


@contextmanager
def network(*names):
    """Hosts of these names; inside the ``with``, this thread and what it starts are on the hub."""
    if reason := why_not():
        pytest.skip(reason)
    mark = f"mra{os.getpid()}"
    hub, hosts = f"{mark}-hub", []
    _ip("netns", "add", hub)
    try:
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        for device in ("lo", "bridge"):
            _ip("-n", hub, "link", "set", device, "up")
        for number, name in enumerate(names, 1):
            hosts.append(Host(name, number, mark))
        with _inside(hub):
            yield hosts
    finally:
        for host in hosts:
            host.remove()
        _ip("netns", "delete", hub)


@contextmanager
def _inside(namespace):
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _enter(libc, there.fileno())
        try:
            yield
        finally:
            _enter(libc, home.fileno())


def _enter(libc, descriptor):
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout
