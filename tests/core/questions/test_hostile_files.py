"""Files that are not what they seem, that unpack to too much, or that mean two things."""

import gzip
import json
import os
import resource
import socket
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_files import ROWS, questions, refusal, sets, write

from mralign_core.errors import DataError
from mralign_core.questions import opening
from mralign_core.questions.jsonl import read_jsonl

CSV = "question,answer\nq,a\n"
ROW = json.dumps({"question": "q", "answer": "a"})


def as_file(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("set.csv", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
        ("set.jsonl", b"\xfd7zXZ\x00rest", "packed by xz"),
        ("set.jsonl", b"BZh91AY", "packed by bzip2"),
        ("set.csv", b"\x28\xb5\x2f\xfdrest", "packed by zstd"),
        ("set.jsonl", b"PAR1rest", "a Parquet file: name it .parquet"),
        ("set.csv", CSV.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("set.csv", CSV.encode("utf-16-le"), "is not UTF-8 text (line 1 holds a NUL byte"),
        ("set.csv", CSV.replace("q,", "café,").encode("latin-1"), "is not UTF-8 text (line 2, byte 0xe9)"),
        ("set.json", b"\xff\xfe[\x00", "UTF-16 text"),
        ("set.jsonl.gz", ROW, "take .gz off its name"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, data, what):
    message = refusal(path=as_file(tmp_path / name, data))
    assert what in message and str(tmp_path / name) in message


@pytest.mark.parametrize("name", ["set.csv", "set.CSV", "set.csv.GZ"])
def test_a_gzip_file_is_read_whatever_its_name(tmp_path, name):
    assert questions(path=as_file(tmp_path / name, gzip.compress(CSV.encode())))["question"].tolist() == ["q"]


def test_a_gzip_file_of_traces_is_read_whatever_its_name(tmp_path):
    path = as_file(tmp_path / "traces.jsonl", gzip.compress(ROW.encode()))
    assert read_jsonl(path, "field")[0].values == {"question": "q", "answer": "a"}


READING = """
import resource, sys
from mralign_core.config import PocketConfig, QuestionsConfig
from mralign_core.errors import DataError
from mralign_core.questions.loading import read_question_sets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_question_sets(QuestionsConfig(train=sys.argv[1]), PocketConfig())
except DataError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def gzip_bomb(path, line, megabytes):
    """Several gzip files in one, so that its last bytes don't tell how much there is in all."""
    part = gzip.compress(line * (50 * (1 << 20) // len(line)), compresslevel=6)
    path.write_bytes(part * (megabytes // 50))


def parquet_bomb(path, **options):
    pq.write_table(pa.table({"question": ["q" * (100 << 20)], "answer": ["a"]}), path, **options)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("set.jsonl.gz", lambda path: gzip_bomb(path, b" " * 1024, 800)),
        ("set.csv.gz", lambda path: gzip_bomb(path, b"question,answer\n", 800)),
        ("set.json.gz", lambda path: gzip_bomb(path, b"[" * 1024, 800)),
        ("set.parquet", lambda path: parquet_bomb(path, compression="zstd", use_dictionary=False)),
    ],
)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path, name, make):
    make(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 8 << 20
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    kilobytes, _, message = done.stdout.partition(" ")
    assert str(tmp_path / name) in message and "MiB" in message
    assert int(kilobytes) < 400_000


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MOST_LINE_BYTES", 1 << 20)
    assert "line 2 is longer than 1 MiB" in refusal(path=as_file(tmp_path / "set.jsonl", ROW + "\n" + " " * (3 << 20)))


def test_a_large_text_packs_well_and_is_read(tmp_path):
    rows = [
        {"question": f"Which is the {number}th of the natural numbers?", "answer": str(number)} for number in range(9)
    ]
    path = write(tmp_path / "set.jsonl.gz", rows * 2000)
    assert len(questions(path=str(path))) == 18_000


@pytest.mark.parametrize("size", [140_000, 30 << 20])
def test_a_long_cell_that_is_not_read(tmp_path, size):
    path = as_file(tmp_path / "set.csv", f"question,page,answer\nq,{'x' * size},a\nr,,b\n")
    assert questions(path=path)["answers"].tolist() == [["a"], ["b"]]


def test_line_ends_may_be_mixed(tmp_path):
    path = as_file(tmp_path / "set.csv", 'question,answer\r\nq,a\rr,b\n"two\nlines",c\r\n')
    assert questions(path=path)["question"].tolist() == ["q", "r", "two\nlines"]
    path = as_file(tmp_path / "old.jsonl", f"{ROW}\r{ROW}\r\n{ROW}")
    assert len(questions(path=path)) == 3


def test_a_quote_left_open_names_its_row(tmp_path):
    assert "lines 3 to 5: not CSV" in refusal(path=as_file(tmp_path / "set.csv", CSV + '"r,b\ns,c\nt,d\n'))


@pytest.mark.parametrize(
    "header", ["question,answer,answer", "question,answer, answer", "question,\ufeffanswer,answer"]
)
def test_a_column_that_stands_twice_is_refused(tmp_path, header):
    path = as_file(tmp_path / "set.csv", f"{header}\nq,a,B\n")
    message = refusal(path=path)
    assert "has the column 'answer' more than once" in message and path in message


def test_columns_without_a_name_that_are_not_read_may_be_several(tmp_path):
    assert len(questions(path=as_file(tmp_path / "set.csv", ",question,answer,,\n0,q,a,,\n"))) == 1


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["q"]), pa.array(["a"]), pa.array(["B"])], ["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "set.parquet")
    assert "has the column 'answer' more than once" in refusal(path=str(tmp_path / "set.parquet"))


def test_columns_of_a_parquet_file_that_are_not_read_may_hold_anything(tmp_path):
    strange = pa.array([10**18], pa.timestamp("ns"))
    pq.write_table(pa.table({"question": ["q"], "when": strange, "answer": ["a"]}), tmp_path / "set.parquet")
    assert questions(path=str(tmp_path / "set.parquet"))["answers"].tolist() == [["a"]]
    message = refusal(path=str(tmp_path / "set.parquet"), answer_column="gold")
    assert "no field 'gold'; row 1 has" in message and "'when'" in message


def test_parquet_text_that_is_not_utf8(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"question": bad, "answer": ["a"]}), tmp_path / "set.parquet")
    assert "is not a readable Parquet file" in refusal(path=str(tmp_path / "set.parquet"))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"question": "q", "answer": "a", "answer": "B"}', "key 'answer' stands twice in an object"),
        ('{"question": "q", "answer": "a", "more": {"x": 1, "x": 2}}', "key 'x' stands twice in an object"),
        (f'{{"question": "q", "answer": {DEEP}}}', "nested too deeply"),
        (f'{{"question": "q", "answer": {"[" * 900}{"]" * 900}}}', "field 'answer' must be"),
        (f'{{"question": "q", "answer": {"1" * 5000}}}', "not readable"),
        ('{"question": "q", "answer": 1e400}', "field 'answer' must be an answer"),
        ('{"question": "q", "answer": -Infinity}', "field 'answer' must be an answer"),
        ('{"question": "q\\ud83d", "answer": "a"}', "holds half a character"),
        ('{"question": "\\u200b\\ufeff\\u3164\\u00a0", "answer": "a"}', "characters that can't be seen"),
        ('{"question": "q", "answer": ["\\u2060"]}', "characters that can't be seen"),
        ('{"question": "q", "answer": ["a", "\\u115f"]}', "characters that can't be seen"),
        ('{"question": "q", "answer": null}', "got None"),
    ],
)
def test_a_row_that_means_nothing_or_two_things_is_named(tmp_path, row, problem):
    message = refusal(path=as_file(tmp_path / "set.jsonl", f"{ROW}\n{row}\n"))
    assert "line 2: " in message and problem in message and str(tmp_path / "set.jsonl") in message
    message = refusal(path=as_file(tmp_path / "set.json", f"[{ROW},\n{row}]"))
    assert "row 2: " in message and problem in message


@pytest.mark.parametrize("own_id", ["null", "true", '""', '"\\u200b"', "NaN", "1.5", "[1]", "{}", "1e300"])
def test_an_id_that_is_none_is_refused(tmp_path, own_id):
    row = f'{{"question": "q", "answer": "a", "id": {own_id}}}'
    message = refusal(path=as_file(tmp_path / "set.jsonl", row), id_column="id")
    assert "line 1: field 'id' must be a non-empty id" in message


def test_whole_numbers_are_ids_also_where_a_table_made_them_floats(tmp_path):
    rows = [f'{{"question": "q{n}", "answer": "a", "id": {own}}}' for n, own in enumerate(("7", "8.0", '"9.0"'))]
    path = as_file(tmp_path / "set.jsonl", "\n".join(rows))
    assert questions(path=path, id_column="id")["question_id"].tolist() == ["7", "8", "9.0"]
    path = as_file(tmp_path / "twice.jsonl", rows[0] + "\n" + rows[1].replace("8.0", "7.0"))
    assert "repeats id '7'" in refusal(path=path, id_column="id")


def test_golds_that_programs_write_for_none_are_kept_and_told(tmp_path, caplog):
    rows = [
        {"question": f"q{n}", "answer": gold} for n, gold in enumerate(("None", "nan", ["N/A"], "Nancy", ["None", "0"]))
    ]
    frame = questions(path=str(write(tmp_path / "set.jsonl", rows)))
    assert frame["answers"].tolist() == [["None"], ["nan"], ["N/A"], ["Nancy"], ["None", "0"]]
    (record,) = caplog.records
    assert "3 of 5 gold answers" in record.message and "'nan'" in record.message and "set.jsonl" in record.message


def test_a_missing_stratum_is_none(tmp_path):
    rows = ['{"question": "q", "answer": "a", "topic": NaN}', '{"question": "r", "answer": "a", "topic": "x"}']
    path = as_file(tmp_path / "set.jsonl", "\n".join(rows))
    assert questions(path=path, stratum_column="topic")["stratum"].tolist() == ["", "x"]


def test_questions_that_differ_in_what_can_not_be_seen_are_the_same(tmp_path):
    train, held_out = (
        str(write(tmp_path / f"{name}.jsonl", [{"question": text, "answer": "a"}]))
        for name, text in (("train", "Who\u200b wrote Emma?"), ("eval", "\ufeffWho wrote Emma\u2060?"))
    )
    with pytest.raises(DataError, match="also questions to align on"):
        sets(train=train, eval=held_out)


def test_a_folder_that_holds_only_a_linked_folder(tmp_path):
    write(tmp_path / "real" / "part.jsonl", ROWS)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").symlink_to(tmp_path / "real")
    assert len(questions(path=str(tmp_path / "set"))) == 3
    (tmp_path / "set" / "again").symlink_to(tmp_path / "real")
    assert len(questions(path=str(tmp_path / "set"))) == 3


def test_a_link_back_is_refused(tmp_path):
    write(tmp_path / "set" / "in" / "part.jsonl", ROWS)
    (tmp_path / "set" / "in" / "loop").symlink_to(tmp_path / "set")
    assert "is a link back to" in refusal(path=str(tmp_path / "set"))


def test_a_link_to_nothing_is_refused(tmp_path):
    write(tmp_path / "set" / "part.jsonl", ROWS)
    (tmp_path / "set" / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    for path in (tmp_path / "set", tmp_path / "set" / "gone.jsonl"):
        assert "a link to" in refusal(path=str(path)) and "which is not there" in refusal(path=str(path))
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    assert "out of reach" in refusal(path=str(tmp_path / "self.jsonl"))


def test_pipes_devices_and_sockets_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jsonl"))
    for path, what in {
        tmp_path / "pipe.jsonl": "a pipe",
        tmp_path / "s.jsonl": "a socket",
        "/dev/null": "a device",
    }.items():
        assert what in refusal(path=str(path))
        with pytest.raises(DataError, match=what):
            read_jsonl(path, "field")
    assert "a pipe" in refusal(path=str(tmp_path))


def test_hidden_files_do_not_count(tmp_path):
    write(tmp_path / ".hidden.jsonl", ROWS)
    assert "holds no question file" in refusal(path=str(tmp_path)) and "hidden" in refusal(path=str(tmp_path))


def test_files_of_several_formats_are_read_and_told(tmp_path, caplog):
    write(tmp_path / "a.jsonl", ROWS)
    as_file(tmp_path / "b.csv", CSV)
    assert len(questions(path=str(tmp_path))) == 4
    assert "several formats (1 .csv, 1 .jsonl)" in caplog.text


@pytest.mark.parametrize("name", ["[set].jsonl", "se*t.jsonl", "set?.jsonl", "a b\n.jsonl"])
def test_names_are_taken_as_they_are(tmp_path, name):
    assert len(questions(path=str(write(tmp_path / name, ROWS)))) == 3


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///data/x.csv", "write its path, /data/x.csv"),
        ("https://host/x.csv", "copy it here"),
        ("hf://a/b", "hub id"),
    ],
)
def test_a_url_says_what_to_do(url, says):
    assert says in refusal(path=url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path):
    path = write(tmp_path / "set" / "set.jsonl", ROWS)
    path.chmod(0)
    assert "can't be read (Permission denied)" in refusal(path=str(path))


def test_a_spreadsheet_named_csv(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    assert "a spreadsheet: unpack it, or export it as CSV" in refusal(path=str(tmp_path / "set.csv"))


def test_memory_stays_flat_over_long_values_that_a_dictionary_holds_once(tmp_path):
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 400), pa.array(["q" * (20 << 20)]))
    table = pa.table({"question": long, "answer": ["a"] * 400})
    pq.write_table(table, tmp_path / "set.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = questions_read(tmp_path / "set.parquet")
    assert lines == 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3_000_000


def questions_read(path):
    from mralign_core.questions.files import stream_files

    return sum(1 for _ in stream_files([path], "field", []))


def test_a_time_that_python_has_no_value_for_is_told(tmp_path):
    table = pa.table({"question": ["q"], "answer": pa.array([2**62], pa.int64()).view(pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "set.parquet")
    assert "not a readable Parquet file" in refusal(path=str(tmp_path / "set.parquet"))
