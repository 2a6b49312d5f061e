"""Annotates against each server of ``tests.llm_faults``; run by the interpreter under attack, prints JSON lines."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Go through the servers that are named, or all."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the installation's own folders
    from tests.llm_faults import run_all

    logging.disable()
    for row in run_all(sys.argv[1:] or None):
        print(json.dumps(row._asdict() | {"is_sound": row.is_sound}), flush=True)


if __name__ == "__main__":
    main()
