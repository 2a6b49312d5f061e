"""Which traces the next champion is trained on: of new questions, and of a share of the others."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.errors import NothingNewError
from mralign_core.generation.funnel import FUNNEL_COLUMNS
from mralign_core.retraining.training_traces import choose_traces, questions_of


def traces_of(numbers, polarities=("positive", "negative")):
    """A trace of each polarity of each question."""
    rows = [
        {
            "trace_id": f"q{n}/{polarity}",
            "question_id": f"q{n}",
            "question": f"Who was number {n}?",
            "answers": [f"Person {n}"],
            "polarity": polarity,
        }
        for n in numbers
        for polarity in polarities
    ]
    return pd.DataFrame(rows)


def chosen_questions(traces, known, share, seed=0):
    return set(choose_traces(traces, set(questions_of(traces_of(known))), share, seed=seed).traces["question_id"])


def test_new_questions_alone_or_with_a_share_of_the_others():
    everything = traces_of(range(60))
    new = {f"q{n}" for n in range(50, 60)}
    assert chosen_questions(everything, range(50), 0.0) == new
    again = chosen_questions(everything, range(50), 0.3) - new
    assert len(again) == 15
    assert chosen_questions(everything, range(50), 0.3, seed=1) - new != again
    assert len(chosen_questions(everything, range(50), 0.001) - new) == 1, "a share is never nothing"


def test_a_question_is_known_by_its_text_and_answers_and_not_by_its_id():
    known = traces_of(range(10)).assign(question_id="other", trace_id=[f"other/{n}" for n in range(20)])
    after = traces_of(range(12))
    after.at[0, "answers"] = after.at[1, "answers"] = ["Person 0 corrected"]
    chosen = choose_traces(after, set(questions_of(known)), 0.0, seed=0)
    assert set(chosen.traces["question_id"]) == {"q0", "q10", "q11"}
    assert (chosen.num_new, chosen.num_again) == (3, 0)


def test_a_file_that_was_written_anew_makes_no_question_new():
    known = traces_of(range(3)).assign(answers=[["Person A", "person b"]] * 6)
    again = known.assign(question=known["question"].str.upper() + " ", answers=[["Person  B", "Person a"]] * 6)
    with pytest.raises(NothingNewError):
        choose_traces(again, set(questions_of(known)), 0.0, seed=0)


@given(st.permutations(range(24)), st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.9]))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(order, seed, share):
    everything, known = traces_of(range(12)), set(questions_of(traces_of(range(9))))
    straight = choose_traces(everything, known, share, seed=seed)
    mixed = choose_traces(everything.iloc[list(order)], known, share, seed=seed)
    assert set(mixed.traces["trace_id"]) == set(straight.traces["trace_id"])
    assert (mixed.num_new, mixed.num_again) == (straight.num_new, straight.num_again)


def test_what_is_replayed_does_not_depend_on_what_is_new():
    before = chosen_questions(traces_of(range(40)), range(30), 0.2) & {f"q{n}" for n in range(30)}
    after = chosen_questions(traces_of(range(55)), range(30), 0.2) & {f"q{n}" for n in range(30)}
    assert before == after


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_without_news_there_is_nothing_to_train_on(share):
    everything = traces_of(range(8))
    with pytest.raises(NothingNewError, match="none of the 8 questions with traces is new"):
        choose_traces(everything, set(questions_of(everything)), share, seed=0)


def test_news_of_one_polarity_wait_for_others_unless_the_replayed_have_it():
    everything = pd.concat([traces_of(range(6)), traces_of(range(6, 9), ["positive"])], ignore_index=True)
    known = set(questions_of(traces_of(range(6))))
    with pytest.raises(NothingNewError, match=r"3 question\(s\) with traces are new, and no trace of them is negative"):
        choose_traces(everything, known, 0.0, seed=0)
    assert choose_traces(everything, known, 0.5, seed=0).num_again == 3


def test_the_choice_is_the_last_step_of_the_yield():
    funnel = pd.DataFrame([("questions", 9, 0, ""), ("distinct", 8, 1, "same")], columns=FUNNEL_COLUMNS)
    chosen = choose_traces(traces_of(range(4)), set(questions_of(traces_of(range(1)))), 0.0, seed=0)
    assert chosen.with_choice(funnel).iloc[-1].tolist() == ["chosen to train on", 6, 2, "its question is not new"]
