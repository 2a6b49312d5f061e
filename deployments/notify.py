"""Send what retrainings come to to a notification block: ``python -m deployments.notify TYPE/NAME``.

TYPE/NAME is a block that you have filled in (Blocks in the UI), such as ``slack-webhook/ops`` or
``custom-webhook/ops``. Two automations are made, or updated: one for what a retraining decided, one for runs of
``weekly-retrain`` that failed. What someone changed of them in the UI stays, which is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_HOME

from deployments.bootstrap import create_automation
from deployments.keeping import Record
from flows.weekly_retrain import EVENTS
from mralign_core.errors import ConfigError, UserError

TOLD = ("promoted", "held", "rejected", "over-budget", "quiet")
"""Of the events of a retraining, those that are sent; nothing new is told once in retrain.quiet_runs."""
FAILED = tuple(f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut", "Cancelled"))
DEPLOYMENT = "weekly-retrain"


def notifications(block_id: UUID) -> list[Automation]:
    """The automations that send to a block.

    Args:
        block_id: the block's document.
    """
    decided = Automation(
        name="mr-align: tell what a retraining decided",
        description="Sends what a retraining came to.",
        trigger=EventTrigger(
            expect={f"{EVENTS}.{what}" for what in TOLD},
            match={"prefect.resource.id": f"{EVENTS}.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="MR-ALIGN {{ event.resource.name }}: {{ event.event }}",
                body="{{ event.payload.message }}",
            )
        ],
    )
    failed = Automation(
        name="mr-align: tell that a retraining failed",
        description="Sends that a run of weekly-retrain ended without a decision.",
        trigger=EventTrigger(
            expect=set(FAILED),
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.name": DEPLOYMENT, "prefect.resource.role": "deployment"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block_id,
                subject="MR-ALIGN: retraining {{ event.resource.name }} failed",
                body="{{ event.event }}: {{ flow_run|ui_url }}. What it had made is kept; run it again.",
            )
        ],
    )
    return [decided, failed]


def find_block(client: SyncPrefectClient, slug: str) -> UUID:
    """The document of a block.

    Args:
        client: of the server.
        slug: type and name, such as ``slack-webhook/ops``.

    Raises:
        ConfigError: there is none.
    """
    block_type, _, name = slug.partition("/")
    try:
        return client.read_block_document_by_name(name, block_type).id
    except ObjectNotFound:
        raise ConfigError(
            f"no block {slug!r} on {client.api_url}: fill one in (Blocks in the UI), and give its type and name, such "
            "as slack-webhook/ops"
        ) from None


def main() -> None:
    """Set the automations up, saying what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("block", metavar="TYPE/NAME", help="the notification block, such as slack-webhook/ops")
    slug = parser.parse_args().block
    record = Record(Path(PREFECT_HOME.value()))
    with get_client(sync_client=True) as client:
        try:
            block_id = find_block(client, slug)
        except UserError as error:
            sys.exit(str(error))
        for automation in notifications(block_id):
            create_automation(client, automation, record)
            print("automation:", automation.name)  # noqa: T201


if __name__ == "__main__":
    main()
