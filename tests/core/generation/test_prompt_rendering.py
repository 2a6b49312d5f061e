import pytest
from chat_templates import ALWAYS_OPEN, CHATML, SWITCH, SYSTEM_SWITCH, TURNS, trl_template
from random_models import build_bpe

from mralign_core.config import GenerateConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.prompts import (
    chat_messages,
    opened_by_prompt,
    render_prompt,
    require_chat_endpoint,
)
from mralign_core.models.families import GENERIC, Family, named_family
from mralign_core.models.families.table import ModeRequest

INSTRUCTION = GenerateConfig().instruction
EMPTY_BLOCK = "<think>\n\n</think>\n\n"


def rendered(template, mode, family, instruction=""):
    family = named_family(family) if isinstance(family, str) else family
    return render_prompt(build_bpe(chat_template=template), "Who wrote Emma?", mode, family, instruction).text


@pytest.mark.parametrize(
    ("template", "family", "mode", "expected"),
    [
        (SWITCH, "qwen3", "on", TURNS),
        (SWITCH, "qwen3", "off", TURNS + EMPTY_BLOCK),
        # DeepSeek's template opens the tag since 2025-02, and did not before
        (ALWAYS_OPEN, "deepseek_r1", "on", TURNS + "<think>\n"),
        (ALWAYS_OPEN, "deepseek_r1", "off", TURNS + EMPTY_BLOCK),
        (CHATML, "deepseek_r1", "on", TURNS),
        (CHATML, "deepseek_r1", "off", TURNS + EMPTY_BLOCK),
        (CHATML, "nemotron", "on", "<|im_start|>system\ndetailed thinking on<|im_end|>\n" + TURNS),
        (CHATML, "nemotron", "off", "<|im_start|>system\ndetailed thinking off<|im_end|>\n" + TURNS),
    ],
)
def test_the_prompts_of_each_means(template, family, mode, expected):
    assert rendered(template, mode, family) == expected


def test_real_templates_end_the_prompt_as_their_family_says():
    ends = {
        ("qwen3", "on"): "<|im_start|>assistant\n",
        ("qwen3", "off"): "<|im_start|>assistant\n" + EMPTY_BLOCK,
        ("nemotron_3_nano", "on"): "<|im_start|>assistant\n<think>\n",
        ("nemotron_3_nano", "off"): "<|im_start|>assistant\n<think></think>",
        ("deepseek_r1_distill", "on"): "<｜Assistant｜><think>\n",
        ("deepseek_r1_distill", "off"): "<｜Assistant｜>" + EMPTY_BLOCK,
        ("gptoss", "on"): "<|end|><|start|>assistant",
        ("gptoss", "off"): "<|start|>assistant<|channel|>analysis<|message|><|end|>"
        "<|start|>assistant<|channel|>final<|message|>",
    }
    families = {"nemotron_3_nano": "qwen3", "deepseek_r1_distill": "deepseek_r1", "gptoss": "gpt_oss"}
    for (name, mode), end in ends.items():
        text = rendered(trl_template(name), mode, families.get(name, name), INSTRUCTION)
        assert text.endswith(end) and text.count("Who wrote Emma?") == 1


def test_words_alone_where_there_is_no_switch():
    on, off = (rendered(None, mode, GENERIC) for mode in ("on", "off"))
    assert on.startswith("Think about the question first, inside <think></think>, then")
    assert off.startswith("This time do not think first: write no <think></think>, give")
    assert on.endswith("\n\nQuestion: Who wrote Emma?\nAnswer:\n")
    assert "Question: Who wrote Emma?<|im_end|>" in rendered(CHATML, "off", GENERIC)


def test_an_instruction_that_names_the_tags_is_not_said_twice():
    on, off = (rendered(CHATML, mode, GENERIC, INSTRUCTION) for mode in ("on", "off"))
    assert on.count("inside <think></think>") == 1
    assert INSTRUCTION in on and f"{INSTRUCTION} This time do not think first" in off


def test_the_instruction_comes_before_the_question():
    assert "user\nThink.\n\nQuestion: Who wrote Emma?<|im_end|>" in rendered(SWITCH, "on", "qwen3", "Think.")


def test_a_model_without_a_template_gets_the_bare_question():
    assert rendered(None, "on", "deepseek_r1") == "Question: Who wrote Emma?\nAnswer:\n"
    assert rendered(None, "off", "deepseek_r1") == "Question: Who wrote Emma?\nAnswer:\n" + EMPTY_BLOCK
    assert rendered(None, "off", "nemotron").startswith("detailed thinking off\n\nQuestion: ")


def test_the_instruction_names_the_familys_own_place_for_thinking():
    assert "first, inside the analysis channel, then" in rendered(CHATML, "on", "gpt_oss", INSTRUCTION)
    brackets = Family(name="b", think_open="[T]", think_close="[/T]", mode_off=ModeRequest(prefill="[T][/T]"))
    assert "first, inside [T][/T], then" in rendered(CHATML, "on", brackets, INSTRUCTION)


def test_prompt_ids_are_those_of_the_text_with_its_control_tokens(bpe):
    prompt = render_prompt(bpe, "日本?", "off", named_family("qwen3"), INSTRUCTION)
    assert bpe.decode(prompt.ids) == prompt.text
    assert prompt.ids[0] == bpe.convert_tokens_to_ids("<|im_start|>")
    assert bpe.convert_tokens_to_ids("</think>") in prompt.ids


def test_opened_by_prompt():
    family = named_family("deepseek_r1")
    assert opened_by_prompt(rendered(ALWAYS_OPEN, "on", family), family)
    assert not opened_by_prompt(rendered(ALWAYS_OPEN, "off", family), family)
    assert not opened_by_prompt(TURNS, family)


def test_a_think_block_left_open_in_mode_off_is_refused():
    with pytest.raises(ConfigError, match=r"'qwen3' does not switch thinking off.*'<think>'.*YAML"):
        rendered(ALWAYS_OPEN, "off", "qwen3")
    # its template takes the "/think" of "</think>" in any message for the switch
    assert "</think>" not in rendered(SYSTEM_SWITCH, "off", "nemotron_v2", INSTRUCTION).split("assistant")[0]
    family = named_family("nemotron_v2").model_copy(update={"think_words": ""})
    with pytest.raises(ConfigError, match="does not switch thinking off"):
        rendered(SYSTEM_SWITCH, "off", family, INSTRUCTION)


@pytest.mark.parametrize("name", ["gptoss", "llama3_2"])
def test_templates_that_print_a_date_print_the_same_on_every_day(name):
    tokenizer = build_bpe(chat_template=trl_template(name))
    tokenizer.bos_token = "<|im_start|>"
    text = render_prompt(tokenizer, "Who?", "on", GENERIC, "").text
    assert "2025-01-01" in text


def test_chat_requests():
    assert chat_messages("Who?", "on", named_family("qwen3"), "") == (
        [{"role": "user", "content": "Who?"}],
        {"chat_template_kwargs": {"enable_thinking": True}},
    )
    assert chat_messages("Who?", "off", named_family("nemotron"), "Say.") == (
        [
            {"role": "system", "content": "detailed thinking off"},
            {"role": "user", "content": "Say.\n\nQuestion: Who?"},
        ],
        {},
    )
    assert chat_messages("Who?", "off", named_family("deepseek_r1"), "") == (
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": EMPTY_BLOCK}],
        {"continue_final_message": True, "add_generation_prompt": False},
    )


@pytest.mark.parametrize(
    ("template", "family"),
    [
        (trl_template("qwen3"), "qwen3"),
        (trl_template("nemotron_3_nano"), "qwen3"),
        (trl_template("glm4moe"), "qwen3"),
        (SYSTEM_SWITCH, "nemotron_v2"),
        (CHATML, "nemotron"),
        (CHATML, "deepseek_r1"),
        (ALWAYS_OPEN, "deepseek_r1"),
        (CHATML, "generic"),
    ],
)
def test_an_endpoint_makes_the_same_prompt(template, family):
    require_chat_endpoint(build_bpe(chat_template=template), named_family(family), INSTRUCTION)


@pytest.mark.parametrize(
    ("template", "family", "reason"),
    [
        (trl_template("deepseek_r1_distill"), "deepseek_r1", "refuses a begun reply"),
        (trl_template("gptoss"), "gpt_oss", "refuses a begun reply"),
        (CHATML.replace("m.content", "m.content | trim"), "deepseek_r1", r"ends the prompt with '.*</think>'"),
        (None, "generic", "no chat template"),
    ],
)
def test_what_an_endpoint_would_not_do_is_refused_with_the_remedy(template, family, reason):
    tokenizer = build_bpe(chat_template=template)
    with pytest.raises(ConfigError, match=rf"{reason}.*Use sampler 'vllm'"):
        require_chat_endpoint(tokenizer, named_family(family), INSTRUCTION)
