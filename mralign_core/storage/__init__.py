"""Artifacts: immutable, content-addressed, verified when read, in a folder or an S3 bucket."""

from mralign_core.storage.artifact import LEFT_OUT, TO_ASK_AGAIN, ArtifactRef
from mralign_core.storage.claims import Holder
from mralign_core.storage.digests import file_sha256, key_of, tree_digest
from mralign_core.storage.lineage import render_lineage
from mralign_core.storage.records import BatchRecords, LedgerRecords, ReplyStore, RunRecord, RunRecords
from mralign_core.storage.scratch import scratch_folder
from mralign_core.storage.store import ArtifactStore

__all__ = [
    "LEFT_OUT",
    "TO_ASK_AGAIN",
    "ArtifactRef",
    "ArtifactStore",
    "BatchRecords",
    "Holder",
    "LedgerRecords",
    "ReplyStore",
    "RunRecord",
    "RunRecords",
    "file_sha256",
    "key_of",
    "render_lineage",
    "scratch_folder",
    "tree_digest",
]
