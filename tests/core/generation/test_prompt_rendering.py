import pytest
from random_models import CHAT_TEMPLATE, build_bpe

from mralign_core.generation.prompts import PromptFormat, opened_by_prompt, render_prompt

BARE = PromptFormat("", "<think>", "</think>")
TOLD = BARE._replace(instruction="Think first.")
NO_SWITCH = CHAT_TEMPLATE.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", ""
)
ALWAYS_OPEN = NO_SWITCH.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


def rendered(template, mode, prompt_format=BARE):
    return render_prompt(build_bpe(chat_template=template), "Who wrote Emma?", mode, prompt_format).text


TURNS = "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "mode", "expected"),
    [
        (CHAT_TEMPLATE, "on", TURNS),
        (CHAT_TEMPLATE, "off", TURNS + "<think>\n\n</think>\n\n"),
        (NO_SWITCH, "on", TURNS),
        (NO_SWITCH, "off", TURNS + "<think>\n\n</think>\n\n"),
        (ALWAYS_OPEN, "on", TURNS + "<think>\n"),
        (ALWAYS_OPEN, "off", TURNS + "<think>\n\n</think>\n\n"),
        (None, "on", "Question: Who wrote Emma?\nAnswer:\n"),
        (None, "off", "Question: Who wrote Emma?\nAnswer:\n<think>\n\n</think>\n\n"),
    ],
)
def test_both_modes_with_and_without_a_thinking_switch(template, mode, expected):
    assert rendered(template, mode) == expected


def test_the_instruction_comes_before_the_question():
    assert "user\nThink first.\n\nQuestion: Who wrote Emma?<|im_end|>" in rendered(CHAT_TEMPLATE, "on", TOLD)
    assert rendered(None, "on", TOLD) == "Think first.\n\nQuestion: Who wrote Emma?\nAnswer:\n"


def test_prompt_ids_are_those_of_the_text_with_its_control_tokens(bpe):
    prompt = render_prompt(bpe, "日本?", "off", TOLD)
    assert bpe.decode(prompt.ids) == prompt.text
    assert prompt.ids[0] == bpe.convert_tokens_to_ids("<|im_start|>")
    assert bpe.convert_tokens_to_ids("</think>") in prompt.ids


def test_opened_by_prompt():
    assert opened_by_prompt(rendered(ALWAYS_OPEN, "on"), "<think>")
    assert not opened_by_prompt(rendered(ALWAYS_OPEN, "off"), "<think>")
    assert not opened_by_prompt(TURNS, "<think>")
