"""What makes a model unfit, found out before anything is spent."""

import json
import sys

import pytest
import torch
from chat_templates import ALWAYS_OPEN, CHATML, SWITCH, trl_template
from random_models import build_bpe, build_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import BertConfig, BertModel, LlavaNextConfig, T5Config

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.check_template import check_rendering
from mralign_core.generation.checking import check_tokens, check_weights
from mralign_core.generation.template_probe import probe_template
from mralign_core.models.families import GENERIC, named_family
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.locate import ModelLocation

INSTRUCTION = GenerateConfig().instruction
AUTO = ModelConfig()


def saved(folder, tokenizer=None, *, architecture="qwen3", rows=None, **options):
    tokenizer = tokenizer or build_bpe()
    build_model(architecture, rows or len(tokenizer)).save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "gemma3", "gpt_oss"])
def test_a_whole_model_is_fit(tmp_path, architecture):
    check_weights(saved(tmp_path, architecture=architecture))


def test_a_model_in_several_files_is_fit_until_one_is_gone(tmp_path):
    check_weights(saved(tmp_path, max_shard_size="20kB"))
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ConfigError, match=r"1 of \d files of weights are missing, such as model-00002-of"):
        check_weights(tmp_path)


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    no_weights(folder)


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def pointer_of_git_lfs(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def not_finite(folder):
    edit_weights(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))


def infinite(folder):
    edit_weights(folder, lambda weights: weights["lm_head.weight"][3].fill_(float("inf")))


def tensor_missing(folder):
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))


def of_other_sizes(folder):
    edit_json(folder / "config.json", vocab_size=400)


def of_an_encoder(folder):
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)


def with_code(folder):
    edit_json(
        folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    )
    (folder / "own.py").write_text("raise SystemExit('executed')")


def broken_config(folder):
    (folder / "config.json").write_text("{")


def broken_index(folder):
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_weights, r"has no weights in safetensors\. Name"),
        (pickled, r"only pytorch_model\.bin, which could execute code and is not loaded"),
        (truncated, r"model\.safetensors is damaged"),
        (pointer_of_git_lfs, r"model\.safetensors is damaged"),
        (not_finite, r"'model\.norm\.weight' in model\.safetensors holds NaN"),
        (infinite, r"'lm_head\.weight' in model\.safetensors holds NaN or infinite"),
        (tensor_missing, r"1 weight\(s\).*'model\.norm\.weight' is in no file"),
        (of_other_sizes, r"'lm_head\.weight' is \[344, 32\], not \[400, 32\]"),
        (of_an_encoder, r"weight\(s\) are not those of the model"),
        (with_code, "needs code of its own, and none from a model's folder is executed"),
        (broken_config, "holds no causal language model"),
        (broken_index, r"index\.json can't be read"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path, spoil, reason):
    spoil(saved(tmp_path))
    with pytest.raises(ConfigError, match=rf"(?s)model\.path.*{reason}"):
        check_weights(tmp_path)


def test_weights_that_are_missing_are_never_made_up(tmp_path):
    tensor_missing(saved(tmp_path))
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' is in no file"):
        load_model_and_tokenizer(tmp_path, "float32", "cpu")


def location(folder):
    return ModelLocation(str(folder), "")


def test_think_tags_without_rows_are_refused_with_both_sizes(tmp_path):
    tokenizer = build_bpe()
    rows = len(tokenizer) - 2
    with pytest.raises(
        ConfigError, match=rf"'<think>' \({rows}\), '</think>' .*{rows + 2} tokens, the embedding {rows} rows"
    ):
        check_tokens(location(saved(tmp_path, tokenizer, rows=rows)), tokenizer, named_family("qwen3"))


def test_words_without_rows_and_tokens_that_the_template_writes_are_refused(tmp_path):
    tokenizer = build_bpe()
    folder = location(saved(tmp_path, tokenizer))
    tokenizer.add_tokens(["Isfahan"])
    with pytest.raises(ConfigError, match=r"1 token\(s\) without a row in the model: 'Isfahan'"):
        check_tokens(folder, tokenizer, GENERIC)
    tokenizer = build_bpe(chat_template=CHATML.replace("<|im_end|>", "<|eot|>"))
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    with pytest.raises(ConfigError, match=r"'<\|eot\|>'"):
        check_tokens(folder, tokenizer, GENERIC)


@pytest.mark.parametrize("config", [T5Config(), LlavaNextConfig()], ids=["t5", "llava_next"])
def test_a_model_that_is_no_causal_one_is_refused_by_its_config(tmp_path, config):
    """As of the hub, whose weights are not looked at."""
    build_bpe(chat_template=CHATML).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no causal language model that can be loaded: .*(T5|LlavaNext)Config"):
        check_tokens(location(tmp_path), build_bpe(chat_template=CHATML), GENERIC)


def test_a_token_that_no_text_has_needs_no_row(tmp_path):
    """As Gemma 3's text models, whose tokenizer has an image token."""
    tokenizer = build_bpe()
    folder = location(saved(tmp_path, tokenizer))
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True)])
    check_tokens(folder, tokenizer, GENERIC)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("end", [99_999, [3, 344]])
def test_end_tokens_of_another_tokenizer_are_refused(tmp_path, file, end):
    tokenizer = build_bpe()
    edit_json(saved(tmp_path, tokenizer) / file, eos_token_id=end)
    with pytest.raises(ConfigError, match=r"end token\(s\) \[(99999|344)\]"):
        check_tokens(location(tmp_path), tokenizer, GENERIC)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    saved(tmp_path)
    for file in tmp_path.glob("token*"):
        file.unlink()
    _, tokenizer = load_model_and_tokenizer(tmp_path, "float32", "cpu")
    with pytest.raises(ConfigError, match="no tokenizer that can write text"):
        check_tokens(location(tmp_path), tokenizer, GENERIC)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        SWITCH,
        ALWAYS_OPEN,
        None,
        *map(trl_template, ["qwen3", "gptoss", "llama3_2", "gemma3", "glm4moe", "phi3"]),
    ],
)
def test_templates_of_text_models_hand_the_question_on(template):
    tokenizer = build_bpe(chat_template=template)
    tokenizer.bos_token = "<|im_start|>"
    for instruction in (INSTRUCTION, ""):
        check_rendering(tokenizer, AUTO, instruction)


CONTENT = "m.content"
UNFIT = {
    "list content": trl_template("llava_next"),
    "list content 2": trl_template("idefics3"),
    "list content 3": trl_template("smolvlm"),
    "cut off": CHATML.replace(CONTENT, "m.content[:1000]"),
    "case": CHATML.replace(CONTENT, "m.content | lower"),
    "escaped": CHATML.replace(CONTENT, "m.content | e"),
    "json": CHATML.replace(CONTENT, "m.content | tojson"),
    "first line": CHATML.replace(CONTENT, "m.content.split('\\n')[0]"),
    "blanks": CHATML.replace(CONTENT, "m.content.split() | join(' ')"),
    "without the instruction": CHATML.replace(CONTENT, "m.content.split('Question: ')[-1]"),
    "constant": "Hello",
    "twice": CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}"),
    "raises": "{{ raise_exception('only tools') }}",
    "no template": "{% for",
    "undefined": "{{ messages[0].content.text.x }}",
    "tools": CHATML + "{{ tools[0].name }}",
    "chance": CHATML + "{{ range(100000) | random }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "megabyte": CHATML + "{{ 'a ' * 500000 }}",
}


@pytest.mark.parametrize("kind", UNFIT)
def test_templates_that_do_not_are_refused_with_the_remedy(kind):
    with pytest.raises(ConfigError, match=r"(?s)chat template.*chat_template\.jinja"):
        check_rendering(build_bpe(chat_template=UNFIT[kind]), AUTO, INSTRUCTION)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + CHATML,
        "{{ 'a' * 10**10 }}" + CHATML,
    ],
)
def test_a_template_without_end_is_refused_in_bounded_time_and_memory(tmp_path, template):
    saved(tmp_path, build_bpe(chat_template=template))
    with pytest.raises(ConfigError, match="takes more than 5 s or 2048 MiB for a plain question"):
        probe_template(tmp_path, "", AUTO, INSTRUCTION)


def test_a_probe_says_what_checking_says(tmp_path):
    saved(tmp_path)
    probe_template(tmp_path, "", AUTO, INSTRUCTION)
    build_bpe(chat_template="Hello").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a prompt without the question"):
        probe_template(tmp_path, "", AUTO, INSTRUCTION)


def test_a_probe_that_fails_by_itself_is_not_told_as_slow(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setattr(sys, "executable", str(failing_python(tmp_path)))
    with pytest.raises(ConfigError, match=r"could not be tried.*exit code 1.*ImportError: no library") as refused:
        probe_template(tmp_path, "", AUTO, INSTRUCTION)
    assert "takes more than" not in str(refused.value)


def failing_python(folder):
    program = folder / "python"
    program.write_text("#!/bin/sh\necho 'ImportError: no library' >&2\nexit 1\n")
    program.chmod(0o700)
    return program
