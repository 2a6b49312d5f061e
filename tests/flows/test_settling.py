"""What is made of unfinished runs, on a real server: by the process that they show, their parent, or nothing."""

import os
import socket
import subprocess
import sys

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Completed, Failed, Pending, Running, Scheduled
from prefect.tasks import task

from flows.commands.settling import OURS, TAG, crash_own_runs, process_tag, settle_lost_runs, worker_name
from mralign_core.processes.family import this_process

HERE = worker_name("cpu")
pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_api")]


@flow
def work():
    """Runs of it are made by hand."""


@task
def call():
    """The call of a run that another makes."""


@pytest.fixture
def client():
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def of_deployment(client):
    """Make a run of a deployment of ours, or with another tag of another's."""
    flow_id = client.create_flow(work)

    def make(state, *, parent=None, pid=None, tag=OURS, worker=HERE):
        deployment = client.create_deployment(flow_id, f"work-{tag}", tags=[tag])
        run = client.create_flow_run_from_deployment(deployment, state=Scheduled(), parent_task_run_id=parent)
        if worker:
            client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
        if pid:
            client.update_flow_run(run.id, infrastructure_pid=str(pid))
        if not state.is_scheduled():
            client.set_flow_run_state(run.id, state, force=True)
        return run.id

    return make


@pytest.fixture
def of_shell(client):
    """Make a run of the command line."""

    def make(state, *, tags=(), parent=None):
        return client.create_flow_run(work, state=state, tags=tags, parent_task_run_id=parent).id

    return make


@pytest.fixture
def called_by(client):
    """The call with which a run makes another."""
    return lambda run_id: client.create_task_run(call, run_id, dynamic_key=os.urandom(4).hex()).id


@pytest.fixture
def state_of(client):
    return lambda run_id: client.read_flow_run(run_id).state.name


@pytest.fixture
def gone():
    """The tag of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    return f"{TAG}{this_process()._replace(pid=process.pid)}"


def test_runs_of_the_shell_live_and_die_with_their_process(client, of_shell, called_by, state_of, gone):
    alive = of_shell(Running(), tags=[process_tag(), "a user's"])
    dead = of_shell(Running(), tags=[gone])
    inside = of_shell(Running(), parent=called_by(dead))
    elsewhere = of_shell(Running(), tags=[f"{TAG}another-host:1:2"])
    unknown = of_shell(Running())
    begun = client.create_task_run(call, dead, dynamic_key="a", state=Running())
    lines = settle_lost_runs(client, "here")
    ours = [dead, inside]
    assert [state_of(run) for run in ours] == ["Crashed", "Crashed"]
    assert [state_of(run) for run in (alive, elsewhere, unknown)] == ["Running"] * 3
    assert client.read_task_run(begun.id).state.is_crashed()
    assert {run for run in ours if any(str(run) in line for line in lines)} == set(ours)


@pytest.mark.parametrize(
    ("workers", "begun", "starting", "cancelling"),
    [
        ("none", "Crashed", "Crashed", "Cancelled"),
        ("here", "Crashed", "Pending", "Cancelled"),
        ("elsewhere", "Running", "Pending", "Cancelling"),
    ],
)
def test_runs_of_workers_are_judged_where_their_processes_can_be_seen(
    client, of_deployment, state_of, workers, begun, starting, cancelling
):
    runs = [of_deployment(Running(), pid=1), of_deployment(Pending()), of_deployment(Cancelling(), pid=1)]
    planned = of_deployment(Scheduled())
    settle_lost_runs(client, workers)
    assert [state_of(run) for run in runs] == [begun, starting, cancelling]
    assert state_of(planned) == "Scheduled"


@pytest.mark.parametrize("workers", ["none", "here"])
def test_runs_of_workers_that_others_started_are_left_to_their_heartbeats(client, of_deployment, state_of, workers):
    elsewhere = HERE.replace(socket.gethostname(), "another-host")
    others = [of_deployment(Running(), pid=1, worker=name) for name in (None, "ProcessWorker 1b2c", "cpu", elsewhere)]
    own = of_deployment(Running(), pid=1)
    settle_lost_runs(client, workers)
    assert [state_of(run) for run in (*others, own)] == ["Running"] * 4 + ["Crashed"]


def test_a_run_with_a_workers_process_is_left_alone(client, of_deployment, state_of):
    run = of_deployment(Running(), pid=1)
    script = "print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PREFECT__FLOW_RUN_ID": str(run)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        process.stdout.readline()
        settle_lost_runs(client, "none")
        assert state_of(run) == "Running"
    settle_lost_runs(client, "none")
    assert state_of(run) == "Crashed"


def test_children_of_what_is_over_or_lost_are_cancelled_and_those_of_the_living_are_not(
    client, of_shell, of_deployment, called_by, state_of, gone
):
    over, lost = of_deployment(Failed()), of_shell(Running(), tags=[gone])
    between = of_shell(Running(), parent=called_by(lost))
    alive = of_shell(Running(), tags=[process_tag()])
    orphans = [of_deployment(Scheduled(), parent=called_by(parent)) for parent in (over, lost, between)]
    child = of_deployment(Scheduled(), parent=called_by(alive))
    settle_lost_runs(client, "here")
    assert [state_of(run) for run in orphans] == ["Cancelled"] * 3
    assert state_of(child) == "Scheduled"


def test_runs_of_other_programs_are_left_alone_and_children_may_outlive_their_parents(
    client, of_shell, of_deployment, called_by, state_of
):
    caller, running = of_shell(Completed()), of_deployment(Running(), pid=1, tag="another's")
    children = [of_deployment(Scheduled(), parent=called_by(caller), tag=tag) for tag in (OURS, "another's")]
    settle_lost_runs(client, "none")
    assert [state_of(run) for run in (running, *children)] == ["Running", "Scheduled", "Scheduled"]


def test_a_process_that_ends_tells_of_its_own_runs_and_cancels_their_children(
    client, of_shell, of_deployment, called_by, state_of
):
    own, other = of_shell(Running(), tags=[process_tag()]), of_shell(Running())
    child, done = of_deployment(Scheduled(), parent=called_by(own)), of_shell(Completed(), tags=[process_tag()])
    crash_own_runs(client, "Stopped by SIGTERM.")
    assert [state_of(run) for run in (own, child, done, other)] == ["Crashed", "Cancelled", "Completed", "Running"]
    assert client.read_flow_run(own).state.message == "Stopped by SIGTERM."
