"""Which files of artifacts are shown in a browser, and their addresses on the server of ``make serve``.

An address is ``/mralign/artifacts/STAGE/KEY/DIGEST/FILE?store=ROOT``: it is true for as long as the artifact is there.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.reporting.provenance import provenance_of, with_provenance
from mralign_core.reporting.server_paths import ARTIFACTS_PREFIX
from mralign_core.reporting.store_addresses import storage_in, store_query
from mralign_core.storage import ArtifactRef, ArtifactStore

PAGES_AND_FIGURES = ("report", "ablation-page", "diagnostic-figures")
"""Artifacts that are pages and figures; no other is given out."""
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_ADDRESS = re.compile(
    rf"{re.escape(ARTIFACTS_PREFIX)}(?P<artifact>(?P<stage>{'|'.join(PAGES_AND_FIGURES)})/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}/[0-9a-f]{{16}})"
    r"/(?P<file>[A-Za-z0-9][A-Za-z0-9._-]{0,127})"
)


class ShownFile(NamedTuple):
    """What a browser is given."""

    media_type: str
    content: bytes


def address_of(storage: StorageConfig, ref: ArtifactRef, file: str) -> str:
    """Where the server of ``make serve`` shows a file of an artifact: path and query.

    >>> ref = ArtifactRef(uri="x", stage="report", key="k", sha256="a" * 64)
    >>> address_of(StorageConfig(root="s3://bucket/mralign"), ref, "report.html")
    '/mralign/artifacts/report/k/aaaaaaaaaaaaaaaa/report.html?store=s3%3A%2F%2Fbucket%2Fmralign'
    """
    path = quote(ref.path.removeprefix("artifacts/"))
    return f"{ARTIFACTS_PREFIX}{path}/{quote(file)}?{urlencode(store_query(storage))}"


def read_shown(path: str, query: str) -> ShownFile:
    """The file at an address.

    Args:
        path: of the address, with ``%`` escapes.
        query: of the address.

    Raises:
        ArtifactError: it is not an address of a page or figure, or nothing whole is there.
        StorageError: the store does not answer.
    """
    found = _ADDRESS.fullmatch(unquote(path))
    kind = MEDIA_TYPES.get(PurePosixPath(found["file"]).suffix) if found else None
    if found is None or kind is None:
        raise ArtifactError(
            f"no page or figure has this address; artifacts that are shown: {', '.join(PAGES_AND_FIGURES)}"
        )
    store = ArtifactStore(storage_in(parse_qs(query)))
    manifest = store.manifest_at(f"artifacts/{found['artifact']}")
    ref = manifest.ref(f"{store.root_uri}/{manifest.path}")
    content = store.open_file(ref, found["file"]).read_bytes()
    if (found["stage"], found["file"]) == ("report", "report.html"):
        content = with_provenance(content.decode(), provenance_of(store.lineage(ref))).encode()
    return ShownFile(kind, content)
