"""The database of a Prefect server that has not run yet, made once for all servers of the tests.

A server whose home is empty makes it by some eighty migrations, in 4 s; every test of servers had them anew. The
servers of commands that tests start themselves (``make serve`` on Postgres, embedded ones) still make theirs.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

MADE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "prefect_database" / version("prefect")
MAKE = (
    "import asyncio\nfrom prefect.server.database import provide_database_interface\n"
    "asyncio.run(provide_database_interface().create_db())"
)


def put_database(home: Path) -> None:
    """Give a server's home the database that it would make, unless it has one.

    Args:
        home: its PREFECT_HOME, which is there.
    """
    database = home / "prefect.db"
    if not database.exists():
        shutil.copyfile(_made(), database)
        database.chmod(0o600)  # as a server of ours makes it


def _made() -> Path:
    """The database; workers of a session wait for the one that makes it."""
    MADE.mkdir(parents=True, exist_ok=True)
    whole = MADE / "whole.db"
    with (MADE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            subprocess.run([sys.executable, "-c", MAKE], env={**env, "PREFECT_HOME": str(MADE)}, check=True)
            (MADE / "prefect.db").rename(whole)
    return whole
