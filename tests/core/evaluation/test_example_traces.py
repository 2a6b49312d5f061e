import doctest

import pandas as pd
from sample_run import annotation, as_scores, candidate, score

from mralign_core.reporting import example_traces
from mralign_core.reporting.example_traces import before_and_after, mark_golds, weighted_traces
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS


def plain(pieces):
    return "".join(text for text, _ in pieces)


def test_docstring_examples_hold():
    assert doctest.testmod(example_traces).failed == 0


def test_golds_are_marked_as_whole_words_longest_first_and_text_is_kept():
    text = "New York (York, not Yorkshire); c++ and NEW YORK"
    pieces = mark_golds(text, ["York", "new york", "c++", " "])
    assert plain(pieces) == text
    assert [piece for piece, gold in pieces if gold] == ["New York", "York", "c++", "NEW YORK"]
    assert mark_golds("x", []) == [("x", False)]


def traces_with(weights):
    candidates = pd.DataFrame([candidate(name, polarity, 2) for name, (polarity, _) in weights.items()])
    annotations = pd.DataFrame(
        [annotation(name, place, ["framing"] if place else []) for name in weights for place in (0, 1)]
    )
    rows = [
        {"trace_id": name, "segment": place, "weight": weight, "ratio": weight, "clipped": weight == 2.5}
        for name, (_, pair) in weights.items()
        for place, weight in enumerate(pair)
    ]
    behind = {"support": 1.0, "weight_low": None, "weight_high": None}
    segment_weights = SEGMENT_WEIGHTS.require(pd.DataFrame(rows).assign(**behind))
    return CANDIDATES.require(candidates), ANNOTATIONS.require(annotations), segment_weights


def test_the_widest_of_each_polarity_and_the_median_are_shown():
    spreads = {
        "a": ("positive", (1, 2.5)),
        "b": ("positive", (1, 1.1)),
        "c": ("negative", (0.5, 1)),
        "d": ("negative", (1, 1.2)),
        "e": ("negative", (1, 1.3)),
    }
    candidates, annotations, segment_weights = traces_with(spreads)
    chosen = weighted_traces(candidates, annotations, segment_weights, "ratio")
    assert [(trace.trace_id, trace.polarity) for trace in chosen] == [
        ("a", "positive"),
        ("c", "negative"),
        ("e", "negative"),
    ]
    assert chosen[0].why == "the widest spread of weights among positive traces"
    first, second = chosen[0].segments
    assert (plain(first.text), first.labels, first.weight, first.rule) == (
        "Segment 0 names Oslo.",
        (),
        1.0,
        "unlabelled",
    )
    assert (second.labels, second.weight, second.clipped) == (("framing",), 2.5, True)


def test_one_trace_is_shown_once_and_none_is_no_example():
    candidates, annotations, segment_weights = traces_with({"a": ("positive", (1, 2))})
    assert [trace.trace_id for trace in weighted_traces(candidates, annotations, segment_weights, "ratio")] == ["a"]
    assert weighted_traces(candidates.head(0), annotations.head(0), segment_weights.head(0), "ratio") == []


def test_without_weights_the_first_trace_of_each_polarity_is_shown():
    candidates, annotations, _ = traces_with(
        {n: (p, (1, 1)) for n, p in zip("abc", ("negative", "positive", "negative"), strict=True)}
    )
    chosen = weighted_traces(candidates, annotations, None, "ratio")
    assert [trace.trace_id for trace in chosen] == ["a", "b"]
    assert all(segment.weight is None for trace in chosen for segment in trace.segments)


def test_before_and_after_shows_repairs_and_damage_alike_on_the_same_cell():
    cells = {
        "a": ((True, False), (True, True)),
        "b": ((True, True), (True, False)),
        "c": ((True, False), (False, True)),
        "d": ((True, False), (True, True)),
    }
    rows = []
    for question, sides in cells.items():
        for variant, (thought, answer), last in zip(("on", "kto"), sides, ("before", "after"), strict=True):
            rows.append(score(variant, question, thought, answer, thinking=f"Same.\n\nThe {last} part.\n\nEnd."))
    pairs = before_and_after(as_scores(rows), None, "kto")
    assert [(pair.question, pair.why.partition(":")[0]) for pair in pairs] == [
        ("a", "repaired"),
        ("b", "broken"),
        ("c", "still inconsistent (1 of 4 answers)"),
    ]
    assert "(2 of 4 answers)" in pairs[0].why
    assert pairs[0].num_shared == 1
    assert [plain(pieces) for pieces in pairs[0].after.segments] == ["Same.", "The after part.", "End."]
    assert (pairs[0].before.em_answer, pairs[0].after.em_answer) == (False, True)


def test_questions_give_text_and_golds():
    rows = [score(variant, "a", True, variant == "kto", thinking="It is Oslo.") for variant in ("on", "kto")]
    question = {"question_id": "a", "question": "Which city?", "answers": ["Oslo"]}
    (pair,) = before_and_after(as_scores(rows), pd.DataFrame([question]), "kto")
    assert (pair.question, pair.golds) == ("Which city?", ("Oslo",))
    assert ("Oslo", True) in pair.before.segments[0]


def test_answers_without_thinking_or_answer_are_shown_as_such():
    rows = [score("on", "a", True, True), score("kto", "a", None, False, answer=None, outcome="no_answer")]
    rows += [score("on", "b", True, True), score("kto", "b", True, True)]
    (pair,) = before_and_after(as_scores(rows), None, "kto")
    assert (pair.after.segments, pair.after.answer, pair.after.outcome) == ([], [], "no_answer")
