"""What annotators failed on: counted for the manifest, and told in a line a kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN

LabelFailure = Mapping[str, Any]
"""A trace and role, with :data:`mralign_core.annotation.annotate.FAILURE_COLUMNS`."""
FAILURES_FILE = "failures.json"
MOST_SHOWN = 120
"""Of a reply, in characters, that is shown as an example of its kind."""


def count_failures(failures: Sequence[LabelFailure]) -> dict[str, int]:
    """Failures, and traces that they leave out: one that any role refused for what it holds is not asked again."""
    left_out = {failure["trace_id"] for failure in failures}
    final = {failure["trace_id"] for failure in failures if failure["is_final"]}
    return {"failures": len(failures), LEFT_OUT: len(left_out), TO_ASK_AGAIN: len(left_out - final)}


def left_out_lines(failures: Sequence[LabelFailure]) -> list[str]:
    """How many traces were left out, a line for each kind of failure, with one reply that shows it."""
    lines = []
    by_kind = Counter(failure["kind"] for failure in failures)
    for kind, _ in by_kind.most_common():
        alike = [failure for failure in failures if failure["kind"] == kind]
        traces = len({failure["trace_id"] for failure in alike})
        first = alike[0]
        example = f"{first['role']} on {first['trace_id']}: {first['problem']}"
        reply = f"; its reply begins {first['reply'][:MOST_SHOWN]!r}" if first["reply"] else ""
        lines.append(f"{traces} trace(s) left out, {kind}: {example}{reply}")
    return lines


def set_aside_rows(failures: Sequence[LabelFailure]) -> list[dict[str, str]]:
    """A row a failure, those of one kind with the same reason: ``where, what, reason``."""
    example = {
        (f["role"], f["kind"]): f"{f['problem']}; e.g. {f['trace_id']}: {f['reply']}" for f in reversed(failures)
    }
    return [{"where": "annotate", "what": f["role"], "reason": example[f["role"], f["kind"]]} for f in failures]


def write_failures(directory: Path, failures: Sequence[LabelFailure]) -> None:
    """Write them beside the labels."""
    text = json.dumps(failures, ensure_ascii=False, indent=1)
    (directory / FAILURES_FILE).write_text(text, encoding="utf-8")


def read_failures(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_failures` wrote."""
    return list(json.loads(path.read_text(encoding="utf-8")))
