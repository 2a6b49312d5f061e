"""Bring a Prefect server up to what this checkout deploys: ``python -m deployments.bootstrap``.

Creates or updates the work pools of ``work_pools/``, the deployments of ``prefect.yaml`` and the automation
that finds lost runs. It may be run again at any time: what is there is updated in place, and a schedule that
someone switched on or off stays as it is. ``PREFECT_API_URL`` says which server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

from deployments.steps import CHECKOUT

WORK_POOLS = CHECKOUT / "deployments" / "work_pools"
TAG = "mr-align"
FINAL_STATES = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Paused", "Suspended")
# Flow runs beat every 180 s unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY says otherwise; a run that a busy host
# delays must not be taken for a lost one, so three beats and a minute.
HEARTBEAT_TIMEOUT = timedelta(minutes=10)


class ScheduleSwitch(NamedTuple):
    """Whether one schedule of a deployment is on."""

    deployment_id: UUID
    slug: str
    active: bool


def create_work_pools(client: SyncPrefectClient, folder: Path = WORK_POOLS) -> list[str]:
    """Create or update the work pool of every JSON file in the folder; return their names."""
    names = []
    for path in sorted(folder.glob("*.json")):
        pool = WorkPoolCreate.model_validate(json.loads(path.read_text()))
        client.create_work_pool(pool, overwrite=True)
        names.append(pool.name)
    return names


def deploy_all() -> None:
    """Deploy ``prefect.yaml`` with Prefect's own command.

    Raises:
        RuntimeError: a deployment was refused; the message holds what Prefect printed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`prefect deploy --all` failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def our_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments that carry this project's tag."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    return client.read_deployments(deployment_filter=ours, limit=200, sort=DeploymentSort.NAME_ASC)


def schedule_switches(client: SyncPrefectClient) -> Iterator[ScheduleSwitch]:
    """The schedules of this project's deployments, and whether each is on."""
    for deployment in our_deployments(client):
        for schedule in deployment.schedules:
            if schedule.slug:
                yield ScheduleSwitch(deployment.id, schedule.slug, schedule.active)


def restore_switches(client: SyncPrefectClient, before: list[ScheduleSwitch]) -> None:
    """Deploying resets schedules to what ``prefect.yaml`` says: put back what someone switched."""
    active = {(switch.deployment_id, switch.slug): switch.active for switch in before}
    for deployment_id, _ in active:
        for schedule in client.read_deployment_schedules(deployment_id):
            wanted = active.get((deployment_id, schedule.slug or ""), schedule.active)
            if wanted != schedule.active:
                client.update_deployment_schedule(deployment_id, schedule.id, active=wanted)


def crash_lost_runs(within: timedelta = HEARTBEAT_TIMEOUT) -> Automation:
    """The automation that marks a flow run Crashed when its heartbeats stop, as when its whole host is lost.

    Args:
        within: silence after which a run counts as lost; at least three heartbeats.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    return Automation(
        name="mr-align: crash lost runs",
        description=f"Flow runs that were silent for {within} are marked Crashed.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in FINAL_STATES)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {within}: its host is lost.")],
    )


def create_automation(client: SyncPrefectClient, wanted: Automation) -> None:
    """Create the automation, or update the one of its name; one that someone disabled stays so."""
    existing = client.read_automations_by_name(wanted.name)
    if existing:
        wanted.id = existing[0].id
        wanted.enabled = existing[0].enabled
        wanted.update()
    else:
        wanted.create()


def main() -> None:
    """Set everything up, saying what."""
    with get_client(sync_client=True) as client:
        print("work pools:", ", ".join(create_work_pools(client)))  # noqa: T201
        before = list(schedule_switches(client))
        deploy_all()
        restore_switches(client, before)
        print("deployments:", ", ".join(sorted(deployment.name for deployment in our_deployments(client))))  # noqa: T201
        automation = crash_lost_runs()
        create_automation(client, automation)
        print("automation:", automation.name)  # noqa: T201


if __name__ == "__main__":
    main()
