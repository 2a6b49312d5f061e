"""What replies give as their answer, in the forms that models write."""

import json
import os
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.benchmarks import Gold, judge_reply
from mralign_core.method.extraction import chosen_option, final_number, stated_answer, with_options, without_denied

NUMBERS = [
    ("18", 18),
    ("18.", 18),
    ("$18", 18),
    ("18 dollars", 18),
    ("18%", 18),
    ("**18**", 18),
    ("The answer is 18.", 18),
    ("The answer is $18.00.", 18),
    ("The final answer is: $\\boxed{18}$.", 18),
    ("Final answer: 18", 18),
    ("**Final Answer:** 18", 18),
    ("**Final Answer: 18**", 18),
    ("Answer: 18 eggs", 18),
    ("Answer = 18", 18),
    ("#### 18", 18),
    ("She has 3 + 4.\n#### 1,250", 1250),
    ("\\boxed{1,250}", 1250),
    ("\\boxed{1{,}250}", 1250),
    ("$\\boxed{\\text{18 dollars}}$", 18),
    ("\\boxed{\\$18}", 18),
    ("\\[\\boxed{18}\\]", 18),
    ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
    ("So $\\boxed{18}$. This holds because 3 * 6 = 18 and 2 * 9 = 18, checked 4 times.", 18),
    ("The answer is 18, since 16 - 3 - 4 = 9 and 9 * 2 = 18.", 18),
    ("16 - 3 - 4 = 9 and 9 * 2 = 18", 18),
    ("16 - 3 - 4 = 9, so she makes $18 every day.", 18),
    ("So the answer is about 18.", 18),
    ("Therefore, the answer is exactly 18 miles per hour.", 18),
    ("The answer is eighteen.", 18),
    ("The answer is minus five.", -5),
    ("The answer is -5.", -5),
    ("The answer is −5.", -5),
    ("It falls to -5", -5),
    ("20 - 5", 5),
    ("It is .5", Fraction(1, 2)),
    ("It is 0.50", Fraction(1, 2)),
    ("It is 1/2", Fraction(1, 2)),
    ("It is 2 1/2", Fraction(5, 2)),
    ("It is $\\frac{3}{4}$", Fraction(3, 4)),
    ("It is 1,000,000 in all", 1_000_000),
    ("The answer is 1.5 million.", 1_500_000),
    ("He eats 3, 4 and 5", 5),
    ("She has 18 on the 4th", 18),
    ("18 (see B52)", 18),
    ("Sure! Here are 3 steps:\n1. We add.\n2. We halve.\nThe answer is 18.", 18),
    ("The answer is 17. Wait, no.\nThe answer is 18.", 18),
    ("Answer: Let me think. 16 - 7 = 9 and 9 * 2 = 18", 18),
    ("She has 3.\n#### 18 eggs", 18),
    ("#### $1,250.00", 1250),
    ("#### **18**.", 18),
    ("#### 18 miles per hour", 18),
    ("#### 9*2=18", 18),
    ("#### Step 3\nSo 4 + 5 = 9", 9),
    ("The answer is 9.\n\n#### 3 steps\nWe add 2.", 9),
    ("\\boxed{9 \\times 2 = 18}", 18),
    ("Answer: 20 - 2 = 18", 18),
    ("Answer: 20 - 2 = 18 dollars", 18),
    ("The answer is 18, since x = 3", 18),
    ("Answer: 18 = 9 × 2", 18),
    ("The answer is x = 5", 5),
    ("The answer is $x = \\frac{3}{4}$", Fraction(3, 4)),
    ("\\boxed{1\\,250}", 1250),
    ("\\boxed{1,\\!250}", 1250),
    ("\\boxed{3 \\times 10^8}", 300_000_000),
    ("The answer is 10^5.", 100_000),
    ("The answer is 1.5 Million.", 1_500_000),
    ("The answer is:\n\n**18**", 18),
    ("eighteen", 18),
    ("**Twenty-two**.", 22),
    ("minus five", -5),
    ("One of them left.", None),
    ("The answer is 1 250.", 1250),
    ("It is 1\u202f250 in all", 1250),
    ("She makes 12 000.50 dollars", Fraction(24001, 2)),
    ("She eats 3 100 20", 20),
    ("It is 1e3", 1000),
    ("\\boxed{1.5E6}", 1_500_000),
    ("The answer is not 17 but 18.", 18),
    ("I don't know.", None),
    ("", None),
    ("1/0", None),
]


@pytest.mark.parametrize(("reply", "number"), NUMBERS)
def test_the_number_that_a_reply_ends_with(reply, number):
    assert final_number(reply) == number


OPTIONS = ["bank", "library", "department store", "mall", "river bank"]
CHOICES = [
    ("A", 0),
    ("b", 1),
    ("(C)", 2),
    ("D.", 3),
    ("E)", 4),
    ("**B**", 1),
    ("[B]", 1),
    ("Option B", 1),
    ("choice (d)", 3),
    ("B. library", 1),
    ("(B) library", 1),
    ("B: library", 1),
    ("B) The library, of course", 1),
    ("The answer is B.", 1),
    ("The answer is (B).", 1),
    ("The answer is B. library", 1),
    ("The answer is (A).", 0),
    ("The correct answer is **D**.", 3),
    ("Final answer: C", 2),
    ("**Answer:** (C) department store", 2),
    ("\\boxed{B}", 1),
    ("$\\boxed{\\text{B}}$", 1),
    ("\\boxed{\\text{library}}", 1),
    ("library", 1),
    ("The library.", 1),
    ("Library", 1),
    ("a department store", 2),
    ("river bank", 4),
    ("You would keep it in a library.", 1),
    ("It is kept in the river bank.", 4),
    ("I would choose B because it is quiet.", 1),
    ("I pick (D)", 3),
    ("I'd go with C.", 2),
    ("The correct option is E.", 4),
    ("The answer is mall, since a bank is elsewhere.", 3),
    ("A library because malls and banks are loud; a mall is not quiet.", 1),
    ("First, A would be wrong. The answer is D.", 3),
    ("A library is quiet, and a mall is not.\nThe answer is B", 1),
    ("B\n\nA bank is where money is kept", 1),
    ("**B**\n\nA bank is loud.", 1),
    ("(B)\n\nIt is not a bank.", 1),
    ("B. library\nA bank is loud.", 1),
    ("A bank is loud.\n\nB", 1),
    ("#### B", 1),
    ("A\nNo, wait.\nB", None),
    ("B is correct", 1),
    ("A bank is loud, so B is the right answer.", 1),
    ("It's B.", 1),
    ("Option B because a bank is loud", 1),
    ("Choice (B) is right", 1),
    ("Choice (A) is wrong. Choice (B) is right.", 1),
    ("Option A isn't right; it's B.", 1),
    ("The answer is:\n\n**B**", 1),
    ("The answer is:\n\nlibrary", 1),
    ("A mall is loud", 3),
    ("The answer is library, not mall.", None),
    ("not a bank but a mall", 3),
    ("The answer is not (A) but (D).", 3),
    ("It isn't the bank but the library.", 1),
    ("not only a bank but also a mall", None),
    ("bank or mall", None),
    ("B. mall", None),
    ("F", None),
    ("I can't tell.", None),
    ("A museum", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "place"), CHOICES)
def test_the_option_that_a_reply_chooses(reply, place):
    assert chosen_option(reply, OPTIONS) == place


@pytest.mark.parametrize("reply", ["A", "C", "mall", "It is the mall.", "C. mall"])
def test_options_that_are_alike_are_one_choice(reply):
    options = ["mall", "shop", "mall"]
    assert chosen_option(reply, options) == 0
    assert judge_reply(reply, "", Gold(["mall"], "option", options)).em_answer


AUTHORS = ["T. S. Eliot", "E. M. Forster", "Jane Austen", "D. H. Lawrence"]


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("D. H. Lawrence", 3),
        ("The answer is D. H. Lawrence.", 3),
        ("E. M. Forster wrote it", 1),
        ("B. E. M. Forster", 1),
        ("A. T. S. Eliot", 0),
        ("D", 3),
        ("C. D. H. Lawrence", None),
    ],
)
def test_an_initial_is_no_letter(reply, place):
    assert chosen_option(reply, AUTHORS) == place


STATED = [
    ("Paris", "Paris"),
    ("Answer: Paris", "Paris"),
    ("The answer is Paris.", "Paris."),
    ("The final answer is: Paris", "Paris"),
    ("**Final Answer**: Paris", "Paris"),
    ("So, the correct answer is Paris", "Paris"),
    ("\\boxed{Paris}", "Paris"),
    ("\\boxed{\\text{Paris}}", "Paris"),
    ("Perhaps Lyon.\nAnswer: Paris\nI hope that helps.", "Paris"),
    ("My answer is Lyon. Wait.\nFinal answer: Paris", "Paris"),
    ("The answer is not Paris", "not Paris"),
    ("Nobody knows what the answer is today", "Nobody knows what the answer is today"),
    ("The answer isn't Paris", "The answer isn't Paris"),
    ("Answering: Paris", "Answering: Paris"),
    ("The answer is Paris.\n\n#### Explanation\nIt is the capital.", "Paris."),
    ("#### Paris", "#### Paris"),
    ("The answer is:\n\n**Paris**", "Paris"),
    ("Final answer:\nParis\nIt is the capital.", "Paris"),
    ("The answer is\n\\boxed{Paris}", "Paris"),
    ("\\boxed{Lyon}? No. The answer is: Paris", "Paris"),
    ("Answer: \\boxed{ }", "Answer: \\boxed{ }"),
    ("Answer:\nAnswer:\n", "Answer:\nAnswer:\n"),
    ("\\boxed{", "\\boxed{"),
    ("Answer:", "Answer:"),
    ("Answer:\n", "Answer:\n"),
]


@pytest.mark.parametrize(("reply", "stated"), STATED)
def test_what_a_reply_states(reply, stated):
    assert stated_answer(reply) == stated


@pytest.mark.parametrize(
    ("text", "asserted"),
    [
        ("It was not in Lyon but in Paris", "It was in Paris"),
        ("I'm not sure, but Paris", "I'm not sure, but Paris"),
        ("He could not enter Paris but stayed in Lyon", "He could not enter Paris but stayed in Lyon"),
        ("It is not known, but Paris is likely", "It is not known, but Paris is likely"),
        ("It is not Lyon. But Paris it may be", "It is not Lyon. But Paris it may be"),
        ("Paris, not Lyon", "Paris, not Lyon"),
    ],
)
def test_what_is_denied_for_something_else_goes(text, asserted):
    assert without_denied(text) == asserted


def test_a_denied_gold_answer_is_not_contained():
    judged = judge_reply("It is not Lyon but Paris, I think.", "Lyon", Gold(["Lyon"]))
    assert judged == (True, False, False), "the thinking names it all the same"
    assert judge_reply("It is not Lyon but Paris, I think.", "", Gold(["Paris"])).contains_answer


PREAMBLES = ["", "Sure!\n", "Let me think about 3 things, A and B.\n\n", "This is about 1998.\nSo, here goes.\n"]


@pytest.mark.parametrize("preamble", PREAMBLES)
def test_a_preamble_changes_no_score(preamble):
    golds = [Gold(["Paris"]), Gold(["18"], "number"), Gold(["mall"], "option", OPTIONS)]
    for gold, said in zip(golds, ("Paris", "18", "(D)"), strict=True):
        assert judge_reply(f"{preamble}The answer is {said}.", "", gold).em_answer
        assert judge_reply(f"{preamble}Final answer: {said}", "", gold).em_answer


def test_sets_without_em_t_have_none_and_judged_sets_have_nothing():
    assert judge_reply("18", "It is 18.", Gold(["18"], "number")) == (None, True, True)
    assert judge_reply("17", "It is 18.", Gold(["18"], "number")) == (None, False, False)
    assert judge_reply(None, "It is 18.", Gold(["18"], "number")) == (None, False, False)
    assert judge_reply("C", "mall", Gold(["mall"], "option", OPTIONS)) == (None, False, False)
    for scoring in ("truthful", "claims"):
        assert judge_reply("yes", "yes", Gold(["yes"], scoring)) == (None, None, None)
    assert judge_reply("yes", "yes", Gold([])) == (None, None, None)
    assert judge_reply("Paris", None, Gold(["Paris"]), thinks=False) == (None, True, True)


def test_options_are_shown_below_the_question():
    assert with_options("Where?", ["here", "there"]) == "Where?\nA. here\nB. there"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=5, unique=True))
def test_any_reply_is_read(reply, options):
    stated_answer(reply), final_number(reply)
    assert chosen_option(reply, options) in (None, *range(len(options)))


@pytest.mark.parametrize("text", ["answer" * 20_000, "\\boxed{" * 20_000, "9" * 100_000, "1," * 50_000, "1/" * 50_000])
def test_long_replies_are_read_in_time(text):
    assert final_number(text) is None or final_number(text) in (1, Fraction(1))
    assert stated_answer(text) == text


HOSTILE = {
    "blanks in a fraction": ("\\frac{", " ", ""),
    "fractions begun": ("", "\\frac{ ", ""),
    "blanks in a lead-in": ("so", " ", "x"),
    "blanks in many lead-ins": ("", "so" + " " * 98, ""),
    "blanks between sentences": ("", "." + " " * 19, ""),
    "lead-ins on a line": ("", ".answer: ", ""),
    "lead-ins on lines": ("", "answer:\n\n", ""),
    "lead-ins before a box": ("", ".answer: ", "\\boxed{x}"),
    "blank boxes": ("", "answer: \\boxed{ }\n", ""),
    "asterisks": ("", "*", ""),
    "hashes": ("", "#### ", ""),
    "a unit": ("#### 18", " a", ""),
    "a calculation": ("Answer: ", "1=", ""),
    "numbers": ("", "1 ", ""),
    "number words": ("Answer: ", "seven ", ""),
    "choices": ("", "choose ", ""),
    "blanks behind a choice": ("choose B", " ", "x"),
    "letters": ("", "B. ", ""),
    "letters on lines": ("", "B\n", ""),
    "denials": ("", "not so ", ""),
    "denials of long words": ("", "is not " + "x" * 90, " but"),
    "groups of digits": ("", "1 000 ", ""),
    "one long group of digits": ("1", " 000", "0"),
    "exponents": ("", "1e", ""),
    "commands": ("", "\\text{", ""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_is_linear_in_the_length_of_a_reply(kind):
    before, repeated, after = HOSTILE[kind]
    reply = before + repeated * (100_000 // len(repeated)) + after

    def seconds():
        started = time.process_time()
        stated_answer(reply), final_number(reply), chosen_option(reply, ["a bank", "a mall"])
        return time.process_time() - started

    assert any(seconds() < 1 for _ in range(3)), "a tenth of a second, but on a busy machine"


@pytest.mark.real_data
def test_real_solutions_are_all_right_and_shuffled_ones_about_none():
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real question sets")
    lines = Path(folder, "gsm8k", "test.300.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    golds = [solution.rpartition("####")[2].strip() for solution in solutions]
    shuffled = random.Random(0).sample(golds, len(golds))
    chance = sum(gold == other for gold, other in zip(golds, shuffled, strict=True))
    for form in (
        "{whole}",
        "{steps}\nThe answer is {gold}.",
        "{steps}\nSo $\\boxed{{{gold}}}$.",
        "Sure, in 3 steps:\n{whole}",
    ):
        said = [
            form.format(whole=whole, steps=re.sub("####.*", "", whole), gold=gold)
            for whole, gold in zip(solutions, golds, strict=True)
        ]
        for wanted, count in ((golds, len(golds)), (shuffled, chance)):
            right = [
                judge_reply(text, "", Gold([gold], "number")).em_answer for text, gold in zip(said, wanted, strict=True)
            ]
            assert sum(map(bool, right)) == count
    assert chance < 0.03 * len(golds)
