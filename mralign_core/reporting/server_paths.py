"""Paths of our own on the Prefect server of ``make serve``: what its door answers, and what runs link to."""

IDENTITY_PATH = "/mralign/identity"
"""Where it proves that it is ours."""
ARTIFACTS_PREFIX = "/mralign/artifacts/"
"""Where pages and figures of stores are shown."""
