import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.errors import DataError
from mralign_core.method.token_weights import segment_token_spans, token_weights
from mralign_core.method.traces import Span, Tags, parse_completion, split_segments


def tokenise(pieces):
    """Offsets of tokens given as text pieces, and the text they make."""
    edges = np.cumsum([0, *map(len, pieces)]).tolist()
    return list(pairwise(edges)), "".join(pieces)


def spans_of(pieces):
    offsets, completion = tokenise(pieces)
    parsed = parse_completion(completion, Tags(), thinking_mode="on")
    assert parsed.thinking and parsed.thinking_span
    segments = split_segments(parsed.thinking, offset=parsed.thinking_span.start)
    return segment_token_spans(offsets, segments, thinking_end=parsed.thinking_span.end)


@pytest.mark.parametrize(
    ("pieces", "spans"),
    [
        # the tags are single tokens; ".\n\n" and "\n\n" go with the segment before
        (
            ["<think>", "\n", "One", ".\n\n", "Two", "\n\n", "Three", "\n", "</think>", "\n\n", "A"],
            [(0, 4), (4, 6), (6, 8)],
        ),
        # the tags are several tokens
        (
            ["<th", "ink", ">\n", "One", ".\n\n", "Two", "\n", "</", "think", ">\n\n", "<", "answer", ">N"],
            [(0, 5), (5, 7)],
        ),
        # a token over a border goes where it starts
        (["<think>", "One", ".\n\nTwo", " three", "</think>"], [(0, 3), (3, 4)]),
        (["<think>", "One", ".\n\n", "Two", ".</", "think>", "A"], [(0, 3), (3, 5)]),
        # a segment inside one token has none of its own
        (["<think>", "a\n\nb\n\n", "c", "</think>"], [(0, 2), (2, 2), (2, 3)]),
        # opened by the prompt
        (["One", "\n\n", "Two", "</think>", "A"], [(0, 2), (2, 3)]),
    ],
)
def test_tokens_go_with_their_segment(pieces, spans):
    assert spans_of(pieces) == spans


@pytest.mark.parametrize(
    "offsets",
    [
        # "a\n\n 鱻</think>": the character is three tokens, the first also holds the space before it
        [(0, 1), (1, 3), (3, 5), (4, 5), (4, 5), (5, 13)],
        # the same with the space a token of its own, or the earlier parts without width
        [(0, 1), (1, 4), (4, 5), (4, 5), (4, 5), (5, 13)],
        [(0, 1), (1, 4), (4, 4), (4, 4), (4, 5), (5, 13)],
    ],
)
def test_parts_of_a_character_stay_together(offsets):
    spans = segment_token_spans(offsets, [Span(0, 1), Span(4, 5)], thinking_end=5)
    owner = [next(s for s, (a, b) in enumerate(spans) if a <= token < b) for token in (2, 3, 4)]
    assert len(set(owner)) == 1
    assert spans[-1][1] == 5, "the closing tag has no segment"


def test_no_segments():
    assert segment_token_spans([(0, 3)], [], thinking_end=3) == []


@pytest.mark.parametrize(
    ("offsets", "segments", "thinking_end", "message"),
    [
        ([(0, 2), (2, 4), (0, 0)], [Span(0, 4)], 4, "token 2 starts at character 0"),
        ([(0, 4)], [Span(0, 3), Span(2, 4)], 4, "apart"),
        ([(0, 4)], [Span(0, 4)], 3, "end by character 3"),
    ],
)
def test_contradictory_spans_are_refused(offsets, segments, thinking_end, message):
    with pytest.raises(DataError, match=message):
        segment_token_spans(offsets, segments, thinking_end=thinking_end)


WORDS = st.sampled_from(["a", "bc", " ", ".", "\n", "\n\n", ".\n\n", "\n \n", "é"])


@given(st.lists(WORDS, max_size=15).map("".join), st.lists(st.integers(0, 60), max_size=20), st.booleans())
def test_every_token_has_exactly_one_weight(thinking, cuts, closing_tag_is_a_token):
    completion = f"<think>{thinking}</think>A"
    end = len("<think>") + len(thinking)
    fixed = {0, 7, len(completion)} | ({end, end + len("</think>")} if closing_tag_is_a_token else set())
    offsets = list(pairwise(sorted(fixed | {cut for cut in cuts if cut < len(completion)})))
    segments = split_segments(thinking, offset=7)
    spans = segment_token_spans(offsets, segments, thinking_end=end)
    assert len(spans) == len(segments)
    if not segments:
        return
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(spans)), "no token between two segments"
    assert spans[-1][1] == sum(start < end for start, _ in offsets), "all tokens before the closing tag"
    for (first, last), segment in zip(spans, segments, strict=True):
        inside = [t for t, (start, _) in enumerate(offsets) if segment.start <= start < segment.end]
        assert all(first <= token < last for token in inside)
    weights = np.arange(2.0, 2 + len(spans)).tolist()
    weights_T = token_weights(len(offsets), spans, weights)
    assert weights_T.shape == (len(offsets),)
    assert [(weights_T == weight).sum() for weight in weights] == [last - first for first, last in spans]
    assert (weights_T == 1).sum() == len(offsets) - spans[-1][1]


@pytest.mark.parametrize(
    ("spans", "weights", "message"),
    [
        ([(0, 2)], [1, 2], "1 token spans with 2 weights"),
        ([(0, 2), (1, 3)], [1, 2], "in order"),
        ([(0, 9)], [1], "5 tokens"),
    ],
)
def test_contradictory_weights_are_refused(spans, weights, message):
    with pytest.raises(DataError, match=message):
        token_weights(5, spans, weights)


@pytest.mark.real_data
@pytest.mark.parametrize("tags_are_tokens", [True, False])
@pytest.mark.parametrize("last", ["鱻 龘", " 鱻 龘"])
def test_real_traces_and_tokenizer(tags_are_tokens, last):
    folder = os.environ.get("MRALIGN_REAL_DATA")
    if not folder:
        pytest.skip("MRALIGN_REAL_DATA does not name a folder of real traces and tokenizers")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizers", "qwen2"))
    if tags_are_tokens:
        tokenizer.add_tokens(["<think>", "</think>"])
    lines = Path(folder, "traces", "race_nq_ds7b_main.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        thinking = json.loads(line)["thinking"].strip()
        completion = f"<think>\n{thinking}\n\n{last}\n</think>\n\n<answer>Nile</answer>"
        encoded = tokenizer(completion, return_offsets_mapping=True)
        parsed = parse_completion(completion, Tags(), thinking_mode="on")
        assert parsed.thinking and parsed.thinking_span
        segments = split_segments(parsed.thinking, offset=parsed.thinking_span.start)
        spans = segment_token_spans(encoded["offset_mapping"], segments, thinking_end=parsed.thinking_span.end)
        ids = encoded["input_ids"]
        texts = tokenizer.batch_decode([ids[first:last] for first, last in spans])
        own = [completion[segment.start : segment.end] for segment in segments]
        assert "".join(texts) == completion[: parsed.thinking_span.end], (
            "a character torn in two would decode as \ufffd"
        )
        # The last segment's first character may share a token with the blank before it, and goes with that.
        assert all(segment in text for segment, text in zip(own[:-1], texts[:-1], strict=True))
        assert own[-1][last.startswith(" ") :] in texts[-1]
