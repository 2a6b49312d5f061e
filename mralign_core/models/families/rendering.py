"""A question in a thinking mode, as chat messages and as the text of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mralign_core.models.families.table import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMMON_PLACE = "<think></think>"
"""How an instruction names the place for thinking, whatever the family."""
FIXED_DATE = "{%- macro strftime_now(form) -%}2025-01-01{%- endmacro -%}"
"""Put before a chat template that prints today's date (gpt-oss, Llama 3), so that a prompt is the same on every day."""


def chat_of(question: str, thinking_mode: str, family: Family, instruction: str) -> list[dict[str, str]]:
    """The messages of a question: a system message where the family's mode has one, and the user's."""
    mode = family.mode(thinking_mode)
    is_told = COMMON_PLACE in instruction and thinking_mode == "on"
    sentences = [sentence for sentence in (instruction, "" if is_told else mode.instruction) if sentence]
    place = family.think_words or f"{family.think_open}{family.think_close}"
    asked = " ".join(sentences).replace(COMMON_PLACE, place)
    content = f"{asked}\n\nQuestion: {question}" if asked else question
    system = [{"role": "system", "content": mode.system}] if mode.system else []
    return [*system, {"role": "user", "content": content}]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, question: str, thinking_mode: str, family: Family, instruction: str
) -> str:
    """The text that the model is to continue: by the chat template, or a plain one where there is none."""
    mode = family.mode(thinking_mode)
    messages = chat_of(question, thinking_mode, family, instruction)
    if not tokenizer.chat_template:
        prompt = _plain(messages)
    else:
        prompt = apply_template(tokenizer, messages, {"add_generation_prompt": True, **mode.template})
    if mode.prefill and opened_by_prompt(prompt, family):
        prompt = prompt.rstrip().removesuffix(family.think_open.rstrip())
    return prompt + mode.prefill


def opened_by_prompt(prompt: str, family: Family) -> bool:
    """Whether the prompt already opened the think block, so that the completion begins inside it."""
    return prompt.rstrip().endswith(family.think_open.rstrip())


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], options: dict[str, bool | str]
) -> str:
    """The text that a tokenizer's chat template makes of messages."""
    apply: Callable[..., Any] = tokenizer.apply_chat_template
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_DATE + template
    return str(apply(messages, tokenize=False, chat_template=template, **options))


def _plain(messages: list[dict[str, str]]) -> str:
    *system, content = (message["content"] for message in messages)
    question = content if "Question: " in content else f"Question: {content}"
    return "\n\n".join([*system, question]) + "\nAnswer:\n"
