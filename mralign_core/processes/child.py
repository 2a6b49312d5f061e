"""Run a module in a process that a supervisor started.

``python -m mralign_core.processes.child SOCKET MODULE ARGUMENT…``.

The lifeline comes first: a module may take long to import, and the supervisor may die meanwhile.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from mralign_core.processes.supervise import connect

if __name__ == "__main__":
    _, address, *sys.argv = sys.argv
    connect(Path(address))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
