"""What a run is called: as its user typed it; else by its config's name, seed and digest; a stage's after its run.

Prefect names a run that nobody named, on its server or in a form that comes filled in with a made-up name. A name of
that form is taken for made up, and replaced.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from coolname.data import config as _words
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from mralign_core.config import RunConfig
from mralign_core.storage import key_of
from tasks.engine.session import root_flow_run_id

DIGEST_CHARS = 6
_GREEK = "delta|epsilon|zeta|eta|theta|iota|kappa|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega"
"""Without alpha, beta, gamma and lambda, which people name runs after, as ``beta2-sweep``: such a made-up one stays."""
_ADJECTIVES = (
    "Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic"
    "|Handcrafted|Tasty|Handmade|Incredible"
)
_OF_FORMS = re.compile(rf"(?:{_GREEK})\d+(?:-[a-z]+)+|(?:{_ADJECTIVES})-[A-Z][A-Za-z '.-]{{0,9}}")
"""What the forms of both UIs of Prefect 3.8 are filled in with, such as ``chi843-goto`` and ``Incredible-Cockle``."""


def name_run() -> str:
    """The name of the flow run that begins, for Prefect's ``flow_run_name``."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "run"
    name = str(context.flow_run.name)
    if not is_made_up(name):
        return name
    root = root_flow_run_id()
    if root != str(context.flow_run.id):
        return f"{name_of(root)}-{context.flow.name if context.flow else 'stage'}"
    config = (context.parameters or {}).get("config")
    return run_name_of(config) if isinstance(config, RunConfig) else name


def run_name_of(config: RunConfig) -> str:
    """Name, seed, and what tells one config from another that have both in common.

    >>> run_name_of(RunConfig.model_validate({"name": "mine", "seed": 3, "questions": {"train": "sciq"}}))[:8]
    'mine-s3-'
    """
    digest = key_of(config=config.fingerprint())[:DIGEST_CHARS]
    return f"{config.name}-s{config.seed}-{digest}"


def is_made_up(name: str) -> bool:
    """Whether Prefect's server or a form of its UIs has made up a name.

    >>> [is_made_up(name) for name in ("peach-porpoise", "chi843-goto", "Incredible-Cockle", "my-run")]
    [True, True, True, False]
    """
    first, _, second = name.partition("-")
    return bool(_OF_FORMS.fullmatch(name)) or (first in _made_of("adj_any") and second in _made_of("subj"))


def name_of(run_id: str) -> str:
    """The name of a run that has begun."""
    return str(_run(run_id).name)


def ids_of_runs(name: str) -> list[str]:
    """The ids of the runs that have a name, of deployments and of commands, the newest first."""
    of_name = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        return [str(run.id) for run in client.read_flow_runs(flow_run_filter=of_name)]


def queue_of(run_id: str) -> str | None:
    """The work queue that a run that has begun was taken from; None of one that no worker took."""
    return _run(run_id).work_queue_name


def seconds_since_start(run_id: str) -> float:
    """How long ago a run that has begun did so."""
    run = _run(run_id)
    began = run.start_time or run.expected_start_time
    return (datetime.now(UTC) - began).total_seconds() if began else 0.0


@functools.lru_cache(maxsize=64)
def _run(run_id: str) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run_id))


@functools.cache
def _made_of(kind: str) -> frozenset[str]:
    """The words that a kind of list gives, through those that it refers to."""
    entry: Any = _words[kind]
    words = {"".join(each) if isinstance(each, list) else str(each) for each in entry.get("words", ())}
    return frozenset(words).union(*(_made_of(str(each)) for each in entry.get("lists", ())))
