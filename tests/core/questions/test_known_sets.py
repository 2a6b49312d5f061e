"""Known sets in the hub's format (real data sets of the hub's features) and in that of their authors' files."""

import csv
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from question_files import questions, refusal, sets, write

from mralign_core.config import QuestionSetConfig
from mralign_core.errors import UserError
from mralign_core.questions.hub import load_split, stream_dataset
from mralign_core.questions.known_sets import KNOWN_SETS

TEXT = Value("string")
CHOICES = {"label": ["A", "B"], "text": ["a bank", "a mall"]}
SIMPLEQA = {
    "metadata": "{'topic': 'Art', 'answer_type': 'Person', 'urls': [\"https://example.org/it's\"]}",
    "problem": "Who painted it?",
    "answer": "Ada Bell",
}
TRUTHFULQA = {
    "Type": "Adversarial",
    "Category": "Myths",
    "Question": "Do stones float?",
    "Best Answer": "Pumice does",
    "Correct Answers": "Only some; Pumice does; Pumice floats;",
    "Incorrect Answers": "No; Yes",
    "Source": "https://example.org",
}
COMMONSENSE = {"id": "1", "question": "Where is money kept?", "question_concept": "money", "answerKey": "A"}
HUB: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, list[str], str]]] = {
    "nq_open": (
        {"question": TEXT, "answer": List(TEXT)},
        {"question": "who wrote emma", "answer": ["Jane Austen", "Austen"]},
        ("who wrote emma", ["Jane Austen", "Austen"], ""),
    ),
    "sciq": (
        dict.fromkeys(["question", "distractor3", "distractor1", "distractor2", "correct_answer", "support"], TEXT),
        {"question": "What is H2O?", "distractor1": "air", "correct_answer": "water", "support": ""},
        ("What is H2O?", ["water"], ""),
    ),
    "simpleqa": (dict.fromkeys(SIMPLEQA, TEXT), SIMPLEQA, ("Who painted it?", ["Ada Bell"], "Art")),
    "truthfulqa": (
        {
            **dict.fromkeys(["type", "category", "question", "best_answer", "source"], TEXT),
            **dict.fromkeys(["correct_answers", "incorrect_answers"], List(TEXT)),
        },
        {
            "category": "Myths",
            "question": "Do stones float?",
            "best_answer": "Pumice does",
            "correct_answers": ["Only some", "Pumice does", "Pumice floats"],
            "incorrect_answers": ["No"],
        },
        ("Do stones float?", ["Pumice does", "Only some", "Pumice floats"], "Myths"),
    ),
    "gsm8k": (
        {"question": TEXT, "answer": TEXT},
        {"question": "How many sheep?", "answer": "It is 1000+250=<<1000+250=1250>>1250.\n#### 1,250"},
        ("How many sheep?", ["1250", "1,250"], ""),
    ),
    "commonsense_qa": (
        {
            **dict.fromkeys(["id", "question", "question_concept", "answerKey"], TEXT),
            "choices": {"label": List(TEXT), "text": List(TEXT)},
        },
        {**COMMONSENSE, "choices": CHOICES},
        ("Where is money kept?\nA. a bank\nB. a mall", ["a bank"], ""),
    ),
}
"""Set → the hub's features, a row of our own words, and the question it gives: text, answers, stratum."""


def one_row(frame):
    (row,) = frame.to_dict("records")
    return row["question"], row["answers"], row["stratum"]


@pytest.mark.parametrize("name", HUB)
def test_a_row_in_the_hubs_format(tmp_path, monkeypatch, name):
    features, row, expected = HUB[name]
    known = KNOWN_SETS[name]
    dataset = Dataset.from_list([{column: row.get(column) for column in features}], features=Features(features))
    folder = tmp_path / (known.subset or "data")
    folder.mkdir()
    dataset.to_parquet(folder / f"{known.eval_split}-00000-of-00001.parquet")
    found = questions(name=name, path=str(tmp_path))
    assert one_row(found) == expected
    assert found["question_id"].tolist() == [f"{name}-{known.eval_split}-1"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (line,) = stream_dataset(load_split(str(folder), "", known.eval_split, "", "questions.eval"))
    read = next(columns for columns in known.formats if columns.fit(line.values)).read(line)
    assert (read.text, read.answers, read.stratum) == expected


def test_only_sets_with_a_gold_answer_are_on_the_hub():
    assert {name for name, known in KNOWN_SETS.items() if known.hub_id} == set(HUB)
    assert {name for name, known in KNOWN_SETS.items() if not known.formats[0].answer} == {"longfact"}
    assert all(name in str(QuestionSetConfig.model_fields["name"].description) for name in KNOWN_SETS)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("sciq", {"question": "What is H2O?", "answer": "water"}, ("What is H2O?", ["water"], "")),
        ("simpleqa", {"problem": "Who?", "answer": 7}, ("Who?", ["7"], "")),
        ("simpleqa", {**SIMPLEQA, "metadata": {"topic": "Art"}}, ("Who painted it?", ["Ada Bell"], "Art")),
        ("gsm8k", {"question": "q", "answer": "So it is.\n#### -3.5"}, ("q", ["-3.5"], "")),
        (
            "commonsense_qa",
            {**COMMONSENSE, "choices": [{"label": "A", "text": "a bank"}, {"label": "B", "text": "a mall"}]},
            ("Where is money kept?\nA. a bank\nB. a mall", ["a bank"], ""),
        ),
        (
            "commonsense_qa",
            {
                "answerKey": "B",
                "id": "1",
                "question": {
                    "stem": "Where?",
                    "choices": [{"label": "A", "text": "there"}, {"label": "B", "text": "here"}],
                },
            },
            ("Where?\nA. there\nB. here", ["here"], ""),
        ),
    ],
)
def test_a_row_in_the_format_of_a_file(tmp_path, name, row, expected):
    assert one_row(questions(name=name, path=str(write(tmp_path / "set.jsonl", [row])))) == expected


@pytest.mark.parametrize(("name", "row"), [("simpleqa", SIMPLEQA), ("truthfulqa", TRUTHFULQA)])
def test_a_row_of_a_csv_file_with_a_byte_order_mark(tmp_path, name, row):
    path = tmp_path / "set.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    assert one_row(questions(name=name, path=str(path))) == HUB[name][2]


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("set.csv", TRUTHFULQA),
        ("set.jsonl", {**HUB["truthfulqa"][1], "incorrect_answers": ["No", "Yes"]}),
        ("set.csv", {**HUB["truthfulqa"][1], "correct_answers": "['a']", "incorrect_answers": "['No', 'Yes']"}),
    ],
)
def test_truthfulqa_keeps_the_incorrect_answers_for_a_judge(tmp_path, file, row):
    path = write(tmp_path / "set.jsonl", [row])
    if file == "set.csv":
        path = tmp_path / file
        with path.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(row))
            writer.writeheader()
            writer.writerow(row)
    assert questions(name="truthfulqa", path=str(path))["incorrect_answers"].tolist() == [["No", "Yes"]]
    without = {column: value for column, value in row.items() if "ncorrect" not in column}
    assert "incorrect_answers" in refusal(name="truthfulqa", path=str(write(tmp_path / "less.jsonl", [without])))


def test_longfact_is_a_folder_of_prompts_by_topic(tmp_path):
    for topic in ("astronomy", "world-history"):
        write(tmp_path / f"longfact-objects_{topic}.jsonl", [{"prompt": f"Tell me of {topic}.", "canary": "x"}])
    frame = questions(name="longfact", path=str(tmp_path))
    assert frame["stratum"].tolist() == ["astronomy", "world-history"]
    assert frame["answers"].tolist() == [[], []]
    assert "has no gold answers" in refusal("train", name="longfact", path=str(tmp_path), split="all")
    assert "'longfact' is not on the hub: name the folder" in refusal(name="longfact")


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("gsm8k", {"question": "q", "answer": "So it is 3."}, "field 'answer' must end with '####' and a number"),
        ("gsm8k", {"question": "q", "answer": "#### many"}, "field 'answer' must end with '####' and a number"),
        ("gsm8k", {"question": "q", "answer": None}, "field 'answer' is not as in this set"),
        ("simpleqa", {**SIMPLEQA, "metadata": "{'topic"}, "field 'metadata' is not as in this set (SyntaxError"),
        ("simpleqa", {**SIMPLEQA, "metadata": "{}"}, "field 'metadata' is not as in this set (KeyError('topic'))"),
        (
            "commonsense_qa",
            {**COMMONSENSE, "choices": CHOICES, "answerKey": ""},
            "field 'answerKey' must be one of A, B, got '', as in a split that hides its answers",
        ),
        ("commonsense_qa", {**COMMONSENSE, "choices": None}, "field 'choices' is not as in this set"),
        (
            "commonsense_qa",
            {**COMMONSENSE, "choices": {"label": ["A", "B"], "text": ["a bank", "a bank"]}},
            "field 'choices' must be a list of 2 to 26 options",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, row, problem):
    message = refusal(name=name, path=str(write(tmp_path / "set.jsonl", [row])))
    assert f"line 1: {problem}" in message


def test_other_columns_list_those_found_and_those_known(tmp_path):
    message = refusal(name="sciq", path=str(write(tmp_path / "set.jsonl", [{"q": "?", "a": "!"}])))
    assert "question + correct_answer, or question + answer; line 1 has 'q', 'a'" in message


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "simpleqa"}, "'simpleqa' (test) is meant for evaluation, not for alignment"),
        ({"name": "truthfulqa"}, "'truthfulqa' is scored by a judge, and the selection compares texts"),
        ({"name": "nq_open", "path": "NQ-open.dev.jsonl"}, "'nq_open' (validation) is meant for evaluation"),
        ({"name": "gsm8k", "path": "test.jsonl"}, "'gsm8k' (test) is meant for evaluation"),
        ({"name": "nq-open"}, "no known question set 'nq-open'; did you mean 'nq_open'?"),
        ({"name": "trivia"}, "known are nq_open, sciq,"),
        ({"name": "sciq", "answer_column": "x"}, ".answer_column has no effect on a known set"),
        ({"name": "sciq", "scoring": "number"}, ".scoring has no effect on a known set"),
        (
            {"name": "own", "path": "train.jsonl", "answer_column": "", "scoring": "number"},
            "it can be evaluated on, not",
        ),
        ({"name": "own", "path": "train.jsonl", "scoring": "truthful"}, "by a judge"),
        ({"name": "sciq", "path": "train.jsonl", "revision": "x"}, ".revision has no effect on a file"),
        ({"name": "pocket", "split": "train"}, ".split has no effect on the pocket world's set"),
        ({"path": "org/own"}, "which split of 'own'? Set split, such as split: validation"),
    ],
)
def test_a_set_that_is_not_meant_is_refused_unless_its_split_is_named(tmp_path, monkeypatch, section, says):
    monkeypatch.chdir(tmp_path)
    for name in ("NQ-open.dev.jsonl", "test.jsonl", "train.jsonl"):
        write(tmp_path / name, [{"question": "q", "answer": "#### 1"}])
    assert says in refusal("eval" if section.get("path") == "org/own" else "train", **section)
    if section.get("name") in KNOWN_SETS and section.get("path") not in (None, "train.jsonl"):
        split = "validation" if section["name"] == "nq_open" else "test"
        assert questions("train", **section, split=split)["question_id"].tolist() == [f"{section['name']}-{split}-1"]


def test_a_training_split_is_not_evaluated_on_unless_named(tmp_path):
    path = str(write(tmp_path / "NQ-open.train.jsonl", [{"question": "q", "answer": ["a"]}]))
    assert "'nq_open' (train) is meant for alignment, not for evaluation" in refusal(name="nq_open", path=path)
    assert len(questions(name="nq_open", path=path, split="train")) == 1
    assert len(questions("train", name="nq_open", path=path)) == 1


REAL = [
    ("nq_open", "nq_open/NQ-open.dev.jsonl", "eval", 3610),
    ("nq_open", "nq_open/NQ-open.train.20k.jsonl", "train", 20_000),
    ("sciq", "sciq/sciq_train_qa_only.jsonl", "train", 12_679),
    ("sciq", "sciq/sciq_validation.csv", "eval", 1000),
    ("sciq", "sciq/test.csv", "eval", 884),
    ("simpleqa", "simpleqa/simple_qa_test_set.csv", "eval", 4326),
    ("truthfulqa", "truthfulqa/TruthfulQA.csv", "eval", 817),
    ("longfact", "longfact", "eval", 1140),
    ("gsm8k", "gsm8k/test.300.jsonl", "eval", 300),
    ("commonsense_qa", "commonsenseqa/dev_rand_split.jsonl", "eval", 1221),
]
STRATA = {"simpleqa": 10, "truthfulqa": 38, "longfact": 38}


@pytest.fixture
def real_data():
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real question sets")
    return Path(folder)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "path", "split", "count"), REAL)
def test_real_files_load_whole(real_data, name, path, split, count):
    frame = questions(split, name=name, path=str(real_data / path))
    assert len(frame) == count
    assert frame["stratum"].nunique() == STRATA.get(name, 1)
    assert frame["answers"].map(bool).all() == (name != "longfact")


@pytest.mark.real_data
def test_real_gold_answers_of_gsm8k_are_numbers(real_data):
    frame = questions(name="gsm8k", path=str(real_data / "gsm8k/test.300.jsonl"))
    assert frame["answers"].map(lambda answers: answers[0].isdigit()).all()
    assert frame["answers"].map(len).value_counts().to_dict() == {1: 296, 2: 4}


@pytest.mark.real_data
def test_real_gold_answers_of_truthfulqa_begin_with_the_best(real_data):
    path = real_data / "truthfulqa/TruthfulQA.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        best = [row["Best Answer"].strip() for row in csv.DictReader(file)]
    found = questions(name="truthfulqa", path=str(path))["answers"]
    assert [answers[0] for answers in found] == best
    assert all(len(set(answers)) == len(answers) for answers in found)


@pytest.mark.real_data
def test_real_longfact_subset(real_data):
    frame = questions(name="longfact", path=str(real_data / "longfact"), limit=250, pick="random")
    assert len(frame) == 250 and frame["stratum"].nunique() > 30


@pytest.mark.real_data
def test_real_overlaps(real_data):
    def real(name, file):
        return {"name": name, "path": str(real_data / file)}

    nq = {
        "train": real("nq_open", "nq_open/NQ-open.train.20k.jsonl"),
        "eval": real("nq_open", "nq_open/NQ-open.dev.jsonl"),
    }
    assert sets(**nq, on_overlap="drop").overlap.empty
    # Seven questions stand in SciQ's train and test; six of them in the 884 of the 1,000 test rows that are here.
    sciq = {"train": real("sciq", "sciq/sciq_train_qa_only.jsonl"), "eval": real("sciq", "sciq/test.csv")}
    found = sets(**sciq, on_overlap="drop")
    assert found.overlap["question_id"].nunique() == found.overlap["eval_question_id"].nunique() == 6
    assert len(found.questions) == 12_679 - 6 + 884
    with pytest.raises(UserError, match=r"6 evaluation question\(s\) are also questions to align on"):
        sets(**sciq)
