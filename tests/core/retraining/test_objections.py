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
    (found,) = scoring_objections(whole, evaluation, 2, [{"left_out": 3, "to_ask_again": 3}])
    assert "failed on 3 answer(s), to be asked again" in found


def test_what_judges_refuse_for_good_is_borne_while_it_is_little():
    evaluation = questions("A?")
    answers = pd.DataFrame({"question_id": ["a-0"] * 100})
    assert scoring_objections(answers, evaluation, 100, [{"left_out": 2, "to_ask_again": 0}]) == []
    (found,) = scoring_objections(answers, evaluation, 100, [{"left_out": 3, "to_ask_again": 0}])
    assert "refuse 3 of its 100 answers" in found


def labels(num_traces, first=0, **rules):
    """So many traces, each with a segment a rule and number."""
    names = [rule for rule, number in rules.items() for _ in range(number)]
    ids = [f"t{number}" for number in range(first, first + num_traces)]
    return pd.DataFrame([{"trace_id": trace, "rule": rule} for trace in ids for rule in names])


HEALTHY = {"agree": 6, "adjudicate": 2, "merge": 1}


def test_labels_as_the_demo_has_them_pass():
    found = labels(200, **HEALTHY)
    assert label_objections(sorted(set(found["trace_id"])), found, GATE) == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (labels(150, **HEALTHY), "25 % of its traces have no labels"),
        (labels(200, agree=6, unlabelled=3), "33 % of its segments have no labels"),
        (labels(200, agree=1, adjudicate=9), "agreed on 10 % of its segments"),
        (labels(0).reindex(columns=["trace_id", "rule"]), "no segment of its 200 traces"),
    ],
)
def test_a_failing_annotator_is_seen(found, says):
    assert any(says in reason for reason in label_objections([f"t{n}" for n in range(200)], found, GATE))


@pytest.mark.parametrize("new", [labels(10, 190, agree=1, adjudicate=9), labels(2, 190, **HEALTHY), labels(0)])
def test_one_that_fails_on_what_is_new_is_not_hidden_by_the_rest(new):
    ids = [f"t{number}" for number in range(200)]
    found = pd.concat([labels(190, **HEALTHY), new])
    assert label_objections(ids, found, GATE) == []
    (reason,) = label_objections(ids, found, GATE, known=ids[:190])
    assert "new " in reason
    assert label_objections(ids[:193], found[found["trace_id"].isin(ids[:193])], GATE, known=ids[:190]) == []


def test_a_bad_week_is_seen_however_long_the_champion_stays_and_the_weeks_after_it_are_good():
    ids = [f"t{number}" for number in range(200)]
    weeks = [ids[: 100 + 20 * week] for week in range(6)]  # the champion's, then one of each retraining
    bad = range(140, 160)
    found = pd.concat(
        [labels(140, **HEALTHY), labels(20, bad.start, agree=1, adjudicate=9), labels(40, bad.stop, **HEALTHY)]
    )
    assert label_objections(ids, found, GATE, known=weeks[0]) == []
    for now in (3, 4, 5):  # the bad week itself, and two after it
        so_far = found[found["trace_id"].isin(weeks[now])]
        (reason,) = label_objections(weeks[now], so_far, GATE, weeks[0], reversed(weeks[1:now]))
        assert "agreed on 10 % of one retraining's new segments" in reason
    so_far = found[found["trace_id"].isin(weeks[2])]
    assert label_objections(weeks[2], so_far, GATE, weeks[0], weeks[1:2]) == []


def test_what_few_traces_of_a_retraining_say_is_chance_and_what_failed_comes_again():
    ids = [f"t{number}" for number in range(120)]
    few = pd.concat([labels(110, **HEALTHY), labels(4, 110, agree=1, adjudicate=9), labels(6, 114, **HEALTHY)])
    assert label_objections(ids, few, GATE, ids[:100], [ids[:110], ids[:114]]) == []
    lacking = labels(110, **HEALTHY)  # the ten of the last week have no labels, as they had in the week before
    (reason,) = label_objections(ids, lacking, GATE, ids[:20], [ids[:110]])
    assert "no segment of one retraining's 10 new traces was labelled" in reason
