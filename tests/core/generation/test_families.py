import doctest
import logging
from importlib import resources
from pathlib import Path

import pytest
import yaml
from chat_templates import ALWAYS_OPEN, CHATML, SWITCH, SYSTEM_SWITCH, VARIABLE, trl_template
from hypothesis import given
from hypothesis import strategies as st
from random_models import build_bpe

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.generation import prompts
from mralign_core.generation.prompts import render_prompt, require_chat_endpoint
from mralign_core.method.traces import parse_completion, split_segments
from mralign_core.models.families import (
    GENERIC,
    Family,
    family_fingerprint,
    family_of,
    named_family,
    opened_by_prompt,
    table,
)
from mralign_core.models.families.table import built_in_families, load_family

GEMMA4 = """
name: gemma4
think_open: "<|channel>thought\\n"
think_close: "<channel|>"
think_words: your thoughts
mode_on:
  template: { enable_thinking: true }
mode_off:
  template: { enable_thinking: false }
"""
ONE_SHOT = Path(__file__).parents[3] / "deployments/configs/families/one_shot.yaml"
FAMILIES = list(built_in_families().values())


def chosen(template, family="auto"):
    tokenizer = build_bpe(chat_template=template)
    tokenizer.bos_token = "<|im_start|>"
    return family_of(ModelConfig(family=family), tokenizer).name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("qwen3", "qwen3"),
        ("qwen3_5_think", "qwen3"),
        ("qwen3_5_nothink", "qwen3"),
        ("glm4moe", "qwen3"),
        ("nemotron_3_nano", "qwen3"),
        ("nemotron_3_5_lightning", "qwen3"),
        ("deepseek_r1_distill", "deepseek_r1"),
        ("gptoss", "gpt_oss"),
        ("qwen3_instruct_2507", "generic"),
        ("llama3_2", "generic"),
        # its tags are others: a family file says so
        ("gemma4", "generic"),
    ],
)
def test_auto_on_real_templates(template, name):
    assert chosen(trl_template(template)) == name


LLAMA_3 = CHATML.replace("<|im_start|>", "<|start_header_id|>")
KNOWS_THINKING = "{# drops what stands before </think> #}"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (SWITCH, "qwen3"),
        (SYSTEM_SWITCH + KNOWS_THINKING, "nemotron_v2"),
        # reads no variable from outside, whatever its own is called
        ("{% set enable_thinking = true %}" + SYSTEM_SWITCH + KNOWS_THINKING, "nemotron_v2"),
        (LLAMA_3 + KNOWS_THINKING, "nemotron"),
        (LLAMA_3, "generic"),
        (VARIABLE + "{# <｜Assistant｜> #}", "deepseek_v3_1"),
        (ALWAYS_OPEN, "deepseek_r1"),
        (CHATML, "generic"),
        (None, "generic"),
    ],
)
def test_auto_on_templates_of_our_own_words(template, name):
    assert chosen(template) == name


def test_the_configs_docstring_names_the_families():
    described = ModelConfig.model_fields["family"].description
    assert described
    assert all(f"`{name}`" in described for name in ("auto", *built_in_families()))


def test_auto_says_which_family_it_took_and_why(caplog):
    with caplog.at_level(logging.INFO, logger="mralign_core.generation"):
        chosen(SWITCH)
    assert caplog.messages == [
        "model.family auto: qwen3, because the chat template holds 'enable_thinking' and 'think>'"
    ]


@pytest.mark.parametrize(("template", "is_warned"), [("gemma4", True), ("llama3_2", False), ("qwen3", False)])
def test_auto_warns_where_a_model_may_think_in_a_way_of_its_own(template, is_warned, caplog):
    chosen(trl_template(template))
    assert ("docs/model-families.md" in caplog.text) == is_warned


def test_a_family_without_effect_on_the_template_is_refused():
    assert chosen(SWITCH, "qwen3") == "qwen3"
    with pytest.raises(ConfigError, match=r"model\.family 'qwen3' has no effect.*YAML file"):
        chosen(CHATML, "qwen3")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"did you mean 'qwen3'\?.*one of gpt_oss, qwen3,"):
        named_family("qwen")


def test_a_family_of_the_users_own(tmp_path):
    (tmp_path / "gemma4.yaml").write_text(GEMMA4)
    path = str(tmp_path / "gemma4.yaml")
    tokenizer = build_bpe(chat_template=trl_template("gemma4"))
    tokenizer.bos_token = "<|im_start|>"
    family = family_of(ModelConfig(family=path), tokenizer)
    on, off = (render_prompt(tokenizer, "Who?", mode, family, "").text for mode in ("on", "off"))
    assert "<|think|>" in on and "<|think|>" not in off
    parsed = parse_completion("<|channel>thought\nHm.<channel|>Austen", family.tags, thinking_mode="on")
    assert (parsed.thinking, parsed.answer) == ("Hm.", "Austen")


def test_the_one_shot_family_begins_the_thinking_and_its_example_is_a_trace_of_the_asked_form():
    family = named_family(str(ONE_SHOT))
    tokenizer = build_bpe(chat_template=CHATML)
    require_chat_endpoint(tokenizer, family, "")
    on, off = (render_prompt(tokenizer, "Who?", mode, family, "").text for mode in ("on", "off"))
    assert on.count("Question: Who?") == off.count("Question: Who?") == 1
    assert opened_by_prompt(on, family) and "think" not in off
    example = on[on.index("<think>\n") : on.index("\n\nNow this one.")]
    parsed = parse_completion(example, family.tags, thinking_mode="on")
    assert (parsed.outcome, parsed.answer) == ("ok", "carbon dioxide")
    assert parsed.thinking and len(split_segments(parsed.thinking)) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a\nthink_opn: <t>", "think_opn: Extra inputs are not permitted"),
        ("name: a", "mode_on and mode_off are the same"),
        ("mode_off: {prefill: x}", "name: Field required"),
        ("name: a\nmode_off: {system: 5}", "mode_off.system: Input should be a valid string"),
        ("name: a\nthink_open: ''\nmode_off: {prefill: x}", "think_open: String should have at least 1 character"),
        ("name: a\nlayout: '{answer}'\nmode_off: {prefill: x}", "layout must begin with think_open and hold"),
        ("[1]", "file: Input should be a valid dictionary"),
        ("name: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_fields(tmp_path, text, problem):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_family(path)
    assert problem in str(error.value) and f"model.family: {path}" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.family: .*gone\.yaml does not exist"):
        named_family(str(tmp_path / "gone.yaml"))


def test_an_entry_of_the_table_is_a_valid_file(tmp_path):
    table = yaml.safe_load(resources.files("mralign_core.models.families").joinpath("families.yaml").read_text())
    for name, fields in table.items():
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": name, **fields}))
        assert load_family(tmp_path / "own.yaml") == named_family(name)


def test_fingerprints_hold_what_can_change_a_prompt(tmp_path):
    assert set(family_fingerprint(ModelConfig())) == set(built_in_families())
    assert family_fingerprint(ModelConfig(family="qwen3")) == named_family("qwen3").model_dump()
    path = tmp_path / "own.yaml"
    path.write_text(GEMMA4)
    before = family_fingerprint(ModelConfig(family=str(path)))
    path.write_text(GEMMA4.replace("your thoughts", "thoughts"))
    assert family_fingerprint(ModelConfig(family=str(path))) != before


WORDS = st.text("ab .\n{}é", min_size=1, max_size=20).filter(str.strip)


@given(st.sampled_from(FAMILIES), WORDS, WORDS, st.booleans(), st.booleans())
def test_a_written_completion_reads_as_its_parts(family, thinking, answer, opened, tagged):
    written = f"{family.answer_open}{answer}{family.answer_close}" if tagged else answer
    completion = family.write_completion(thinking, written, opened_by_prompt=opened)
    parsed = parse_completion(completion, family.tags, thinking_mode="on", opened_by_prompt=opened)
    assert parsed.thinking
    assert (parsed.thinking.strip(), parsed.answer) == (thinking.strip(), answer.strip())
    assert parsed.outcome == ("ok" if tagged else "untagged_answer")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_parts_that_are_missing(family):
    def outcome(thinking, answer, mode="on"):
        text = family.write_completion(thinking, answer, opened_by_prompt=False)
        return parse_completion(text, family.tags, thinking_mode=mode).outcome

    assert outcome("Hm.", None) == "unclosed_thinking"
    assert outcome("Hm.", "") == "no_answer"
    assert outcome(None, "Austen") == "no_thinking"
    assert outcome(None, "Austen", "off") == "untagged_answer"
    assert outcome(None, None, "off") == "no_answer"


def test_the_default_instruction_names_every_familys_place():
    for family in FAMILIES:
        text = render_prompt(build_bpe(chat_template=CHATML), "Who?", "on", family, GenerateConfig().instruction).text
        place = family.think_words or f"{family.think_open}{family.think_close}"
        assert f"first, inside {place}, then" in text


@pytest.mark.parametrize("module", [table, prompts], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_generic_is_the_last_resort():
    assert list(built_in_families())[-1] == GENERIC.name
    with pytest.raises(ValueError, match="the same"):
        Family(name="x")
