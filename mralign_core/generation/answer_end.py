"""Where a completion has said its answer: what a model writes after that is never read, so samplers end it there."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mralign_core.generation.families import Family, opened_by_prompt
from mralign_core.method.traces import answer_is_complete


class AnswerEnd:
    """Finds the end of the answer in completions of one model.

    Args:
        tokenizer: its tokenizer.
        family: how it thinks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self.closing_ids = closing_token_ids(tokenizer, family.tags.answer_close)

    def decode(self, completion_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(
            self.tokenizer.decode(list(completion_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

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
            if completion_ids[place] in self.closing_ids:
                text = self.decode(completion_ids[: place + 1])
                if self._is_complete(text, thinking_mode, prompt):
                    return place + 1
        return None

    def in_text(self, completion: str, thinking_mode: str, prompt: str) -> int | None:
        """How many characters lead up to the end of the answer; None where it is not said."""
        tag = self.family.tags.answer_close
        end = completion.find(tag)
        while end >= 0:
            end += len(tag)
            if self._is_complete(completion[:end], thinking_mode, prompt):
                return end
            end = completion.find(tag, end)
        return None

    def _is_complete(self, completion: str, thinking_mode: str, prompt: str) -> bool:
        opened = opened_by_prompt(prompt, self.family)
        return answer_is_complete(completion, self.family.tags, thinking_mode=thinking_mode, opened_by_prompt=opened)


def closing_token_ids(tokenizer: PreTrainedTokenizerBase, tag: str) -> frozenset[int]:
    """Tokens that can end a tag: those with its last character in them."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return frozenset(number for number, token in enumerate(tokens) if token is not None and tag[-1] in token)
