"""Artifacts: immutable, content-addressed, verified when read, in a folder or an S3 bucket."""

from mralign_core.storage.artifact import LEFT_OUT, TO_ASK_AGAIN, ArtifactRef, Manifest
from mralign_core.storage.claims import Claims, Holder
from mralign_core.storage.digests import file_sha256, key_of, source_digest, tree_digest
from mralign_core.storage.lineage import Lineage, render_lineage
from mralign_core.storage.records import BatchRecords, LedgerRecords, ReplyStore, RunRecord, RunRecords
from mralign_core.storage.scratch import scratch_folder
from mralign_core.storage.store import ArtifactStore

__all__ = [
    "LEFT_OUT",
    "TO_ASK_AGAIN",
    "ArtifactRef",
    "ArtifactStore",
    "BatchRecords",
    "Claims",
    "Holder",
    "LedgerRecords",
    "Lineage",
    "Manifest",
    "ReplyStore",
    "RunRecord",
    "RunRecords",
    "file_sha256",
    "key_of",
    "render_lineage",
    "scratch_folder",
    "source_digest",
    "tree_digest",
]
