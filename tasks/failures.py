"""What could not be labelled or judged, carried from shards to what is joined of them."""

from __future__ import annotations

from typing import Any

from mralign_core.annotation.failures import FAILURES_FILE, read_failures, write_failures
from tasks.engine.run import Making
from tasks.engine.shards import Layout


def join_failures(making: Making, layout: Layout, id_column: str) -> list[dict[str, Any]]:
    """Write the failures of those items that are taken from the shards, and return them.

    Args:
        making: what is joined.
        layout: which items each shard gives.
        id_column: what names an item in a failure.
    """
    failures = [
        row
        for shard, ids in layout.used()
        for wanted in [set(ids)]
        for row in read_failures(making.store.open_file(shard, FAILURES_FILE))
        if row[id_column] in wanted
    ]
    write_failures(making.directory, failures)
    return failures
