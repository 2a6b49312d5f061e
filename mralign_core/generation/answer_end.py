"""Where a completion has said its answer: what a model writes after that is never read, so samplers end it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mralign_core.generation.control_tokens import decode_tokens
from mralign_core.method.traces import answer_end
from mralign_core.models.families import Family, opened_by_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerEnd:
    """Finds the end of the answer in completions of one model.

    Args:
        tokenizer: its tokenizer.
        family: how it thinks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
        self.tokenizer = tokenizer
        self.family = family
        tags = family.tags
        # In channels, the tag that closes a message closes the reply too.
        self.closing_tags = (tags.answer_close, tags.think_close) if tags.reply_open else (tags.answer_close,)
        self.closing_ids = frozenset().union(*(closing_token_ids(tokenizer, tag) for tag in self.closing_tags))

    def in_tokens(
        self, completion_ids: Sequence[int], thinking_mode: str, prompt: str, *, known_open: int = 0
    ) -> int | None:
        """How many tokens lead up to the end of the answer, the closing tag included; None before it is said.

        Args:
            completion_ids: the tokens so far.
            thinking_mode: ``"on"`` or ``"off"``.
            prompt: text of the prompt.
            known_open: so many tokens were looked at before.
        """
        for place in range(known_open, len(completion_ids)):
            if completion_ids[place] in self.closing_ids and self._ends_in_tag(completion_ids, place + 1):
                text = decode_tokens(self.tokenizer, completion_ids[: place + 1])
                if self.in_text(text, thinking_mode, prompt) is not None:
                    return place + 1
        return None

    def in_text(self, completion: str, thinking_mode: str, prompt: str) -> int | None:
        """How many characters lead up to the end of the answer; None where it is not said."""
        opened = opened_by_prompt(prompt, self.family)
        return answer_end(completion, self.family.tags, thinking_mode=thinking_mode, opened_by_prompt=opened)

    def _ends_in_tag(self, completion_ids: Sequence[int], end: int) -> bool:
        """Whether the last of these tokens can complete a closing tag: decoding them all, at every ">" of a long
        completion, would take quadratic time.
        """
        most_tokens = 1 + max(len(tag.encode()) for tag in self.closing_tags)  # one a byte, and the one before
        tail = decode_tokens(self.tokenizer, completion_ids[max(0, end - most_tokens) : end]).lower()
        return any(tag.lower() in tail for tag in self.closing_tags)


def closing_token_ids(tokenizer: PreTrainedTokenizerBase, tag: str) -> frozenset[int]:
    """Tokens that can end a tag: those with its last character in them, or all where vocabularies write it otherwise,
    as byte-level ones do with blanks and with what is not ASCII.
    """
    is_literal = "!" <= tag[-1] <= "~"
    last = {tag[-1].lower(), tag[-1].upper()}
    return frozenset(n for token, n in tokenizer.get_vocab().items() if not is_literal or not last.isdisjoint(token))
