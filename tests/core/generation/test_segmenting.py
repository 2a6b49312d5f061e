import functools
import json
import os
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import build_bpe, build_llama_bpe, build_word_level
from tokenizers import normalizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mralign_core.errors import DataError
from mralign_core.generation.segmenting import encode_completion, segment_trace, token_offsets
from mralign_core.method.blanks import is_blank
from mralign_core.method.traces import Tags, parse_completion

BPE = build_bpe()
TRIMMING = build_bpe(trim_offsets=True)
LLAMA = build_llama_bpe()
GEMMA = build_llama_bpe(prepend_blank=False)
BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}

TRACE = (
    "<think>\nThe seat of Iran is Tehran.\n\nWait, let me check 日本の首都は東京です。\n\n"
    "  Nice 🙂🎉 work!\n \n\nSo the answer is Tehran.\n</think>\n\nTehran"
)


def token_bytes(tokenizer, token_id):
    token = tokenizer.convert_ids_to_tokens(token_id)
    if tokenizer in (LLAMA, GEMMA):
        byte = re.fullmatch(r"<0x(..)>", token)
        return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    added = token in tokenizer.get_added_vocab()
    return token.encode() if added else bytes(BYTE_OF[char] for char in token)


def offsets_by_bytes(tokenizer, ids, text):
    """First character of each token by counting bytes, then past its leading blanks."""
    char_of_byte = [index for index, char in enumerate(text) for _ in char.encode()]
    starts, position = [], 0
    for token_id in ids:
        size = len(token_bytes(tokenizer, token_id))
        chars = char_of_byte[position : position + size]
        visible = [index for index in chars if not is_blank(text[index])]
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
    parsed = parse_completion(text, Tags(), thinking_mode="on")
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


@settings(max_examples=60)
@given(st.text(st.sampled_from(list("aW .\n東é🙂🎈👩\u200d")), max_size=30), st.randoms(use_true_random=False))
def test_offsets_of_any_text_in_any_tokens(text, rng):
    for ids in (BPE.encode(text, add_special_tokens=False), scattered(BPE, text, rng)):
        assert [start for start, _ in token_offsets(BPE, ids, text)] == offsets_by_bytes(BPE, ids, text)


@settings(max_examples=60)
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


def written_by(tokenizer, ids):
    return b"".join(token_bytes(tokenizer, token_id) for token_id in ids)


def assert_spans(tokenizer, text, ids):
    """Spans tile the thinking's tokens; each token is where its first visible character says; no character is torn."""
    segments, reasoning_tokens = segmented(tokenizer, text, ids)
    spans = [(segment["token_start"], segment["token_end"]) for segment in segments]
    assert [edge for span in spans for edge in span][1:-1:2] == [first for first, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, reasoning_tokens)
    starts = offsets_by_bytes(tokenizer, ids, text)
    ends = [*(segment["start"] for segment in segments[1:]), text.index("</think>")]
    begins = [0, *ends[:-1]]
    for (first, last), begin, end in zip(spans, begins, ends, strict=True):
        assert all(begin <= start < end for start in starts[first:last])
    assert reasoning_tokens == sum(start < ends[-1] for start in starts)
    texts = [written_by(tokenizer, ids[first:last]).decode() for first, last in spans]
    return [text[segment["start"] : segment["end"]] for segment in segments], texts


PIECES = st.text("aWe .,\n东é🙂🎈👩\u200d\u200b\u00a0\u3000\u2028", min_size=1, max_size=12)
THINKING = st.lists(PIECES, min_size=1, max_size=5).map("\n\n".join)


@settings(max_examples=150)
@given(
    THINKING.filter(lambda text: not is_blank(text)),
    st.sampled_from([BPE, TRIMMING, LLAMA, GEMMA]),
    st.randoms(use_true_random=False),
)
def test_spans_of_any_thinking_in_any_tokens(thinking, tokenizer, rng):
    text = f"<think>\n{thinking}\n</think>\n\nTehran"
    ids, decoded = encode_completion(tokenizer, text)
    assert decoded == text == written_by(tokenizer, ids).decode()
    assert_spans(tokenizer, text, ids)
    if tokenizer in (BPE, TRIMMING):
        for tokens in (ids, scattered(tokenizer, text, rng)):
            # byte-level pieces end at a line break: each segment is whole in its own tokens
            assert all(own in written for own, written in zip(*assert_spans(tokenizer, text, tokens), strict=True))


def test_a_token_over_a_border_goes_where_it_starts():
    text = "<think>\nThe seat of Iran is Tehran.\n\nWait, let me check that.\n</think>\n\nTehran"
    ids, _ = encode_completion(GEMMA, text)
    assert "The▁seat▁of▁Iran▁is▁Tehran.\n\nWait,▁let▁me▁" in GEMMA.convert_ids_to_tokens(ids)
    _, written = assert_spans(GEMMA, text, ids)
    assert written == ["<think>\nThe seat of Iran is Tehran.\n\nWait, let me ", "check that.\n"]


def test_a_text_behind_a_prompt_gets_no_blank_of_its_own():
    for text in ("Tehran is", "<think>\nHm.", "\nHm", "🙂"):
        ids, decoded = encode_completion(LLAMA, text)
        assert LLAMA.convert_ids_to_tokens(LLAMA.encode(text, add_special_tokens=False))[0].startswith("▁")
        assert decoded == text == written_by(LLAMA, ids).decode()
    assert encode_completion(BPE, "") == ([], "")


def test_what_a_tokenizer_normalises_is_what_counts():
    folding = build_bpe()
    folding.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    text = unicodedata.normalize("NFD", "<think>\nÉtienne?\n\nNo.\n</think>\n\nÉmile")
    ids, decoded = encode_completion(folding, text)
    assert decoded == unicodedata.normalize("NFC", text).lower() != text
    own, _ = assert_spans(folding, decoded, ids)
    assert own == ["étienne?", "no."]


def test_a_text_that_the_vocabulary_lacks_is_refused():
    with pytest.raises(DataError, match="can't write 'isfahane': it gives '<unk>'"):
        encode_completion(build_word_level(), "The seat of Isfahane")


@functools.cache
def qwen(*added):
    """A real tokenizer; Qwen3's has the think tags as tokens."""
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with a real tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizers" / "qwen2", local_files_only=True)
    tokenizer.add_tokens(list(added))
    return tokenizer


WITHOUT_AND_WITH_TAGS = [(), ("<think>", "</think>")]


@pytest.mark.real_data
@pytest.mark.parametrize("added", WITHOUT_AND_WITH_TAGS, ids=["tags in pieces", "tags as tokens"])
def test_the_traps_of_a_real_tokenizer(added):
    tokenizer = qwen(*added)
    text = (
        "<think>\nWhich peak is it.\n\n鷽 is no peak 🏔️.\n\n  Damavand, then?\n \n𒀀!\n\n- ok.</think>\n\n"
        "<answer>No: Damavand</answer>"
    )
    ids, decoded = encode_completion(tokenizer, text)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert decoded == text
    assert ".ĊĊ" in tokens and len(tokenizer.encode("鷽")) == 3 and ">No" in tokens
    assert ("</think>" in tokens) == bool(added) and (">ĊĊ" in tokens) == (not added)
    own, written = assert_spans(tokenizer, text, ids)
    assert own == ["Which peak is it.", "鷽 is no peak 🏔️.", "Damavand, then?", "𒀀!", "- ok."]
    assert [piece.strip() for piece in written[1:-1]] == own[1:-1]
    assert written[0] == "<think>\nWhich peak is it.\n\n"
    # in pieces, ".</" is one token, which starts in the thinking
    assert written[-1] == ("- ok." if added else "- ok.</")


@pytest.mark.real_data
@settings(max_examples=60)
@given(THINKING.filter(lambda text: not is_blank(text)), st.randoms(use_true_random=False))
def test_spans_of_any_thinking_in_real_tokens(thinking, rng):
    text = f"<think>\n{thinking}\n</think>\n\nTehran"
    for tokenizer in (qwen(*added) for added in WITHOUT_AND_WITH_TAGS):
        for ids in (encode_completion(tokenizer, text).ids, scattered(tokenizer, text, rng)):
            assert all(own in written for own, written in zip(*assert_spans(tokenizer, text, ids), strict=True))


@pytest.mark.real_data
@pytest.mark.parametrize("added", WITHOUT_AND_WITH_TAGS, ids=["tags in pieces", "tags as tokens"])
def test_spans_on_real_traces(added):
    tokenizer, rng = qwen(*added), random.Random(0)
    lines = Path(os.environ["MRALIGN_REAL_DATA"], "traces", "race_nq_ds7b_main.jsonl").read_text().splitlines()
    for number, line in enumerate(lines[::4]):
        row = json.loads(line.replace("\ufffd", "?"))  # a literal U+FFFD shares its offset with the token behind it
        ids, text = encode_completion(tokenizer, f"<think>\n{row['thinking'].strip()}\n</think>\n\n{row['answer']}")
        assert_spans(tokenizer, text, scattered(tokenizer, text, rng) if number % 2 else ids)


def test_half_a_character_is_written_as_a_question_mark(bpe):
    assert encode_completion(bpe, "Seat \ud83d of Iran").text == "Seat ? of Iran"
