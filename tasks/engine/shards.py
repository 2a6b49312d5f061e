"""Which shards hold what is made of each item, so that only new items are paid for.

A shard's key names its items, not the set that they came in. Beside the artifacts a note says which items a shard has,
with a copy of its manifest (record ``items/SHARD/LINE/KEY``), where the line is the digest of all else that decides it:
config fields, code, model. A run looks its items up among the shards of their line, and makes shards of those that are
in none: it lists the notes, reads each, and lists the shards to see which are whole. What is joined has the items of
this run in its order, whichever shards they are in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mralign_core.errors import ArtifactError
from mralign_core.schemas.base import Table
from mralign_core.storage import ArtifactRef, ArtifactStore, key_of
from mralign_core.storage.quarantine import carry_over
from mralign_core.storage.tables import TableWriter, read_matching, stream_table
from tasks.engine.graph import Items, artifact_of
from tasks.engine.run import Note, Work

ITEMS_AT_ONCE = 1_000
"""Whose rows are in memory at a time where shards are joined."""


Range = tuple[int, int]
"""Neighbouring rows: the first, and the one after the last."""


def ranges_of(rows: Sequence[int]) -> list[Range]:
    """Rows as ranges: what a child run is given has to be small.

    Example:
        >>> ranges_of([3, 4, 5, 9])
        [(3, 6), (9, 10)]
    """
    starts = [row for place, row in enumerate(rows) if not place or rows[place - 1] != row - 1]
    ends = [row + 1 for place, row in enumerate(rows) if place + 1 == len(rows) or rows[place + 1] != row + 1]
    return list(zip(starts, ends, strict=True))


def rows_of(ranges: Iterable[Range]) -> list[int]:
    """The rows of ranges.

    Example:
        >>> rows_of([(3, 6), (9, 10)])
        [3, 4, 5, 9]
    """
    return [row for start, end in ranges for row in range(start, end)]


class Layout(NamedTuple):
    """Where the items of an artifact are.

    ``shards`` has a shard for each row that is made, a finished one where there is one; ``missing`` has the rows of
    each shard that is to be made, or made again.
    """

    items: Items
    shards: Mapping[int, ArtifactRef]
    missing: list[list[int]]

    def of_rows(self, rows: Iterable[int]) -> Layout:
        """The same of some rows, without what is missing."""
        return Layout(self.items, {row: self.shards[row] for row in rows if row in self.shards}, [])

    def in_order(self) -> list[tuple[list[int], ArtifactRef | None]]:
        """The rows of each shard, those taken from a finished one with it, in the order of their first rows."""
        to_make = {row for rows in self.missing for row in rows}
        kept = self.of_rows(row for row in self.shards if row not in to_make).shards
        rows_of_key: dict[str, list[int]] = {}
        for row in sorted(kept):
            rows_of_key.setdefault(kept[row].key, []).append(row)
        return [(rows, kept.get(rows[0])) for rows in sorted([*rows_of_key.values(), *self.missing])]

    def used(self) -> list[tuple[ArtifactRef, list[str]]]:
        """Each shard, once, with the ids that are taken from it, in the order of their first rows."""
        ids: dict[str, list[str]] = {}
        refs: dict[str, ArtifactRef] = {}
        for row in sorted(self.shards):
            ref = refs.setdefault(self.shards[row].key, self.shards[row])
            ids.setdefault(ref.key, []).append(self.items.ids[row])
        return [(refs[key], names) for key, names in ids.items()]


def items_in(path: Path, table: Table, column: str) -> Items:
    """The rows of a table as items, some in memory at a time: everything about a row counts.

    Args:
        path: its file.
        table: which table.
        column: holds the ids.
    """
    items = Items([], [])
    for batch in stream_table(path, table, list(table.columns), ITEMS_AT_ONCE):
        rows = batch.to_pylist()
        items.ids.extend(row[column] for row in rows)
        items.digests.extend(key_of(**row) for row in rows)
    return items


def lay_out(joined: Work, store: ArtifactStore) -> Layout:
    """Look the items of an artifact up among the shards that are there.

    Rows of a shard that is there and not finished (a model failed on some) are made again together.
    """
    shard = shard_of(joined)
    row_of = {digest: row for row, digest in enumerate(shard.items.digests)}
    made: dict[int, ArtifactRef] = {}
    unfinished: dict[int, ArtifactRef] = {}
    notes = [note for _, record in sorted(store.list_json(shard.notes).items()) if (note := Note.read(record))]
    notes = [note for note in notes if not row_of.keys().isdisjoint(note.items)]
    whole = store.whole(shard.artifact.name, [(note.manifest, note.manifest_size) for note in notes])
    for note in notes:
        if ref := whole.get(note.manifest.key):
            rows = [row_of[digest] for digest in note.items if digest in row_of]
            (unfinished if shard.num_to_ask_of(note.manifest) else made).update(dict.fromkeys(rows, ref))
    unfinished = {row: unfinished[row] for row in sorted(unfinished) if row not in made}
    again = [
        [row for row in unfinished if unfinished[row].key == key]
        for key in dict.fromkeys(ref.key for ref in unfinished.values())
    ]
    new = [row for row in range(len(row_of)) if row not in made and row not in unfinished]
    return Layout(shard.items, {**unfinished, **made}, [*again, *chunks(joined, new)])


def shard_of(joined: Work) -> Work:
    """The shard without rows that an artifact is joined from."""
    shards = joined.artifact.shards
    if shards is None:
        raise TypeError(f"artifact {joined.artifact.name!r} is not made in shards; a programming error")
    return Work(artifact_of(shards.name), joined.config, joined.inputs, joined.part)


def chunks(joined: Work, rows: Sequence[int]) -> list[list[int]]:
    """Rows cut into shards of the size that the config says."""
    assert joined.artifact.shards is not None
    size = joined.artifact.shards.size(joined.config)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def join(store: ArtifactStore, layout: Layout, directory: Path, files: Mapping[str, Table], column: str) -> None:
    """Join the rows of all items from their shards, some items in memory at a time, and what the shards set aside.

    Args:
        store: where the shards are.
        layout: which shard has which item.
        directory: where the joined files go.
        files: file name → its table.
        column: of the tables, which holds the items' ids.

    Raises:
        ArtifactError: an item is in no shard.
    """
    if num_missing := len(layout.items.ids) - len(layout.shards):
        raise ArtifactError(f"{num_missing} row(s) are in no shard: run again, to make them")
    for name, table in files.items():
        with TableWriter(directory / name, table) as joined:
            for start in range(0, len(layout.items.ids), ITEMS_AT_ONCE):
                rows = range(start, min(start + ITEMS_AT_ONCE, len(layout.items.ids)))
                pieces = [
                    read_matching(store.open_file(ref, name), table, column, ids)
                    for ref, ids in layout.of_rows(rows).used()
                ]
                joined.append(pieces, column, [layout.items.ids[row] for row in rows])
    carry_over(store, layout.used(), directory)
