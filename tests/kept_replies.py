"""Replies kept for a test: in memory, or in a folder by the store that a run keeps them in."""

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore, ReplyStore


class MemoryReplyStore:
    """Replies by the digest of their request, as in :class:`mralign_core.llm.store.KeepsReplies`."""

    def __init__(self):
        self.records = {}

    def get(self, request_digest):
        return self.records.get(request_digest)

    def put(self, request_digest, record):
        self.records[request_digest] = record


def replies_in(folder):
    return ReplyStore(ArtifactStore(StorageConfig(root=str(folder))))
