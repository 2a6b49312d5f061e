"""What no gain outweighs."""

import pandas as pd
import pytest

from mralign_core.config.retrain import GateConfig
from mralign_core.retraining.objections import label_objections, scoring_objections, training_objections
from mralign_core.versions.record import question_digests

GATE = GateConfig()
HEALTHY = {"agree": 1009, "adjudicate": 243, "merge": 85, "unlabelled": 4, "failures": 0, "left_out": 0}


def questions(*texts, source="a"):
    ids = [f"{source}-{number}" for number in range(len(texts))]
    return pd.DataFrame({"question_id": ids, "source": source, "question": texts, "options": [[] for _ in texts]})


def test_a_question_that_evaluates_must_not_train():
    evaluation = questions("Who wrote Emma?", "Seat of Iran?", source="held")
    assert training_objections(question_digests(["Who wrote Dune?"]), evaluation) == []
    (found,) = training_objections(question_digests(["who  wrote emma", "Who wrote Dune?"]), evaluation)
    assert "1 question(s)" in found and "held-0" in found


def test_every_question_needs_all_its_answers():
    evaluation = questions("A?", "B?")
    whole = pd.DataFrame({"question_id": ["a-0", "a-0", "a-1", "a-1"]})
    assert scoring_objections(whole, evaluation, 2, [{}]) == []
    (found,) = scoring_objections(whole.iloc[:3], evaluation, 2, [{}])
    assert "a-1" in found
    (found,) = scoring_objections(whole, evaluation, 2, [{"left_out": 0}, {"left_out": 3}])
    assert "failed on 3 answer(s)" in found


def test_labels_of_the_demo_pass():
    assert label_objections(HEALTHY, 200, GATE) == []


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({**HEALTHY, "left_out": 50}, "25 % of its traces have no labels"),
        ({**HEALTHY, "unlabelled": 400}, "of its segments have no labels"),
        ({**HEALTHY, "agree": 100, "adjudicate": 1200}, "agreed on 7 %"),
        ({"left_out": 200}, "no segment was labelled"),
    ],
)
def test_a_failing_annotator_is_seen(counts, says):
    assert any(says in reason for reason in label_objections(counts, 200, GATE))
