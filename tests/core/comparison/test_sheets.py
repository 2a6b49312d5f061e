"""Sheets for human raters: blinded on the way out, strict and forgiving of spreadsheets on the way in."""

import csv
import io

import numpy as np
import pytest

from mralign_core.comparison.sheets import NO_LABEL, SHEET_COLUMNS, read_sheet, write_sheet
from mralign_core.errors import DataError
from mralign_core.spreadsheets import MOST_CHARACTERS

HOSTILE = ["=HYPERLINK(1)", "+1", "-1 is a number", "@SUM(A1)", ' "quoted", and; more\n\nlines', "\x00\x1b[31m é 漢 🎉"]


@pytest.fixture
def candidates(candidates_of):
    return candidates_of(*[[f"{text} ({trace})" for text in ("One", "Two", "Three")] for trace in range(6)], HOSTILE)


@pytest.fixture
def write(tmp_path, candidates, taxonomy):
    def written(num_traces=99, seed=0, name="rater.csv", rows=candidates):
        rng = np.random.default_rng(seed)
        return write_sheet(tmp_path / name, rows, taxonomy, num_traces=num_traces, rng=rng).sheet

    return written


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path, rows, *, separator=",", encoding="utf-8-sig", first=""):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes((first + text.getvalue()).encode(encoding, "replace"))
    return path


def fill(path, label="ask", **by_row):
    """Fill every row with a label, and the rows of the spreadsheet that are named ``r<number>`` with other values."""
    rows = rows_of(path)
    for number, row in enumerate(rows, start=2):
        row.update({"label_1": label} | by_row.get(f"r{number}", {}))
    return save(path, rows)


def test_a_sheet_is_blinded_shuffled_and_repeatable(write, candidates):
    sheet = write()
    rows = rows_of(sheet)
    assert list(rows[0]) == SHEET_COLUMNS
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")
    text = sheet.read_text(encoding="utf-8-sig")
    hidden = [*candidates["trace_id"], *candidates["question_id"], "positive", "negative", "Galen"]
    assert not [word for word in hidden if word in text]
    assert all(row["item"].isalpha() and row["label_1"] == row["label_2"] == row["comment"] == "" for row in rows)
    traces = [row["text"][-2] for row in rows if row["text"].startswith("One")]
    assert sorted(traces) == list("012345") != traces
    for number in {row["trace"] for row in rows}:
        segments = [int(row["segment"]) for row in rows if row["trace"] == number]
        assert segments == list(range(1, len(segments) + 1))
    assert rows == rows_of(write(name="again.csv"))
    assert rows != rows_of(write(name="other.csv", seed=1))


def test_instructions_beside_it_define_every_label(write, taxonomy):
    text = write().with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"| `{label}` | {taxonomy.definitions[label]} |" in text for label in taxonomy.labels)
    assert NO_LABEL in text and "## talk" in text


def test_work_is_never_overwritten(write):
    write()
    with pytest.raises(DataError, match=r"rater\.csv is there already"):
        write()


def test_no_cell_can_start_a_formula_or_break_a_file(write, candidates_of):
    rows = rows_of(write(rows=candidates_of(HOSTILE, question="=cmd|' /C calc'!A0")))
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert all(not row[name].startswith(("=", "+", "-", "@", "\t", "\r")) for name in SHEET_COLUMNS)
        assert row["question"] == "'=cmd|' /C calc'!A0"
    assert rows[0]["text"] == "'=HYPERLINK(1)"
    assert rows[4]["text"] == HOSTILE[4]
    assert rows[5]["text"].endswith("é 漢 🎉") and "\x00" not in rows[5]["text"]


def test_a_cell_stays_below_what_a_spreadsheet_cuts(write, candidates_of):
    (row,) = rows_of(write(rows=candidates_of(["x" * 50_000])))
    assert len(row["text"]) < 32_767
    assert f"{50_000 - MOST_CHARACTERS} more characters" in row["text"]


def test_a_filled_sheet_comes_back_whole(write, candidates, taxonomy):
    sheet = write()
    rows = rows_of(sheet)
    given = [{"label_1": "ask"}, {"label_1": " Tell ", "label_2": "CHECK"}, {"label_1": NO_LABEL}, {"comment": "?"}]
    for row, values in zip(rows, given, strict=False):
        row.update(values)
        row["text"] = row["question"] = "changed by the spreadsheet"
    rated = read_sheet(save(sheet, rows), candidates, taxonomy)
    assert sorted(map(tuple, rated.rows["labels"])) == [(), ("ask",), ("tell", "check")]
    assert rated.rows["confidences"].map(len).tolist() == rated.rows["labels"].map(len).tolist()
    assert (rated.num_items, rated.num_not_rated) == (len(rows), len(rows) - 3)


def test_labels_return_to_their_own_segments(write, candidates, taxonomy):
    """By item id, whatever order the rows have: the label is chosen by the segment's own text."""
    sheet = write()
    chosen = {"One": "ask", "Two": "tell", "Three": "doubt"}
    rows = [row | {"label_1": chosen.get(row["text"].split()[0], "check")} for row in reversed(rows_of(sheet))]
    rated = read_sheet(save(sheet, rows), candidates, taxonomy).rows
    for row in rated[rated["trace_id"] != "t6"].itertuples():
        assert row.labels == [("ask", "tell", "doubt")[row.segment]]
    assert len(rated) == len(rows)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_what_spreadsheets_write_is_read(write, candidates, taxonomy, separator, encoding):
    sheet = write()
    rows = [row | {"label_1": "ask", "comment": "naïve"} for row in rows_of(sheet)]
    rated = read_sheet(save(sheet, rows, separator=separator, encoding=encoding), candidates, taxonomy)
    assert rated.rows["labels"].tolist() == [["ask"]] * len(rows)


def test_excels_separator_line_empty_rows_and_reordered_columns_are_read(write, candidates, taxonomy):
    sheet = write()
    rows = [{"Label_1": "ask", "LABEL_2": "", "Item": row["item"]} for row in rows_of(sheet)]
    empty = dict.fromkeys(rows[0], "")
    rated = read_sheet(save(sheet, [empty, *rows, empty], separator=";", first="sep=;\r\n"), candidates, taxonomy)
    assert len(rated.rows) == len(rows)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"label_1": "chek"}, "row 3, column label_1: 'chek' is not a label; did you mean 'check'?"),
        ({"label_1": "zzzz"}, "row 3, column label_1: 'zzzz' is not a label; use one of ask, tell, doubt, check"),
        ({"label_2": "Dout"}, "row 3, column label_2: 'Dout' is not a label; did you mean 'doubt'?"),
        ({"label_2": "ASK"}, "row 3, column label_2: 'ASK' is label_1 again; clear it"),
        (
            {"label_1": "", "label_2": "ask"},
            "row 3, column label_2: 'ask' stands without a label_1; move it to label_1",
        ),
        ({"label_1": NO_LABEL, "label_2": "ask"}, "row 3, column label_2: 'ask' stands without a label_1; clear one"),
        (
            {"item": "nosuchitem"},
            "row 3, column item: 'nosuchitem' is no item of these 7 candidate traces; restore the id",
        ),
        ({"item": ""}, "row 3, column item: '' is no item"),
    ],
)
def test_a_wrong_row_is_named_with_column_value_and_remedy(write, candidates, taxonomy, values, says):
    sheet = fill(write(), r3=values)
    with pytest.raises(DataError) as caught:
        read_sheet(sheet, candidates, taxonomy)
    assert str(sheet) in str(caught.value) and "1 problem(s)" in str(caught.value)
    assert says in str(caught.value)


def test_a_repeated_item_is_named_with_both_rows(write, candidates, taxonomy):
    sheet = write()
    rows = rows_of(fill(sheet))
    rows[4]["item"] = rows[0]["item"]
    with pytest.raises(DataError, match=rf"row 6, column item: '{rows[0]['item']}' is in row 2 too; keep one of them"):
        read_sheet(save(sheet, rows), candidates, taxonomy)


def test_all_wrong_rows_are_named_at_once(write, candidates, taxonomy):
    sheet = fill(write(), r2={"label_1": "chek"}, r5={"label_2": "ask"}, r7={"label_1": "tel", "label_2": "dobt"})
    with pytest.raises(DataError) as caught:
        read_sheet(sheet, candidates, taxonomy)
    assert "4 problem(s)" in str(caught.value)
    assert [f"row {number}," in str(caught.value) for number in (2, 3, 5, 7)] == [True, False, True, True]


def test_rows_that_are_gone_are_not_rated(write, candidates, taxonomy):
    sheet = write(num_traces=3)
    rows = rows_of(fill(sheet))
    kept = [row for row in rows if row["segment"] != "2"]
    rated = read_sheet(save(sheet, kept), candidates, taxonomy)
    assert (rated.num_items, rated.num_not_rated, len(rated.rows)) == (len(rows), 3, len(rows) - 3)


def test_a_sheet_of_other_traces_is_noticed_even_under_the_same_names(write, candidates_of, taxonomy):
    sheet = fill(write(num_traces=2))
    others = candidates_of(*[["Other", "texts", "here"]] * 6, HOSTILE)
    with pytest.raises(DataError, match="name the candidates that the sheet was written from"):
        read_sheet(sheet, others, taxonomy)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not a file; name a sheet"),
        (b"", "has no header row with the columns item, label_1, label_2"),
        (b"a,b\n1,2\n", "has no header row with the columns item, label_1, label_2"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "has no header row"),
    ],
)
def test_a_file_that_is_no_sheet_is_named(tmp_path, candidates, taxonomy, content, says):
    path = tmp_path / "rater.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_sheet(path, candidates, taxonomy)
