"""A user's own set: rows, columns, ids, limits, and every error of a row or column."""

import json
import time

import pytest
from question_files import ROWS, questions, refusal, sets, write

from mralign_core.config import QuestionsConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.method.benchmarks import gold_of, judge_reply
from mralign_core.questions.locating import locate_sets


def own(tmp_path, rows, role="train", /, **section):
    return questions(role, path=str(write(tmp_path / "set.jsonl", rows)), **section)


def refused(tmp_path, rows, **section):
    path = write(tmp_path / "set.jsonl", rows)
    message = refusal("train", path=str(path), **section)
    assert str(path) in message
    return message


def test_rows_keep_the_contract(tmp_path):
    frame = own(tmp_path, ROWS)
    assert frame["question_id"].tolist() == ["set-train-1", "set-train-2", "set-train-3"]
    assert frame["answers"].tolist() == [["Jane Austen", "Austen"], ["4"], ["東京"]]
    assert set(frame["source"]) == {"set"} and set(frame["split"]) == {"train"} and set(frame["stratum"]) == {""}


def test_a_set_is_named_after_its_file_or_as_the_config_says(tmp_path):
    held_out = write(tmp_path / "my eval.v2.jsonl.gz", ROWS)
    assert questions(path=str(held_out))["question_id"][0] == "my-eval.v2-eval-1"
    assert questions(path=str(held_out), name="mine", split="dev")["question_id"][0] == "mine-dev-1"
    assert questions("train", path=str(write(tmp_path / "train.jsonl", ROWS)))["question_id"][0] == "train-1"


def test_columns_of_a_users_own(tmp_path):
    rows = [{"q": f"Question {n}", "golds": str(n), "key": n, "topic": n % 2, "extra": []} for n in range(3)]
    columns = {"question_column": "q", "answer_column": "golds", "id_column": "key", "stratum_column": "topic"}
    frame = own(tmp_path, rows, **columns)
    assert frame["question_id"].tolist() == ["0", "1", "2"]
    assert frame["answers"].tolist() == [["0"], ["1"], ["2"]]
    assert frame["stratum"].tolist() == ["0", "1", "0"]
    missing = own(tmp_path, [*rows, {**rows[0], "key": 9, "topic": None}], **columns)
    assert missing["stratum"].tolist()[-1] == ""


def test_own_ids_are_prefixed_when_there_are_several_sets(tmp_path):
    one, two = (
        {"path": str(write(tmp_path / f"{name}.jsonl", [{**row, "id": "a"}])), "id_column": "id"}
        for name, row in zip(("one", "two"), ROWS, strict=False)
    )
    assert sets(train=one).questions["question_id"].tolist() == ["a"]
    assert sets(train=one, eval=two).questions["question_id"].tolist() == ["a", "two-eval-a"]
    assert sets(train=[one, two]).questions["question_id"].tolist() == ["one-train-a", "two-train-a"]


def test_questions_without_an_answer_are_for_evaluation_only(tmp_path):
    rows = [{"question": row["question"]} for row in ROWS]
    assert own(tmp_path, rows, "eval", answer_column="")["answers"].tolist() == [[], [], []]
    with pytest.raises(ConfigError, match=r"questions\.train: 'set' has no gold answers: it can be evaluated on"):
        own(tmp_path, rows, "train", answer_column="")


def test_limits_take_the_first_and_keep_ids(tmp_path):
    frame = own(tmp_path, ROWS, limit=2)
    assert frame["question_id"].tolist() == own(tmp_path, ROWS)["question_id"].tolist()[:2]
    assert len(own(tmp_path, ROWS, limit=9)) == 3


def test_a_random_subset_is_the_same_in_any_order_and_part_of_a_larger_one(tmp_path):
    rows = [{"question": f"Question {n}", "answer": "x"} for n in range(200)]
    small, large = (own(tmp_path, rows, limit=limit, pick="random") for limit in (20, 50))
    reversed_file = own(tmp_path, rows[::-1], limit=20, pick="random")
    texts = set(small["question"])
    assert len(texts) == 20 and texts != {row["question"] for row in rows[:20]}
    assert texts == set(reversed_file["question"]) and texts < set(large["question"])
    numbers = [int(question_id.rpartition("-")[2]) for question_id in small["question_id"]]
    assert numbers == sorted(numbers)
    assert [rows[number - 1]["question"] for number in numbers] == small["question"].tolist()


@pytest.mark.parametrize("option", ["question_column", "answer_column", "id_column", "stratum_column"])
def test_a_wrong_column_lists_the_ones_there_are(tmp_path, option):
    message = refused(tmp_path, ROWS, **{option: "nope"})
    assert "no field 'nope'; line 1 has 'question', 'answer'" in message
    assert f"Set {option} to the field" in message


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": " ", "answer": "x"}, "field 'question' must be a non-empty question, got ' '"),
        ({"question": 7, "answer": "x"}, "field 'question' must be a non-empty question, got 7"),
        ({"answer": "x"}, "field 'question' must be a non-empty question, got None"),
        ({"question": "q", "answer": []}, "field 'answer' must be an answer or a list of answers, got []"),
        ({"question": "q", "answer": ["x", ""]}, "field 'answer' must be"),
        ({"question": "q", "answer": True}, "field 'answer' must be"),
        ({"question": "q", "answer": float("nan")}, "field 'answer' must be"),
        ({"question": "q"}, "field 'answer' must be an answer or a list of answers, got None"),
    ],
)
def test_bad_rows_name_line_field_and_value(tmp_path, row, problem):
    message = refused(tmp_path, [ROWS[0], row])
    assert f"line 2: {problem}" in message and "correct these lines" in message


def test_golds_of_sets_scored_by_number_are_numbers(tmp_path):
    rows = [{"question": f"{place}?", "answer": gold} for place, gold in enumerate(["seven", "10^5", 3, "$1,250.00"])]
    found = questions(path=str(write(tmp_path / "own.jsonl", rows)), scoring="number")
    said = ["It is 7.", "The answer is 100,000.", "3", "1250"]
    golds = [gold_of(row) for row in found.to_dict("records")]
    assert all(judge_reply(answer, "", gold).em_answer for answer, gold in zip(said, golds, strict=True))
    assert not judge_reply("The answer is 10.", "", golds[1]).em_answer
    message = refused(tmp_path, [*rows, {"question": "Where?", "answer": [4, "Paris"]}], scoring="number")
    assert "line 5: field 'answer' must be a number where scoring is number, got 'Paris'" in message


@pytest.mark.parametrize("scoring", ["truthful", "claims", "number", "exact_match"])
def test_options_without_effect_are_refused(scoring):
    with pytest.raises(ValueError, match=f"scoring '{scoring}' does not heed options: remove options_column"):
        sets(eval={"path": "own.jsonl", "scoring": scoring, "options_column": "options"})


def test_all_bad_rows_are_listed_and_a_flood_is_cut(tmp_path):
    message = refused(tmp_path, [ROWS[0], *[{"question": "", "answer": "x"}] * 30])
    assert "30 problem(s)" in message and "line 21:" in message and "line 22:" not in message and "10 more" in message


def test_repeated_and_missing_ids(tmp_path):
    rows = [{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "b"}, {**ROWS[2], "id": "a"}, {**ROWS[0], "id": None}]
    message = refused(tmp_path, rows, id_column="id")
    assert "line 3: field 'id' repeats id 'a' of line 1" in message
    assert "line 4: field 'id' must be a non-empty id, got None" in message


def test_ninety_thousand_questions_load_in_seconds(tmp_path):
    rows = [json.dumps({"question": f"what is {n} in words", "answer": [str(n)]}) for n in range(90_000)]
    held_out = write(tmp_path / "eval.jsonl", [{"question": "WHAT is 17 in words?", "answer": "seventeen"}])
    started = time.monotonic()
    found = sets(train=str(write(tmp_path / "train.jsonl", rows)), eval=str(held_out), on_overlap="drop")
    assert time.monotonic() - started < 60
    assert (len(found.questions), found.overlap["question_id"].tolist()) == (90_000, ["train-18"])


def test_sets_that_would_share_ids_are_refused(tmp_path):
    one, two = (str(write(tmp_path / folder / "set.jsonl", ROWS[:1])) for folder in "ab")
    with pytest.raises(ConfigError, match=r"questions\.train\.0 and questions\.train\.1 are both 'set-train'"):
        sets(train=[one, two])
    named = sets(train=[one, {"path": two, "name": "other"}])
    assert named.questions["question_id"].tolist() == ["set-train-1", "other-train-1"]


def test_the_pocket_worlds_sets(tmp_path):
    frame = sets(train={"name": "pocket", "limit": 3}, eval="pocket").questions
    assert frame["split"].value_counts().to_dict() == {"train": 3, "eval": 181}
    assert set(frame["source"]) == {"pocket"}


def test_a_mistake_in_one_of_several_sets_says_which(tmp_path):
    good, bad = write(tmp_path / "good.jsonl", ROWS), write(tmp_path / "bad.jsonl", ["{"])
    with pytest.raises(DataError, match=r"questions\.eval\.1: .*bad\.jsonl has 1 problem"):
        sets(eval=[str(good), str(bad)])


def test_golds_that_are_articles_are_told_with_the_remedy(tmp_path, caplog):
    rows = [
        {"id": f"q{n}", "question": f"Which {n}?", "answer": gold}
        for n, gold in enumerate(["A", ["a"], "B", ["A", "B"]])
    ]
    sets(eval={"path": str(write(tmp_path / "set.jsonl", rows)), "id_column": "id"})
    assert "2 of 4 questions have no gold answer but an article" in caplog.text
    assert "give the text of the right option" in caplog.text
    caplog.clear()
    sets(eval={"path": str(write(tmp_path / "set.jsonl", rows[2:])), "id_column": "id"})
    assert "article" not in caplog.text


def test_a_stratum_of_the_pocket_worlds_set_is_a_set_of_its_own():
    train = [{"name": "pocket", "subset": stratum} for stratum in ("one_hop", "two_hop")]
    every, strata = sets(train="pocket", eval="pocket").of("train"), sets(train=train, eval="pocket").of("train")
    assert set(strata["question_id"]) == set(every["question_id"])
    assert (strata["source"] == "pocket-" + strata["stratum"]).all()
    with pytest.raises(
        ConfigError, match=r"questions\.train\.subset 'three_hop': the pocket world's set has one_hop and"
    ):
        sets(train={"name": "pocket", "subset": "three_hop"})


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("role", ["train", "eval"])
def test_the_pocket_worlds_set_and_a_part_of_it_are_refused(role, order):
    both = ["pocket", {"name": "pocket", "subset": "one_hop"}][::order]
    section = QuestionsConfig.model_validate({"train": "pocket", role: both})
    with pytest.raises(ConfigError, match=rf"questions\.{role}\.\d is the whole set .*twice.*subset: two_hop"):
        locate_sets(section)


def test_one_of_several_sets_is_aligned_on_with_the_ids_that_it_has_among_all(tmp_path):
    for name, golds in {"a": ["x", "y"], "b": ["z"]}.items():
        rows = [json.dumps({"question": f"{name} {gold}?", "answer": gold}) for gold in golds]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    train = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    every, one = sets(train=train).of("train"), sets(train=train, train_on=["a"]).of("train")
    assert list(one["question_id"]) == list(every["question_id"])[:2] and len(every) == 3
    with pytest.raises(ConfigError, match=r"questions\.train_on: 'c' is no set of questions\.train: name some of a, b"):
        sets(train=train, train_on=["c"])
