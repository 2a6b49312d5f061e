import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.method.normalization import MAX_SCALE, normalize_trace

SEGMENTS = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 50)), min_size=1, max_size=15)


def normalized(segments, normalization, neutral=0.0):
    weights, tokens = (np.array(column) for column in zip(*segments, strict=True))
    scale, shift = normalize_trace(weights.astype(float), tokens, normalization, neutral=neutral)
    assert (scale > 0).all()  # so that the ends of an interval don't change places
    return weights * scale + shift, weights, tokens


@given(SEGMENTS)
def test_mean_one_leaves_the_answer_its_share_whatever_the_signs(segments):
    found, weights, tokens = normalized(segments, "mean_one")
    if np.abs(weights) @ tokens > 0.1 * tokens.sum():
        assert np.abs(found) @ tokens / tokens.sum() == pytest.approx(1)
        assert (found * weights >= 0).all()


@given(SEGMENTS, st.sampled_from([0.0, 1.0]))
def test_centred_weights_have_the_neutral_mean_and_keep_their_differences(segments, neutral):
    found, weights, tokens = normalized(segments, "centred", neutral)
    if tokens.sum():
        assert found @ tokens / tokens.sum() == pytest.approx(neutral, abs=1e-9)
    assert np.diff(found) == pytest.approx(np.diff(weights), abs=1e-9)


@given(SEGMENTS)
def test_per_segment_a_move_counts_once_however_many_tokens_it_has(segments):
    found, weights, tokens = normalized(segments, "per_segment")
    worded = tokens > 0
    if worded.any():
        assert (found * tokens)[worded] == pytest.approx(weights[worded] * tokens.sum() / worded.sum())


@pytest.mark.parametrize("normalization", ["mean_one", "centred", "per_segment"])
def test_a_trace_without_thinking_tokens_stays_as_it_is(normalization):
    assert normalized([(2.0, 0), (-1.0, 0)], normalization)[0].tolist() == [2.0, -1.0]


@pytest.mark.parametrize("weight", [1e-320, 2.2e-16, 0.01])
def test_mean_one_does_not_blow_up_a_trace_in_which_nothing_tells(weight):
    assert normalized([(weight, 5), (0.0, 50)], "mean_one")[0].tolist() == [MAX_SCALE * weight, 0.0]


def test_weights_that_are_all_0_stay_so():
    assert normalized([(0.0, 3), (0.0, 1)], "mean_one")[0].tolist() == [0.0, 0.0]
