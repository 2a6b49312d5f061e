"""A real MLflow server for tests, where one is installed.

Package mlflow-skinny has the client alone. The whole package wants other versions than ours (pyarrow<26), so its server
comes from an environment of its own: MRALIGN_MLFLOW names its ``mlflow``. Use it from a test module with
``from tests.mlflow_server import mlflow_server``.
"""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

START_TIMEOUT_S = 300


def find_mlflow():
    if named := os.environ.get("MRALIGN_MLFLOW"):
        return named
    has_server = importlib.util.find_spec("mlflow") and importlib.util.find_spec("flask")
    return str(Path(sys.executable).with_name("mlflow")) if has_server else None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """The address of a server that lives as long as the test session."""
    command = find_mlflow()
    if command is None:
        pytest.skip("no MLflow server: MRALIGN_MLFLOW names no `mlflow` of an environment with the whole package")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [command, "server", *(word for pair in options.items() for word in pair)],
            cwd=folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, server, log)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _wait(address, server, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10):
                return
        except (OSError, urllib.error.URLError):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"MLflow did not start: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
