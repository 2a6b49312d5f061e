"""Training and evaluation questions are kept apart: refused, or taken out of training and counted."""

import pytest
from question_files import ROWS, questions, sets, write

from mralign_core.errors import DataError
from mralign_core.questions.overlap import find_overlap, question_key, refuse_overlap


@pytest.fixture
def paths(tmp_path):
    train = write(tmp_path / "train.jsonl", ROWS)
    held_out = [{"question": "who wrote  EMMA", "answer": "x"}, {"question": "2-2?", "answer": "0"}]
    return {"train": str(train), "eval": str(write(tmp_path / "eval.jsonl", held_out))}


def test_overlap_is_refused_whatever_the_case_and_punctuation(paths):
    with pytest.raises(DataError, match=r"1 evaluation question\(s\).*flatter.*questions.on_overlap to drop") as error:
        sets(**paths)
    assert "'eval-1' is 'train-1': 'Who wrote Emma?'" in str(error.value)


def test_overlap_is_taken_out_of_training_and_told(paths):
    found = sets(**paths, on_overlap="drop")
    assert found.questions["question_id"].tolist() == ["train-2", "train-3", "eval-1", "eval-2"]
    assert found.overlap.to_dict("records") == [
        {
            "question_id": "train-1",
            "source": "train",
            "question": "Who wrote Emma?",
            "eval_question_id": "eval-1",
            "eval_source": "eval",
            "eval_question": "who wrote  EMMA",
        }
    ]


def test_a_question_that_is_asked_twice_is_taken_out_twice(tmp_path, paths):
    write(tmp_path / "train.jsonl", [ROWS[0], ROWS[0], ROWS[1]])
    found = sets(**paths, on_overlap="drop")
    assert found.overlap["question_id"].tolist() == ["train-1", "train-2"]
    assert found.questions["question_id"].tolist() == ["train-3", "eval-1", "eval-2"]


@pytest.mark.parametrize("choice", ["refuse", "drop"])
def test_sets_without_overlap_are_left_as_they_are(tmp_path, paths, choice):
    write(tmp_path / "eval.jsonl", [{"question": "2-2?", "answer": "0"}])
    found = sets(**paths, on_overlap=choice)
    assert found.questions["question_id"].tolist() == ["train-1", "train-2", "train-3", "eval-1"]
    assert found.overlap.empty and "eval_question_id" in found.overlap


def test_a_training_set_that_is_wholly_evaluated_on_is_refused(paths):
    twice = {"train": paths["train"], "eval": {"path": paths["train"], "name": "other"}}
    with pytest.raises(DataError, match="every training question is evaluated on, so none is left"):
        sets(**twice, on_overlap="drop")


def test_ids_that_are_in_both_are_refused(paths):
    train = questions("train", path=paths["train"])
    held_out = questions("eval", path=paths["eval"]).tail(1).assign(question_id="train-2")
    assert find_overlap(train, held_out).empty
    with pytest.raises(DataError, match="such as 'train-2': make them distinct"):
        refuse_overlap(train, held_out)


def test_options_hide_no_overlap(tmp_path):
    rows = [
        {"question": "Where is money kept?", "answer": "A", "options": ["a bank", "a mall"]},
        {"question": "Where do fish live?", "answer": "B", "options": ["a tree", "a sea"]},
    ]
    train = {"path": str(write(tmp_path / "train.jsonl", rows)), "options_column": "options"}
    others = [
        {"question": "where is  money kept", "answer": "a bank"},
        {"question": "Where do fish live?", "answer": "A", "options": ["a sea", "a pond"]},
        {"question": "Where do fish sleep?", "answer": "A", "options": ["a tree", "a sea"]},
    ]
    plain = {"path": str(write(tmp_path / "plain.jsonl", others[:1]))}
    shown = {"path": str(write(tmp_path / "shown.jsonl", others[1:])), "options_column": "options"}
    with pytest.raises(DataError, match=r"2 evaluation question\(s\) are also questions to align on"):
        sets(train=train, eval=[plain, shown])
    pairs = find_overlap(questions("train", **train), questions("eval", **shown))
    assert pairs[["question_id", "eval_question_id"]].to_numpy().tolist() == [["train-2", "shown-eval-1"]]
    same = find_overlap(questions("train", **train), questions("train", **train))
    assert same["question_id"].tolist() == ["train-1", "train-2"], "once each, by either text"


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
