"""A whole run of the pipeline as a user starts one, in a folder of its own, to be killed, signalled or doubled."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_port

SMALL = {
    "model.cpu_threads": "1",
    "model.pocket.pretrain_steps": "60",
    "questions.train": "{name: pocket, limit: 160}",
    "questions.eval": "{name: pocket, limit: 60}",
    "generate.shard_size": "40",
    "annotate.shard_size": "4",
    "train.variants": "[kto, mr_align]",
    "train.report_to": "none",
    "evaluate.shard_size": "20",
    "evaluate.max_new_tokens": "48",
    "estimate.num_resamples": "20",
}
"""Config ``smoke``, with many small shards: many moments that differ, in little time."""
RUN_TIMEOUT_S = 900.0


@dataclass
class Place:
    """A working folder, with a store, a Prefect home and temporary files of its own."""

    folder: Path
    python: str
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    run_s: float = 0.0

    @property
    def store(self) -> Path:
        """Root of the artifact store."""
        return self.folder / ".mralign" / "store"

    @property
    def scratch(self) -> Path:
        """Where its processes put temporary files."""
        return self.folder / "tmp"

    def start(self, *arguments: str, log: str = "log") -> subprocess.Popen[bytes]:
        """Start ``mralign run`` on config smoke in a process group of its own."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        settings = {**SMALL, **self.settings}
        options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                [self.python, "-m", "flows.commands.cli", "run", "--config", "smoke", *options, *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> int:
        """Run to the end and return the exit status."""
        with self.start() as process:
            return process.wait(RUN_TIMEOUT_S)

    def run_alone(self) -> float:
        """Run to the end undisturbed, as what others are compared with; returns the seconds it took.

        Raises:
            RuntimeError: it did not complete.
        """
        self.folder.mkdir(parents=True)
        started = time.monotonic()
        if self.finish():
            raise RuntimeError(f"the run that was left alone failed:\n{(self.folder / 'log').read_text()[-2000:]}")
        self.run_s = time.monotonic() - started
        return self.run_s

    def beside(self, name: str, **changes: Any) -> Place:
        """An empty place of the same installation, beside this one."""
        place = replace(self, folder=self.folder.with_name(name), **changes)
        place.folder.mkdir(parents=True)
        return place

    def digests(self) -> frozenset[tuple[str, str]]:
        """Stage and content digest of every artifact; what depends on the clock or the bill is left out."""
        return digests_of(str(path.relative_to(self.store)) for path in self.store.glob("artifacts/**/manifest.json"))

    def scratch_folders(self) -> list[str]:
        """Temporary folders of ours that are there."""
        return sorted(path.name for path in self.scratch.glob("mralign-*"))

    def running_flows(self) -> int:
        """Flow runs that the embedded server's database takes for running."""
        database = self.folder / "prefect" / "prefect.db"
        if not database.exists():
            return 0
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            query = "select count(*) from flow_run where state_type in ('RUNNING', 'PENDING', 'CANCELLING')"
            with suppress(sqlite3.OperationalError):
                return int(connection.execute(query).fetchone()[0])
        return 0

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MRALIGN_"))}
        return {
            **kept,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "TMPDIR": str(self.scratch),
            "MRALIGN_PORT": str(free_port()),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }


VARYING = {"report"}
"""Artifacts whose bytes name times or bills."""


def digests_of(names: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Stage and content digest of every artifact among the names of a store's files."""
    manifests = (name.split("/")[1:-1] for name in names if name.endswith("/manifest.json"))
    return frozenset(("/".join(parts[:-2]), parts[-1]) for parts in manifests if parts[0] not in VARYING)


def session_members(leader: int) -> list[psutil.Process]:
    """Processes alive in the session that a process leads or led."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def wait_until_gone(leader: int, timeout_s: float) -> Sequence[psutil.Process]:
    """Wait until a session has no process left; return those that stay, after killing them."""
    deadline = time.monotonic() + timeout_s
    while (members := session_members(leader)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in members:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    return members
