"""Markdown in which a name, a reason or a reply can't begin anything of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def one_line(text: str) -> str:
    """A name without line breaks and other control characters, which would end what it stands in."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def literal(text: str) -> str:
    r"""A name or a reason as Markdown shows it: no link, picture, tag, emphasis or cell begins in it.

    >>> literal("a|b <script> [x](y)")
    'a\\|b \\<script\\> \\[x\\](y)'
    """
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", one_line(text))


def code(text: str) -> str:
    """A command as Markdown shows it, whatever backticks it holds."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if len(fence) > 1 else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def bullets(values: Mapping[str, Any]) -> str:
    """A line for each name and value."""
    shown = {name: literal(value) if isinstance(value, str) else value for name, value in values.items()}
    return "\n".join(f"- {literal(str(name)).replace('_', ' ')}: {value}" for name, value in shown.items())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    r"""A table of cells that are Markdown already; a bar or a line break in one does not end it.

    Args:
        columns: the names above.
        rows: as many cells each.
        numbers: columns that stand to the right, counted from 0.

    >>> print(table(["name", "n"], [["a|b", "1"], [r"c\|d", "2"]], numbers=[1]))
    | name | n |
    | --- | ---: |
    | a\|b | 1 |
    | c\|d | 2 |
    """
    ruler = ["---:" if place in numbers else "---" for place in range(len(columns))]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (columns, ruler, *rows))


def _cell(text: str) -> str:
    # A bar behind an odd number of backslashes is escaped already.
    return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", text.replace("\n", " "))
