"""A Prefect server with UI, the deployments, and a worker for each work pool: ``make serve``.

Everything listens on loopback only. The server's database and the logs of all processes are under
``PREFECT_HOME``, by default ``.mralign/prefect``, which ``mralign run`` uses too: its runs are in the UI.
Ctrl-C stops everything, runs in progress included; a stopped run can be started again and computes only what
it had not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import httpx
import psutil

from deployments.children import Child, ServeError, rotate
from deployments.keeping import KEPT
from deployments.steps import CHECKOUT
from flows.commands import door
from flows.commands.secret import OwnServer, recognise
from mralign_core.processes.family import MARK, abandoned, end, end_family, family, start_guard, tell
from mralign_core.processes.stopping import EndingOnSignals

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
POOLS = {"cpu": 4, "a800": 1}
"""Work pool → runs at once of its worker here: a GPU serves one."""
START_TIMEOUT_S = 120.0
STOP_RUNS_S = 4.0
"""For workers and runs to end by themselves; together with the next and the server's end less than 10 s."""
TELL_S = 2.5
ANSWER_S = 20.0
"""How long a server that is on our port is asked whether it is ours, if it does not say so at once."""
SETTLE_EVERY_S = 30.0


def environment(port: int) -> dict[str, str]:
    """The environment of the server and the workers: this process's, pointed at our server."""
    home = os.environ.get("PREFECT_HOME") or str(CHECKOUT / ".mralign" / "prefect")
    defaults = {"PREFECT_WORKER_QUERY_SECONDS": "3", **door.PATIENT}
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
    until = time.monotonic() + ANSWER_S
    while True:  # a server that is ours may be busy, or have just been started
        server = recognise(api_url, [Path(environment(port)["PREFECT_HOME"])])
        if server and _pool_status(server, "cpu") == "READY":
            print(f"Already serving: open http://{HOST}:{port}. Nothing was started.")  # noqa: T201
            raise SystemExit(0)
        is_prefect = server is not None or _is_prefect(api_url)
        if is_prefect is False or time.monotonic() > until:
            break
        time.sleep(1.0)
    if not is_prefect:
        raise ServeError(f"port {port} is taken by something that is not a Prefect server: {elsewhere}")
    raise ServeError(
        f"a Prefect server is running on port {port}, without this project's workers; it was left alone. "
        f"Either {elsewhere}; or add the deployments and a worker to it yourself:\n"
        f"  export PREFECT_API_URL=http://{HOST}:{port}/api\n"
        "  python -m deployments.bootstrap && python -m deployments.worker --pool cpu"
    )


def _is_prefect(api_url: str) -> bool | None:
    """Whether a Prefect server answers there; None where nothing answers in time."""
    try:
        return bool(httpx.get(f"{api_url}/health", timeout=5, trust_env=False).json() is True)
    except httpx.TimeoutException:
        return None
    except (httpx.HTTPError, ValueError):
        return False


def _pool_status(server: OwnServer, pool: str) -> str:
    """Status of a work pool on our server; "" without the pool."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        auth = httpx.BasicAuth(*server.token.split(":", 1))
        reply = httpx.get(f"{server.api_url}/work_pools/{pool}", timeout=5, auth=auth, trust_env=False)
        return str(reply.json().get("status", "")) if reply.is_success else ""
    return ""


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


def bootstrap(env: Mapping[str, str]) -> None:
    """Run ``deployments.bootstrap`` to its end, and show what it kept of the user's.

    Raises:
        ServeError: it failed.
    """
    child = Child("bootstrap", ["deployments.bootstrap"], env)
    before = child.log.stat().st_size
    if child.process.wait():
        child.check()
    with child.log.open(errors="replace") as log:
        log.seek(before)
        for line in log:
            if line.startswith(KEPT):
                say(line.rstrip())


class Serving:
    """The server and the workers, and what becomes of them and of their runs.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: Child | None = None
        self._workers: list[Child] = []

    def start(self) -> None:
        """Start everything, after clearing up what an earlier one left.

        Raises:
            ServeError: something could not be started.
        """
        env = environment(self._port)
        if left := abandoned(purpose(env)):
            say(f"ending {len(left)} process(es) of a `make serve` that is gone")
            end(left, grace_s=2.0)
        start_guard(env[MARK])
        say("starting the Prefect server (half a minute)")
        self._server = Child("server", door.module(self._port), env)
        server = wait_until_healthy(self._server, env)
        env |= server.environment()
        os.environ.update(env)
        self.settle("none")
        say("deploying prefect.yaml")
        bootstrap(env)
        self._start_workers(env)
        wait_for_workers([self._server, *self._workers], server)
        say(greeting(self._port, server, self._server.log.parent))

    def _start_workers(self, env: Mapping[str, str]) -> None:
        from flows.commands.settling import worker_name  # imports Prefect, which can now know its server

        for pool, limit in POOLS.items():
            options = ["--pool", pool, "--name", worker_name(pool), "--limit", str(limit)]
            self._workers.append(Child(f"worker-{pool}", ["deployments.worker", *options], env))

    def watch(self) -> NoReturn:
        """Look after the processes and the runs for as long as the server runs; start workers that died again.

        Raises:
            ServeError: the server has ended, or a worker time after time.
        """
        settled = time.monotonic()
        assert self._server
        while True:
            self._server.check()
            for worker in self._workers:
                self._look_after(worker)
            if time.monotonic() - settled > SETTLE_EVERY_S:
                self.settle("here")
                settled = time.monotonic()
            for child in (self._server, *self._workers):
                rotate(child.log)
            time.sleep(1)

    def _look_after(self, worker: Child) -> None:
        wait_s = worker.plan_restart()
        if wait_s is not None:
            say(
                f"{worker.name} ended with exit status {worker.process.returncode} ({worker.log}); its runs are ended, "
                f"and it is started again in {wait_s:.0f} s"
            )
            end(self._orphans(), grace_s=2.0)
            self.settle("here")
        worker.restart_if_due()

    def _orphans(self) -> list[psutil.Process]:
        """What a worker that died has left."""
        assert self._server
        heads = [child.process.pid for child in (self._server, *self._workers)]
        looked_after = {process.pid for pid in heads for process in _with_descendants(pid)}
        return [process for process in family(os.environ[MARK]) if process.pid not in looked_after]

    def settle(self, workers: Literal["none", "here"]) -> None:
        """Put right what the server believes of runs that are gone."""
        from prefect.client.orchestration import get_client
        from prefect.exceptions import PrefectException

        from flows.commands.settling import settle_lost_runs

        try:
            with get_client(sync_client=True) as client:
                for line in settle_lost_runs(client, workers):
                    say(line)
        except (httpx.HTTPError, PrefectException) as error:
            say(f"the Prefect server could not be told what became of its runs: {error!r}")

    def stop(self) -> None:
        """Stop the workers with their runs, and tell the server, which goes last."""
        server = [self._server.process.pid] if self._server else []
        working = [process for process in family(os.environ[MARK]) if process.pid not in server]
        heads = {worker.process.pid for worker in self._workers}
        for process in working:
            # Prefect's workers end in order on SIGINT, flow runs on SIGTERM.
            tell(process, signal.SIGINT if process.pid in heads else signal.SIGTERM)
        _, alive = psutil.wait_procs(working, timeout=STOP_RUNS_S)
        end(alive, grace_s=0)
        if self._workers:
            teller = threading.Thread(target=self.settle, args=("none",), daemon=True)
            teller.start()
            teller.join(TELL_S)
            if teller.is_alive():
                say("the Prefect server could not be told in time what became of its runs; the next start will")

    def last_words(self, _: signal.Signals) -> str:
        """Stop everything on a signal."""
        say("stopping")
        self.stop()
        return "stopped"


def purpose(env: Mapping[str, str]) -> str:
    """What marks the processes of a ``make serve``: the home that they work on."""
    return f"serve {env['PREFECT_HOME']}"


def _with_descendants(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def say(line: str) -> None:
    """Tell the person at the terminal, at once; where nobody reads it any more, go on."""
    with contextlib.suppress(OSError):
        print(line, flush=True)  # noqa: T201


def greeting(port: int, server: OwnServer, logs: Path) -> str:
    """What to look at and what to try."""
    programs = os.path.relpath(Path(sys.executable).parent)
    profile = os.path.relpath(door.profile_path(logs.parent, port))
    # `mralign` finds a server on the usual port by itself.
    found = "" if port == DEFAULT_PORT else f"MRALIGN_PORT={port} "
    # Others may read what the output is sent to, so the token is told to a terminal only.
    link = server.link() if sys.stdout.isatty() else f"the link is printed by: {found}{programs}/mralign ui"
    return f"""
Serving. Ctrl-C stops everything.

  UI            {link}
  start a run   in the UI, Deployments: pipeline, Run, Custom run; choose a preset, change what differs
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
    serving = Serving(port)
    with EndingOnSignals(serving.last_words, purpose(environment(port)), last_words_s=STOP_RUNS_S + TELL_S + 1):
        try:
            refuse_taken_port(port)
            serving.start()
            serving.watch()
        except ServeError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            serving.stop()
            end_family(os.environ[MARK], grace_s=2.0)
            return 1


if __name__ == "__main__":
    sys.exit(main())
