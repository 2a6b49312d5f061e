"""A server for a team: Prefect's own, on Postgres, behind its token, set up by bootstrap; a worker runs a flow."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from deployments.bootstrap import read_work_pool
from deployments.steps import CHECKOUT
from mralign_core.config import load_config
from tests.ports import free_port
from tests.postgres import postgres_url
from tests.prefect_server import FINAL, QUICK_SERVER

__all__ = ["postgres_url"]

TOKEN = "team:heron"
START_TIMEOUT_S = 240
RUN_TIMEOUT_S = 800


@contextmanager
def running(log, *module, env):
    """A ``python -m`` in the background."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=CHECKOUT, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def team(postgres_url, tmp_path_factory):
    """The server's API, and the environment of its clients."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    client = {
        **clean,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": TOKEN,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    server = {
        **client,
        **QUICK_SERVER,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres_url,
        "PREFECT_SERVER_API_AUTH_STRING": TOKEN,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    module = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with running(home / "server.log", *module, env=server) as process:
        auth = httpx.BasicAuth(*TOKEN.split(":"))
        with httpx.Client(base_url=client["PREFECT_API_URL"], auth=auth, timeout=60) as api:
            _wait_until_up(api, process, home / "server.log")
            yield api, client


def _wait_until_up(api, process, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if api.get("/health").is_success:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.3)


def bootstrap(env, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "deployments.bootstrap", *arguments],
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.soak
@pytest.mark.server
def test_a_worker_runs_a_flow_of_a_server_on_postgres(team, tmp_path):
    api, env = team
    assert httpx.post(f"{env['PREFECT_API_URL']}/flow_runs/filter", json={}).status_code == 401

    done = bootstrap(env, "--pools", "a800=kubernetes", "--checkout", str(CHECKOUT))
    assert done.returncode == 0, done.stderr
    pool = api.get("/work_pools/a800").json()
    assert pool["base_job_template"] == read_work_pool("a800", "kubernetes")["base_job_template"]
    kept = bootstrap(env, "--pools", "docker")
    assert kept.returncode == 1 and "say --pools cpu=process" in kept.stderr

    few = {"questions.train": {"name": "pocket", "limit": 30}, "questions.eval": {"name": "pocket", "limit": 10}}
    quick = {"model.pocket.pretrain_steps": 1, "model.cpu_threads": 1, "storage.root": str(tmp_path / "store"), **few}
    config = load_config(CHECKOUT / "deployments" / "configs" / "smoke.yaml", quick).model_dump(mode="json")
    deployment = api.get("/deployments/name/prepare/stage-prepare").json()
    body = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
    run = api.post(f"/deployments/{deployment['id']}/create_flow_run", json=body).json()
    with running(tmp_path / "worker.log", "prefect", "worker", "start", "--pool", "cpu", "--type", "process", env=env):
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while run["state_type"] not in FINAL and time.monotonic() < deadline:
            time.sleep(0.5)
            run = api.get(f"/flow_runs/{run['id']}").json()
    assert run["state_type"] == "COMPLETED", (tmp_path / "worker.log").read_text(errors="replace")[-4000:]
    assert list((tmp_path / "store" / "artifacts" / "model").rglob("manifest.json"))
