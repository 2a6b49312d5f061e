"""Run the ``main`` of a module in a process that a supervisor started.

``python -m mralign_core.processes.child SOCKET MODULE ARGUMENT…`` calls it with lifeline and arguments. Its rank
is what torchrun says, else :data:`~mralign_core.processes.supervise.STARTER`.

The lifeline comes first: a module may take long to import, and the supervisor may die meanwhile.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from mralign_core.processes.supervise import STARTER, Lifeline

if __name__ == "__main__":
    _, address, *sys.argv = sys.argv
    with Lifeline(Path(address), int(os.environ.get("RANK", STARTER))) as lifeline:
        importlib.import_module(sys.argv[0]).main(lifeline, *sys.argv[1:])
