"""Rows that break a contract are set aside with the reason, while the others go on; and reach the report's counts."""

import pandas as pd
import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import DataError
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactStore
from mralign_core.storage.quarantine import RowWriter, carry_over, read_quarantine, write_rows
from mralign_core.storage.tables import write_table

GOOD = {
    **{"question_id": "a", "question": "Who?", "answers": ["X"], "source": "s", "split": "train", "stratum": ""},
    **{"scoring": "exact_match", "options": [], "incorrect_answers": []},
}
BAD = {**GOOD, "question_id": "b", "question": " ", "split": "tain"}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


def publish(store, directory, key):
    return store.publish("questions", key, directory, parents=[], fingerprint={}, table=QUESTIONS.name)


def test_good_rows_go_on_and_bad_ones_are_listed_with_every_reason(store, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_rows(folder, "questions.parquet", pd.DataFrame([GOOD, BAD]), QUESTIONS)
    ref = publish(store, folder, "k1")
    assert ref.rows == 1
    assert store.read_table(ref, "questions.parquet")["question_id"].tolist() == ["a"]
    reasons = [(row["row_id"], row["column"], row["reason"]) for row in read_quarantine(store, ref)]
    assert reasons == [("b", "question", "must be non-empty text"), ("b", "split", "must be one of train, eval")]


def test_a_table_without_a_good_row_is_an_error(store, tmp_path):
    with pytest.raises(DataError, match="b"):
        write_rows(tmp_path, "questions.parquet", pd.DataFrame([BAD]), QUESTIONS)


def test_rows_written_in_pieces_are_numbered_through(store, tmp_path):
    with RowWriter(tmp_path, "questions.parquet", QUESTIONS) as rows:
        rows.add(pd.DataFrame([GOOD, {**GOOD, "question_id": "c"}]))
        rows.add(pd.DataFrame([BAD]))
    ref = publish(store, tmp_path, "pieces")
    assert ref.rows == 2
    assert {row["row"] for row in read_quarantine(store, ref)} == {2}


def test_nothing_set_aside_leaves_no_file(store, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_rows(folder, "questions.parquet", pd.DataFrame([GOOD]), QUESTIONS)
    assert read_quarantine(store, publish(store, folder, "k2")) == []


def test_what_shards_set_aside_is_carried_over_when_they_are_joined(store, tmp_path):
    refs = []
    for number in range(2):
        folder = tmp_path / f"shard{number}"
        folder.mkdir()
        rows = pd.DataFrame([GOOD, {**BAD, "question_id": f"bad{number}"}])
        write_rows(folder, "questions.parquet", rows, QUESTIONS)
        refs.append(publish(store, folder, f"shard{number}"))
    joined = tmp_path / "joined"
    joined.mkdir()
    write_table(joined, "questions.parquet", pd.DataFrame([GOOD]), QUESTIONS)
    carry_over(store, [(refs[0], ["good", "bad0"]), (refs[1], ["good", "bad1"])], joined)
    listed = read_quarantine(store, publish(store, joined, "joined"))
    assert {row["row_id"] for row in listed} == {"bad0", "bad1"}


def test_what_was_set_aside_of_rows_that_are_not_taken_is_left_behind(store, tmp_path):
    folder, joined = tmp_path / "shard", tmp_path / "joined"
    folder.mkdir(), joined.mkdir()
    write_rows(folder, "questions.parquet", pd.DataFrame([GOOD, {**BAD, "question_id": "bad"}]), QUESTIONS)
    carry_over(store, [(publish(store, folder, "shard"), ["good"])], joined)
    assert not list(joined.iterdir())
