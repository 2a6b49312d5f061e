"""A whole run on two hosts that share a Prefect server and an S3 server only: ``sudo python -m benchmarks.two_hosts``.

Host A works for pool ``cpu``, host B for pool ``a800``: network namespaces with process numbers and clocks of their
own, ten minutes apart (``--apart-s``). In the middle of a child run, host B is cut off for a while (``--cut
generate-shards --cut-s 60``). Printed are the states of all runs as they change and what the store holds in the end;
then the same run is started again, and must make nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from deployments.steps import CHECKOUT
from mralign_core.config import load_config
from tests.network_hosts import HUB_ADDRESS, Host, has_clocks, network, why_not
from tests.seaweedfs import BUCKET, S3Server, running_server

TOKEN = "two:hosts"
PORT = 4200
START_TIMEOUT_S = 600.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
ON_POOLS = {f"{stage}.where": "deployment" for stage in ("generate", "train", "evaluate")}
QUICK = {
    "model.cpu_threads": 1,
    "model.pocket.pretrain_steps": 60,
    "generate.shard_size": 100,
    "questions.train": {"name": "pocket", "limit": 160},
    "questions.eval": {"name": "pocket", "limit": 60},
    **ON_POOLS,
}


def server_environment(home: Path) -> dict[str, str]:
    """Variables of everything that talks to the server, and of the server."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **clean,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://{HUB_ADDRESS}:{PORT}/api",
        "PREFECT_API_AUTH_STRING": TOKEN,
        "PREFECT_SERVER_API_AUTH_STRING": TOKEN,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "mralign_core",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def prefect_server(home: Path) -> Iterator[httpx.Client]:
    """Prefect's server on the hub, with the deployments."""
    env = server_environment(home)
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        HUB_ADDRESS,
        "--port",
        str(PORT),
        "--no-ui",
    ]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=env["PREFECT_API_URL"], auth=httpx.BasicAuth(*TOKEN.split(":")), timeout=60) as api:
            wait_until_up(api)
            subprocess.run([sys.executable, "-m", "deployments.bootstrap"], cwd=CHECKOUT, env=env, check=True)
            yield api
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_up(api: httpx.Client) -> None:
    """Wait for the server.

    Raises:
        TimeoutError: it did not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if api.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise TimeoutError(f"the Prefect server did not answer within {START_TIMEOUT_S:.0f} s")


def start_worker(host: Host, pool: str, folder: Path, server: S3Server, clock_s: int) -> None:
    """A worker of a pool on a host, with a home of its own."""
    home = folder / host.name
    home.mkdir()
    env = {**server_environment(home), **server.environment(), "TMPDIR": str(home)}
    command = [sys.executable, "-m", "deployments.worker", "--pool", pool, "--limit", "4"]
    with (home / "worker.log").open("wb") as log:
        host.start(*command, env=env, clock_s=clock_s, cwd=CHECKOUT, stdout=log, stderr=log)


def follow(api: httpx.Client, config: dict[str, Any], host: Host, cut: str, cut_s: float) -> str:
    """Start the pipeline and follow it to its end, cutting a host off in the middle; returns the final state."""
    deployment = api.get("/deployments/name/mr-align/pipeline").json()
    body = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
    run_id = api.post(f"/deployments/{deployment['id']}/create_flow_run", json=body).json()["id"]
    deployed = f"stage-{cut}" if cut == "train" else f"share-{cut}"
    cut_id = api.get(f"/deployments/name/{cut}/{deployed}").json()["id"]
    started, mend_at = time.monotonic(), 0.0
    seen: dict[str, str] = {}
    while True:
        runs = {run["id"]: run for run in api.post("/flow_runs/filter", json={"limit": 100}).json()}
        for run in runs.values():
            if seen.get(run["id"]) != run["state_name"]:
                seen[run["id"]] = run["state_name"]
                print(f"{time.monotonic() - started:7.1f} s  {run['name']:32} {run['state_name']}", flush=True)
        working = [run for run in runs.values() if run["deployment_id"] == cut_id]
        if cut_s and not mend_at and any(run["state_type"] == "RUNNING" for run in working):
            time.sleep(10)
            host.cut()
            mend_at = time.monotonic() + cut_s
            print(f"{time.monotonic() - started:7.1f} s  {host.name} is cut off", flush=True)
        if mend_at and cut_s and time.monotonic() > mend_at:
            host.mend()
            cut_s = 0.0
            print(f"{time.monotonic() - started:7.1f} s  {host.name} is back", flush=True)
        if runs[run_id]["state_type"] in FINAL:
            return str(runs[run_id]["state_name"])
        time.sleep(1)


def artifacts(server: S3Server) -> Counter[str]:
    """How many whole artifacts of each kind the store holds."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="run/artifacts/")
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return Counter(key.split("/")[2] for key in keys if key.endswith("/manifest.json"))


def main() -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_hosts", description=__doc__)
    parser.add_argument("--cut", default="train", help="flow whose run loses its host (default: train)")
    parser.add_argument("--apart-s", type=int, default=600, help="seconds between the hosts' clocks (default: 600)")
    parser.add_argument("--cut-s", type=float, default=60.0, help="for how long, in seconds; 0 cuts nothing")
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    clock_s = chosen.apart_s // 2 if has_clocks() else 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="two-hosts-")))
        a, b = stack.enter_context(network("host-a", "host-b"))
        (folder / "s3").mkdir()
        server = stack.enter_context(running_server(folder / "s3", HUB_ADDRESS))
        (folder / "prefect").mkdir()
        api = stack.enter_context(prefect_server(folder / "prefect"))
        start_worker(a, "cpu", folder, server, clock_s)
        start_worker(b, "a800", folder, server, -clock_s)
        store = {"storage.root": f"s3://{BUCKET}/run", "storage.endpoint_url": server.endpoint_url}
        path = CHECKOUT / "deployments" / "configs" / "smoke.yaml"
        config = load_config(path, {**QUICK, **store}).model_dump(mode="json")
        first = follow(api, config, b, chosen.cut, chosen.cut_s)
        made = artifacts(server)
        again = follow(api, config, b, chosen.cut, 0.0)
        print(
            f"first run: {first}; again: {again}; artifacts: {dict(made)}; made by the second: "
            f"{dict(artifacts(server) - made)}"
        )
        for host in (a, b):
            print(f"--- {host.name}", (folder / host.name / "worker.log").read_text(errors="replace")[-1500:], sep="\n")
    return 0 if first == again == "Completed" else 1


if __name__ == "__main__":
    sys.exit(main())
