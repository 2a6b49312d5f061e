"""How long a cancel takes, step by step: ``python -m benchmarks.cancelling``.

On a ``make serve`` of its own, four runs are cancelled as the UI does: one that trains in its own process, one that has
just been taken by a worker, one that waits in a queue, and a pipeline with two children on pool ``a800``, of which one
runs and one waits for its place. Printed are the seconds after which each state was reached, by the server's clock, and
after which the last process of the run was gone; and the load of the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.prefect_server import Served, serve

SERVER = {"PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false"}
"""All else is as a user has it."""
LOOK_S = 0.1
PATIENCE_S = 120.0
SMALL = {
    "preset": "smoke",
    "question_limit": 60,
    "gpu_pool": True,
    "model": {"cpu_threads": 1, "pocket": {"pretrain_steps": 60}},
    "generate": {"num_workers": 2, "shard_size": 20},
}
LONG = {"preset": "pocket"}
"""Trains the pocket model for minutes."""


def cancel(served: Served, title: str, run_ids: list[str]) -> None:
    """Cancel the first run, and follow it and its children until all have ended and no process is left."""
    load = os.getloadavg()[0]
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    began = time.time()
    served.api.post(f"/flow_runs/{run_ids[0]}/set_state", json=body).raise_for_status()
    gone: dict[str, float] = {}
    while time.time() - began < PATIENCE_S:
        alive = _at_work(run_ids)
        gone |= {run: time.time() - began for run in run_ids if run not in alive and run not in gone}
        ended = all(served.api.get(f"/flow_runs/{run}").json()["state_type"] == "CANCELLED" for run in run_ids)
        if ended and len(gone) == len(run_ids):
            break
        time.sleep(LOOK_S)
    print(f"\n{title} (load {load:.1f})", flush=True)
    for run in run_ids:
        name = served.api.get(f"/flow_runs/{run}").json()["name"]
        states = served.api.get("/flow_run_states/", params={"flow_run_id": run}).json()
        steps = [f"{_seconds(each, began):.1f} {each['name']}" for each in states if _seconds(each, began) > -1]
        print(f"  {name:36} {', '.join(steps)}; processes gone {gone.get(run, float('nan')):.1f}", flush=True)


def _seconds(state: dict[str, Any], began: float) -> float:
    return datetime.fromisoformat(state["timestamp"]).timestamp() - began


def _at_work(run_ids: list[str]) -> set[str]:
    """The runs that have a process on this host, those included that they started."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
        except (psutil.Error, OSError):
            continue
    return found & set(run_ids)


def start(served: Served, name: str, config: dict[str, Any], store: Path, **fields: Any) -> str:
    """The id of a new run of a deployment."""
    body = {"parameters": {"config": {**config, "storage_root": str(store)}}, "state": {"type": "SCHEDULED"}}
    deployment = served.deployment(name)["id"]
    reply = served.api.post(f"/deployments/{deployment}/create_flow_run", json={**body, **fields})
    return str(reply.raise_for_status().json()["id"])


def children_of(served: Served, parent: str) -> list[dict[str, Any]]:
    """The runs of deployments below a run, that which works first."""
    runs = served.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [parent]}})
    below = [each for run in runs for each in ([run] if run["deployment_id"] else children_of(served, run["id"]))]
    return sorted(below, key=lambda run: str(run["state_type"]))


def measure(served: Served, folder: Path, cases: list[str]) -> None:
    """Cancel a run of each case."""
    if "running" in cases:
        run = start(served, "prepare/stage-prepare", LONG, folder / "running")
        served.wait_for(run, {"RUNNING"})
        time.sleep(20)
        cancel(served, "a run that trains in its own process", [run])
    if "starting" in cases:
        run = start(served, "prepare/stage-prepare", LONG, folder / "starting")
        served.wait_for(run, {"PENDING"})
        time.sleep(3)
        cancel(served, "a run that a worker has just taken", [run])
    if "queued" in cases:
        queues = served.filter("work_pools/cpu/queues")
        (queue,) = [each for each in queues if each["name"] == "background"]
        served.api.patch(f"/work_pools/cpu/queues/{queue['name']}", json={"is_paused": True}).raise_for_status()
        run = start(served, "prepare/stage-prepare", LONG, folder / "queued", work_queue_name="background")
        time.sleep(5)
        cancel(served, "a run that waits in a queue", [run])
    if "children" in cases:
        run = start(served, "mr-align/pipeline", SMALL, folder / "children")
        children: list[dict[str, Any]] = []
        while len(children) < 2 or children[0]["state_type"] != "RUNNING":
            state = served.api.get(f"/flow_runs/{run}").json()
            assert state["state_type"] not in ("FAILED", "CRASHED", "COMPLETED"), state["state"]["message"]
            time.sleep(1)
            children = children_of(served, run)
        time.sleep(5)
        cancel(served, "a pipeline with two children on a800", [run, *(each["id"] for each in children)])


def main() -> None:
    """Measure and print."""
    cases = ["running", "starting", "queued", "children"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cancelling", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=cases, default=cases, help="some of the runs")
    chosen = parser.parse_args().only
    with tempfile.TemporaryDirectory(prefix="cancelling-") as name:
        home = Path(name, "home")
        home.mkdir()
        with serve(home, SERVER) as served:
            measure(served, Path(name), chosen)


if __name__ == "__main__":
    main()
