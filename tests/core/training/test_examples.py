import pytest

from mralign_core.errors import DataError
from mralign_core.training.examples import build_examples
from tests.core.training.tiny import END, make_candidates, make_segment_weights


def test_stored_ids_are_used_and_the_end_token_is_appended_once():
    candidates = make_candidates(2)
    candidates.at[1, "completion_ids"] = [*candidates.at[1, "completion_ids"], END]
    kept, left_out = build_examples(candidates, None, end_token_id=END, max_length=64)
    assert left_out == {"too_long": 0}
    assert kept[0].completion_ids == [*candidates.at[0, "completion_ids"], END]
    assert kept[1].completion_ids == candidates.at[1, "completion_ids"]
    assert [example.prompt_ids for example in kept] == list(candidates["prompt_ids"])
    assert [example.is_positive for example in kept] == [True, False]
    assert all(example.weights == [1.0] * len(example.completion_ids) for example in kept)


def test_each_token_carries_its_segments_weight_and_the_rest_one():
    candidates = make_candidates(1)
    segment_weights = make_segment_weights(candidates)
    segment_weights["weight"] = [0.5, 2.0]
    example = build_examples(candidates, segment_weights, end_token_id=END, max_length=64).kept[0]
    num_rest = len(example.completion_ids) - 5
    assert example.weights == [0.5, 0.5, 2.0, 2.0, 2.0] + [1.0] * num_rest


def test_rows_longer_than_the_limit_are_left_out_and_counted_and_none_is_cut():
    candidates = make_candidates(20)
    lengths = [len(row.prompt_ids) + len(row.completion_ids) + 1 for row in candidates.itertuples()]
    limit = sorted(lengths)[10]
    kept, left_out = build_examples(candidates, None, end_token_id=END, max_length=limit)
    expected = [row.trace_id for row, length in zip(candidates.itertuples(), lengths) if length <= limit]
    assert [example.trace_id for example in kept] == expected
    assert 0 < left_out["too_long"] == 20 - len(expected)


def test_a_segment_without_weight_is_an_error_not_weight_one():
    candidates = make_candidates(3)
    segment_weights = make_segment_weights(candidates)
    with pytest.raises(DataError, match=r"trace t1.*segment\(s\) \[1\]"):
        build_examples(candidates, segment_weights.drop(index=3), end_token_id=END, max_length=64)


def test_an_empty_prompt_is_an_error():
    candidates = make_candidates(1)
    candidates.at[0, "prompt_ids"] = []
    with pytest.raises(DataError, match=r"t0.*prompt_ids is empty"):
        build_examples(candidates, None, end_token_id=END, max_length=64)
