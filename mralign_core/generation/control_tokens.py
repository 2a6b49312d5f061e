"""Control tokens: which a model has, which ends its turn, and what becomes of them where they are only text.

Decision, the same everywhere: what a user, a file or a server gives as text is text. A control token that is spelled
out in a question or in thinking is encoded in pieces, so that nobody can end a turn, or begin one, from inside it.
Where that can't be done, because a server encodes the text, it is refused. At the end of an answer, where decoded
dumps and some servers leave it, an end token is taken off; elsewhere in an imported answer the model's own are refused,
because what follows may be another turn, and those of other models only where another turn does follow.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from mralign_core.errors import DataError
from mralign_core.models.families.rendering import apply_template
from mralign_core.models.families.table import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN_END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|EOT|>",
    "<|eos|>",
    "<|end|>",
    "<|return|>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eod|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<eoa>",
    "<eos>",
    "<pad>",
    "</s>",
    "[EOS]",
    "[UNUSED_TOKEN_145]",
    "[end of text]",
    "[|endofturn|]",
    "<｜end▁of▁sentence｜>",
)
"""What models end a turn, or fill it up, with: a trace may come from another model than the one to align."""
_NEXT_TURN = re.compile(
    r"\s*(?:<\|(?:im_start|start|start_header_id|user|assistant|system|START_OF_TURN_TOKEN)\|>|<start_of_turn>|<\|turn>"
    r"|<s>|<[|｜](?:User|Assistant)[|｜]>|<bos>|\[INST\]|\[\|(?:user|assistant)\|\]|\[UNUSED_TOKEN_146\]"
    r"|(?:#+ *)?(?:user|human|assistant|system|question|instruction|q)\b *(?::|\n))",
    re.IGNORECASE,
)
"""What another turn begins with, behind the end of one."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_CONTENT = "What the assistant said."
_control_tokens_of: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, str], dict[str, int]]] = (
    WeakKeyDictionary()
)
"""Of each tokenizer, for as long as it is in use: finding them takes long where there are many added tokens."""


def control_tokens(tokenizer: PreTrainedTokenizerBase, family: Family) -> dict[str, int]:
    """The tokens that steer a model, with their ids: special ones, the family's tags, and what its template writes.

    Other added tokens (Gemma's tags of HTML, runs of blanks) are ordinary text.
    """
    written = f"{tokenizer.chat_template or ''}\n{_texts_of(family)}"
    known = _control_tokens_of.setdefault(tokenizer, {})
    state = len(tokenizer), written  # tokens may be added, and the template set, after the first call
    if state not in known:
        known[state] = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or token.content in written)
        }
    return known[state]


def control_tokens_in(tokenizer: PreTrainedTokenizerBase, text: str, family: Family) -> list[str]:
    """The control tokens that a text would become, were it encoded as it is; each once, as they are spelled.

    Raises:
        DataError: the tokenizer makes one of other characters.
    """
    names = {number: name for name, number in control_tokens(tokenizer, family).items()}
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = set(ids) & names.keys()
    refuse_made_tokens(tokenizer, ids, [names[number] for number in found if names[number] not in text])
    # SentencePiece's encoding alone may begin with a token that stands for the text's beginning.
    return sorted(names[number] for number in found if names[number] in text)


def refuse_made_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], names: Collection[str]) -> None:
    """Refuse control tokens that a tokenizer made of a text that does not spell them, as of full-width letters.

    Raises:
        DataError: names the token.
    """
    # A tokenizer may begin a text, and write what it does not know, with tokens of its own.
    behind = ids[1:] if list(ids[:1]) == [tokenizer.bos_token_id] else ids
    made = {*behind} - {tokenizer.unk_token_id}
    steering = [name for name in names if not _BYTE.fullmatch(name)]
    if found := sorted(name for name in steering if tokenizer.convert_tokens_to_ids(name) in made):
        raise DataError(
            f"the tokenizer takes other characters in a text for the control token {found[0]!r}: take them "
            "out of the text"
        )


def encode_literally(
    tokenizer: PreTrainedTokenizerBase, text: str, names: Collection[str], *, head: str | None = None, tail: str = ""
) -> list[int]:
    """Encode a text in which these control tokens are nothing but text.

    Args:
        tokenizer: tokenizer of the model.
        text: the text; other control tokens in it become what they are.
        names: the tokens to spell out.
        head: text before it, in which control tokens are what they are; None where it continues another text.
        tail: text behind it, likewise.

    Raises:
        DataError: a token can't be spelled in other tokens; names it.
    """
    longest_first = sorted(names, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if names else [text]
    pieces[-1] += tail
    if head is None:
        ids = encode_behind(tokenizer, pieces[0])
    else:
        ids = tokenizer.encode(head + pieces[0], add_special_tokens=not tokenizer.chat_template)
    for place, piece in enumerate(pieces[1:], start=1):
        ids += _spelled(tokenizer, piece, names) if place % 2 else encode_behind(tokenizer, piece)
    return ids


def encode_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that follows another: SentencePiece would put a blank before it, were it encoded alone."""
    before = "x" if text[:1].isspace() else "\n"
    ids, ids_before = (tokenizer.encode(part, add_special_tokens=False) for part in (text, before))
    if decode_tokens(tokenizer, [*ids_before, *ids]) == before + decode_tokens(tokenizer, ids):
        return ids
    together = tokenizer.encode(before + text, add_special_tokens=False)
    return together[len(ids_before) :] if together[: len(ids_before)] == ids_before else ids


def _spelled(tokenizer: PreTrainedTokenizerBase, name: str, names: Collection[str]) -> list[int]:
    """A control token's name in tokens that mean its characters: in two pieces, neither of which is the token."""
    vocabulary = tokenizer.get_vocab()
    forbidden = {vocabulary[each] for each in names}
    for cut in range(1, len(name)):
        ids = [*encode_behind(tokenizer, name[:cut]), *encode_behind(tokenizer, name[cut:])]
        if not forbidden & set(ids) and decode_tokens(tokenizer, ids).strip() == name.strip():
            return ids
    raise DataError(f"{name!r} is a control token that this tokenizer can't write as text: take it out of the text")


def end_tokens(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> tuple[str, ...]:
    """How ends of a turn are spelled, longest first: the model's own, and those of others."""
    own = [*tokenizer.convert_ids_to_tokens(sorted(end_ids)), *_own(tokenizer)]
    return tuple(sorted({*filter(None, own), *KNOWN_END_TOKENS}, key=len, reverse=True))


def _own(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token for token in (tokenizer.eos_token, tokenizer.pad_token) if token]


def _ends_before_a_turn(text: str, ends: Sequence[str]) -> dict[str, int]:
    """The ends of a turn behind which another begins, with their places."""
    matches = re.finditer("|".join(map(re.escape, ends)), text)
    return {match.group(): match.start() for match in matches if _NEXT_TURN.match(text, match.end())}


def without_end_tokens(text: str, ends: Sequence[str]) -> str:
    r"""The text without the ends of a turn that it ends in; a text that is nothing else is left as it is.

    >>> without_end_tokens("Tehran<|im_end|>\n<|endoftext|>", KNOWN_END_TOKENS)
    'Tehran'
    >>> without_end_tokens("<s>old</s>", KNOWN_END_TOKENS)
    '<s>old</s>'
    """
    bare = text.rstrip()
    while end := next((end for end in ends if bare.endswith(end) and not _closes_a_tag(bare, end)), ""):
        bare = bare.removesuffix(end).rstrip()
    return text if not bare or bare == text.rstrip() else bare


def _closes_a_tag(text: str, end: str) -> bool:
    return end == "</s>" and "<s>" in text


def text_control_tokens(tokenizer: PreTrainedTokenizerBase, family: Family) -> list[str]:
    """The control tokens that are never part of a completion, so that they are text where one holds them."""
    own = _texts_of(family)
    return [name for name in control_tokens(tokenizer, family) if name not in own]


def clean_trace(
    trace: dict[str, Any], line: int, tokenizer: PreTrainedTokenizerBase, family: Family, problems: list[str]
) -> dict[str, Any]:
    """A trace of a file without the ends of a turn that its thinking, answer and gold answers end in.

    Args:
        trace: has ``thinking``, ``answer`` and ``answers``.
        line: number of its line.
        tokenizer: tokenizer of the model to align.
        family: how the model thinks.
        problems: gets a line for each text that holds what can be neither taken off nor left as text.
    """
    ends, control = end_tokens(tokenizer), control_tokens(tokenizer, family)
    texts = {name: without_end_tokens(trace[name], ends) for name in ("thinking", "answer")}
    checked = {"thinking": [name for name in control if name in family.layout], "answer": [*control, *_own(tokenizer)]}
    tags = set(family.tags)  # answer tags belong into an answer, and the others are refused where it is read
    for field, names in checked.items():
        found = {name: texts[field].index(name) for name in names if name in texts[field] and name not in tags}
        kind = "a control token"
        if not found and field == "answer":
            found, kind = _ends_before_a_turn(texts[field], ends), "an end token of another model"
        if found:
            problems.append(
                f"line {line}: field {field!r} holds {min(found, key=found.__getitem__)!r}, {kind}, so that what "
                "follows may be another turn: take it out, with what does not belong to the field"
            )
    return {**trace, **texts, "answers": [without_end_tokens(gold, ends) for gold in trace["answers"]]}


def _texts_of(family: Family) -> str:
    return "\n".join((*family.tags, family.layout))


def up_to_end_token(text: str, ends: Sequence[str]) -> str:
    r"""What a model wrote before the first end of its turn, for servers that leave such tokens in or write on.

    >>> up_to_end_token("Tehran<|im_end|>\n<|im_start|>user", ["<|im_end|>"])
    'Tehran'
    """
    return text[: min((place for end in ends if (place := text.find(end)) >= 0), default=len(text))]


def end_token_ids(tokenizer: PreTrainedTokenizerBase, family: Family, *configured: object) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's, those of the model's configurations, and the template's.

    Args:
        tokenizer: tokenizer of the model.
        family: how the model thinks; what closes its thinking ends no completion.
        configured: the model's generation config and its config, as far as it has them.
    """
    ends = {*_configured_ends(tokenizer, configured), turn_end_id(tokenizer, *configured)}
    closing = tokenizer.convert_tokens_to_ids(family.think_close)
    return frozenset(number for number in ends if number is not None and number != closing)


def turn_end_id(tokenizer: PreTrainedTokenizerBase, *configured: object) -> int | None:
    """The token that the chat template ends a reply with; the tokenizer's end token where it shows none.

    Some models have several ends (Gemma's ``<end_of_turn>`` beside ``<eos>``), and the tokenizer's is not the one that
    they learnt to end a reply with.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = [number for number in _ids_behind_a_reply(tokenizer) if number in special]
    known = _configured_ends(tokenizer, configured)
    end = next((number for number in written if number in known), next(iter(written), tokenizer.eos_token_id))
    return None if end is None else int(end)


def _configured_ends(tokenizer: PreTrainedTokenizerBase, configured: Sequence[object]) -> set[int]:
    named = [tokenizer.eos_token_id, *(getattr(one, "eos_token_id", None) for one in configured)]
    flat = [token for entry in named for token in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return {int(token) for token in flat if token is not None}


def _ids_behind_a_reply(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the chat template writes behind the assistant's content; nothing where it has no place for that."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _CONTENT}]
    try:
        before, said, behind = apply_template(tokenizer, turns, {}).rpartition(_CONTENT)
    except (TemplateError, ValueError, TypeError):
        return []
    ids: list[int] = tokenizer.encode(behind, add_special_tokens=False) if said and _CONTENT not in before else []
    return ids


def decode_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens as it stands, special ones included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
