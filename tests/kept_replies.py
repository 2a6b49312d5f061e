"""Replies kept in a folder, by the store that a run keeps them in."""

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore, ReplyStore


def replies_in(folder):
    return ReplyStore(ArtifactStore(StorageConfig(root=str(folder))))
