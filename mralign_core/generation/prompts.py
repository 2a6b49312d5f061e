"""The prompt of a question in either thinking mode, in text and in tokens (App. F Fig. 11)."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class Prompt(NamedTuple):
    """A rendered prompt and its token ids."""

    text: str
    ids: list[int]


class PromptFormat(NamedTuple):
    """What a prompt is made of besides the question."""

    instruction: str
    think_open: str
    think_close: str


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, thinking_mode: str, prompt_format: PromptFormat
) -> Prompt:
    """Render a question for one thinking mode.

    The mode is set by the chat template's ``enable_thinking``. Where a template has no such switch, or a
    tokenizer no template, thinking is switched off by a closed, empty think block at the end of the prompt.

    Args:
        tokenizer: tokenizer of the model, with or without a chat template.
        question: the question.
        thinking_mode: ``"on"`` or ``"off"``.
        prompt_format: instruction and think tags.

    Returns:
        The prompt, ready to be continued by the model.
    """
    content = question
    if prompt_format.instruction:
        content = f"{prompt_format.instruction}\n\nQuestion: {question}"
    if tokenizer.chat_template is None:
        plain = content if prompt_format.instruction else f"Question: {question}"
        text = _without_switch(f"{plain}\nAnswer:\n", thinking_mode, prompt_format)
        return Prompt(text, tokenizer.encode(text, add_special_tokens=True))
    enabled, disabled = (_apply_template(tokenizer, content, enabled) for enabled in (True, False))
    if enabled == disabled:
        text = _without_switch(enabled, thinking_mode, prompt_format)
    else:
        text = enabled if thinking_mode == "on" else disabled
    return Prompt(text, tokenizer.encode(text, add_special_tokens=False))


def opened_by_prompt(prompt: str, think_open: str) -> bool:
    """Whether the prompt already opened the think block, so that the completion begins inside it."""
    return prompt.rstrip().endswith(think_open)


def _apply_template(tokenizer: PreTrainedTokenizerBase, content: str, enable_thinking: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
    )


def _without_switch(prompt: str, thinking_mode: str, prompt_format: PromptFormat) -> str:
    if thinking_mode == "on":
        return prompt
    # Some templates always open the think block: then it only has to be closed.
    opened = opened_by_prompt(prompt, prompt_format.think_open)
    head = prompt.rstrip() if opened else prompt + prompt_format.think_open
    return f"{head}\n\n{prompt_format.think_close}\n\n"
