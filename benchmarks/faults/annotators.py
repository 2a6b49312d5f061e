"""Annotators' servers that misbehave, each with an account of what it would bill, beside the pipeline's own ledger."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome

WORKER = Path(__file__).with_name("annotator_servers.py")
BARRED = ("401", "402", "403", "404")
"""A server that refuses the key, the account or the model ends the stage at once, and should."""


def annotate_with_each(python: str, chosen: Sequence[str] = ()) -> Outcome:
    """Annotate a few traces with each server; a row is lost where the account is short, or a ceiling was crossed.

    Args:
        python: interpreter of the installation under attack.
        chosen: names of servers; all when empty.
    """
    with subprocess.Popen(
        [python, str(WORKER), *chosen], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdout is not None
        rows = [json.loads(line) for line in worker.stdout if line.startswith("{")]
    if not rows:
        raise RuntimeError("the annotators' servers could not be tried")
    lost = [problem for row in rows if (problem := _problem(row))]
    crossed = sum(row["billed_usd"] > row["ceiling_usd"] for row in rows)
    note = (
        f"{sum(not row['is_sound'] for row in rows)} accounts short, {crossed} ceilings crossed; "
        f"{sum(row['labelled'] for row in rows)} traces labelled, {sum(row['failed'] for row in rows)} left out, "
        f"{sum(bool(row['stopped']) for row in rows)} stages stopped"
    )
    return Outcome("annotators' servers", len(rows), len(rows) - len(lost), lost, note)


def _problem(row: dict[str, Any]) -> str:
    if not row["is_sound"]:
        return f"{row['behaviour']}: more was billed than the account says, or than the ceiling"
    if row["stopped"] and row["behaviour"].endswith("/3") and not row["behaviour"].startswith(BARRED):
        return f"{row['behaviour']}: the stage ended, though two of three requests were answered"
    return ""
