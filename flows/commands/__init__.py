"""The command line ``mralign``, and the Prefect server that stands behind it."""
