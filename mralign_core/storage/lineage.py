"""Where an artifact comes from: the tree of its parents, and that tree as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mralign_core.storage.artifact import ArtifactRef, Manifest


class Lineage(NamedTuple):
    """An artifact and the lineages of its parents; where it is gone, ``problem`` says why."""

    ref: ArtifactRef
    manifest: Manifest | None
    problem: str
    parents: tuple[Lineage, ...]


def render_lineage(lineage: Lineage) -> str:
    """The tree as text, one artifact a line; the parents of one that appears again are shown once."""
    return "\n".join(_lines(lineage, set()))


def _lines(lineage: Lineage, shown: set[str]) -> Iterator[str]:
    again = lineage.ref.path in shown
    shown.add(lineage.ref.path)
    yield _describe(lineage) + (" (parents above)" if again and lineage.parents else "")
    parents = () if again else lineage.parents
    for index, parent in enumerate(parents, start=1):
        is_last = index == len(parents)
        head, *rest = _lines(parent, shown)
        yield ("└── " if is_last else "├── ") + head
        yield from (("    " if is_last else "│   ") + line for line in rest)


def _describe(lineage: Lineage) -> str:
    ref, manifest = lineage.ref, lineage.manifest
    parts = [f"{ref.stage}/{ref.key[:12]}", ref.sha256[:12]]
    if ref.rows is not None:
        parts.append(f"{ref.rows} rows of {ref.table}" if ref.table else f"{ref.rows} rows")
    if manifest is None:
        return "  ".join([*parts, f"MISSING: {lineage.problem}"])
    parts += [f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC", f"{manifest.wall_time_s:.1f} s"]
    return "  ".join([*parts, *([f"${manifest.cost_usd:.4f}"] if manifest.cost_usd else [])])
