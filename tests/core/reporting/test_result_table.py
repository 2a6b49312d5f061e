"""Tables of results, and the Markdown that they become."""

import doctest

import pandas as pd
import pytest

from mralign_core.reporting import markdown
from mralign_core.reporting.result_table import ResultCell, ResultTable


def test_docstring_examples_hold():
    assert doctest.testmod(markdown).failed == 0


def test_a_frame_becomes_markdown_with_bars_kept_apart_and_numbers_to_the_right():
    frame = pd.DataFrame({"mean |Δ log w|": ["0.1"], "n": [3], "why": ["few\nseen"]})
    assert ResultTable.from_frame(frame).to_markdown() == (
        "| mean \\|Δ log w\\| | n | why |\n| --- | ---: | --- |\n| 0.1 | 3 | few seen |"
    )


def test_only_what_an_interval_decides_is_bold():
    cells = [ResultCell("+1.0", "better"), ResultCell("−1.0", "worse", "−1"), ResultCell("0.0", "open")]
    table = ResultTable(["", "a", "b", "c"], [["x", *cells]])
    assert table.to_markdown().splitlines()[-1] == "| x | **+1.0** | **−1.0** | 0.0 |"
    assert table.to_records() == [{"": "x", "a": "+1.0", "b": "−1.0", "c": "0.0"}]


@pytest.mark.parametrize("text", ["|", r"\|", r"\\|", "a|b|", "||", "\\"])
def test_no_text_ends_its_cell(text):
    (line,) = markdown.table(["a"], [[text + "x"]]).splitlines()[2:]
    ends = [place for place, letter in enumerate(line) if letter == "|" and not escaped(line, place)]
    assert ends == [0, len(line) - 1]


def escaped(line, place):
    before = line[:place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1
