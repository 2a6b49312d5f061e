"""Homes of retrainings, with only a store in common: each a process with its own folder, cache and Prefect server."""

import os
import subprocess
import sys
from pathlib import Path

from mralign_core.config import RunConfig

CHECKOUT = Path(__file__).resolve().parent.parent
TOLD = "came to: "
DRIVER = f"""
import sys
from flows.commands.server import use_server
with use_server():
    from flows.weekly_retrain import weekly_retrain
    from mralign_core.config import RunConfig
    for line in sys.stdin:
        print({TOLD!r} + weekly_retrain(RunConfig.model_validate_json(line)), flush=True)
"""
"""What a home does: a retraining for each config that it is given."""


class Home:
    """A process in a new folder, with an embedded server of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        env |= {"HOME": str(folder), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                cwd=folder,
                env={**env, "PREFECT_LOGGING_TO_API_ENABLED": "false"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self, config: RunConfig) -> None:
        """Begin a retraining."""
        assert self.process.stdin
        self.process.stdin.write(config.model_dump_json() + "\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """What it came to."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(TOLD):
                return line.removeprefix(TOLD).strip()
        raise AssertionError(self.log.read_text()[-3000:])

    def close(self) -> None:
        """End it, and its server with it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)
