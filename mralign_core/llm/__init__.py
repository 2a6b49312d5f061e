"""Requests to language models, kept and paid for once: client, limits, ledger, offline models, batch API."""

import os

# Otherwise the import of litellm fetches a price map from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
