"""A real Postgres server for tests: Debian's package, in a temporary folder, on a free port of loopback.

Use it from a test module or conftest with ``from tests.postgres import postgres_url``.
"""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

START_TIMEOUT_S = 60
USER, PASSWORD = "prefect", "pocket-elephant"


def find_bin():
    """The folder of Postgres' programs, the newest where there are several; None without any."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = packaged[-1] if packaged else shutil.which("initdb")
    return Path(found).parent if found else None


@pytest.fixture(scope="module")
def postgres_url():
    """What `PREFECT_SERVER_DATABASE_CONNECTION_URL` is for an empty database."""
    programs = find_bin()
    if programs is None:
        pytest.skip("Postgres is not installed (Debian: package postgresql)")
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("Postgres does not run as root, and setpriv, by which it would run as another user, is not there")
    with _running(programs) as url:
        yield url


@contextmanager
def _running(programs):
    # Not under pytest's folders, into which only their owner may look.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/mr-align-postgres-XXXXXX"], text=True).strip())
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if nobody:
        os.chown(folder, 65534, 65534)
    port, data, word = free_port(), folder / "data", folder / "password"
    word.write_text(PASSWORD)
    word.chmod(0o644)
    made = [programs / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={word}", "-E", "UTF8"]
    log = folder / "log"
    process = None
    try:
        subprocess.run([*nobody, *made, "--no-sync"], check=True, capture_output=True, cwd="/")
        serving = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", f"unix_socket_directories={folder}"]
        with log.open("wb") as output:
            command = [*nobody, programs / "postgres", "-D", data, "-c", "fsync=off", *serving]
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/")
        _wait_until_up(programs, port, process, log)
        yield f"postgresql+asyncpg://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        if process:
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(programs, port, process, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while subprocess.run([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False).returncode:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.2)
