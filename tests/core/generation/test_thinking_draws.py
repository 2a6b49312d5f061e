"""The think-on draws to estimate from: traces like candidates, each by its own answer, and the yield of every step."""

from typing import Any

import pandas as pd
import pytest
from test_selecting import BPE, NEGATIVE, POSITIVE, SECTION, draws_of, selection_of, trace

from mralign_core.generation.funnel import Funnel
from mralign_core.generation.thinking_draws import DRAW_STEPS, select_draws
from mralign_core.models.families import GENERIC
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.outcomes import FAILED

MIXED: tuple[str, str, list[str], list[str]] = (
    "mixed",
    "Seat?",
    [trace("Isfahan"), trace("Tehran"), trace("Tehran", "So.\n\nIt is."), "no tags"],
    [],
)


def drawn(take, draws, questions, **changes):
    funnel = Funnel(DRAW_STEPS)
    section = SECTION.model_copy(update=changes)
    kept = list(select_draws(draws, questions, section, take, BPE, GENERIC, funnel))
    return pd.DataFrame(kept, columns=list(CANDIDATES.columns)).astype(object), funnel.frame().to_numpy().tolist()


def sides(frame):
    return dict(zip(frame["trace_id"], frame["polarity"], strict=True))


def test_every_draw_that_is_a_trace_counts_by_its_own_answer():
    frame, funnel = drawn("all_draws", *draws_of(POSITIVE, NEGATIVE, MIXED))
    right, wrong = "positive", "negative"
    assert sides(CANDIDATES.require(frame)) == {
        **{"pos/0": right, "pos/1": right, "neg/0": wrong, "neg/1": wrong},  # equal draws count each
        **{"mixed/0": wrong, "mixed/1": right, "mixed/2": right},
    }
    assert [row[:3] for row in funnel] == [
        [DRAW_STEPS[0], 8, 0],
        [DRAW_STEPS[1], 7, 1],
        [DRAW_STEPS[2], 7, 0],
        [DRAW_STEPS[3], 7, 0],
        [DRAW_STEPS[4], 7, 0],
    ]


def test_matched_leaves_out_questions_that_end_one_way_and_what_the_other_side_lacks():
    frame, funnel = drawn("matched", *draws_of(POSITIVE, NEGATIVE, MIXED))
    assert sides(frame) == {"mixed/0": "negative", "mixed/1": "positive"}
    assert funnel[-2:] == [
        [DRAW_STEPS[-1], 2, 4, "its question ends one way only"],
        [DRAW_STEPS[-1], 2, 1, "more than the other side has"],
    ]


def test_a_draw_that_failed_or_is_too_long_has_no_side():
    draws, questions = draws_of(MIXED)
    broken: dict[str, Any] = {"outcome": FAILED, "em_answer": None, "contains_answer": None, "completion": ""}
    draws = [{**row, **broken} if row["draw"] == 0 else row for row in draws]
    assert set(sides(drawn("all_draws", draws, questions)[0])) == {"mixed/1", "mixed/2"}
    assert not sides(drawn("matched", draws, questions)[0])
    draws, questions = draws_of(MIXED)
    shortest = len(BPE.encode("<think>\nSo.\n\nIt is.\n"))
    assert set(sides(drawn("all_draws", draws, questions, max_reasoning_tokens=shortest)[0])) == {"mixed/2"}


@pytest.mark.parametrize("keep", ["first", "all_distinct"])
def test_a_selected_trace_is_the_same_row_among_the_draws(keep):
    draws, questions = draws_of(POSITIVE, NEGATIVE)
    chosen = selection_of(draws, questions, traces_per_question=keep).candidates.set_index("trace_id")
    among = drawn("all_draws", draws, questions, traces_per_question=keep)[0].set_index("trace_id")
    pd.testing.assert_frame_equal(among.loc[chosen.index], chosen)


def test_a_question_that_ends_right_by_the_looser_match_is_positive():
    draws, questions = draws_of(("loose", "Seat?", [trace("in Tehran"), trace("Isfahan")], []))
    assert set(sides(drawn("all_draws", draws, questions)[0]).values()) == {"negative"}
    loose = sides(drawn("matched", draws, questions, answer_match="contains")[0])
    assert loose == {"loose/0": "positive", "loose/1": "negative"}
