import pandas as pd
import pytest
from random_models import build_bpe

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.errors import NoCandidatesError
from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.prompts import PromptFormat, render_prompt
from mralign_core.generation.scoring import score_samples
from mralign_core.generation.selecting import select
from mralign_core.schemas import CANDIDATES

BPE = build_bpe()
SECTION = GenerateConfig(num_draws=2, min_segments=2, max_segments=3, min_reasoning_tokens=5, max_reasoning_tokens=60)
MODEL = ModelConfig()
STEPS = [
    "questions",
    "distinct questions",
    "questions with a polarity",
    "think-on draws of these",
    "well-formed draws",
    "draws of allowed length",
    "traces",
]


def trace(answer, thinking="It is Tehran.\n\nWait."):
    return f"<think>\n{thinking}\n</think>\n\n{answer}"


def draws_of(*questions):
    """Each question: id, text, think-on completions, think-off completions; the gold is always Tehran."""
    frame = pd.DataFrame(
        [
            {
                "question_id": own,
                "question": text,
                "answers": ["Tehran"],
                "source": "t",
                "split": "train",
                "stratum": "",
            }
            for own, text, *_ in questions
        ]
    )
    requests, samples = [], []
    for own, text, on, off in questions:
        for mode, completions in (("on", on), ("off", off)):
            prompt = render_prompt(BPE, text, mode, PromptFormat("", "<think>", "</think>"))
            for draw, completion in enumerate(completions):
                requests.append(SampleRequest(own, text, mode, draw))
                samples.append(Sample(prompt.text, prompt.ids, BPE.encode(completion), completion, "stop"))
    return score_samples(requests, samples, frame, MODEL), frame


RIGHT, WRONG = ["Tehran"] * 2, ["Isfahan"] * 2
THINKS_RIGHT, THINKS_WRONG = [trace("Tehran")] * 2, [trace("Isfahan")] * 2
POSITIVE = ("pos", "Seat of Iran?", THINKS_RIGHT, WRONG)
NEGATIVE = ("neg", "Iran is run from?", THINKS_WRONG, RIGHT)


def selected(*questions, **changes):
    return select(*draws_of(*questions), SECTION.model_copy(update=changes), BPE, MODEL)


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
        [STEPS[2], 3, 1, "right with and without thinking"],
        [STEPS[2], 3, 1, "wrong with and without thinking"],
        [STEPS[2], 3, 1, "answered now right, now wrong"],
        [STEPS[3], 6, 0, ""],
        [STEPS[4], 4, 1, "unclosed thinking"],
        [STEPS[4], 4, 1, "no thinking"],
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
    selection = selected(question, NEGATIVE)
    assert selection.candidates["trace_id"].tolist() == ["pos/2", "neg/0"]
    reasons = selection.funnel.set_index("reason")["dropped"]
    assert reasons["more than 3 segments"] == reasons["fewer than 2 segments"] == 1
    exact = int(selection.candidates["reasoning_tokens"][1])
    kept = selected(POSITIVE, NEGATIVE, min_reasoning_tokens=exact, max_reasoning_tokens=exact)
    assert len(kept.candidates) == 2


def test_all_distinct_draws():
    other = trace("Tehran", "Let me see.\n\nTehran.")
    question = ("pos", "Seat of Iran?", [trace("Tehran"), other, trace("Tehran")], ["no"] * 3)
    selection = selected(question, NEGATIVE, traces_per_question="all_distinct")
    assert selection.candidates["trace_id"].tolist() == ["pos/0", "pos/1", "neg/0"]
    assert selection.funnel.iloc[-1].tolist() == ["traces", 3, 2, "same as an earlier draw"]


def test_the_looser_match_selects_when_asked_for():
    wordy = ("pos", "Seat of Iran?", [trace("It is Tehran")] * 2, WRONG)
    with pytest.raises(NoCandidatesError, match="kept 0 positive, 1 negative"):
        selected(wordy, NEGATIVE)
    assert len(selected(wordy, NEGATIVE, answer_match="contains").candidates) == 2


def test_no_candidate_is_an_error_that_shows_where_they_went():
    with pytest.raises(NoCandidatesError) as error:
        selected(POSITIVE, ("easy", "Seat?", THINKS_RIGHT, RIGHT), max_reasoning_tokens=6)
    message = str(error.value)
    assert "kept 0 positive, 0 negative" in message
    assert "1 questions with a polarity (dropped: 1 right with and without thinking)" in message
    assert "0 draws of allowed length (dropped: 2 more than 6 reasoning tokens)" in message
    assert "max_reasoning_tokens" in message and "num_draws" in message


def test_the_order_of_the_rows_does_not_matter():
    generations, questions = draws_of(POSITIVE, NEGATIVE)
    shuffled = generations.sample(frac=1, random_state=1).reset_index(drop=True)
    first, second = (select(rows, questions, SECTION, BPE, MODEL).candidates for rows in (generations, shuffled))
    pd.testing.assert_frame_equal(first, second)
