"""Bring a Prefect server up to what this checkout deploys: ``python -m deployments.bootstrap``.

Creates or updates the work pools of ``work_pools/``, the deployments of ``prefect.yaml`` and the automation
that finds lost runs. It may be run again at any time: what is there is updated in place, and what someone changed
in the UI stays as it is, which is said. ``PREFECT_API_URL`` says which server.

Pools are made of processes unless ``--pools docker`` or ``--pools kubernetes`` says otherwise, or ``--pools
a800=kubernetes cpu=process`` for each: the pools keep their names, so that the deployments are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME

from deployments.keeping import ABSENT, KEPT, Record, Values, kept_line, merge
from deployments.steps import CHECKOUT, CHECKOUT_OF_WORKERS
from mralign_core.errors import UserError

WORK_POOLS = CHECKOUT / "deployments" / "work_pools"
PROCESS = "process"
KINDS = (PROCESS, "docker", "kubernetes")
"""Types of work pools; where ``a800`` is one of containers, ``a800-docker.json`` says what it is."""
POOL_NAMES = ("cpu", "a800")
IMAGE_CHECKOUT = "/opt/mr-align"
"""Where the image of ``docker/Dockerfile`` has this project."""
TAG = "mr-align"
FINAL_STATES = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Paused", "Suspended")
# Flow runs beat every 180 s unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY says otherwise; a run that a busy host
# delays must not be taken for a lost one, so three beats and a minute.
HEARTBEAT_TIMEOUT = timedelta(minutes=10)


QUEUES: dict[str, tuple[str, int | None]] = {
    "urgent": ("Goes first, such as a run to debug: choose it in the form, below Additional options.", 1),
    "background": ("Waits for all others, such as the weekly retraining.", None),
}
"""Work queue of each pool, beside Prefect's own ``default`` → what it is for, and its priority; None for the last."""
EDITABLE = (
    "parameters",
    "description",
    "tags",
    "paused",
    "job_variables",
    "work_pool_name",
    "work_queue_name",
    "concurrency_limit",
    "concurrency_options",
    "enforce_parameter_schema",
    "schedules",
)
"""What a user can change of a deployment."""
ENDPOINT, MOST_LIMITS = "endpoint ", 200
"""How the limits of endpoints begin (:func:`tasks.endpoint_turns.limit_name`), and how many Prefect lists."""
PLACE = ("work_pool_name", "work_queue_name")
"""Where the runs of a deployment go. Where a pool was deleted, Prefect has emptied the first, and at times both."""
SCHEDULE_FIELDS = ("schedule", "active", "parameters", "max_scheduled_runs")


class PoolKindError(UserError):
    """A work pool can't be of the kind that was asked for."""


def create_work_pools(client: SyncPrefectClient, record: Record, kinds: Mapping[str, str] | None = None) -> list[str]:
    """Create or update the work pools; return their names.

    Args:
        client: of the server.
        record: what was deployed last.
        kinds: pool → its kind, of :data:`KINDS`; processes where none is named.

    Raises:
        PoolKindError: a pool is there and of another kind.
    """
    for name in POOL_NAMES:
        new = read_work_pool(name, (kinds or {}).get(name, PROCESS))
        try:
            pool = client.read_work_pool(name)
        except ObjectNotFound:
            pool = client.create_work_pool(WorkPoolCreate.model_validate(new))
        if pool.type != new["type"]:
            raise PoolKindError(
                f"work pool {name} is of type {pool.type}, and --pools asks for {new['type']}, which can't be changed: "
                f"say --pools {name}={pool.type}, or delete it first, with what you changed of it (`prefect work-pool "
                f"delete {name}`), and run this again"
            )
        values = pool.model_dump(mode="json")
        current = {field: values[field] for field in new}
        merged = _keep(record, str(pool.id), f"work pool {pool.name}", current, new)
        if merged != current:
            fields = {field: value for field, value in merged.items() if field not in ("name", "type")}
            client.update_work_pool(pool.name, WorkPoolUpdate.model_validate(fields))
        record.note({str(pool.id): new})
    return list(POOL_NAMES)


def read_work_pool(name: str, kind: str) -> Values:
    """The work pool as its file says, with the base job template for one kind of infrastructure."""
    stem = name if kind == PROCESS else f"{name}-{kind}"
    pool: Values = json.loads((WORK_POOLS / f"{stem}.json").read_text(encoding="utf-8"))
    return pool


def create_queues(client: SyncPrefectClient, pools: list[str]) -> None:
    """Give each pool the queues of :data:`QUEUES`; one that is there is left as it is: its user may have changed it."""
    for pool in pools:
        there = {queue.name for queue in client.read_work_queues(work_pool_name=pool)}
        for name, (description, priority) in QUEUES.items():
            if name not in there:
                client.create_work_queue(name, description, priority=priority, work_pool_name=pool)


def limits_set(client: SyncPrefectClient, pools: list[str]) -> list[str]:
    """What someone has limited on pools, queues and endpoints, a line each; none of it is changed here."""
    found = []
    for name in pools:
        limit = client.read_work_pool(name).concurrency_limit
        found += [f"{KEPT} limit of work pool {name}: {limit} run(s) at once"] if limit is not None else []
        for queue in client.read_work_queues(work_pool_name=name):
            if queue.concurrency_limit is not None:
                found.append(f"{KEPT} limit of queue {name}/{queue.name}: {queue.concurrency_limit} run(s) at once")
    for each in client.read_global_concurrency_limits(limit=MOST_LIMITS):
        if each.name.startswith(ENDPOINT):
            off = "" if each.active else ", switched off"
            found.append(f"{KEPT} limit of {each.name}: {each.limit} request(s) at once{off}")
    return found


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


def deploy(client: SyncPrefectClient, record: Record) -> list[str]:
    """Deploy ``prefect.yaml`` and put back what is the user's, also where that is cut off halfway; return the names.

    Raises:
        RuntimeError: a deployment was refused.
    """
    record.begin({str(each.id): _values(each) for each in our_deployments(client)})
    try:
        deploy_all()
        deployed = {str(each.id): _values(each) for each in our_deployments(client)}
    finally:
        for deployment in our_deployments(client):
            if before := record.unfinished.get(str(deployment.id)):
                wanted = _keep(record, str(deployment.id), deployment.name, before, _values(deployment))
                _put_back(client, deployment, wanted)
        record.end()
    record.note(deployed)
    return sorted(deployment.name for deployment in our_deployments(client))


def _keep(record: Record, key: str, owner: str, current: Values, new: Values) -> Values:
    """The values that are to be there, saying which are the user's."""
    last = record.last.get(key, {})
    wanted: Values = {}
    if new.get("work_pool_name") and current["work_pool_name"] is None:
        current = {**current, **{kind: new[kind] for kind in PLACE}}
    for kind, value in new.items():
        merged = merge(last.get(kind, ABSENT), current[kind], value)
        wanted[kind] = merged.value
        if merged.kept:
            print(kept_line(owner, kind, merged.kept))  # noqa: T201
    return wanted


def _put_back(client: SyncPrefectClient, deployment: DeploymentResponse, wanted: Values) -> None:
    deployed = _values(deployment)
    changed = {field: value for field, value in wanted.items() if value != deployed[field]}
    schedules = changed.pop("schedules", None)
    try:
        if changed:
            client.update_deployment(deployment.id, DeploymentUpdate(**changed))
        if schedules is not None:
            _replace_schedules(client, deployment, schedules)
    except PrefectHTTPStatusError as error:
        print(  # noqa: T201
            f"could not keep your {', '.join(changed)} of {deployment.name}: {error.response.text}\n"
            f"  they were {json.dumps(changed)}"
        )


def _replace_schedules(client: SyncPrefectClient, deployment: DeploymentResponse, schedules: Values) -> None:
    for schedule in deployment.schedules:
        client.delete_deployment_schedule(deployment.id, schedule.id)
    for name, fields in schedules.items():
        slug = None if name.startswith("#") else name
        wanted = DeploymentScheduleCreate.model_validate({**fields, "slug": slug})
        client.create_deployment_schedules(deployment.id, [wanted])


def _values(deployment: DeploymentResponse) -> Values:
    """What a user may have changed, as JSON."""
    values = deployment.model_dump(mode="json")
    limit = deployment.global_concurrency_limit
    values["concurrency_limit"] = limit.limit if limit else None
    values["tags"] = sorted(values["tags"])
    values["schedules"] = {
        schedule["slug"] or f"#{number}": {field: schedule[field] for field in SCHEDULE_FIELDS}
        for number, schedule in enumerate(values["schedules"], 1)
    }
    return {field: values[field] for field in EDITABLE}


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


def create_automation(client: SyncPrefectClient, wanted: Automation, record: Record) -> None:
    """Create the automation, or update the one of its name where something differs that is not the user's.

    An update, also to what is there, gives the trigger a new id, under which the runs that it watches are unknown: a
    run that falls silent later is then found only if it beats once more before.
    """
    new = _automation_values(wanted)
    if not client.read_automations_by_name(wanted.name):
        wanted.create()
    existing = client.read_automations_by_name(wanted.name)[0]
    current = _automation_values(existing)
    merged = _keep(record, str(existing.id), f"automation {wanted.name}", current, new)
    if merged != current:
        Automation.model_validate({**merged, "name": wanted.name, "id": existing.id}).update()
    record.note({str(existing.id): new})


def _automation_values(automation: AutomationCore) -> Values:
    values = automation.model_dump(mode="json", include={"description", "enabled", "trigger", "actions"})
    values["trigger"].pop("id", None)
    for field in ("after", "expect", "for_each"):
        values["trigger"][field] = sorted(values["trigger"].get(field, []))
    return values


def parse_kinds(words: Sequence[str]) -> dict[str, str]:
    """The kind of each pool, from one word for all (``kubernetes``) or some of the form ``a800=kubernetes``.

    Raises:
        PoolKindError: a word names no pool, or no kind.

    Example:
        >>> parse_kinds(["a800=kubernetes"])
        {'cpu': 'process', 'a800': 'kubernetes'}
    """
    kinds = dict.fromkeys(POOL_NAMES, PROCESS)
    for word in words:
        name, has_name, kind = word.rpartition("=")
        if kind not in KINDS or (has_name and name not in POOL_NAMES):
            raise PoolKindError(
                f"--pools {word!r}: say one of {', '.join(KINDS)}, or POOL=KIND with {' or '.join(POOL_NAMES)}"
            )
        kinds.update({name: kind} if has_name else dict.fromkeys(POOL_NAMES, kind))
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """Set everything up, saying what; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.bootstrap", description="Deploy to a Prefect server.")
    parser.add_argument("--pools", nargs="+", default=[], metavar="KIND", help=f"{', '.join(KINDS)}, or POOL=KIND…")
    parser.add_argument("--checkout", help=f"this project on the workers; {IMAGE_CHECKOUT} where a pool has containers")
    chosen = parser.parse_args(arguments)
    try:
        kinds = parse_kinds(chosen.pools)
        has_containers = set(kinds.values()) != {PROCESS}
        os.environ[CHECKOUT_OF_WORKERS] = chosen.checkout or (IMAGE_CHECKOUT if has_containers else str(CHECKOUT))
        set_up(kinds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def set_up(kinds: Mapping[str, str]) -> None:
    """Set everything up, saying what.

    Args:
        kinds: pool → its kind.
    """
    record = Record(Path(PREFECT_HOME.value()))
    with get_client(sync_client=True) as client:
        pools = create_work_pools(client, record, kinds)
        create_queues(client, pools)
        print("work pools:", ", ".join(pools))  # noqa: T201
        for line in limits_set(client, pools):
            print(line)  # noqa: T201
        print("deployments:", ", ".join(deploy(client, record)))  # noqa: T201
        automation = crash_lost_runs()
        create_automation(client, automation, record)
        print("automation:", automation.name)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
