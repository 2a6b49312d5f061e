"""A Prefect server with UI, the deployments, and a worker for each work pool: ``make serve``.

Everything listens on loopback only, behind a door (:mod:`flows.door`). The server's database and the logs of all
processes are under ``PREFECT_HOME``, by default ``.mralign/prefect``, which ``mralign run`` uses too: its runs are in
the UI.
Ctrl-C stops everything, runs in progress included; a stopped run can be started again and computes only what
it had not finished.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx
import psutil

from deployments.steps import CHECKOUT
from flows import door
from flows.secret import OwnServer, recognise

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
POOLS = {"cpu": 4, "a800": 1}
"""Work pool → runs at once of its worker here: a GPU serves one."""
PYTHON = (sys.executable, "-m")
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServeError(RuntimeError):
    """Something could not be started, or stopped by itself; the message says what and where its log is."""


class Serving(NamedTuple):
    """What is up: the server, and its process and those of the workers."""

    server: OwnServer
    children: list[Child]


class Child(NamedTuple):
    """A process of ours and the file it prints to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Pass if it still runs.

        Raises:
            ServeError: it has ended.
        """
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-15:]
            ended = f"{self.name} ended with exit status {self.process.returncode}"
            raise ServeError("\n  ".join([f"{ended}; the end of {self.log}:", *lines]))


def environment(port: int) -> dict[str, str]:
    """The environment of the server and the workers: this process's, pointed at our server."""
    home = os.environ.get("PREFECT_HOME") or str(CHECKOUT / ".mralign" / "prefect")
    defaults = {"PREFECT_WORKER_QUERY_SECONDS": "3"}
    fixed = {
        "PREFECT_HOME": str(Path(home).resolve()),
        # The UI asks the server for this address, so the server needs it too on a port of our own.
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        **door.QUIET,
        "PREFECT_LOGGING_EXTRA_LOGGERS": "mralign_core",
    }
    return {**defaults, **os.environ, **fixed}


def refuse_taken_port(port: int) -> None:
    """Go on only when nothing listens on the port.

    Raises:
        ServeError: something else listens there.
        SystemExit: it is a server that already serves what we would.
    """
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)):
            return
    elsewhere = "stop it, or serve on another port: MRALIGN_PORT=4300 make serve"
    api_url = f"http://{HOST}:{port}/api"
    server = recognise(api_url, [Path(environment(port)["PREFECT_HOME"])])
    if server and _pool_status(server, "cpu") == "READY":
        print(f"Already serving: open http://{HOST}:{port}. Nothing was started.")  # noqa: T201
        raise SystemExit(0)
    if not server and not _is_prefect(api_url):
        raise ServeError(f"port {port} is taken by something that is not a Prefect server: {elsewhere}")
    raise ServeError(
        f"a Prefect server is running on port {port}, without this project's workers; it was left alone. "
        f"Either {elsewhere}; or add the deployments and a worker to it yourself:\n"
        f"  export PREFECT_API_URL=http://{HOST}:{port}/api\n"
        "  python -m deployments.bootstrap && prefect worker start --pool cpu"
    )


def _is_prefect(api_url: str) -> bool:
    with suppress(httpx.HTTPError, ValueError):
        return bool(httpx.get(f"{api_url}/health", timeout=5, trust_env=False).json() is True)
    return False


def _pool_status(server: OwnServer, pool: str) -> str:
    """Status of a work pool on our server; "" without the pool."""
    with suppress(httpx.HTTPError, ValueError):
        auth = httpx.BasicAuth(*server.token.split(":", 1))
        reply = httpx.get(f"{server.api_url}/work_pools/{pool}", timeout=5, auth=auth, trust_env=False)
        return str(reply.json().get("status", "")) if reply.is_success else ""
    return ""


def start(name: str, command: Sequence[str], env: Mapping[str, str]) -> Child:
    """Start a process that prints to a log file of its name, out of reach of the terminal's Ctrl-C."""
    logs = Path(env["PREFECT_HOME"]) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PYTHON, *command],
            cwd=CHECKOUT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(name, process, log)


def wait_until_healthy(server: Child, env: Mapping[str, str], timeout_s: float = START_TIMEOUT_S) -> OwnServer:
    """Wait for the server to answer, and to prove that it is ours.

    Raises:
        ServeError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        server.check()
        if own := recognise(env["PREFECT_API_URL"], [Path(env["PREFECT_HOME"])]):
            return own
        time.sleep(0.5)
    raise ServeError(f"the Prefect server did not answer within {timeout_s:.0f} s; its log: {server.log}")


def wait_for_workers(children: Sequence[Child], server: OwnServer, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until every pool has a worker.

    Raises:
        ServeError: a worker ended, or did not report in time.
    """
    deadline = time.monotonic() + timeout_s
    while any(_pool_status(server, pool) != "READY" for pool in POOLS):
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise ServeError(f"no worker reported within {timeout_s:.0f} s; the logs: {children[0].log.parent}")
        time.sleep(0.5)


def bootstrap(env: Mapping[str, str], children: list[Child]) -> None:
    """Run ``deployments.bootstrap`` to its end, as one of the children meanwhile.

    Raises:
        ServeError: it failed.
    """
    child = start("bootstrap", ["deployments.bootstrap"], env)
    children.append(child)
    if child.process.wait():
        child.check()
    children.remove(child)


def stop(children: Sequence[Child]) -> None:
    """Stop the workers with their runs, then the server, which the runs still report to."""
    for number in STOP_SIGNALS:  # an impatient second Ctrl-C would leave processes behind
        signal.signal(number, signal.SIG_IGN)
    for together in (children[1:], children[:1]):
        _stop_together(together)


def _stop_together(children: Sequence[Child], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop these and all they started; kill what does not stop in time."""
    family = [process for child in children for process in _family(child.process.pid)]
    heads = {child.process.pid for child in children}
    for process in family:
        # Prefect's server and workers end in order on SIGINT, flow runs on SIGTERM.
        _tell(process, signal.SIGINT if process.pid in heads else signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    for process in alive:
        _tell(process, signal.SIGKILL)
    for child in children:
        child.process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _tell(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@contextmanager
def serving(port: int) -> Iterator[Serving]:
    """Server, deployments and workers, up inside the ``with``, all stopped after it.

    Raises:
        ServeError: something could not be started.
    """
    env = environment(port)
    children: list[Child] = []
    try:
        say("starting the Prefect server (half a minute)")
        children.append(start("server", door.module(port), env))
        server = wait_until_healthy(children[0], env)
        env |= server.environment()
        say("deploying prefect.yaml")
        bootstrap(env, children)
        for pool, limit in POOLS.items():
            start_worker = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", pool]
            command = [*start_worker, "--limit", str(limit)]
            children.append(start(f"worker-{pool}", command, env))
        wait_for_workers(children, server)
        yield Serving(server, children)
    finally:
        stop(children)


def watch(children: Sequence[Child]) -> NoReturn:
    """Sleep as long as every child runs.

    Raises:
        ServeError: one has ended.
    """
    while True:
        for child in children:
            child.check()
        time.sleep(1)


def say(line: str) -> None:
    """Tell the person at the terminal, at once."""
    print(line, flush=True)  # noqa: T201


def greeting(port: int, up: Serving) -> str:
    """What to look at and what to try."""
    programs = os.path.relpath(Path(sys.executable).parent)
    logs = up.children[0].log.parent
    profile = os.path.relpath(door.profile_path(logs.parent, port))
    # `mralign` finds a server on the usual port by itself.
    found = "" if port == DEFAULT_PORT else f"MRALIGN_PORT={port} "
    # Others may read what the output is sent to, so the token is told to a terminal only.
    link = up.server.link() if sys.stdout.isatty() else f"the link is printed by: {found}{programs}/mralign ui"
    return f"""
Serving. Ctrl-C stops everything.

  UI            {link}
  start a run   in the UI, Deployments: pipeline, Run, Custom run; the form is the whole config
  by shell      PREFECT_PROFILES_PATH={profile} {programs}/prefect deployment run mr-align/pipeline
  in the shell  {found}{programs}/mralign run: this terminal works, this server shows it
  every week    in the UI, Deployments: weekly-retrain, switch its schedule on
  logs          {logs}
"""


def parse_port(arguments: Sequence[str] | None) -> int:
    """The port, from ``--port``, else from ``MRALIGN_PORT``, else 4200."""
    parser = argparse.ArgumentParser(prog="python -m deployments.serve", description="Serve on this machine.")
    default = os.environ.get("MRALIGN_PORT", str(DEFAULT_PORT))
    parser.add_argument("--port", type=int, default=default, help="default: MRALIGN_PORT, else 4200")
    port = int(parser.parse_args(arguments).port)
    if not 1024 <= port <= 65_535:
        parser.error(f"port {port} is not between 1024 and 65535: set --port or MRALIGN_PORT")
    return port


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit status."""
    port = parse_port(arguments)
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        refuse_taken_port(port)
        with serving(port) as up:
            say(greeting(port, up))
            watch(up.children)
    except KeyboardInterrupt:
        say("stopped")
        return 0
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
