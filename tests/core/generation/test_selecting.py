from typing import NamedTuple

import pandas as pd
import pytest
from random_models import build_bpe

from mralign_core.config import GenerateConfig
from mralign_core.errors import NoCandidatesError
from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.funnel import Funnel, require_both_polarities
from mralign_core.generation.prompts import render_prompt
from mralign_core.generation.scoring import score_sample
from mralign_core.generation.select_traces import STEPS, select
from mralign_core.method.benchmarks import Gold
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import GENERIC
from mralign_core.schemas.candidates import CANDIDATES

BPE = build_bpe()
SECTION = GenerateConfig(num_draws=2, min_segments=2, max_segments=3, min_reasoning_tokens=5, max_reasoning_tokens=60)


class Selected(NamedTuple):
    candidates: pd.DataFrame
    funnel: pd.DataFrame


def trace(answer, thinking="It is Tehran.\n\nWait."):
    return f"<think>\n{thinking}\n</think>\n\n{answer}"


def draws_of(*questions):
    """Each question: id, text, think-on completions, think-off completions; the gold is always Tehran.

    A completion that ends with "…" was cut off there.
    """
    frame = pd.DataFrame(
        [
            {
                "question_id": own,
                "question": text,
                "answers": ["Tehran"],
                "source": "t",
                "split": "train",
                "stratum": "",
                "scoring": "exact_match",
                "options": [],
                "incorrect_answers": [],
            }
            for own, text, *_ in questions
        ]
    )
    draws = []
    for own, text, on, off in questions:
        for mode, completions in (("off", off), ("on", on)):
            prompt = render_prompt(BPE, text, mode, GENERIC, "")
            for draw, completion in enumerate(completions):
                request = SampleRequest(own, text, mode, draw)
                end = "length" if completion.endswith("…") else "stop"
                sample = Sample(prompt.text, prompt.ids, BPE.encode(completion), completion, end)
                draws.append(score_sample(request, sample, Gold(["Tehran"]), GENERIC, MatchRules()))
    return draws, frame


RIGHT, WRONG = ["Tehran"] * 2, ["Isfahan"] * 2
THINKS_RIGHT, THINKS_WRONG = [trace("Tehran")] * 2, [trace("Isfahan")] * 2
POSITIVE = ("pos", "Seat of Iran?", THINKS_RIGHT, WRONG)
NEGATIVE = ("neg", "Iran is run from?", THINKS_WRONG, RIGHT)
NEGATIVE_OF_3 = (*NEGATIVE[:2], [trace("Isfahan")] * 3, ["Tehran"] * 3)


def selection_of(draws, questions, **changes):
    funnel = Funnel(STEPS)
    kept = list(select(draws, questions, SECTION.model_copy(update=changes), BPE, GENERIC, funnel))
    return Selected(pd.DataFrame(kept, columns=list(CANDIDATES.columns)).astype(object), funnel.frame())


def selected(*questions, **changes):
    draws, frame = draws_of(*questions)
    asked = {row["question_id"] for row in draws} - {"same"}  # a question that repeats another one is never asked
    return selection_of([row for row in draws if row["question_id"] in asked], frame, **changes)


def test_kept_traces_and_the_yield_of_every_step():
    selection = selected(
        POSITIVE,
        NEGATIVE,
        ("same", "seat  of IRAN", THINKS_RIGHT, WRONG),
        ("easy", "Seat of Iran, please?", THINKS_RIGHT, RIGHT),
        ("hard", "Iran's seat?", THINKS_WRONG, WRONG),
        ("mixed", "Seat?", [trace("Tehran"), trace("Isfahan")], WRONG),
        ("broken", "Town?", ["<think>\nNo end", "<think>\n</think>"], RIGHT),
    )
    candidates = CANDIDATES.require(selection.candidates)
    assert candidates[["trace_id", "polarity", "draw"]].to_numpy().tolist() == [
        ["pos/0", "positive", 0],
        ["neg/0", "negative", 0],
    ]
    assert selection.funnel.to_numpy().tolist() == [
        [STEPS[0], 7, 0, ""],
        [STEPS[1], 6, 1, "same as another question"],
        [STEPS[2], 3, 2, "a think-on draw is wrong too"],
        [STEPS[2], 3, 1, "a think-on draw is right too"],
        [STEPS[3], 6, 0, ""],
        [STEPS[4], 4, 1, "no thinking"],
        [STEPS[4], 4, 1, "unclosed thinking"],
        [STEPS[5], 4, 0, ""],
        [STEPS[6], 2, 2, "not the first of its question"],
    ]


def test_a_candidate_carries_what_training_needs():
    row = selected(POSITIVE, NEGATIVE).candidates.iloc[0]
    texts = [row.completion[s["start"] : s["end"]] for s in row.segments]
    assert texts == ["It is Tehran.", "Wait."]
    tokens = [BPE.decode(row.completion_ids[s["token_start"] : s["token_end"]]) for s in row.segments]
    assert tokens == ["<think>\nIt is Tehran.\n\n", "Wait.\n"]
    assert BPE.decode(row.completion_ids[row.reasoning_tokens :]) == "</think>\n\nTehran"
    assert (row.answer, row.answers, row.question) == ("Tehran", ["Tehran"], "Seat of Iran?")
    assert BPE.decode(row.prompt_ids) == row.prompt


def test_length_bounds_are_inclusive_and_the_first_draw_inside_them_is_kept():
    long, short = trace("Tehran", "a\n\nb\n\nc\n\nd"), trace("Tehran", "a")
    question = ("pos", "Seat of Iran?", [long, short, trace("Tehran", "a\n\nb\n\nc")], ["no"] * 3)
    selection = selected(question, NEGATIVE_OF_3, num_draws=3)
    assert selection.candidates["trace_id"].tolist() == ["pos/2", "neg/0"]
    reasons = selection.funnel.set_index("reason")["dropped"]
    assert reasons["more than 3 segments"] == reasons["fewer than 2 segments"] == 1
    exact = int(selection.candidates["reasoning_tokens"][1])
    kept = selected(POSITIVE, NEGATIVE, min_reasoning_tokens=exact, max_reasoning_tokens=exact)
    assert len(kept.candidates) == 2


def test_all_distinct_draws():
    other = trace("Tehran", "Let me see.\n\nTehran.")
    question = ("pos", "Seat of Iran?", [trace("Tehran"), other, trace("Tehran")], ["no"] * 3)
    selection = selected(question, NEGATIVE_OF_3, num_draws=3, traces_per_question="all_distinct")
    assert selection.candidates["trace_id"].tolist() == ["pos/0", "pos/1", "neg/0"]
    assert selection.funnel.iloc[-1].tolist() == ["traces", 3, 3, "same as an earlier draw"]


def test_the_looser_match_selects_when_asked_for():
    wordy = ("pos", "Seat of Iran?", [trace("It is Tehran")] * 2, WRONG)
    assert selected(wordy, NEGATIVE).candidates["polarity"].tolist() == ["negative"]
    assert len(selected(wordy, NEGATIVE, answer_match="contains").candidates) == 2


def test_a_draw_that_was_cut_off_before_its_answer_is_wrong_or_leaves_its_question_out():
    cut = ("cut", "Iran, where?", [trace("Isfahan"), "<think>\nSo it may be…"], RIGHT)
    answered = ("late", "Iran, whence?", [trace("Isfahan"), trace("Isfahan, which is…")], RIGHT)
    wrong = selected(POSITIVE, NEGATIVE, cut, answered)
    assert wrong.candidates["question_id"].tolist() == ["pos", "neg", "cut", "late"]
    left_out = selected(POSITIVE, NEGATIVE, cut, answered, cut_off="left_out")
    assert left_out.candidates["question_id"].tolist() == ["pos", "neg", "late"]
    assert [STEPS[2], 3, 1, "a draw was cut off"] in left_out.funnel.to_numpy().tolist()


@pytest.mark.parametrize("draws", ["sequential", "exhaustive"])
def test_a_cut_off_draw_that_is_left_out_leaves_the_same_training_set_in_either_way_of_drawing(draws):
    """What the first cut-off draw decides does not depend on those behind it, which one way of drawing never makes."""
    on = ["<think>\nSo it may be…", trace("Tehran")] if draws == "exhaustive" else ["<think>\nSo it may be…"]
    selection = selected(POSITIVE, NEGATIVE, ("cut", "Iran, where?", on, RIGHT), cut_off="left_out")
    assert [STEPS[2], 2, 1, "a draw was cut off"] in selection.funnel.to_numpy().tolist()


def test_no_candidate_is_an_error_that_shows_where_they_went():
    funnel = Funnel(STEPS)
    draws, frame = draws_of(POSITIVE, ("easy", "Seat?", THINKS_RIGHT, RIGHT))
    section = SECTION.model_copy(update={"max_reasoning_tokens": 6})
    assert not list(select(draws, frame, section, BPE, GENERIC, funnel))
    with pytest.raises(NoCandidatesError) as error:
        require_both_polarities({}, funnel, "Try this.")
    message = str(error.value)
    assert "kept 0 positive, 0 negative" in message
    assert "1 questions with a polarity (dropped: 1 a think-on draw is right too)" in message
    assert "0 draws of allowed length (dropped: 2 more than 6 reasoning tokens)" in message
    assert message.endswith("Try this.")


def test_draws_that_were_not_made_change_nothing():
    draws, frame = draws_of(
        POSITIVE,
        NEGATIVE,
        ("easy", "Seat, please?", THINKS_RIGHT, RIGHT),
        ("mixed", "Seat?", [trace("Tehran"), trace("Isfahan")], ["Tehran", "Isfahan"]),
    )
    needless = {("easy", "on", 1), ("mixed", "on", 0), ("mixed", "on", 1)}
    made = [row for row in draws if (row["question_id"], row["thinking_mode"], row["draw"]) not in needless]
    everything, some = selection_of(draws, frame), selection_of(made, frame)
    pd.testing.assert_frame_equal(everything.candidates, some.candidates)
    pd.testing.assert_frame_equal(everything.funnel, some.funnel)


def test_a_question_whose_draws_are_missing_is_counted():
    draws, frame = draws_of(POSITIVE, NEGATIVE)
    kept = selection_of([row for row in draws if row["question_id"] == "pos" or row["draw"] == 0], frame)
    assert kept.candidates["question_id"].tolist() == ["pos"]
    nothing = selection_of([], frame)
    for funnel, count in ((kept.funnel, 1), (nothing.funnel, 2)):
        dropped = funnel.set_index("reason")["dropped"]
        assert dropped["draws are missing"] == count


def test_the_order_of_a_questions_draws_does_not_matter():
    draws, questions = draws_of(POSITIVE, NEGATIVE)
    backwards = [*draws[3::-1], *draws[:3:-1]]
    first, second = (selection_of(rows, questions).candidates for rows in (draws, backwards))
    pd.testing.assert_frame_equal(first, second)
