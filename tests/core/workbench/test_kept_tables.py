"""Who waits for a table, what is kept of it, and where."""

import os
import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mralign_core.errors import StorageError
from mralign_core.storage import key_of
from mralign_core.workbench import kept_tables
from mralign_core.workbench.interruption import Asker, AskerLeftError, asked_by
from mralign_core.workbench.kept_tables import KeptTables, Work

KEY, OTHER_KEY = key_of(of="one"), key_of(of="another")
SCHEMA = pa.schema([("number", pa.int64())])
WORK = Work(frozenset({"a"}), rows=4)


def rows(*numbers):
    return [{"number": number} for number in numbers]


def numbers_in(file):
    return pq.read_table(file)["number"].to_pylist()


def table(tables, *parts, key=KEY):
    return numbers_in(tables.file(key, SCHEMA, parts, WORK))


def test_who_waits_for_anothers_table_and_leaves_waits_no_longer(tmp_path):
    tables, made, begun, go_on = KeptTables(tmp_path), [], threading.Event(), threading.Event()

    def make():
        begun.set()
        assert go_on.wait(20)
        made.append(1)
        return rows(1)

    maker = threading.Thread(target=table, args=(tables, make))
    maker.start()
    assert begun.wait(20)
    asker = Asker()
    threading.Timer(0.1, asker.leave).start()
    threading.Timer(3, go_on.set).start()  # a waiter that hears nothing gets the table
    with asked_by(asker), pytest.raises(AskerLeftError):
        table(tables, make)
    assert not go_on.is_set()
    go_on.set()
    maker.join(20)
    assert table(tables, make) == [1] and len(made) == 1
    with asked_by(asker), pytest.raises(AskerLeftError):
        table(tables, make)  # nor does it ask for what is there


def test_another_server_finds_the_table_and_one_that_was_cut_short_is_made_anew(tmp_path):
    assert table(KeptTables(tmp_path), lambda: rows(1, 2), lambda: rows(3)) == [1, 2, 3]
    later = KeptTables(tmp_path)
    assert table(later, None, None) == [1, 2, 3]  # nothing is asked for it
    file = Path(later.file(KEY, SCHEMA, [], WORK))
    assert os.listdir(file.parent) == ["table.parquet"] and not list((tmp_path / "tmp").iterdir())
    file.write_bytes(file.read_bytes()[:-3])
    assert table(later, lambda: rows(4)) == [4]


@pytest.mark.parametrize("damage", ["a page", "other columns"])
def test_a_table_that_is_damaged_behind_a_whole_footer_is_made_anew(tmp_path, damage):
    tables = KeptTables(tmp_path)
    file = Path(tables.file(KEY, SCHEMA, [lambda: rows(*range(1000))], WORK))
    if damage == "a page":
        content = bytearray(file.read_bytes())
        content[60:64] = bytes(255 - each for each in content[60:64])
        file.write_bytes(content)
    else:
        pq.write_table(pa.table({"other": [1]}), file)
    assert table(KeptTables(tmp_path), lambda: rows(4)) == [4]


def test_a_table_is_read_once_to_see_that_it_is_whole(tmp_path, monkeypatch):
    tables = KeptTables(tmp_path)
    file = tables.file(KEY, SCHEMA, [lambda: rows(1)], WORK)
    monkeypatch.setattr(kept_tables, "_num_rows", None)
    assert tables.file(KEY, SCHEMA, [], WORK) == file


def test_who_is_overtaken_by_another_server_works_out_no_further_part(tmp_path):
    def overtaken():
        assert table(KeptTables(tmp_path), lambda: rows(1), lambda: rows(2)) == [1, 2]
        return rows(1)

    assert table(KeptTables(tmp_path), overtaken, None) == [1, 2]
    assert os.listdir(tmp_path / KEY) == ["table.parquet"]


def test_parts_that_were_whole_when_the_asker_left_are_not_made_again(tmp_path):
    tables, asker, told = KeptTables(tmp_path), Asker(), []

    def leaving():
        yield from rows(3)
        told.extend(tables.under_way())
        asker.leave()
        yield from rows(4)

    with asked_by(asker), pytest.raises(AskerLeftError):
        table(tables, lambda: rows(1, 2), leaving)
    assert told == [WORK._replace(done=3)] and tables.under_way() == []
    assert table(KeptTables(tmp_path), None, lambda: rows(3, 4)) == [1, 2, 3, 4]


def test_two_servers_that_make_one_table_at_a_time_both_have_it(tmp_path):
    together, found = threading.Barrier(2), []

    def ask():
        def first():
            together.wait(20)
            return rows(1)

        found.append(table(KeptTables(tmp_path), first, lambda: rows(2)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [[1, 2], [1, 2]]


def test_the_longest_unused_tables_go_first(tmp_path, monkeypatch):
    table(KeptTables(tmp_path), lambda: rows(1))
    monkeypatch.setattr(kept_tables, "MOST_KEPT_BYTES", 1)
    monkeypatch.setattr("mralign_core.storage.cache._notes", {})  # as in another process: this one uses what it made
    monkeypatch.setattr("mralign_core.storage.cache._noted", set())
    for name in os.listdir(tmp_path / "users"):
        (tmp_path / "users" / name).unlink()
    assert table(KeptTables(tmp_path), lambda: rows(2), key=OTHER_KEY) == [2]
    assert not (tmp_path / KEY).exists()


def test_where_nothing_can_be_kept_tables_last_as_long_as_the_server(tmp_path):
    (tmp_path / "file").write_text("no folder")
    tables = KeptTables(tmp_path / "file")
    first = Path(tables.file(KEY, SCHEMA, [lambda: rows(1)], WORK))
    assert numbers_in(first) == [1] and tmp_path not in first.parents
    shutil.rmtree(first.parents[1])  # as cleaners of /tmp do
    anew = Path(tables.file(KEY, SCHEMA, [lambda: rows(2)], WORK))
    assert numbers_in(anew) == [2] and anew.parents[1] != first.parents[1]
    other = Path(tables.file(OTHER_KEY, SCHEMA, [lambda: rows(3)], WORK))
    assert other.parents[1] == anew.parents[1]


def in_the_way_of_half_written_files(folder):
    (folder / "tmp").write_text("no folder")


def in_the_way_of_the_table(folder):
    (folder / KEY / "table.parquet").mkdir(parents=True)


@pytest.mark.parametrize("block", [in_the_way_of_half_written_files, in_the_way_of_the_table])
def test_what_can_not_be_written_where_tables_are_kept_is_worked_out_once_for_the_server(tmp_path, block):
    block(tmp_path)
    tables = KeptTables(tmp_path)
    made = Path(tables.file(KEY, SCHEMA, [lambda: rows(1, 2)], WORK))
    assert numbers_in(made) == [1, 2] and tmp_path not in made.parents
    assert tables.file(KEY, SCHEMA, [], WORK) == str(made)


def test_what_can_be_written_nowhere_says_where_room_is_needed(tmp_path, monkeypatch):
    in_the_way_of_half_written_files(tmp_path)
    monkeypatch.setattr(kept_tables.tempfile, "tempdir", str(tmp_path / "nothing"))
    tables = KeptTables(tmp_path)
    with pytest.raises(StorageError, match=rf"{tmp_path}.*Errno 2.*nothing.*make room"):
        table(tables, lambda: rows(1))
    (tmp_path / "tmp").unlink()
    assert table(tables, lambda: rows(1)) == [1]


def test_all_threads_are_given_one_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    tables, together, found = KeptTables(tmp_path / "file"), threading.Barrier(2), []
    temporary = kept_tables.tempfile.TemporaryDirectory

    def slow(**options):
        time.sleep(0.2)  # long enough for another thread to come
        return temporary(**options)

    monkeypatch.setattr(kept_tables.tempfile, "TemporaryDirectory", slow)

    def ask(key):
        together.wait(20)
        found.append(Path(tables.file(key, SCHEMA, [lambda: rows(1)], WORK)))

    threads = [threading.Thread(target=ask, args=(key,)) for key in (KEY, OTHER_KEY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({path.parents[1] for path in found}) == 1 and all(path.exists() for path in found)
