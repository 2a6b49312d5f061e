import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import annotation, as_scores, score

from mralign_core.evaluation.mentions import answer_mentions, describe_mentions, find_mentions, labelled_tails
from mralign_core.method.matching import MatchRules, contains_match
from mralign_core.method.traces import Span, split_segments

REAL_DATA = os.environ.get("MRALIGN_REAL_DATA", "")


def mentions_of(thinking, golds, **rules):
    return find_mentions(thinking, split_segments(thinking), golds, MatchRules(**rules))


def words_of(thinking, golds, **rules):
    """The words of the first and the last mention, with their segments."""
    return [(each.segment, thinking[slice(*each.span)]) for each in mentions_of(thinking, golds, **rules)]


@pytest.mark.parametrize(
    ("thinking", "golds", "expected"),
    [
        ("Oslo.", ["Oslo"], [(0, "Oslo."), (0, "Oslo.")]),
        ("Oslo is it. Oslo!\n\nBergen.", ["oslo"], [(0, "Oslo"), (0, "Oslo!")]),
        ("No.\n\nNew York, then.\n\nOr York.\n\nNew York", ["New York"], [(1, "New York,"), (3, "New York")]),
        ("A York, new.\n\nSo New York.", ["New York"], [(1, "New York."), (1, "New York.")]),
        ("By J. K. Rowling, I think.", ["J.K. Rowling"], [(0, "J. K. Rowling,"), (0, "J. K. Rowling,")]),
        ("In 1776, on July 4, 1776.", ["4 July 1776"], [(0, "July 4, 1776."), (0, "July 4, 1776.")]),
        ("It is twenty-two. So 22.", ["22"], [(0, "twenty-two."), (0, "22.")]),
        ("Paris or Rome.\n\nRome.", ["Rome", "Paris"], [(0, "Paris"), (1, "Rome.")]),
        ("It is New\n\nYork City.", ["New York City"], [(0, "New\n\nYork City."), (0, "New\n\nYork City.")]),
        ("也许是北京。", ["北京"], [(0, "也许是北京。"), (0, "也许是北京。")]),
    ],
    ids=[
        "one",
        "twice",
        "apart",
        "order",
        "initials",
        "date",
        "number",
        "any gold",
        "across a blank line",
        "no spaces",
    ],
)
def test_a_mention_is_the_fewest_words_that_name_the_gold_answer(thinking, golds, expected):
    assert words_of(thinking, golds) == expected


def test_rules_decide_what_a_mention_is():
    assert mentions_of("An Iranian.", ["Iran"]) is None
    assert words_of("An Iranian.", ["Iran"], containment="substring") == [(0, "Iranian."), (0, "Iranian.")]


TEXTS = st.lists(st.sampled_from(["Oslo", "Bergen,", "5", "five.", "million", "\n\n", "the", "U.S."]), max_size=14)


@given(TEXTS, st.sampled_from(["Oslo", "5", "5 million", "US", "Oslo Bergen"]))
def test_there_is_a_mention_exactly_where_the_thinking_names_the_gold_answer(words, gold):
    thinking = " ".join(words)
    mentions = mentions_of(thinking, [gold])
    assert (mentions is not None) == contains_match(thinking, [gold])
    if mentions:
        assert all(contains_match(thinking[slice(*each.span)], [gold]) for each in mentions)
        assert mentions.first.span.start <= mentions.last.span.start


def test_places_are_shares_of_the_thinking_that_can_be_counted_by_hand():
    # 17 characters: "Oslo?" 0–5, a blank line, "Or Bergen?" 7–17.
    described = describe_mentions("Oslo?\n\nOr Bergen?", [Span(0, 5), Span(7, 17)], ["Oslo"])
    assert described == {
        **{"first": 0.0, "last": 0.0, "first_segment": 0, "last_segment": 0},
        **{"segments_after": 1, "characters_after": 12, "num_segments": 2, "num_characters": 17},
    }
    # In a completion the same thinking stands behind its tag, and nothing moves.
    tagged = describe_mentions("<think>Oslo?\n\nOr Bergen?</think>Bergen", [Span(7, 12), Span(14, 24)], ["Oslo"])
    assert tagged == described
    assert describe_mentions("", [], ["Oslo"])["num_segments"] == 0


def test_answers_have_an_ending_and_those_that_name_the_gold_answer_have_places():
    rows = [
        score("on", "q0", True, True, thinking="Bergen?\n\nOslo."),
        score("on", "q1", True, False, thinking="Oslo.\n\nNo.\n\nBergen"),
        score("on", "q2", False, True, thinking="Hmm."),
        score("on", "q3", False, False, thinking=None),
        score("off", "q0", None, True),
    ]
    table = answer_mentions(as_scores(rows), {f"q{number}": ["Oslo"] for number in range(4)})
    assert table["ending"].tolist() == ["named_right", "named_wrong", "unnamed_right", "unnamed_wrong"]
    assert table["segments_after"].fillna(-1).tolist() == [0, 2, -1, -1]
    assert table["last"].iloc[:2].tolist() == pytest.approx([9 / 14, 0 / 18])
    assert table["num_segments"].tolist() == [2, 3, 1, 0]


def trace(trace_id, *texts):
    completion, segments = "<think>", []
    for text in texts:
        segments.append({"start": len(completion), "end": len(completion) + len(text)})
        completion += f"{text}\n\n"
    about = {"question_id": trace_id, "question": "Which city?", "answers": ["Oslo"], "answer": "Bergen"}
    return {"trace_id": trace_id, **about, "completion": f"{completion}</think>Bergen", "segments": segments}


def test_a_tail_is_what_each_step_behind_the_last_mention_does():
    traces = pd.DataFrame(
        [trace("t0", "Oslo.", "Oslo?", "Hm.", "Or not.", "Bergen."), trace("t1", "Bergen."), trace("t2", "Oslo.")]
    )
    labels = [["retrieval"], ["evaluation"], ["backtracking"], ["backtracking"], ["analogy", "synthesis"]]
    rows = [annotation("t0", place, names) for place, names in enumerate(labels)]
    rows[3]["step"] = 2  # merged with the segment before it: one step
    tails = labelled_tails(traces, pd.DataFrame([*rows, annotation("t1", 0, [])]), pd.Series([False, False, True]))
    assert tails["trace_id"].tolist() == ["t0"]  # t1 names no gold answer, and t2 has no labels
    tail = tails.iloc[0]
    assert (tail["ending"], tail["mention"], tail["at"]) == ("named_wrong", "Oslo?", "evaluation")
    assert tail["after"] == ("backtracking", "analogy + synthesis")
    assert tail["segments_after"] == 3


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason="MRALIGN_REAL_DATA names no folder with real traces")
def test_real_traces_have_places_exactly_where_they_name_a_gold_answer():
    lines = Path(REAL_DATA, "traces/race_nq_ds7b_samples.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["thinking"]]
    places = [describe_mentions(row["thinking"], split_segments(row["thinking"]), row["gold"]) for row in rows]
    named = np.array([contains_match(row["thinking"], row["gold"]) for row in rows])
    first, last = (np.array([place[name] for place in places]) for name in ("first", "last"))
    assert named.sum() > 100
    assert np.array_equal(~np.isnan(first), named)
    assert (first[named] <= last[named]).all() and (last[named] < 1).all() and (first[named] >= 0).all()
