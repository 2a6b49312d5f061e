"""A store in the query of an address on our own server, and which stores an address may name.

What is asked of an S3 server is signed with this process's credentials, so a link must not choose who gets them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode, urlsplit

from pydantic import ValidationError

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.reporting.server_paths import VIEW_PREFIX
from mralign_core.storage import ArtifactStore

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
PATIENCE_S = 20.0
"""For a store that does not answer: somebody waits at the browser."""


def store_query(storage: StorageConfig) -> dict[str, str]:
    """What names a store in an address.

    >>> store_query(StorageConfig(root="s3://bucket/mralign", endpoint_url="http://127.0.0.1:9000"))
    {'store': 's3://bucket/mralign', 'endpoint': 'http://127.0.0.1:9000'}
    """
    root = ArtifactStore(storage).root_uri
    return {"store": root, **({"endpoint": storage.endpoint_url} if storage.endpoint_url else {})}


def view_address(storage: StorageConfig, run: str) -> str:
    """Where the workbench shows a run: path and query.

    Args:
        storage: its store.
        run: what :func:`~mralign_core.workbench.tables.find_run` accepts.
    """
    return f"{VIEW_PREFIX}?{urlencode({**store_query(storage), 'run': run})}"


def rating_address(storage: StorageConfig, run: str, name: str, rater: str) -> str:
    """Where the workbench lets a rater rate.

    Args:
        storage: the store of the round.
        run: as for :func:`view_address`.
        name: of the round.
        rater: who rates.
    """
    query = {**store_query(storage), "run": run, "round": name, "rater": rater}
    return f"{VIEW_PREFIX}rate?{urlencode(query)}"


def storage_in(query: Mapping[str, Sequence[str]]) -> StorageConfig:
    """The store that the query of an address names.

    Args:
        query: name → values.

    Raises:
        ArtifactError: it names none, or several, or an S3 server that this process was not told of.
    """
    if len(query.get("store", [])) != 1:
        raise ArtifactError("this address names no store: it needs store=ROOT, once")
    try:
        root, endpoint = query["store"][0], _own_endpoint([*query.get("endpoint", []), ""][0])
        return StorageConfig(root=root.removeprefix("file://"), endpoint_url=endpoint, patience_s=PATIENCE_S)
    except ValidationError as error:
        raise ArtifactError(f"the store in this address can't be read: {error.errors()[0]['msg']}") from None


def _own_endpoint(endpoint: str) -> str:
    """The address of an S3 server, if it is on this machine or the one that this process was told of."""
    told = {os.environ.get(name, "").rstrip("/") for name in ENDPOINT_VARIABLES}
    if endpoint and urlsplit(endpoint).hostname not in _LOOPBACK and endpoint.rstrip("/") not in told:
        raise ArtifactError(
            f"this server asks no S3 server that it was not told of, such as {endpoint}: start it with "
            f"{ENDPOINT_VARIABLES[0]}={endpoint}"
        )
    return endpoint
