"""Sheets on which people judge: blinded on the way out, strict and forgiving of spreadsheets on the way in."""

import csv

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, score

from mralign_core.errors import DataError
from mralign_core.evaluation.judge_sheet import (
    NO_ANSWER_SHOWN,
    check_judge_sheet,
    read_judge_sheet,
    sheet_columns,
    write_judge_sheet,
)
from mralign_core.reporting.people_findings import variants_left_out

VARIANTS = ("off", "on", "kto")


@pytest.fixture
def scores():
    """Twelve questions, two draws each; KTO answers as think-on does, but for every third question."""
    rows = [
        score(variant, f"q{number}", variant != "off" or None, True, draw, answer=f"Oslo {number}.{draw}{own}")
        for number in range(12)
        for draw in range(2)
        for variant in VARIANTS
        for own in ["" if variant == "on" or (variant == "kto" and number % 3) else f" {ord(variant[0])}"]
    ]
    return as_scores(rows)


@pytest.fixture
def questions():
    return pd.DataFrame(
        {
            "question_id": [f"q{number}" for number in range(12)],
            "question": [f"Where is {number}?" for number in range(12)],
        }
    ).assign(answers=[["Oslo", "Christiania"]] * 12)


@pytest.fixture
def write(tmp_path, scores, questions):
    def written(num_questions=99, seed=0, name="sheet.csv", rows=scores):
        rng = np.random.default_rng(seed)
        return write_judge_sheet(tmp_path / name, rows, questions, num_questions=num_questions, rng=rng)

    return written


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path, rows, separator=",", encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_sheet_is_blinded_shuffled_and_repeatable(write, scores):
    written = write()
    rows = rows_of(written.sheet)
    assert list(rows[0]) == sheet_columns(scores) and len(rows) == written.num_items
    shown = {word for row in rows for cell in row.values() for word in cell.split()}
    assert not shown & {*VARIANTS, *scores["question_id"], "True", "ok", "s"}
    assert all(row["item"].isalpha() and not row["verdict"] and not row["comment"] for row in rows)
    order = [row["question"] for row in rows]
    assert order != sorted(order) and any(a != b for a, b in zip(order[::2], order[1::2], strict=False))
    again = write(name="again.csv")
    assert again.sheet.read_bytes() == written.sheet.read_bytes() != write(seed=1, name="c.csv").sheet.read_bytes()
    assert "`sheet.csv`" in written.instructions.read_text(encoding="utf-8")


def test_one_draw_of_each_question_and_equal_answers_once(write):
    written = write(num_questions=5)
    rows = rows_of(written.sheet)
    by_question = pd.DataFrame(rows).groupby("question")["answer"]
    assert written.num_questions == 5 == by_question.ngroups
    for question, answers in by_question:
        number = int("".join(filter(str.isdigit, str(question))))
        assert len(answers) == (2 if number % 3 else 3), "think-on and KTO answer most questions alike"
        assert len({answer.split(" ")[1] for answer in answers}) == 1, "of one draw"


def test_verdicts_hold_for_every_variant_that_gave_the_answer(write, scores):
    path = write().sheet
    rows = rows_of(path)
    words = ["right", "WRONG", " yes ", "n", "1", "false", ""]
    for place, row in enumerate(rows):
        row["verdict"] = words[place % len(words)]
    for separator, encoding in ((",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")):
        found = read_judge_sheet(save(path, rows[::-1], separator, encoding), scores)
        assert found.num_items == len(rows) and found.num_not_judged == sum(not row["verdict"] for row in rows)
        verdicts = found.verdicts.set_index(["question_id", "draw", "variant"])["verdict"]
        texts = scores.set_index(["question_id", "draw", "variant"])["answer"]
        given = {row["answer"]: row["verdict"].strip().lower() for row in rows}
        assert all(verdict == (given[texts[cell]] in ("right", "yes", "1")) for cell, verdict in verdicts.items())
    counts = found.verdicts.groupby(["question_id", "draw"]).size()
    assert counts.max() == 3 and found.verdicts.groupby("question_id")["draw"].nunique().max() == 1


def test_a_variant_whose_answers_the_sheet_lacks_has_no_verdicts(write, scores):
    """KTO answers as think-on does, until it is trained anew: what the sheet then has of it is no random sample."""
    alike = scores[scores["variant"] != "kto"]
    alike = pd.concat([alike, alike[alike["variant"] == "on"].assign(variant="kto")], ignore_index=True)
    path = write(rows=alike).sheet
    rows = [row | {"verdict": "right"} for row in rows_of(path)]
    whole = read_judge_sheet(save(path, rows), alike)
    assert not whole.left_out and set(whole.verdicts["variant"]) == set(VARIANTS)
    is_new = (alike["variant"] == "kto") & (alike["question_id"] == "q3")
    found = read_judge_sheet(path, alike.assign(answer=alike["answer"].where(~is_new, "Bergen")))
    assert found.left_out == {"kto": 1} and len(found.verdicts) == 2 * 12
    assert set(found.verdicts["variant"]) == {"off", "on"}
    assert variants_left_out(found)[0].startswith("KTO is left out: 1 of its answers to the sheet's questions")
    one_a_question = list({row["question"]: row for row in rows}.values())
    with pytest.raises(DataError, match="lacks answers of every variant to its questions; put back the rows"):
        read_judge_sheet(save(path, one_a_question), alike)


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", " =1", "＝1"])
def test_no_cell_is_a_formula(write, scores, questions, text):
    scores["answer"] = text
    questions["question"], questions["answers"] = text, [[text]] * len(questions)
    for row in rows_of(write(rows=scores).sheet):
        assert all(row[name].startswith("'") for name in ("question", "reference_answers", "answer"))


def test_a_missing_answer_is_judged_too(write, scores):
    scores.loc[scores["variant"] == "kto", "answer"] = None
    path = write().sheet
    rows = rows_of(path)
    assert sum(row["answer"] == NO_ANSWER_SHOWN for row in rows) == 12
    for row in rows:
        row["verdict"] = "wrong" if row["answer"] == NO_ANSWER_SHOWN else "right"
    verdicts = read_judge_sheet(save(path, rows), scores).verdicts
    assert verdicts.groupby("variant")["verdict"].all().to_dict() == {"kto": False, "off": True, "on": True}


def test_wrong_rows_are_named_with_the_remedy(write, scores):
    path = write().sheet
    rows = rows_of(path)
    rows[0]["verdict"], rows[1]["item"], rows[3]["item"] = "maybe", "abc", rows[2]["item"]
    with pytest.raises(DataError) as caught:
        read_judge_sheet(save(path, rows), scores)
    for part in (
        "--in: ",
        "row 2, column verdict: 'maybe' is no verdict; write right or wrong",
        "row 3, column item: 'abc' is no answer of this run",
        "row 5, column item:",
        "is in row 4 too; keep one of them",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="no header row with the columns item, verdict"):
        read_judge_sheet(save(path, [{"a": "b"}]), scores)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"item": "a", "verdict": "right"}, {"item": "b", "truthful": "no", "verdict": "n/a"}], ""),
        ([{"item": "a", "verdict": "right"}, {"item": "a", "verdict": "right"}], "row 3, column item: 'a' is in row 2"),
        ([{"item": "a", "verdict": "right", "truthful": "so so"}], "row 2, column truthful: 'so so' is no verdict"),
        ([{"item": "a", "verdict": ""}, {"item": "b", "verdict": "n/a"}], "no verdict in its 2 rows; fill in"),
        ([{"item": "a", "answer": "right"}], "no verdict in its 1 rows"),
        ([{"answer": "right"}], "no header row with the columns item"),
    ],
)
def test_a_sheet_is_checked_before_there_are_answers(tmp_path, rows, says):
    columns = dict.fromkeys(name for row in rows for name in row)
    path = save(tmp_path / "sheet.csv", [dict.fromkeys(columns, "") | row for row in rows])
    if not says:
        check_judge_sheet(path, "the.field")
        return
    with pytest.raises(DataError, match=rf"^the\.field: (?s:.*){says}"):
        check_judge_sheet(path, "the.field")


def test_work_is_not_written_over_and_nothing_to_judge_is_said(write, scores):
    write()
    with pytest.raises(DataError, match=r"--out: .* may hold someone's work"):
        write()
    with pytest.raises(DataError, match="no answer has a verdict"):
        write(name="other.csv", rows=scores.head(0))


@pytest.fixture
def truthful(scores):
    """Of questions 0 to 5 it is asked whether an answer is truthful and informative."""
    asked = scores["question_id"].isin([f"q{number}" for number in range(6)])
    return scores.assign(
        scoring=scores["scoring"].where(~asked, "truthful"), em_answer=scores["em_answer"].where(~asked, None)
    )


def test_truthful_and_informative_have_a_column_and_an_instruction_each(write, truthful, questions):
    questions["incorrect_answers"] = [["Bergen", "=1"]] * 6 + [[]] * 6
    written = write(rows=truthful)
    for row in rows_of(written.sheet):
        is_asked = int("".join(filter(str.isdigit, row["question"]))) < 6
        shown = ("n/a", "", "", "Bergen / =1") if is_asked else ("", "n/a", "n/a", "")
        assert tuple(row[name] for name in ("verdict", "truthful", "informative", "incorrect_answers")) == shown
    told = written.instructions.read_text(encoding="utf-8")
    assert "## `verdict`" in told and "abstains" in told and "truthful and *not* informative" in told
    alone = write(rows=truthful[truthful["scoring"] == "truthful"], name="alone.csv")
    assert "verdict" not in rows_of(alone.sheet)[0] and "`verdict`" not in alone.instructions.read_text("utf-8")


def test_truthful_and_informative_are_read_apart_and_together(write, truthful, questions):
    questions["incorrect_answers"] = [["=Bergen"]] * 12
    path = write(rows=truthful).sheet
    rows = rows_of(path)
    asked = [row for row in rows if row["verdict"] == "n/a"]
    assert all(row["incorrect_answers"] == "'=Bergen" for row in rows)
    for place, row in enumerate(asked):
        row["truthful"], row["informative"] = [("yes", "no"), ("no", "yes"), ("yes", "yes"), ("yes", "")][place % 4]
    found = read_judge_sheet(save(path, rows), truthful)
    assert found.num_not_judged == len(rows) - len(asked) + sum(not row["informative"] for row in asked)
    by_criterion = found.verdicts.pivot(index=["variant", "question_id", "draw"], columns="criterion", values="verdict")
    assert list(by_criterion) == ["informative", "truthful", "truthful_informative"]
    both = by_criterion.dropna()
    assert len(both) < len(by_criterion), "where one is missing nothing is said of both"
    assert (both["truthful_informative"] == (both["truthful"] & both["informative"])).all()


def test_a_verdict_in_another_sets_column_is_named(write, truthful, questions):
    questions["incorrect_answers"] = [[]] * 12
    path = write(rows=truthful).sheet
    rows = rows_of(path)
    place = next(number for number, row in enumerate(rows) if row["verdict"] == "n/a")
    rows[place] |= {"verdict": "right", "informative": "maybe"}
    with pytest.raises(DataError) as caught:
        read_judge_sheet(save(path, rows), truthful)
    for part in (
        f"row {place + 2}, column verdict: 'right' is not asked of this row; leave n/a and fill in truthful and inform",
        f"row {place + 2}, column informative: 'maybe' is no verdict; write yes or no",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"has no verdict in its .* rows; fill in verdict, truthful, informative"):
        read_judge_sheet(write(rows=truthful, name="empty.csv").sheet, truthful)
