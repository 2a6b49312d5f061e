import pandas as pd

from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.scoring import score_answers, score_sample
from mralign_core.method.benchmarks import Gold
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import GENERIC
from mralign_core.schemas.generations import GENERATIONS
from mralign_core.schemas.scores import SCORES

QUESTIONS = pd.DataFrame(
    {
        "question_id": ["q1", "q2"],
        "question": ["Seat of Iran?", "Who wrote Emma?"],
        "answers": [["Tehran"], ["Jane Austen", "Austen"]],
        "source": "test",
        "split": "train",
        "stratum": ["geography", "books"],
        "scoring": "exact_match",
        "options": [[], []],
    }
)
ON = SampleRequest("q1", "Seat of Iran?", "on", 0)
OFF = SampleRequest("q2", "Who wrote Emma?", "off", 1)


def scored(request, completion, prompt="asked\n"):
    sample = Sample(prompt, [1], [2, 3], completion, "stop")
    gold = Gold(QUESTIONS.set_index("question_id").at[request.question_id, "answers"])
    frame = pd.DataFrame([score_sample(request, sample, gold, GENERIC, MatchRules())]).astype(object)
    assert len(GENERATIONS.require(frame)) == 1
    return frame.iloc[0]


def test_a_hit_gap():
    row = scored(ON, "<think>Tehran, I think.</think>\n\n<answer>Isfahan</answer>")
    assert (row.thinking, row.answer, row.outcome) == ("Tehran, I think.", "Isfahan", "ok")
    assert (row.em_thought, row.em_answer, row.contains_answer) == (True, False, False)


def test_an_answer_that_only_contains_the_gold():
    row = scored(OFF, "It was Jane Austen.")
    assert row.em_thought is None
    assert (row.em_answer, row.contains_answer) == (False, True)


def test_the_block_that_the_prompt_opened():
    row = scored(ON, "Tehran.</think>Tehran", prompt="asked\n<think>\n")
    assert (row.thinking, row.outcome, row.em_thought, row.em_answer) == ("Tehran.", "untagged_answer", True, True)
    assert scored(ON, "Tehran", prompt="asked\n<think>\n").outcome == "unclosed_thinking"


def test_thinking_that_was_asked_for_and_not_given_is_a_miss_not_a_blank():
    row = scored(ON, "Tehran")
    assert (row.outcome, row.thinking, row.em_thought, row.em_answer) == ("no_thinking", None, False, True)


def test_scores_carry_the_stratum_in_the_order_of_the_requests():
    samples = [Sample("", [], [1], text, "stop") for text in ("Austen", "<think>x</think>Tehran")]
    frame = score_answers([OFF, ON], samples, QUESTIONS, GENERIC, MatchRules())
    assert frame["stratum"].tolist() == ["books", "geography"]
    assert frame["em_answer"].tolist() == [True, True]
    assert len(SCORES.require(frame.assign(variant="on"))) == 2


def test_a_question_without_a_gold_answer_is_not_scored():
    row = score_sample(
        ON, Sample("", [], [1], "<think>x</think>A long answer.", "stop"), Gold([]), GENERIC, MatchRules()
    )
    assert (row["answer"], row["em_thought"], row["em_answer"], row["contains_answer"]) == (
        "A long answer.",
        *[None] * 3,
    )


def test_the_rules_decide_what_is_named():
    sample = Sample("", [], [1], "<think>It was Iranian oil.</think>Iran", "stop")
    words, substring = (
        score_sample(ON, sample, Gold(["Iran"]), GENERIC, MatchRules(containment=containment))["em_thought"]
        for containment in ("words", "substring")
    )
    assert (words, substring) == (False, True)
