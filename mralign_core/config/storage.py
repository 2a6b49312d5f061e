"""Section ``storage``: the store of artifacts."""

from __future__ import annotations

from pydantic import Field

from mralign_core.addresses import StoreRoot, Url
from mralign_core.config.base import OPERATIONAL, Section


class RetentionConfig(Section):
    """What `mralign gc`, and a retraining with retrain.clears_store, keep; what that was made from stays too."""

    runs: int = Field(5, ge=0, json_schema_extra=OPERATIONAL)
    """Newest runs of each config's name, whose artifacts are kept."""
    days: float = Field(30.0, ge=0, json_schema_extra=OPERATIONAL)
    """What was made, or noted by a run, within so many days is kept, whatever made it."""
    grace_hours: float = Field(24.0, ge=0, json_schema_extra=OPERATIONAL)
    """Nothing goes that was written within so many hours: a run that left no trace yet may need it."""
    unnamed_versions: int | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)
    """Newest versions that are kept, of all configs on the store, besides those that an alias names or ever named; all
    when not set."""


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
    retention: RetentionConfig = Field(RetentionConfig(), json_schema_extra=OPERATIONAL)
    """What is kept when the store is cleared up."""
