"""Section ``storage``: the store of artifacts."""

from __future__ import annotations

from pydantic import Field

from mralign_core.addresses import StoreRoot, Url
from mralign_core.config.base import OPERATIONAL, Section


class StorageConfig(Section):
    """Where artifacts live. Credentials come from the usual AWS chain, never from here."""

    root: StoreRoot = Field(".mralign/store", json_schema_extra=OPERATIONAL)
    """A folder, or `s3://bucket/prefix`."""
    endpoint_url: Url = Field("", json_schema_extra=OPERATIONAL)
    """URL of an S3-compatible server; empty for AWS."""
    connect_timeout_s: float = Field(5.0, gt=0, le=120, json_schema_extra=OPERATIONAL)
    """Seconds to wait for a connection to the store."""
    read_timeout_s: float = Field(60.0, gt=0, le=3600, json_schema_extra=OPERATIONAL)
    """Seconds to wait for a reply of the store."""
    claim_lease_s: float = Field(60.0, ge=6, le=3600, json_schema_extra=OPERATIONAL)
    """Seconds without a sign of life after which another run takes over what this one has begun to make."""
    patience_s: float = Field(300.0, ge=0, le=86_400, json_schema_extra=OPERATIONAL)
    """Seconds to go on trying while the store does not answer, counted for each operation from its first failure."""
    cache_gib: float = Field(50.0, ge=0, json_schema_extra=OPERATIONAL)
    """Most GiB of downloads from a bucket kept in `~/.cache/mralign`; those used longest ago go first, those in use
    never."""
