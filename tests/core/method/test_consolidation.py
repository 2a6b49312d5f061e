import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.errors import DataError
from mralign_core.method.consolidation import LabelVote, accept, consolidate, merge_steps
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.schemas.annotations import RULES

# In canonical order.
F, B, R, A = "framing", "backtracking", "retrieval", "analogy"

TABLE = [
    # a, b, labels, confidences, rule
    ({}, {}, (), (), "unlabelled"),
    # (i) equal sets: b's confidences, whatever they are
    ({R: 9}, {R: 3}, (R,), (3,), "agree"),
    ({A: 9, R: 8}, {R: 1, A: 2}, (R, A), (1, 2), "agree"),
    # (ii) common kept with the higher confidence, however low; one more only above the threshold
    ({R: 2, A: 8}, {R: 3, B: 7.5}, (R, A), (3, 8), "merge"),
    ({R: 2, A: 7.5}, {R: 3, B: 8}, (B, R), (8, 3), "merge"),
    ({R: 9}, {R: 3, A: 8}, (R, A), (9, 8), "merge"),
    ({R: 9, A: 8}, {F: 7.5, B: 8.5}, (B, R), (8.5, 9), "merge"),
    ({R: 9}, {A: 8}, (R, A), (9, 8), "merge"),
    ({R: 9, A: 8}, {}, (R, A), (9, 8), "merge"),
    # ties by canonical order
    ({R: 8, A: 8}, {F: 8, B: 8}, (F, B), (8, 8), "merge"),
    ({R: 5, A: 8}, {R: 5, B: 8}, (B, R), (8, 5), "merge"),
    # (iii) fewer than two left
    ({R: 9}, {R: 9, A: 7}, (R,), (9,), "adjudicate"),
    ({R: 9}, {A: 7}, (R,), (9,), "adjudicate"),
    ({R: 7}, {A: 7}, (), (), "adjudicate"),
    ({R: 9}, {}, (R,), (9,), "adjudicate"),
    ({}, {A: 1}, (), (), "adjudicate"),
]


def vote(confidence):
    return LabelVote(tuple(confidence), tuple(confidence.values()))


@pytest.mark.parametrize(("a", "b", "labels", "confidences", "rule"), TABLE)
def test_truth_table(a, b, labels, confidences, rule):
    result = consolidate(vote(a), vote(b), threshold=7, taxonomy=PAPER_TAXONOMY)
    assert result == (labels, confidences, rule)


@pytest.mark.parametrize(
    ("a", "labels", "confidences"), [({A: 9, R: 2}, (R, A), (2, 9)), ({F: 1}, (F,), (1,)), ({}, (), ())]
)
def test_one_who_decides_alone_is_taken_at_its_word(a, labels, confidences):
    assert accept(vote(a), PAPER_TAXONOMY) == (labels, confidences, "distilled")


def test_tables_cover_every_rule_of_the_schema():
    assert {row[-1] for row in TABLE} | {accept(vote({R: 9}), PAPER_TAXONOMY).rule} == set(RULES)


def test_other_limits():
    one = consolidate(vote({R: 9}), vote({A: 8}), threshold=7, max_labels=1, taxonomy=PAPER_TAXONOMY)
    assert one == ((R,), (9,), "merge")
    three = consolidate(vote({R: 9, A: 8}), vote({R: 9, F: 8}), threshold=7, max_labels=3, taxonomy=PAPER_TAXONOMY)
    assert three == ((F, R, A), (8, 9, 8), "merge")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (LabelVote((R, R), (9, 9)), "distinct"),
        (LabelVote((R,), ()), "one confidence for each"),
        (LabelVote((F, B, R), (1, 2, 3)), "at most 2"),
        (LabelVote(("daydreaming",), (1,)), "not in the taxonomy"),
    ],
)
def test_broken_votes_are_refused(bad, message):
    for votes in ((bad, vote({R: 9})), (vote({R: 9}), bad)):
        with pytest.raises(DataError, match=message):
            consolidate(*votes, threshold=7, taxonomy=PAPER_TAXONOMY)


VOTES = st.dictionaries(st.sampled_from(PAPER_TAXONOMY.labels), st.integers(0, 10), max_size=2)


@given(VOTES, VOTES, st.integers(0, 10))
def test_rules_hold_for_all_votes(a, b, threshold):
    result = consolidate(vote(a), vote(b), threshold=threshold, taxonomy=PAPER_TAXONOMY)
    kept = dict(zip(result.labels, result.confidences, strict=True))
    assert len(kept) == len(result.labels) <= 2
    assert list(kept) == sorted(kept, key=PAPER_TAXONOMY.state)
    assert a.keys() & b.keys() <= kept.keys() <= a.keys() | b.keys()
    assert (result.rule in ("agree", "unlabelled")) == (a.keys() == b.keys())
    if result.rule in ("merge", "adjudicate"):
        assert (result.rule == "merge") == (len(kept) == 2)
        assert all(kept[label] == max(a.get(label, -1), b.get(label, -1)) for label in kept)
        assert all(kept[label] > threshold for label in kept if (label in a) != (label in b))
        swapped = consolidate(vote(b), vote(a), threshold=threshold, taxonomy=PAPER_TAXONOMY)
        assert swapped == result, "only rule (i) tells the annotators apart"


@pytest.mark.parametrize(
    ("a", "b", "merged"),
    [
        ([], [], []),
        ([5], [9], [0]),
        ([0, 0, 1], [0, 0, 1], [0, 0, 1]),
        ([0, 0, 0], [0, 1, 2], [0, 1, 2]),
        ([0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 2]),
        ([0, 1, 0], [2, 2, 2], [0, 1, 2]),
    ],
)
def test_steps_merge_where_both_annotators_merge(a, b, merged):
    assert merge_steps(a, b) == merged
    assert merge_steps(b, a) == merged


def test_steps_of_different_traces_are_refused():
    with pytest.raises(ValueError):
        merge_steps([0, 1], [0])
