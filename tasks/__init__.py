"""How a stage is run: Prefect tasks that read artifacts, call the core, and publish what it made."""

import logging

from mralign_core.redaction import redact_logs

# PREFECT_LOGGING_EXTRA_LOGGERS gives the core's loggers handlers and no level; they would inherit WARNING.
logging.getLogger("mralign_core").setLevel(logging.INFO)
redact_logs()
