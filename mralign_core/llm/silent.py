"""litellm, which tells nobody and logs nothing; importing it takes seconds, so functions that need it do."""

from __future__ import annotations

import logging

import litellm
from litellm.types.utils import OPENAI_COMPATIBLE_BATCH_AND_FILES_PROVIDERS

litellm.telemetry = False
litellm.suppress_debug_info = True
for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
    logging.getLogger(name).setLevel(logging.ERROR)

BATCH_PROVIDERS = frozenset({*OPENAI_COMPATIBLE_BATCH_AND_FILES_PROVIDERS, "azure"})
"""Providers whose whole batch protocol litellm speaks: for others it lacks a call, or needs a bucket of one's own."""
