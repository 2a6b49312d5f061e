"""What is said of a decision, and how it is kept."""

import json

import pandas as pd
import pytest

from mralign_core.reporting.decision_findings import (
    DECISIONS_FILE,
    FLIPS_FILE,
    decision_sentences,
    decision_tables,
    read_decisions,
)
from mralign_core.schemas.flips import FLIPS
from mralign_core.storage.tables import write_table

ROW = {
    **{"variant": "mr_align", "baseline": "kto", "stratum": "(all)", "metric": "acc", "num_questions": 240},
    **{"num_answers": 480, "difference": 0.031, "low": 0.004, "high": 0.058, "std_error": 0.014, "better": 27},
    **{"worse": 12, "p_value": 0.0234, "test": "sign_flip", "equivalence_p": 0.7, "margin": 0.02},
    **{"is_equivalent": False, "smallest_difference": 0.0391, "questions_needed": 381.0, "decision": "shown"},
}
OPEN = {"low": -0.02, "p_value": 0.21, "decision": "open"}


def frame(*changes):
    return pd.DataFrame([ROW | change for change in changes])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "a difference of +3.1 points is shown (p = .023). 27 of 480 answers became right, 12 wrong."),
        ({"p_value": 5e-5, "is_equivalent": True}, "is shown (p < .0001), and it is within ±2 points."),
        (OPEN, "no difference is shown (+3.1 points, p = .21), nor that it is within ±2 points."),
        (OPEN | {"better": 0, "worse": 0}, "None of 480 answers flipped. These"),
        (OPEN, "These 240 questions could have shown 3.9 points."),
        (OPEN | {"smallest_difference": None, "num_questions": 1}, "could have been shown with 1 question."),
        (OPEN | {"decision": "equivalent", "equivalence_p": 0.012}, "equivalent within ±2 points (p = .012)."),
        ({"decision": "edge", "p_value": 0.06}, "on the edge: the interval excludes 0, and the test has p = .06."),
        ({"decision": "edge", "low": -0.01}, "on the edge: the interval includes 0, and the test has p = .023."),
    ],
)
def test_a_decision_in_words(change, says):
    (sentence,) = decision_sentences(frame(change))
    assert sentence.startswith("MR-ALIGN against KTO, Acc: ") and says in sentence
    assert ("could have" in sentence) == (change.get("decision", "shown") != "shown")


def test_a_sentence_names_the_part_and_the_accuracy_and_speaks_of_the_main_metric_alone():
    several = frame({"stratum": "macro average of a and b", "metric": "em_answer"}, {"stratum": "a"}, {"metric": "mis"})
    (sentence,) = decision_sentences(several)
    assert sentence.startswith("MR-ALIGN against KTO, accuracy on the macro average of a and b: ")
    assert decision_sentences(several, "a")[0].startswith("MR-ALIGN against KTO, Acc on a: ")


def test_tables_have_a_row_a_comparison_and_metric_of_each_part():
    all_of_it, one = decision_tables(frame({}, OPEN | {"metric": "mis", "smallest_difference": None}, {"stratum": "a"}))
    assert (all_of_it.title, one.title) == ("", "a")
    assert all_of_it.rows[0] == ["MR-ALIGN − KTO", "Acc", "+3.1", "27", "12", ".023", "shown", "3.9", "381 questions"]
    assert all_of_it.rows[1][5:8] == [".21", "not shown", "–"]
    assert all_of_it.addresses == ["answers?variant=mr_align&against=kto&flip=any", ""]  # a flip does not go by Mis
    assert one.addresses == ["answers?variant=mr_align&against=kto&flip=any&source=a"]


def test_what_was_written_is_read(tmp_path):
    assert read_decisions(tmp_path) is None
    flip: dict[str, object] = {
        "variant": "kto",
        "baseline": "on",
        "metric": "acc",
        "flip": "wrong to right",
        "question_id": "q",
    }
    flip |= {"source": "s", "draw": 0, "question": "Who?", "answers": ["X"], "answer_before": None, "answer_after": "X"}
    write_table(tmp_path, FLIPS_FILE, FLIPS.frame([flip]), FLIPS)
    frame({}).to_json(tmp_path / DECISIONS_FILE, orient="records")
    found = read_decisions(tmp_path)
    assert found and found.decisions.to_dict("records") == [ROW] and found.flips.to_dict("records") == [flip]
    (tmp_path / DECISIONS_FILE).write_text(json.dumps([]))
    assert read_decisions(tmp_path) is None
