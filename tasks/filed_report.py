"""The copy of the report that a run leaves for its readers: ``reports/NAME.html`` in the store, with its provenance."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mralign_core.config import RunConfig
from mralign_core.reporting.provenance import KEY_CHARS, ShownBy, provenance_of, with_provenance
from mralign_core.retention.runs import paid_by_run
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.last_run import this_run
from tasks.engine.naming import name_of, seconds_since_start
from tasks.publish import for_the_eye

CHECKOUT = Path(__file__).resolve().parent.parent
GIT_TIMEOUT_S = 10


@for_the_eye
def file_report(config: RunConfig, report: ArtifactRef) -> None:
    """Write the copy in place of the last run's of this name."""
    store = ArtifactStore(config.storage)
    run = this_run()
    facts = ShownBy(f"{name_of(run)}, {run}", seconds_since_start(run), paid_by_run(store, run), _commit())
    made = provenance_of(store.lineage(report), config.name, facts)
    page = store.open_file(report, "report.html").read_text(encoding="utf-8")
    store.files.write(_path(config), with_provenance(page, made).encode())


def filed_report(config: RunConfig, report: ArtifactRef) -> Path:
    """The page to open on this machine: the copy, if there is one here and of this report; else the artifact's."""
    store = ArtifactStore(config.storage)
    copy = store.files.local_path(_path(config))
    is_of_it = copy and copy.is_file() and report.key[:KEY_CHARS] in copy.read_text(encoding="utf-8")
    return copy if copy and is_of_it else store.open_file(report, "report.html")


def _path(config: RunConfig) -> str:
    return f"reports/{config.name}.html"


def _commit() -> str:
    """Of the checkout that runs, and whether files in it have changed since; empty where it is none."""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if (CHECKOUT / ".git").exists() else ""
