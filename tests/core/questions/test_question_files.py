"""Files of every format, whole and broken; folders of them."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_files import ROWS, questions, refusal, write

from mralign_core.errors import DataError
from mralign_core.questions.jsonl import read_jsonl

FLAT = [{"question": 'Who wrote "Emma",\nand when?', "answer": "Jane Austen"}, {"question": "2+2?", "answer": "4"}]


def write_csv(path, rows, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_questions(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    writers = {
        ".json": lambda: write(path, [json.dumps(FLAT)]),
        ".csv": lambda: write_csv(path, FLAT, "utf-8-sig"),
        ".parquet": lambda: write_parquet(path, FLAT),
    }
    writers.get(suffix, lambda: write(path, FLAT))()
    frame = questions(path=str(path))
    assert frame["question"].tolist() == [row["question"] for row in FLAT]
    assert frame["answers"].tolist() == [["Jane Austen"], ["4"]]


def test_byte_order_mark_blank_lines_and_line_separators_inside_text(tmp_path):
    path = tmp_path / "set.jsonl"
    row = json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{json.dumps(ROWS[0])}\n".encode())
    assert questions(path=str(path))["question"].tolist() == ["a\u2028b", "Who wrote Emma?"]


@pytest.mark.parametrize("rows", [["", "  "], []])
def test_an_empty_file(tmp_path, rows):
    assert "is empty; give at least one question" in refusal(path=str(write(tmp_path / "set.jsonl", rows)))
    with pytest.raises(DataError, match="is empty"):
        read_jsonl(tmp_path / "set.jsonl", "some.field")


@pytest.mark.parametrize("name", ["set.jsonl", "set.csv", "set.json"])
def test_a_file_that_is_not_utf8(tmp_path, name):
    (tmp_path / name).write_bytes(b'question,answer\ncaf\xe9,x\n{"question": "caf\xe9"}')
    assert "is not UTF-8 text" in refusal(path=str(tmp_path / name))


def test_lines_that_are_not_objects_are_listed_at_once(tmp_path):
    message = refusal(path=str(write(tmp_path / "set.jsonl", [ROWS[0], '{"question": "x"', "[1, 2]", ROWS[1]])))
    assert "2 problem(s)" in message
    assert "line 2: not JSON" in message and "line 3: not an object but list" in message


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("set.csv", "question,answer\nq,a\nq\n", "row 2 (to line 3): not as many cells as the header has"),
        ("set.csv", "question,answer\nq,a,b\n", "row 1 (to line 2): not as many cells as the header has"),
        ("set.csv", 'question,answer\nq,"a\n', "not CSV (unexpected end of data)"),
        ("set.csv", "question,answer\nq,\n", "row 1: field 'answer' must be an answer"),
        ("set.json", '{"question": "q"}', "must hold a list of objects, not dict"),
        ("set.json", '{"question": "q"}\n{"question": "r"}', "a file of one object a line is .jsonl"),
        ("set.json", '[{"question": "q", "answer": "a"}, 3]', "row 2: not an object but int: 3"),
        ("set.json", '[{"question": "q\\ud83d", "answer": "a"}]', "row 1: holds half a character"),
        ("set.jsonl", '{"question": "q", "answer": "\\ud83d"}', "line 1: holds half a character"),
        ("set.jsonl.gz", "plain text", "can't be unpacked"),
        ("set.parquet", "PAR1", "is not a readable Parquet file"),
        ("set.txt", "q", "is of no known format; give a file that ends in .jsonl, .csv, .json, .parquet"),
    ],
)
def test_a_broken_file_says_where(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    message = refusal(path=str(tmp_path / name))
    assert says in message and str(tmp_path / name) in message


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_whose_download_broke_off(tmp_path, suffix):
    text = "question,answer\n" + "q,a\n" * 999
    (tmp_path / f"set{suffix}.gz").write_bytes(gzip.compress(text.encode())[:-9])
    assert "can't be unpacked" in refusal(path=str(tmp_path / f"set{suffix}.gz"))


def test_escaped_pairs_are_one_character(tmp_path):
    path = write(tmp_path / "set.jsonl", ['{"question": "\\ud83d\\ude42?", "answer": "a"}'])
    assert questions(path=str(path))["question"].tolist() == ["🙂?"]


def test_a_missing_file_is_named_with_its_config_field(tmp_path):
    for name in ("gone.jsonl", "gone/", "a/b/c"):
        assert "is not a file or folder; name one" in refusal(path=str(tmp_path / name))


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    for number in (2, 1):
        write_parquet(
            tmp_path / "data" / f"part-{number}.parquet", [{"question": f"Q{number}", "answer": [str(number)]}]
        )
    (tmp_path / "data" / "info.json").write_text("{}")
    (tmp_path / "data" / "README.md").write_text("Read me")
    write(tmp_path / "data" / ".cache" / "old.jsonl", ["broken"])
    frame = questions(path=str(tmp_path))
    assert frame["question"].tolist() == ["Q1", "Q2"]
    assert [question_id.rpartition("-")[2] for question_id in frame["question_id"]] == ["1", "2"]


def test_problems_in_a_folder_name_the_file(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "b.jsonl", [ROWS[0], {"question": "", "answer": "x"}, "{"])
    message = refusal(path=str(tmp_path))
    assert "2 problem(s)" in message
    assert "b.jsonl, line 2: field 'question'" in message and "b.jsonl, line 3: not JSON" in message


def test_an_empty_folder(tmp_path):
    assert "holds no question file" in refusal(path=str(tmp_path))


def test_splits_of_a_folder_are_told_by_names_of_files(tmp_path):
    for split, count in {"train": 3, "validation": 2, "test": 1}.items():
        rows = [{"question": f"{split} {n}", "answer": "x"} for n in range(count)]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
    assert "which split of" in refusal(path=str(tmp_path)) and "test, train, validation" in refusal(path=str(tmp_path))
    assert questions(path=str(tmp_path), split="dev")["question"].tolist() == ["validation 0", "validation 1"]
    assert len(questions("train", path=str(tmp_path), split="train")) == 3
    assert "no file of the folder is of split 'held-out'" in refusal(path=str(tmp_path), split="held-out")
    assert len(questions("train", name="nq_open", path=str(tmp_path))) == 3
    assert len(questions("eval", name="nq_open", path=str(tmp_path))) == 2
    assert len(questions("eval", name="sciq", path=str(tmp_path))) == 1
