"""What the report says of where thinking and answer part: by numbers counted by hand, and never more than is there."""

import re
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from sample_run import annotation, as_scores, held_out_run, score

from mralign_core.method.matching import DEFAULT_RULES
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting.change_findings import change_block
from mralign_core.reporting.habit_findings import habit_block, move_habit_block, shift_block
from mralign_core.reporting.mention_findings import mention_block, path_text, tail_block
from mralign_core.reporting.parting import parting_blocks
from mralign_core.reporting.report import ReportInputs, render_report
from mralign_core.reporting.report_block import Block

CONFIDENCE = 0.95


def present(block: Block | None) -> Any:
    """A piece of the report that is there."""
    assert block is not None
    return block


def answers(variant, *kinds, draw=0):
    """Answers from where Oslo stands in the thinking (a share, or None) and whether the answer is right."""
    rows = []
    for number, (place, is_right) in enumerate(kinds):
        words = ["Hm."] * 10
        if place is not None:
            words[round(place * 10)] = "Oslo."
        text = "\n\n".join(words)
        rows.append(score(variant, f"q{number:02d}", place is not None, is_right, draw, thinking=text, num_tokens=10))
    return rows


def questions_of(rows):
    ids = sorted({row["question_id"] for row in rows})
    return pd.DataFrame({"question_id": ids, "answers": [["Oslo"]] * len(ids)})


KINDS = [(0.9, True)] * 12 + [(0.2, False)] * 6 + [(None, True)] * 2 + [(None, False)] * 5


@pytest.fixture(scope="module")
def mentions():
    rows = answers("on", *KINDS)
    return present(mention_block(as_scores(rows), questions_of(rows), CONFIDENCE, DEFAULT_RULES))


def test_the_gap_and_where_it_opens_are_told_with_their_numbers(mentions):
    named, place, goes_on = mentions.sentences
    assert named == (
        "The thinking of 18 of 25 answers names the gold answer (72.0 %); 6 of these answer something else (33.3 %). "
        "Right though their thinking names none: 2."
    )
    # Ten segments, 50 characters: "Oslo." begins at 9 · 5 = 45 or at 2 · 5 = 10.
    assert "stands 20.0 % of the way where the answer is wrong and 90.0 % where it is right: −70.0 points" in place
    assert goes_on.startswith("After it, 100.0 % of the wrong ones go on for a segment or more, and 0.0 %")
    assert [row[2:] for row in mentions.tables[0].rows] == [
        ["12", "90.0", "90.0", "0.0", "100.0"],
        ["6", "20.0", "20.0", "7.0", "0.0"],
    ]


def test_the_figure_says_its_numbers(mentions):
    told = mentions.figure.get_label()
    assert (
        "Last mention where named, answered wrong (6 answers): median 20 % of the way, most often in tenth 3 (100 %)."
        in told
    )
    assert (
        "A segment or more follows the last mention's in 0 % where named, answered right, 0.0 in the mean and in 100 %"
        in told
    )


def test_no_difference_is_claimed_whose_interval_includes_0():
    rows = answers("on", *[(0.1, True), (0.9, True), (0.1, False), (0.9, False)] * 5)
    place = present(mention_block(as_scores(rows), questions_of(rows), CONFIDENCE, DEFAULT_RULES)).sentences[1]
    assert "it does not differ measurably (0.0 points, interval" in place


def test_answers_without_a_mention_have_no_places_to_tell_of():
    rows = answers("on", (None, True), (None, False))
    block = present(mention_block(as_scores(rows), questions_of(rows), CONFIDENCE, DEFAULT_RULES))
    assert block.sentences == ["The thinking of 0 of 2 answers names the gold answer (0.0 %)."]
    assert (
        mention_block(as_scores([score("off", "q", None, True)]), questions_of(rows), CONFIDENCE, DEFAULT_RULES) is None
    )


def labelled(paths):
    """Traces whose first segment alone names Oslo, with labels, from (is right, labels)."""
    traces, rows = [], []
    for number, (is_right, labels) in enumerate(paths):
        texts = ["Oslo.", *["Hm."] * (len(labels) - 1)]
        ends = np.cumsum([len(text) for text in texts]).tolist()
        about = {"trace_id": f"t{number:02d}", "question_id": f"q{number:02d}", "question": "Which city?"}
        spans = [{"start": end - len(text), "end": end} for end, text in zip(ends, texts, strict=True)]
        said = {"answers": ["Oslo"], "completion": "".join(texts), "segments": spans, "answer": "Bergen"}
        traces.append({**about, **said, "is_right": is_right, "polarity": "positive" if is_right else "negative"})
        rows += [annotation(f"t{number:02d}", place, [label]) for place, label in enumerate(labels)]
    return pd.DataFrame(traces), pd.DataFrame(rows)


def test_the_atlas_tells_which_labels_stand_behind_the_last_mention():
    lost = [(False, ["retrieval", "evaluation", "backtracking"])] * 6 + [(False, ["retrieval", "analogy"])] * 2
    kept = [(True, ["retrieval", "synthesis"])] * 7 + [(True, ["retrieval"])]
    traces, annotations = labelled([*lost, *kept])
    block = present(tail_block(traces, annotations, PAPER_TAXONOMY, CONFIDENCE))
    assert block.sentences[0] == (
        "16 labelled training traces name the gold answer; 8 of them end wrong. Behind the last mention these make 1.8 "
        "steps in the mean, the 8 right ones 0.9."
    )
    assert "backtracking (75.0 % against 0.0 %), evaluation (75.0 % against 0.0 %)" in block.sentences[1]
    assert block.sentences[2] == "Behind it comes more often where it is right: synthesis (87.5 % against 0.0 %)."
    shares, paths, first = block.tables
    # Of 14 steps behind it in wrong traces 6 are an evaluation; of 7 in right ones, all are a synthesis.
    assert {row[0]: row[1:3] + row[4:] for row in shares.rows}["evaluation"] == ["75.0", "0.0", "42.9", "0.0"]
    assert paths.rows == [["evaluation → backtracking", "6", "0"], ["analogy", "2", "0"]]
    assert first.rows[0] == ["evaluation", "6", "0"] and ["(the answer follows)", "0", "1"] in first.rows
    assert [case.path for case in block.cases] == ["retrieval → evaluation → backtracking", "retrieval → analogy"]


def test_without_a_hit_gap_there_is_no_atlas():
    traces, annotations = labelled([(True, ["retrieval"])])
    assert tail_block(traces, annotations, PAPER_TAXONOMY, CONFIDENCE) is None


def test_a_long_path_is_told_by_its_first_steps():
    assert path_text(tuple("abcdefg")) == "a → b → c → …"


def shift(variant, before, *after):
    names = ("both_correct", "inconsistent", "both_wrong")
    return {"variant": variant, "before": before, "num_answers": sum(after), **dict(zip(names, after, strict=True))}


SHIFTS = [
    shift("mr_align", "both_correct", 90, 6, 4),
    shift("mr_align", "inconsistent", 30, 15, 5),
    shift("mr_align", "both_wrong", 1, 2, 7),
]
REDRAWN = [shift("on_again", row["before"], *(row["num_answers"] // 2, 0, row["num_answers"] // 2)) for row in SHIFTS]


def test_what_became_of_answers_is_told_beside_what_chance_does():
    block = present(shift_block(SHIFTS, REDRAWN))
    assert block.sentences == [
        "MR-ALIGN: 30 of 50 inconsistent answers became right (60.0 %; drawn again, 50.0 %); 90 of 100 answers that "
        "were right stayed so (90.0 %; drawn again, 50.0 %); 1 of 10 wrong ones became right "
        "(10.0 %; drawn again, 50.0 %)."
    ]
    told = block.figure.get_label()
    assert "MR-ALIGN, of 50 inconsistent before: both right 30, inconsistent 15, both wrong 5." in told
    assert "think on, drawn again, of 100 both right before: both right 50, inconsistent 0, both wrong 50." in told
    assert block.tables[0].rows[-1] == ["MR-ALIGN", "both wrong", "10", "1 (10.0 %)", "2 (20.0 %)", "7 (70.0 %)"]
    assert "regression to the mean" in present(shift_block(SHIFTS, [])).lead
    assert shift_block([], []) is None


def test_lengths_are_means_and_their_changes_have_intervals():
    before = [score("on", f"q{n:02d}", True, n % 2 == 0, num_tokens=20 + n) for n in range(20)]
    after = [{**row, "variant": "mr_align", "num_tokens": row["num_tokens"] - 5} for row in before]
    after = [{**row, "thinking": "Hm.\n\nHm.\n\nHm."} for row in after]
    block = present(habit_block(as_scores([*before, *after]), CONFIDENCE))
    assert block.sentences == [
        "MR-ALIGN against think on: 5.0 tokens fewer an answer [−5.0, −5.0]; no measurable change in segments "
        "(+0.0 [+0.0, +0.0]); 100.0 points more repeat themselves [+100.0, +100.0]."
    ]
    levels = {(row[0], row[1]): row[2:] for row in block.tables[0].rows}
    assert levels["think on", "all"] == ["20", "29.5", "3.0", "0.0"]
    assert levels["MR-ALIGN", "named, answered right"] == ["10", "24.0", "3.0", "100.0"]
    assert "think on, tokens of an answer: mean 29.5 (named, answered right 29.0, named, answered wrong 30.0)." in (
        block.figure.get_label()
    )


def test_held_out_labels_tell_what_changed_and_what_loops():
    traces, annotations = held_out_run(np.random.default_rng(1))
    change = present(change_block(traces, annotations, PAPER_TAXONOMY, CONFIDENCE, "mr_align"))
    assert (
        "evaluation → self_verification" in change.sentences[0] and "evaluation → backtracking" in change.sentences[0]
    )
    assert "likelier in MR-ALIGN than in think on: " in change.figure.get_label().lower().replace(
        "mr-align", "MR-ALIGN"
    )
    habits = present(move_habit_block(traces, annotations, PAPER_TAXONOMY, CONFIDENCE))
    assert "more self_verification (0.00 → " in habits.sentences[0] and "less backtracking" in habits.sentences[0]
    # Rows that are called as labels and moves are must not lead to training traces, which these numbers are not of.
    assert not change.has_cases and not habits.has_cases
    urls = [patch.get_url() for axes in change.figure.axes for patch in axes.patches if patch.get_url()]
    assert len(urls) > 1 and {url.partition("?")[0] for url in urls} == {"cases:answers"}
    more = {move for move, *_, difference, _, _, _ in change.tables[0].rows if difference.startswith("+")}
    assert "evaluation → self_verification" in more and "evaluation → backtracking" not in more
    for url in urls:
        query = {name: values[0] for name, values in parse_qs(url.partition("?")[2]).items()}
        assert query["variant"] == ("mr_align" if query["pattern"] in more else "on")
    loops = habits.tables[-1]
    assert {row[4].rpartition(" (")[0] for row in loops.rows} == {
        "evaluation → backtracking",
        "evaluation → self_verification",
    }


def test_the_same_thinking_claims_no_change():
    traces, annotations = held_out_run(np.random.default_rng(1))
    own, labels = (rows[rows["trace_id"].str.startswith("on/")] for rows in (traces, annotations))
    both, again = (
        pd.concat([rows, rows.assign(trace_id=rows["trace_id"].str.replace("on/", "mr_align/"), **more)])
        for rows, more in ((own, {"variant": "mr_align"}), (labels, {}))
    )
    change = present(change_block(both, again, PAPER_TAXONOMY, CONFIDENCE, "mr_align"))
    assert change.sentences[0].endswith("0 differ beyond chance: no change of MR-ALIGN's thinking is claimed.")
    assert "no move with support" in change.figure.get_label()
    habits = present(move_habit_block(both, again, PAPER_TAXONOMY, CONFIDENCE))
    assert habits.sentences[0] == "MR-ALIGN against think on: no label is measurably rarer or commoner."
    assert "no measurable difference" in habits.sentences[1]


@pytest.mark.parametrize("labelled", [["on/"], ["mr_align/"], []])
def test_labels_of_one_side_only_claim_nothing(labelled):
    traces, annotations = held_out_run(np.random.default_rng(1))
    own = annotations[annotations["trace_id"].str.startswith(tuple(labelled))]
    assert move_habit_block(traces, own, PAPER_TAXONOMY, CONFIDENCE) is None
    assert change_block(traces, own, PAPER_TAXONOMY, CONFIDENCE, "mr_align") is None


def test_a_run_without_answers_or_labels_has_no_such_part():
    assert parting_blocks(None, None, None, None, taxonomy=PAPER_TAXONOMY, confidence=CONFIDENCE) == []
    bare = ReportInputs(run={}, taxonomy=PAPER_TAXONOMY, confidence=CONFIDENCE)
    assert 'id="parting"' not in render_report(bare)


def test_cases_are_text_whatever_they_hold():
    traces, rows = labelled([(False, ["retrieval", "evaluation"])] * 3)
    traces = traces.assign(question="<script>alert(1)</script>", answer="<b>" + "x" * 900)
    case = present(tail_block(traces, rows, PAPER_TAXONOMY, CONFIDENCE)).cases[0]
    assert len(case.answer) < 400 and re.search(r"x \[…\]$", case.answer)
