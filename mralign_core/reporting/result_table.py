"""Tables of results as content, said once; the terminal and the workflow's pages only set them in type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import pandas as pd

from mralign_core.reporting import markdown

Tone = Literal["better", "worse", "open"]
"""Whether an interval decides for the better or the worse, or includes 0 and leaves it open."""


BOLD = "Bold: the interval excludes 0."
"""What a page says below a table with such cells."""


class ResultCell(NamedTuple):
    """A cell whose difference was judged; ``brief`` is what a narrow page shows in place of ``text``."""

    text: str
    tone: Tone
    brief: str = ""


class ResultTable(NamedTuple):
    """Rows of text; the first column names them.

    ``text_columns`` are other columns that hold text; the rest hold numbers, and stand to the right. ``title`` says of
    what the table is, where that needs saying.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | ResultCell]]
    text_columns: Sequence[str] = ()
    title: str = ""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> ResultTable:
        """A frame's cells as they print; columns of Python numbers hold numbers."""
        columns = [str(name) for name in frame.columns]
        texts = [str(name) for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
        return cls(columns, [[str(cell) for cell in row] for row in frame.to_numpy().tolist()], texts)

    def is_text(self, column: int) -> bool:
        """Whether a column, counted from 0, holds text."""
        return column == 0 or self.columns[column] in self.text_columns

    def to_markdown(self) -> str:
        """The table as Markdown, below its title; bold is what an interval decides."""
        rows = [[_markdown_cell(cell) for cell in row] for row in self.rows]
        numbers = [place for place in range(len(self.columns)) if not self.is_text(place)]
        table = markdown.table(self.columns, rows, numbers=numbers)
        return f"*{markdown.literal(self.title)}*\n\n{table}" if self.title else table

    def to_records(self) -> list[dict[str, str]]:
        """A row a mapping of column to text, as Prefect's tables take them."""
        texts = [[cell.text if isinstance(cell, ResultCell) else cell for cell in row] for row in self.rows]
        return [dict(zip(self.columns, row, strict=True)) for row in texts]


def _markdown_cell(cell: str | ResultCell) -> str:
    if isinstance(cell, str):
        return cell
    return cell.text if cell.tone == "open" else f"**{cell.text}**"
