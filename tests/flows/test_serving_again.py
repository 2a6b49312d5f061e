"""What is left of a ``make serve`` that was killed, and of what its user changed, when it is started again."""

import time

import psutil
import pytest

from mralign_core.config import load_config
from mralign_core.processes.family import MARK
from tests.pocket_store import POCKET
from tests.prefect_server import serve

pytestmark = pytest.mark.server
AGES = "2099-01-01T00:00:00Z"


def endless(root):
    """A config whose preparation takes long."""
    fields = {"storage.root": str(root), "model.pocket.pretrain_steps": 10_000, "seed": 1, "name": "endless"}
    return load_config(POCKET, fields).model_dump(mode="json")


def edit(served):
    """Change what a user can change of the weekly deployment; gives the parameters that it has then."""
    weekly = served.deployment("mr-align/weekly-retrain")
    where, parameters = f"/deployments/{weekly['id']}", weekly["parameters"]
    parameters["config"]["questions"] = {"train": [{"path": "mine.jsonl", "id_column": "id"}]}
    parameters["config"]["train"] = {"learning_rate": 3e-5}
    changes = {"parameters": parameters, "description": "mine", "concurrency_limit": 1}
    (schedule,) = weekly["schedules"]
    cron = {"active": True, "schedule": {"cron": "30 4 * * 1", "timezone": "Europe/Berlin"}}
    limited = {"concurrency_limit": 2}
    edits = ((where, changes), (f"{where}/schedules/{schedule['id']}", cron), ("/work_pools/a800", limited))
    for path, body in edits:
        reply = served.api.patch(path, json=body)
        assert reply.is_success, reply.text
    served.api.post("/v2/concurrency_limits/", json={"name": "endpoint some-host", "limit": 16}).raise_for_status()
    return parameters


def run_later(served, name, config, parent=None):
    """A run of a deployment that a user has planned, or that another run has asked for, as ``run_deployment`` does."""
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": AGES}}
    body = {"parameters": {"config": config}, "state": state}
    if parent:
        call = {"flow_run_id": parent, "task_key": "deployment", "dynamic_key": name}
        body["parent_task_run_id"] = served.api.post("/task_runs/", json=call).json()["id"]
    return served.api.post(f"/deployments/{served.deployment(name)['id']}/create_flow_run", json=body).json()["id"]


def of_serve(home):
    """The processes of what serves on this home, and of what served there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_all_but_runs(home):
    """As when memory runs out, but for the runs' own processes, which are left; gives those."""
    everything = of_serve(home)
    runs = [process for process in everything if "PREFECT__FLOW_RUN_ID" in process.environ()]
    # The guard first: it would end the runs.
    for process in sorted(set(everything) - set(runs), key=lambda process: MARK in process.environ()):
        process.kill()
    return runs


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.soak
def test_after_a_kill_no_run_is_left_running_and_what_the_user_changed_is_there(tmp_path):
    home, config = tmp_path / "prefect", endless(tmp_path / "store")
    home.mkdir()
    with serve(home) as served:
        parameters = edit(served)
        running = served.submit("prepare/stage-prepare", {"config": config}).json()["id"]
        own = run_later(served, "prepare/stage-prepare", config)
        assert served.wait_for(running, {"RUNNING"})["state_type"] == "RUNNING"
        orphan = run_later(served, "train/stage-train", config, parent=running)
        left = kill_all_but_runs(home)
        assert left, "the run's own process is there"
        served.process.wait(timeout=30)

    with serve(home) as served:
        assert not [process for process in left if process.is_running()]
        states = {run: served.wait_for(run, {"SCHEDULED"})["state_type"] for run in (running, own, orphan)}
        assert states == {running: "CRASHED", own: "SCHEDULED", orphan: "CANCELLED"}
        weekly = served.deployment("mr-align/weekly-retrain")
        (schedule,) = weekly["schedules"]
        assert weekly["parameters"] == parameters
        assert (weekly["description"], weekly["global_concurrency_limit"]["limit"]) == ("mine", 1)
        assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "30 4 * * 1")
        assert len(served.filter("automations")) == 1, "set up again, not twice"
        said = (home / "serve.log").read_text()
        assert "kept your parameters of weekly-retrain: questions, train\n" in said
        assert "kept your schedules of weekly-retrain: weekly.schedule.cron" in said
        assert "kept your limit of work pool a800: 2 run(s) at once" in said
        assert "kept your limit of endpoint some-host: 16 request(s) at once" in said
        assert served.api.get("/work_pools/a800").json()["concurrency_limit"] == 2

        a_worker_that_dies_is_started_again(served, home, config)
        an_end_of_the_server_is_an_error_and_leaves_nothing(served, home)


def a_worker_that_dies_is_started_again(served, home, config):
    run = served.submit("prepare/stage-prepare", {"config": config}).json()["id"]
    assert served.wait_for(run, {"RUNNING"})["state_type"] == "RUNNING"
    (worker,) = [process for process in of_serve(home) if {"deployments.worker", "cpu"} <= set(process.cmdline())]
    worker.kill()
    assert served.wait_for(run)["state_type"] == "CRASHED"
    assert wait_for(lambda: "worker-cpu ended with exit status -9" in (home / "serve.log").read_text())
    again = wait_for(lambda: [each for each in of_serve(home) if {"deployments.worker", "cpu"} <= set(each.cmdline())])
    assert again and again[0].pid != worker.pid


def an_end_of_the_server_is_an_error_and_leaves_nothing(served, home):
    (server,) = [process for process in of_serve(home) if "flows.commands.door" in process.cmdline()]
    server.kill()
    assert served.process.wait(timeout=60) == 1
    assert "error: server ended with exit status -9; the end of" in (home / "serve.log").read_text()
    assert wait_for(lambda: not of_serve(home))
