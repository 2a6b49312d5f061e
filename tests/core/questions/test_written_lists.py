"""Lists that a table holds as text: what programs write is read, what may be one is refused, what is none stays."""

import contextlib
import csv
import io
import json
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from question_files import ROWS, questions, refusal, write

from mralign_core.questions.columns import answers_in
from mralign_core.questions.written_lists import UnclearListError, written_list

ANSWERS = ["Jane Austen", "O'Neill", 'the "Heroes"', "a, b", "Café", "[x]", "line\nend", "back\\slash", "it]'s"]
LONG = [f"answer number {number}" for number in range(40)]


def pandas_cell(value):
    """What ``to_csv`` writes for an object in a cell."""
    text = pd.DataFrame({"answer": [value]}).to_csv(index=False)
    return next(csv.DictReader(io.StringIO(text)))["answer"]


WRITERS: dict[str, Callable[[list[str]], str]] = {
    "list": lambda answers: pandas_cell(list(answers)),
    "tuple": lambda answers: pandas_cell(tuple(answers)),
    "array": lambda answers: pandas_cell(np.array(answers, dtype=object)),
    "array of strings": lambda answers: pandas_cell(np.array(answers)),
    "numpy's repr": lambda answers: repr(np.array(answers, dtype=object)),
    "repr of strings": lambda answers: repr(np.array(answers)),
    "list of numpy's strings": lambda answers: repr([np.str_(answer) for answer in answers]),
    "list of an array": lambda answers: repr([np.array(answers, dtype=object)]),
    "json": json.dumps,
    "json unescaped": lambda answers: json.dumps(answers, ensure_ascii=False, indent=1),
    "set in braces": lambda answers: "{" + repr(list(answers))[1:-1] + "}",
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("answers", [["Paris"], ["Jane Austen", "Austen"], ANSWERS, LONG], ids=len)
def test_lists_are_read_as_they_were_before_they_became_text(writer, answers):
    assert answers_in(WRITERS[writer](answers), "answer") == answers


@pytest.mark.parametrize(
    "text",
    [
        "[Fe/H]",
        "(a) Paris",
        "[1969]",
        "[Paris]",
        "{Paris}",
        "('Paris')",
        "[H+], [OH-]",
        "[0, 1)",
        "(1, 2)",
        "a|b",
        "a; b",
        '"Heroes"',
        "['a'] and more",
        "c(a) Paris",
        "Paris [capital]",
        "'70s",
        "[",
        "()",
    ],
)
def test_answers_that_have_brackets_stay(text):
    assert written_list(text) is None
    assert answers_in(text, "answer") == answers_in([text], "answer") == [text]


@pytest.mark.parametrize(
    "text",
    [
        "{a,b}",
        '{"Jane Austen",Austen}',
        "[Jane Austen, Austen]",
        "[1, 2]",
        "[1 2]",
        "[None]",
        "[nan]",
        "['a', None]",
        "[nan, 'a']",
        '["a", null]',
        "[['a'], ['b']]",
        "[['a' 'b']\n ['c' 'd']]",
        "['a' 'b' ... 'y' 'z']",
        "{'text': ['a']}",
        '{"text": "a"}',
        "[b'a']",
        "['O''Neill']",
    ],
)
def test_what_may_be_a_list_is_refused_with_both_ways_to_write_it(tmp_path, text):
    with pytest.raises(UnclearListError):
        written_list(text)
    path = write(tmp_path / "set.jsonl", [ROWS[0], {"question": "q", "answer": text}])
    message = refusal("train", path=str(path))
    assert "line 2: field 'answer'" in message and "a list of texts in quotes" in message and str(path) in message


@pytest.mark.parametrize(
    "text",
    [
        "[&quot;a&quot;]",
        "[&#39;a&#39;, &#39;b&#39;]",
        "Index(['a'], dtype='object')",
        "pd.Series(['a'])",
        "['Paris'",
        '["Paris", "Pana',
        "['a'],",
        "['a', 'b'];",
        "'[\"a\"]'",
        "\"['a'\"",
        '"["a"]"',
        "array(['a'",
    ],
)
def test_a_list_in_a_way_that_is_not_read_is_refused_unless_it_stands_in_a_list(text):
    with pytest.raises(UnclearListError):
        written_list(text)
    assert answers_in([text], "answer") == [text] or text == "\"['a'\""


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_list_that_was_encoded_again_is_read(times):
    text = json.dumps(ANSWERS)
    for _ in range(times):
        text = json.dumps(text)
    assert answers_in(text, "answer") == ANSWERS
    assert answers_in(json.dumps("['Paris', 'Paname']"), "answer") == ["Paris", "Paname"]
    for one in ('"[Fe/H]"', '"Heroes"', '"a" and "b"', '""Heroes""'):
        assert answers_in(one, "answer") == [one]


@pytest.mark.parametrize(
    "text",
    [
        "array('" + " " * 200_000,
        "array('" + " " * 200_000 + ")",
        "array(" + " " * 200_000 + "'",
        "c('a'" + " , " * 100_000 + "dtype" + " " * 100_000 + ")",
        "c(" * 100_000 + "'a'" + ")" * 100_000,
        "['" + "\\'" * 100_000,
        "[" * 100_000,
        '"' * 100_000,
        "a" * 200_000 + "(['a'])",
    ],
)
def test_any_cell_is_read_in_linear_time(text):
    started = time.process_time()
    with contextlib.suppress(UnclearListError):
        written_list(text)
    assert time.process_time() - started < 2


def test_one_answer_in_brackets_can_be_written_and_an_empty_list_is_none():
    assert answers_in(["[0, 1]"], "answer") == answers_in('["[0, 1]"]', "answer") == ["[0, 1]"]
    assert answers_in(["['Paris']"], "answer") == ["Paris"]
    for empty in ("[]", "['']", "['a', ' ']", "array([], dtype=object)"):
        with pytest.raises(ValueError, match="must be an answer"):
            answers_in(empty, "answer")


def test_a_csv_of_lists(tmp_path):
    frame = pd.DataFrame(
        {"question": ["Who wrote Emma?", "Capital?"], "answer": [["Jane Austen", "Austen"], ["Paris"]]}
    )
    frame.to_csv(tmp_path / "set.csv", index=False)
    assert questions(path=str(tmp_path / "set.csv"))["answers"].tolist() == [["Jane Austen", "Austen"], ["Paris"]]


def test_a_known_set_that_was_saved_without_lists(tmp_path):
    row = {"question": "q", "best_answer": "a", "correct_answers": ["a", "b c"], "category": "x"}
    row["incorrect_answers"] = ["d"]
    pd.DataFrame([row]).to_csv(tmp_path / "truthfulqa.csv", index=False)
    assert questions(name="truthfulqa", path=str(tmp_path / "truthfulqa.csv"))["answers"].tolist() == [["a", "b c"]]


@pytest.mark.parametrize("text", ["['a', " * 9999 + "]", "[" * 9999 + "]" * 9999, "array(" * 9999 + ")" * 9999])
def test_long_cells_take_no_time(text):
    with contextlib.suppress(UnclearListError):
        written_list(text)
