"""Where the segments of a trace are, in characters of its text and in its sampled tokens (App. D.2)."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mralign_core.errors import DataError
from mralign_core.generation.control_tokens import decode_tokens, encode_literally, refuse_made_tokens
from mralign_core.method.blanks import BLANKS
from mralign_core.method.token_weights import segment_token_spans
from mralign_core.method.traces import ParsedCompletion, split_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder shows for the first bytes of a character whose last bytes are in the tokens to come."""


class EncodedCompletion(NamedTuple):
    """Token ids of a text, and the text they decode to, which is what is trained on."""

    ids: list[int]
    text: str


class SegmentedTrace(NamedTuple):
    """Segments as a candidate holds them, and the number of tokens up to the closing tag."""

    segments: list[dict[str, int]]
    reasoning_tokens: int


def segment_trace(
    completion: str,
    completion_ids: Sequence[int],
    parsed: ParsedCompletion,
    tokenizer: PreTrainedTokenizerBase,
) -> SegmentedTrace:
    """Split the thinking into segments and find the tokens of each.

    Args:
        completion: decoded text of ``completion_ids``.
        completion_ids: the sampled tokens.
        parsed: parts of the completion; its thinking is closed.
        tokenizer: tokenizer of the model.
    """
    assert parsed.thinking is not None
    assert parsed.thinking_span is not None
    spans = split_segments(parsed.thinking, offset=parsed.thinking_span.start)
    offsets = token_offsets(tokenizer, completion_ids, completion)
    token_spans = segment_token_spans(offsets, spans, thinking_end=parsed.thinking_span.end)
    segments = [
        {"start": span.start, "end": span.end, "token_start": first, "token_end": last}
        for span, (first, last) in zip(spans, token_spans, strict=True)
    ]
    return SegmentedTrace(segments, token_spans[-1][1] if token_spans else 0)


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, text: str, spelled: Collection[str] = ()
) -> EncodedCompletion:
    """Encode a completion that was never sampled in this tokenizer's tokens, and check it by decoding.

    A tokenizer that normalises gives back a slightly other text, which then counts: other forms of the same
    characters, other blanks, other case. A lone surrogate, half of a character that JSON can carry, becomes "?".

    Args:
        tokenizer: tokenizer of the model to train.
        text: the completion, without the end token.
        spelled: control tokens that are only text in it.

    Raises:
        DataError: the tokens do not hold the text, as with a vocabulary that lacks its words, or hold a control token.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids = encode_literally(tokenizer, text, [name for name in spelled if name in text])
    refuse_made_tokens(tokenizer, ids, spelled)
    decoded = decode_tokens(tokenizer, ids)
    wanted, written = _bare(text), _bare(decoded)
    if wanted != written:
        place = next(i for i in range(len(wanted) + 1) if wanted[i : i + 1] != written[i : i + 1])
        raise DataError(
            f"the tokenizer can't write {wanted[place : place + 20]!r}: it gives {written[place : place + 20]!r}"
        )
    return EncodedCompletion(ids, decoded)


def token_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """The characters (start, end) that each token wrote, from its first visible one.

    Tokens that share a character, as the bytes of an emoji do, share its start. A token of nothing but blanks
    keeps them. Leaving leading blanks out puts " Wait" with the segment that begins with "Wait", whatever
    precedes it.

    Args:
        tokenizer: tokenizer of the model.
        ids: the sampled tokens, which need not be those that encoding ``text`` would give.
        text: their decoded text.

    Raises:
        DataError: ``text`` is not the decoded text of ``ids``.
    """
    spans = _encoded_offsets(tokenizer, ids, text)
    if spans is None:
        spans = _decoded_offsets(tokenizer, ids, text)
    return [(_first_visible(text, start, end), end) for start, end in spans]


def _encoded_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
    """Offsets from encoding the text again, or None when that gives other tokens."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(encoded["input_ids"]) != list(ids):
        return None
    spans: list[tuple[int, int]] = []
    for start, end in encoded["offset_mapping"]:
        # Some tokenizers trim blanks off both ends, so a token of blanks alone is left at the end of them.
        spans.append((start if start < end else spans[-1][1] if spans else 0, end))
    return spans


def _decoded_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Offsets from decoding a short window of tokens that moves along, for tokens no encoder would choose."""
    spans: list[tuple[int, int]] = []
    start = context = settled = num_settled = 0  # the window begins a token or more before the first unsettled one
    for position in range(1, len(ids) + 1):
        before = decode_tokens(tokenizer, ids[context:settled])
        piece = decode_tokens(tokenizer, ids[context:position])[len(before) :]
        complete = piece.rstrip(UNFINISHED)
        end = num_settled + len(complete)
        spans.append((start, min(end + (complete != piece), len(text))))
        start = end
        if complete == piece or position == len(ids):
            if text[num_settled : num_settled + len(piece)] != piece:
                raise DataError(f"token {position - 1} decodes to {piece!r}, which the text does not have there")
            num_settled += len(piece)
            context, settled = settled, position
    if num_settled != len(text):
        raise DataError(f"the tokens decode to {num_settled} characters, but the text has {len(text)}")
    return spans


def _bare(text: str) -> str:
    """What no normaliser may change."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _first_visible(text: str, start: int, end: int) -> int:
    return next((place for place in range(start, end) if text[place] not in BLANKS), start)
