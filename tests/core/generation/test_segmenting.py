import json
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import build_bpe
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mralign_core.errors import DataError
from mralign_core.generation.segmenting import segment_trace, token_offsets
from mralign_core.method.traces import parse_completion

BPE = build_bpe()
TRIMMING = build_bpe(trim_offsets=True)
BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}

TRACE = (
    "<think>\nThe seat of Iran is Tehran.\n\nWait, let me check 日本の首都は東京です。\n\n"
    "  Nice 🙂🎉 work!\n \n\nSo the answer is Tehran.\n</think>\n\nTehran"
)


def token_bytes(tokenizer, token_id):
    token = tokenizer.convert_ids_to_tokens(token_id)
    added = token in tokenizer.get_added_vocab()
    return token.encode() if added else bytes(BYTE_OF[char] for char in token)


def offsets_by_bytes(tokenizer, ids, text):
    """First character of each token by counting bytes, then past its leading blanks."""
    char_of_byte = [index for index, char in enumerate(text) for _ in char.encode()]
    starts, position = [], 0
    for token_id in ids:
        size = len(token_bytes(tokenizer, token_id))
        chars = char_of_byte[position : position + size]
        visible = [index for index in chars if text[index].strip()]
        starts.append(visible[0] if visible else chars[0])
        position += size
    assert position == len(char_of_byte)
    return starts


def scattered(tokenizer, text, rng):
    """Ids that decode to the text and that no encoder would choose: some tokens in single bytes."""
    char_of = bytes_to_unicode()
    ids = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        plain = tokenizer.convert_ids_to_tokens(token_id) not in tokenizer.get_added_vocab()
        if plain and rng.random() < 0.5:
            ids += tokenizer.convert_tokens_to_ids([char_of[byte] for byte in token_bytes(tokenizer, token_id)])
        else:
            ids.append(token_id)
    assert tokenizer.decode(ids) == text
    return ids


def segmented(tokenizer, text, ids):
    parsed = parse_completion(text, think_open="<think>", think_close="</think>", thinking_mode="on")
    return segment_trace(text, ids, parsed, tokenizer)


def test_the_tokenizers_have_the_traps_that_these_tests_are_about():
    assert ".ĊĊ" in BPE.tokenize("Tehran.\n\nWait")
    assert len(BPE.encode("🎈")) == 3
    assert BPE("a\n\n b", return_offsets_mapping=True)["offset_mapping"][1] == (1, 3)
    assert TRIMMING("a  b", return_offsets_mapping=True)["offset_mapping"][1] == (2, 2)


@pytest.mark.parametrize("tokenizer", [BPE, TRIMMING], ids=["plain", "trimming"])
@pytest.mark.parametrize("text", [TRACE, "🎈🎈 a\n\n b", "\n\n", " ", "", "x\n\n\n\n  y \n"])
def test_offsets_of_canonical_tokens(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    offsets = token_offsets(tokenizer, ids, text)
    assert [start for start, _ in offsets] == offsets_by_bytes(tokenizer, ids, text)


@pytest.mark.parametrize("tokenizer", [BPE, TRIMMING], ids=["plain", "trimming"])
@pytest.mark.parametrize("seed", range(5))
def test_offsets_of_tokens_no_encoder_would_choose(tokenizer, seed):
    ids = scattered(tokenizer, TRACE, random.Random(seed))
    assert ids != tokenizer.encode(TRACE)
    offsets = token_offsets(tokenizer, ids, TRACE)
    assert [start for start, _ in offsets] == offsets_by_bytes(tokenizer, ids, TRACE)
    assert all(start < end for start, end in offsets)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from(list("aW .\n東é🙂🎈👩\u200d")), max_size=30), st.randoms(use_true_random=False))
def test_offsets_of_any_text_in_any_tokens(text, rng):
    for ids in (BPE.encode(text, add_special_tokens=False), scattered(BPE, text, rng)):
        assert [start for start, _ in token_offsets(BPE, ids, text)] == offsets_by_bytes(BPE, ids, text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_text_still_get_offsets_that_never_fall(codes):
    char_of = bytes_to_unicode()
    ids = BPE.convert_tokens_to_ids([char_of[code] for code in codes])
    text = BPE.decode(ids)
    offsets = token_offsets(BPE, ids, text)
    starts = [start for start, _ in offsets]
    assert len(offsets) == len(ids) and starts == sorted(starts)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_tokens_of_another_text_are_refused():
    with pytest.raises(DataError, match="decode"):
        token_offsets(BPE, BPE.encode("Tehran"), "Isfahan")
    with pytest.raises(DataError, match="decode"):
        token_offsets(BPE, BPE.encode("Tehran"), "Tehran!")


@pytest.mark.parametrize("scatter", [False, True])
def test_segments_and_their_tokens(scatter):
    ids = scattered(BPE, TRACE, random.Random(0)) if scatter else BPE.encode(TRACE)
    segments, reasoning_tokens = segmented(BPE, TRACE, ids)
    assert [TRACE[s["start"] : s["end"]] for s in segments] == [
        "The seat of Iran is Tehran.",
        "Wait, let me check 日本の首都は東京です。",
        "Nice 🙂🎉 work!",
        "So the answer is Tehran.",
    ]
    texts = [BPE.decode(ids[s["token_start"] : s["token_end"]]) for s in segments]
    assert texts[0] == "<think>\nThe seat of Iran is Tehran.\n\n"
    assert texts[1].strip() == "Wait, let me check 日本の首都は東京です。"
    assert texts[2].strip() == "Nice 🙂🎉 work!"
    assert texts[3] == "So the answer is Tehran.\n"
    assert ids[reasoning_tokens] == BPE.convert_tokens_to_ids("</think>")
    edges = [edge for s in segments for edge in (s["token_start"], s["token_end"])]
    assert edges == [0, *(edge for edge in edges[1:-1]), reasoning_tokens]
    assert edges[1:-1:2] == edges[2::2]


@pytest.mark.real_data
def test_spans_on_real_traces():
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real traces")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizers" / "qwen2", local_files_only=True)
    bare = AutoTokenizer.from_pretrained(Path(folder) / "tokenizers" / "qwen2", local_files_only=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    lines = (Path(folder) / "traces" / "race_nq_ds7b_main.jsonl").read_text().splitlines()
    rng = random.Random(0)
    for number, line in enumerate(lines[::4]):
        row = json.loads(line.replace("\ufffd", "?"))  # a literal U+FFFD shares its offset with the token behind it
        text = f"<think>\n{row['thinking'].strip()}\n</think>\n\n{row['answer']}"
        for tokens in (
            tokenizer,
            bare,
        ):  # without the added tokens, "<think>" is several and merges with what follows
            canonical = tokens.encode(text, add_special_tokens=False)
            text = tokens.decode(canonical)
            ids = scattered(tokens, text, rng) if number % 2 else canonical
            starts = offsets_by_bytes(tokens, ids, text)
            assert [start for start, _ in token_offsets(tokens, ids, text)] == starts
            segments, reasoning_tokens = segmented(tokens, text, ids)
            assert reasoning_tokens == sum(start < text.index("</think>") for start in starts)
            for segment, following in pairwise(segments):
                assert segment["token_end"] == following["token_start"]
                assert starts[following["token_start"]] >= following["start"]
                assert starts[following["token_start"] - 1] < following["start"]
