"""Which machine of a training on several this is.

The first has the run: it makes the artifact, keeps checkpoints and publishes. The others do the same up to the point
where processes are started, lend theirs, and keep nothing.
"""

from __future__ import annotations

import os

from mralign_core.errors import ConfigError

MACHINE_RANK = "MRALIGN_MACHINE_RANK"
"""Environment variable: 0, as where it is not set, for the first machine; from 1 for those that help it."""


class HelpedElsewhere(Exception):
    """This machine's processes have done their part, and the results are on the first machine."""


def machine_rank() -> int:
    """This machine's number.

    Raises:
        ConfigError: the variable is no number.
    """
    text = os.environ.get(MACHINE_RANK) or "0"
    if not text.isdecimal():
        raise ConfigError(f"{MACHINE_RANK} is {text!r}: say 0 on the first machine, 1 on the second, and so on")
    return int(text)
