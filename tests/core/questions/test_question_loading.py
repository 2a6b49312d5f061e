import json
import os
from pathlib import Path

import pytest

from mralign_core.config import QuestionsConfig
from mralign_core.errors import DataError
from mralign_core.questions import load_questions, question_key, read_question_sets, refuse_overlap
from mralign_core.schemas import QUESTIONS

ROWS = [
    {"question": "Who wrote Emma?", "answer": ["Jane Austen", "Austen"]},
    {"question": "2+2?", "answer": 4},
    {"question": "日本の首都は？", "answer": "東京"},
]


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def loaded(tmp_path, rows, split="train", **section):
    return load_questions(write(tmp_path / "set.jsonl", rows), QuestionsConfig(**section), split)


def refusal(tmp_path, rows, **section):
    with pytest.raises(DataError) as error:
        loaded(tmp_path, rows, **section)
    assert str(tmp_path / "set.jsonl") in str(error.value)
    return str(error.value)


def test_rows_keep_the_contract(tmp_path):
    frame = QUESTIONS.require(loaded(tmp_path, ROWS))
    assert frame["question_id"].tolist() == ["train-1", "train-2", "train-3"]
    assert frame["answers"].tolist() == [["Jane Austen", "Austen"], ["4"], ["東京"]]
    assert set(frame["source"]) == {"set"} and set(frame["split"]) == {"train"}


def test_other_columns_ids_and_limits(tmp_path):
    rows = [{"q": f"Question {n}", "golds": str(n), "key": n, "extra": []} for n in range(4)]
    columns = {"question_column": "q", "answer_column": "golds", "id_column": "key"}
    frame = loaded(tmp_path, rows, **columns, train_limit=3)
    assert frame["question_id"].tolist() == ["0", "1", "2"]
    assert len(loaded(tmp_path, rows, split="eval", **columns, train_limit=3, eval_limit=1)) == 1


def test_byte_order_mark_blank_lines_and_line_separators_inside_text(tmp_path):
    path = tmp_path / "set.jsonl"
    row = json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{json.dumps(ROWS[0])}\n".encode())
    assert load_questions(path, QuestionsConfig(), "train")["question"].tolist() == [
        "a\u2028b",
        "Who wrote Emma?",
    ]


def test_a_missing_file_is_named_with_its_config_field(tmp_path):
    with pytest.raises(DataError, match=r"questions\.eval_path: .*gone\.jsonl is not a file; name a JSONL file"):
        load_questions(tmp_path / "gone.jsonl", QuestionsConfig(), "eval")
    with pytest.raises(DataError, match="is not a file"):
        load_questions(tmp_path, QuestionsConfig(), "eval")


def test_an_empty_file_and_one_that_is_not_text(tmp_path):
    assert "is empty" in refusal(tmp_path, ["", "  "])
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8 text"):
        load_questions(tmp_path / "latin.jsonl", QuestionsConfig(), "train")


def test_lines_that_are_not_objects_are_listed_at_once(tmp_path):
    message = refusal(tmp_path, [ROWS[0], '{"question": "x"', "[1, 2]", ROWS[1]])
    assert "2 problem(s)" in message
    assert "line 2: not JSON" in message and "line 3: not an object but list" in message


@pytest.mark.parametrize("name", ["question_column", "answer_column", "id_column"])
def test_a_wrong_column_lists_the_ones_there_are(tmp_path, name):
    message = refusal(tmp_path, ROWS, **{name: "nope"})
    assert "no field 'nope'" in message
    assert "'question', 'answer'" in message and f"Set questions.{name}" in message


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": " ", "answer": "x"}, "line 2: field 'question' must be a non-empty question, got ' '"),
        ({"question": 7, "answer": "x"}, "line 2: field 'question' must be a non-empty question, got 7"),
        ({"answer": "x"}, "line 2: field 'question' must be a non-empty question, got None"),
        (
            {"question": "q", "answer": []},
            "line 2: field 'answer' must be an answer or a list of answers, got []",
        ),
        ({"question": "q", "answer": ["x", ""]}, "line 2: field 'answer' must be"),
        ({"question": "q", "answer": True}, "line 2: field 'answer' must be"),
        ({"question": "q"}, "line 2: field 'answer' must be an answer or a list of answers, got None"),
    ],
)
def test_bad_rows_name_line_field_and_value(tmp_path, row, problem):
    message = refusal(tmp_path, [ROWS[0], row])
    assert problem in message and "correct these lines" in message


def test_all_bad_rows_are_listed_and_a_flood_is_cut(tmp_path):
    message = refusal(tmp_path, [ROWS[0], *[{"question": "", "answer": "x"}] * 30])
    assert "30 problem(s)" in message and "line 21:" in message and "line 22:" not in message and "10 more" in message


def test_repeated_and_missing_ids(tmp_path):
    rows = [{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "b"}, {**ROWS[2], "id": "a"}, {**ROWS[0], "id": None}]
    message = refusal(tmp_path, rows, id_column="id")
    assert "line 3: field 'id' repeats id 'a' of line 1" in message
    assert "line 4: field 'id' must be a non-empty id, got None" in message


def test_overlap_is_refused_whatever_the_case_and_punctuation(tmp_path):
    train = loaded(tmp_path, ROWS)
    held_out = loaded(tmp_path, [{"question": "who wrote  EMMA", "answer": "x"}], split="eval")
    with pytest.raises(DataError, match=r"1 evaluation question\(s\).*flatter.*take them out") as error:
        refuse_overlap(train, held_out)
    assert "'eval-1' is 'train-1'" in str(error.value)
    refuse_overlap(train, loaded(tmp_path, [{"question": "2-2?", "answer": "0"}], split="eval"))


def test_both_sets_together(tmp_path):
    train = write(tmp_path / "train.jsonl", ROWS)
    held_out = write(tmp_path / "eval.jsonl", [{"question": "Who wrote Ulysses?", "answer": "Joyce"}])
    frame = QUESTIONS.require(read_question_sets(QuestionsConfig(train_path=str(train), eval_path=str(held_out))))
    assert frame["split"].tolist() == ["train"] * 3 + ["eval"]
    alone = read_question_sets(QuestionsConfig(eval_path=str(held_out)), needs_train=False)
    assert alone["question_id"].tolist() == ["eval-1"]
    with pytest.raises(DataError, match=r"questions\.train_path is empty"):
        read_question_sets(QuestionsConfig(eval_path=str(held_out)))


def test_ids_shared_by_both_files_are_refused(tmp_path):
    train = write(tmp_path / "train.jsonl", [{**ROWS[0], "id": "a"}])
    held_out = write(tmp_path / "eval.jsonl", [{**ROWS[1], "id": "a"}])
    section = QuestionsConfig(train_path=str(train), eval_path=str(held_out), id_column="id")
    with pytest.raises(DataError, match="'a': make them distinct"):
        read_question_sets(section)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Who wrote Emma?", " who wrote\nemma ", True),
        ("Ｗho?", "who", True),
        ("2+2?", "2-2?", False),
        ("the who", "who", False),
    ],
)
def test_question_key(one, other, same):
    assert (question_key(one) == question_key(other)) == same


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rows"), [("nq_open/NQ-open.dev.jsonl", 3610), ("sciq/sciq_train_qa_only.jsonl", 12679)]
)
def test_real_question_sets(name, rows):
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real question sets")
    frame = load_questions(Path(folder) / name, QuestionsConfig(), "eval")
    assert len(QUESTIONS.require(frame)) == rows
