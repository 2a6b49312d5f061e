"""Self-Refine, by a script of replies and on the taught model."""

from typing import Any, NamedTuple

import pandas as pd
import pytest
from random_models import build_bpe
from sampler_fixtures import transformers_sampler
from taught_model import FACTS

from mralign_core.config import EvaluateConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.held_out import answer_questions
from mralign_core.evaluation.self_refine import (
    STOP_SENTENCE,
    count_ends,
    note_on_chains,
    refine_answers,
    says_unchanged,
)
from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.randomness import request_seed
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import named_family
from mralign_core.schemas.outcomes import FAILED
from mralign_core.schemas.refinements import REFINEMENTS
from mralign_core.schemas.scores import SCORES


def questions(*texts):
    known = {"source": "s", "split": "eval", "stratum": "", "scoring": "exact_match", "options": []}
    return pd.DataFrame([{"question_id": f"q{n}", "question": text, **known} for n, text in enumerate(texts)]).assign(
        answers=[[FACTS.get(text, ("Oslo",))[0]] for text in texts]
    )


class ScriptedSampler:
    """Replies by what a script says of a request's name, the newest request first; keeps what it was asked."""

    family = named_family("qwen3")
    tokenizer = build_bpe()

    def __init__(self, script, longest=10_000):
        self.script = script
        self.longest = longest
        self.asked: dict[tuple[str, int], str] = {}

    def has_room(self, request, decoding):
        if "<unwritable>" in request.question:
            raise DataError("'<unwritable>' is a control token that this tokenizer can't write as text")
        return len(request.question) <= self.longest

    def draw(self, requests, decoding, follow_up=None):
        waiting = list(requests)
        while waiting:
            request = waiting.pop()
            self.asked[request.question_id, request.draw] = request.question
            name = request.question_id.partition(" ")[2].strip("()")
            text = self.script.get(name, "Bergen")
            completion = f"<think>\nHm.\n</think>\n\n<answer>{text}</answer>" if text not in (None, FAILED) else ""
            end = FAILED if text == FAILED else "stop"
            sample = Sample("", [0] * len(request.question), [0] * len(completion), completion, end)
            if follow_up and (following := follow_up(request, sample)):
                waiting.append(following)
            yield request, sample


class Run(NamedTuple):
    scores: pd.DataFrame
    rows: pd.DataFrame
    sampler: ScriptedSampler
    told: list[tuple[int, int]]


def refine(script, rounds=2, num_draws=1, longest=10_000, asked=("Which city?",)):
    sampler, told = ScriptedSampler(script, longest), []
    section = EvaluateConfig(num_draws=num_draws, temperature=0.6)
    found = refine_answers(
        sampler,
        questions(*asked),
        section,
        rounds=rounds,
        seed=0,
        rules=MatchRules(),
        on_progress=lambda done, total: told.append((done, total)),
    )
    return Run(SCORES.require(found.scores), REFINEMENTS.require(found.refinements), sampler, told)


def test_the_last_answer_is_scored_and_all_tokens_count():
    run = refine({"feedback 1": "It is not Bergen.", "refinement 1": "Oslo", "feedback 2": STOP_SENTENCE})
    [row] = run.scores.to_dict("records")
    assert (row["question_id"], row["variant"], row["answer"], row["em_answer"]) == ("q0", "self_refine", "Oslo", True)
    assert run.rows[["round", "kind", "end"]].to_numpy().tolist() == [
        [0, "answer", ""],
        [1, "feedback", ""],
        [1, "answer", ""],
        [2, "feedback", "unchanged"],
    ]
    for name in ("num_tokens", "num_prompt_tokens"):
        assert row[name] == run.rows[name].sum() > run.rows[name].max()
    assert row["completion"] == run.rows["completion"].iloc[2]


def test_prompts_show_question_answers_and_feedback_in_order_and_no_thinking():
    run = refine(
        {"feedback 1": "Not Bergen.", "refinement 1": "Tromsø", "feedback 2": "North.", "refinement 2": "Oslo"}
    )
    asked = run.sampler.asked
    assert list(asked) == [
        ("q0", 0),
        *((f"q0 ({kind} {number})", 0) for number in (1, 2) for kind in ("feedback", "refinement")),
    ]
    assert asked["q0", 0] == "Which city?"
    parts = ["Which city?", "Bergen", "Not Bergen.", "Tromsø", "North.", "once more"]
    text = asked["q0 (refinement 2)", 0]
    places = [text.index(f"\n\n{part}" if part != parts[0] and part != parts[-1] else part) for part in parts]
    assert places == sorted(places)
    assert STOP_SENTENCE in asked["q0 (feedback 2)", 0] and "Tromsø" in asked["q0 (feedback 2)", 0]
    assert not any("Hm." in text for text in asked.values())
    assert run.rows["end"].tolist()[-1] == "all_rounds" and run.scores["answer"].tolist() == ["Oslo"]


@pytest.mark.parametrize(
    ("script", "longest", "end", "num_replies"),
    [
        ({"feedback 1": ""}, 10_000, "no_feedback", 2),
        ({"feedback 1": None}, 10_000, "no_reply", 2),
        ({"feedback 1": "Not that.", "refinement 1": None}, 10_000, "no_reply", 3),
        ({"feedback 1": "**nothing IS to be changed**"}, 10_000, "unchanged", 2),
        ({"feedback 1": "It is <unwritable>."}, 10_000, "unwritable", 2),
        ({}, 100, "no_room", 1),
        ({"feedback 1": "Not that. " * 60}, 500, "no_room", 2),
    ],
)
def test_a_chain_that_ends_early_keeps_its_answer_and_says_why(script, longest, end, num_replies):
    run = refine(script, longest=longest)
    assert run.rows["end"].tolist() == [""] * (num_replies - 1) + [end]
    assert run.scores["answer"].tolist() == ["Bergen"]
    assert count_ends(run.rows) == {end: 1}


def test_an_answer_that_is_not_there_can_be_refined():
    run = refine({"": None, "feedback 1": "Say something.", "refinement 1": "Oslo"}, rounds=1)
    assert "(no answer)" in run.sampler.asked["q0 (feedback 1)", 0] and run.scores["em_answer"].tolist() == [True]


def test_every_draw_goes_its_own_way_and_requests_share_no_random_numbers():
    run = refine({"feedback 1": "No."}, rounds=1, num_draws=2, asked=("Which city?", "Who?"))
    assert len(run.sampler.asked) == 12 and len(run.rows) == 12
    requests = [SampleRequest(name, "", "on", draw) for name, draw in run.sampler.asked]
    assert len({request_seed(request, 0) for request in requests}) == 12
    assert list(zip(run.scores["question_id"], run.scores["draw"], strict=True)) == [
        ("q0", 0),
        ("q0", 1),
        ("q1", 0),
        ("q1", 1),
    ]
    assert run.told[0] == (0, 4) and run.told[-1] == (4, 4)
    assert note_on_chains(run.rows).startswith("Self-Refine: of 4 answers, 4 went through all rounds.")


@pytest.mark.parametrize(
    ("feedback", "stops"),
    [
        ("Nothing is to be changed.", True),
        ("Feedback: nothing is to be changed", True),
        ("The seat is Tehran; nothing needs to be changed!", True),
        ("No further changes are necessary.", True),
        ("Nothing to change.", True),
        ("Nothing is to be changed except the year.", False),
        ("I would not say that nothing is to be changed.", False),
        ("Everything is to be changed.", False),
        ("Nothing.", False),
    ],
)
def test_the_stop_sentence_is_read_leniently_and_only_as_a_sentence(feedback, stops):
    assert says_unchanged(feedback) == stops


@pytest.fixture(scope="module")
def sampler(taught):
    return transformers_sampler(taught)


SECTION = EvaluateConfig(num_draws=2, temperature=1.0, max_new_tokens=90)
GIVEN: dict[str, Any] = {"seed": 3, "rules": MatchRules(), "on_progress": lambda *_: None}


def test_no_rounds_are_think_on_bit_for_bit(sampler):
    asked = questions(*list(FACTS)[:2])
    plain = answer_questions(sampler, asked, "on", SECTION, **GIVEN)
    found = refine_answers(sampler, asked, SECTION, rounds=0, **GIVEN)
    assert found.scores.assign(variant="on").to_dict("records") == plain.to_dict("records")
    assert count_ends(found.refinements) == {"all_rounds": len(plain)}


def test_a_real_model_refines_from_think_ons_answers_and_the_same_again(sampler):
    asked = questions(*list(FACTS)[:2])
    plain = answer_questions(sampler, asked, "on", SECTION, **GIVEN)
    found = refine_answers(sampler, asked, SECTION, rounds=1, **GIVEN)
    first = found.refinements[(found.refinements["kind"] == "answer") & (found.refinements["round"] == 0)]
    assert first["completion"].tolist() == plain["completion"].tolist()
    assert len(REFINEMENTS.require(found.refinements)) > len(first)
    alone = refine_answers(sampler, asked.iloc[1:2], SECTION, rounds=1, **GIVEN)
    rows = found.refinements[found.refinements["question_id"] == "q1"].reset_index(drop=True)
    assert alone.refinements.equals(rows)


def test_a_history_that_the_model_has_no_room_for_skips_its_round(sampler):
    section = EvaluateConfig(num_draws=1, temperature=1.0, max_new_tokens=400)  # of 512 tokens in all
    found = refine_answers(sampler, questions(*list(FACTS)[:2]), section, rounds=3, **GIVEN)
    assert count_ends(found.refinements) == {"no_room": 2} and len(found.scores) == 2


@pytest.mark.parametrize("kind", ["feedback 1", "refinement 1"])
def test_a_reply_that_a_server_failed_to_give_ends_the_shard_and_is_answered_no_further(kind):
    with pytest.raises(DataError, match="the server failed to answer 1 of 1 requests of variant 'self_refine'"):
        refine({kind: FAILED})
