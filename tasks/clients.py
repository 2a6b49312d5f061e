"""One client for all paid requests of a run's stage: its limits, its ledger, what it has under way."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import time
from dataclasses import asdict

import pandas as pd
from prefect.runtime import flow_run

from mralign_core.config import AnnotateConfig, GenerateConfig
from mralign_core.llm import Ledger, LLMClient, Usage, background
from mralign_core.llm.ledger import read_record
from mralign_core.storage import ArtifactStore, BatchRecords, LedgerRecords, ReplyStore

BUDGETS = {AnnotateConfig: "annotate.budget_usd", GenerateConfig: "generate.budget_usd"}
"""The field that sets the ceiling of a section's account."""

_clients: dict[tuple[str, str, str], LLMClient] = {}
_opening = threading.Lock()


def shared_client(store: ArtifactStore, ledger_name: str, section: AnnotateConfig | GenerateConfig) -> LLMClient:
    """The client that all shards of this run share.

    Args:
        store: where replies, ledger and batches are kept.
        ledger_name: the account that the requests are paid from, over all runs.
        section: concurrency and budget; a run may use several, each with a client of its own.
    """
    name = _name(store, ledger_name, section)
    with _opening:
        client = _clients.get(name)
        if client is None:
            client = LLMClient(
                ReplyStore(store),
                concurrency=section.concurrency,
                ledger=Ledger(LedgerRecords(store, ledger_name), name[-1], section.budget_usd, BUDGETS[type(section)]),
                batches=BatchRecords(store),
            )
            _clients[name] = client
        client.reopen()
    return client


def save_account(store: ArtifactStore, ledger_name: str, section: AnnotateConfig | GenerateConfig) -> None:
    """Save what this run's client has asked: requests that cost nothing are not saved one by one."""
    ledger = _clients[_name(store, ledger_name, section)].ledger
    background.run(lambda _: ledger.save())


def read_account(store: ArtifactStore, ledger_name: str) -> pd.DataFrame:
    """What each run paid from an account: ``run, model`` and the fields of :class:`mralign_core.llm.Usage`."""
    records = LedgerRecords(store, ledger_name).read()
    rows = [
        {"run": run, "model": model, **asdict(usage)}
        for run, record in records.items()
        for model, usage in read_record(run, record).items()
    ]
    return pd.DataFrame(rows, columns=["run", "model", *Usage.__dataclass_fields__]).round(6)


def run_name() -> str:
    """The pipeline run's name in the Prefect UI, so that its account can be found again; else this process."""
    run_id = flow_run.root_flow_run_id
    return f"{re.sub('[^A-Za-z0-9._-]', '-', flow_run.name or '')}-{str(run_id)[:8]}" if run_id else _process_name()


def _name(store: ArtifactStore, ledger_name: str, section: AnnotateConfig | GenerateConfig) -> tuple[str, str, str]:
    """What a client is for: store, account, and this run's part of it."""
    digest = hashlib.sha256(section.model_dump_json().encode()).hexdigest()[:6]
    return store.root_uri, ledger_name, f"{run_name()}-{digest}"


@functools.cache
def _process_name() -> str:
    return f"{time.strftime('local-%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
