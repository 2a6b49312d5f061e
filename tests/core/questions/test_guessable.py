"""Questions with a yes/no gold answer, or one that stands in the question."""

import pytest
from question_files import refusal, sets, write

from mralign_core.errors import DataError
from mralign_core.questions.guessable import guessable_kind

ROWS = [
    {"question": "Is Rome older than Paris?", "answer": "Yes"},
    {"question": "Which is larger, the sun or the moon?", "answer": ["the sun", "sun"]},
    {"question": "Who wrote Emma?", "answer": "Jane Austen"},
    {"question": "In which year was the 1986 World Cup?", "answer": ["1986", "nineteen eighty-six"]},
]


@pytest.mark.parametrize(
    ("question", "answers", "kind"),
    [
        ("Is it?", ["No."], "yes_no"),
        ("Is it?", ["True", "yes"], "yes_no"),
        ("Is it?", ["Yes", "Norway"], ""),
        ("Who was Emma Woodhouse?", ["Emma"], "in_question"),
        ("Who was Emmanuel?", ["Emma"], ""),
        ("Who?", [], ""),
    ],
)
def test_the_kind_of_a_question(question, answers, kind):
    assert guessable_kind(question, answers) == kind


@pytest.mark.parametrize(("wanted", "asked"), [("keep", 4), ("drop", 2)])
def test_they_are_counted_and_listed_and_left_out_where_asked(tmp_path, wanted, asked):
    found = sets(eval={"path": str(write(tmp_path / "own.jsonl", ROWS))}, on_guessable=wanted)
    assert len(found.questions) == asked
    listed = found.guessable_of("eval")
    assert listed["question_id"].tolist() == ["own-eval-1", "own-eval-2"]
    assert listed["kind"].tolist() == ["yes_no", "in_question"]
    counts = found.counts("eval")
    assert (counts["eval with yes/no gold answer"], counts["eval with gold answer in the question"]) == (1, 1)
    assert found.guessable_of("train").empty and "train with yes/no gold answer" not in found.counts("train")


def test_options_are_no_part_of_the_question(tmp_path):
    row = {"question": "Where is money kept?", "answer": "B", "options": ["a bank", "a mall"]}
    section = {"path": str(write(tmp_path / "own.jsonl", [row])), "options_column": "options"}
    found = sets(eval=section, on_guessable="drop")
    assert found.questions["answers"].tolist() == [["a mall"]] and found.guessable.empty
    assert found.questions["scoring"].tolist() == ["option"]


def test_a_set_of_nothing_else_is_not_emptied(tmp_path):
    path = str(write(tmp_path / "own.jsonl", ROWS[:2]))
    with pytest.raises(DataError, match=r"every question of own \(eval\) has .* so none is left"):
        sets(eval={"path": path}, on_guessable="drop")
    other = str(write(tmp_path / "other" / "own.jsonl", ROWS[2:]))
    with pytest.raises(DataError, match=r"every question of own \(train\) has .* so none is left"):
        sets(train={"path": path}, eval={"path": other}, on_guessable="drop")
    assert "one of the options, or its letter" in refusal(
        path=str(write(tmp_path / "o.jsonl", [{"question": "q", "answer": "C", "options": ["x", "y"]}])),
        options_column="options",
    )
