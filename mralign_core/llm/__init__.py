"""Requests to language models, kept and paid for once: client, limits, ledger, offline models, batch API."""

import os

# Otherwise the import of litellm fetches a price map from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from mralign_core.llm.batch_store import BatchStore, MemoryBatchStore
from mralign_core.llm.client import Client, LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger, LedgerStore, MemoryLedgerStore, Usage
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Received, Request
from mralign_core.llm.store import FolderReplyStore, KeepsReplies, MemoryReplyStore

__all__ = [
    "BatchStore",
    "Client",
    "EndpointUnavailableError",
    "FolderReplyStore",
    "KeepsReplies",
    "LLMClient",
    "Ledger",
    "LedgerStore",
    "MemoryBatchStore",
    "MemoryLedgerStore",
    "MemoryReplyStore",
    "Message",
    "Received",
    "Request",
    "Usage",
]
