"""One client for all paid requests of a run's stage: its limits, its ledger, what it has under way, its turns."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import asdict

import pandas as pd

from mralign_core.config import (
    AnnotateConfig,
    AskingSection,
    EndpointConfig,
    EvaluateConfig,
    GenerateConfig,
    JudgeConfig,
)
from mralign_core.llm import background
from mralign_core.llm.client import LLMClient
from mralign_core.llm.ledger import Ledger, Usage, read_record
from mralign_core.llm.offline import is_offline
from mralign_core.storage import ArtifactStore, BatchRecords, LedgerRecords, ReplyStore
from tasks.endpoint_turns import Turns
from tasks.engine.session import run_name, session

BUDGETS = {
    AnnotateConfig: "annotate.budget_usd",
    GenerateConfig: "generate.budget_usd",
    JudgeConfig: "judge.budget_usd",
    EvaluateConfig: "evaluate.budget_usd",
}
"""The field that sets the ceiling of a section's account."""
Paying = AskingSection | GenerateConfig | EvaluateConfig
"""A section whose stage may ask a server."""


def shared_client(store: ArtifactStore, ledger_name: str, section: Paying) -> LLMClient:
    """The client that all shards of this run share.

    Args:
        store: where replies, ledger and batches are kept.
        ledger_name: the account that the requests are paid from, over all runs.
        section: concurrency and budget; a run may use several, each with a client of its own.
    """
    name = _name(store, ledger_name, section)
    with session() as shared, shared.lock:
        clients = shared.kept("clients")
        if name not in clients:
            clients[name] = LLMClient(
                ReplyStore(store),
                concurrency=_turns(name, section).places,
                ledger=Ledger(LedgerRecords(store, ledger_name), name[-1], section.budget_usd, BUDGETS[type(section)]),
                batches=BatchRecords(store),
            )
        client: LLMClient = clients[name]
        client.reopen()
    return client


@contextlib.contextmanager
def turn(store: ArtifactStore, ledger_name: str, section: Paying) -> Iterator[None]:
    """Ask for one shard, with :func:`shared_client` of the same arguments, in turn with other runs."""
    if not _endpoints(section):
        yield
        return
    with session(), _turns(_name(store, ledger_name, section), section).shard():
        yield


def _turns(name: tuple[str, str, str], section: Paying) -> Turns:
    with session() as shared:
        found: Turns = shared.once("turns", name, lambda: Turns(_endpoints(section), section.concurrency))
    return found


def _endpoints(section: Paying) -> list[EndpointConfig]:
    """What the section's stage asks, request by request."""
    match section:
        case AnnotateConfig():
            asked = list(section.endpoints.values())
        case JudgeConfig():
            asked = list(section.endpoints)
        case GenerateConfig() | EvaluateConfig() if section.sampler == "endpoint":
            asked = [section.endpoint]
        case _:
            asked = []
    return [endpoint for endpoint in asked if not endpoint.use_batch_api and not is_offline(endpoint.model)]


def save_account(store: ArtifactStore, ledger_name: str, section: Paying) -> None:
    """Save what this run's client has asked, if it was opened: what costs nothing is not saved request by request."""
    with session() as shared:
        client: LLMClient | None = shared.kept("clients").get(_name(store, ledger_name, section))
    if client is None:
        return
    background.run(lambda _: client.ledger.save())


def read_account(store: ArtifactStore, ledger_name: str) -> pd.DataFrame:
    """What each run paid from an account: ``run, model`` and the fields of :class:`mralign_core.llm.ledger.Usage`."""
    records = LedgerRecords(store, ledger_name).read()
    rows = [
        {"run": run, "model": model, **asdict(usage)}
        for run, record in records.items()
        for model, usage in read_record(run, record).items()
    ]
    return pd.DataFrame(rows, columns=["run", "model", *Usage.__dataclass_fields__]).round(6)


def _name(store: ArtifactStore, ledger_name: str, section: Paying) -> tuple[str, str, str]:
    """What a client is for: store, account, and this run's part of it."""
    digest = hashlib.sha256(section.model_dump_json().encode()).hexdigest()[:6]
    return store.root_uri, ledger_name, f"{run_name()}-{digest}"
