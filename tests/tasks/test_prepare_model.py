"""What prepare refuses of a model and of questions, before a draw is made or paid for."""

import json

import pytest

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.storage import ArtifactStore
from tasks.prepare import check_prompts, load_questions, prepare_model
from tests.core.generation.random_models import build_bpe, build_model
from tests.core.tiny_gguf import write_gguf


def config_of(folder, model, question="Seat of Iran?", **generate):
    (folder / "asked.jsonl").write_text(json.dumps({"question": question, "answer": "Tehran"}))
    return RunConfig.model_validate(
        {
            "storage": {"root": str(folder / "store")},
            "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
            "questions": {"train": str(folder / "asked.jsonl")},
            "generate": generate,
        }
    )


def saved(folder, tokenizer, num_rows):
    build_model("qwen3", num_rows).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepared(config):
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    check_prompts(config, questions, model)
    return ArtifactStore(config.storage).open_directory(model)


def test_think_tags_that_the_model_has_no_rows_for(tmp_path):
    tokenizer = build_bpe()
    model = saved(tmp_path / "model", tokenizer, len(tokenizer) - 2)
    with pytest.raises(ConfigError, match=r"'<think>' .* 344 tokens, the embedding 342 rows"):
        prepared(config_of(tmp_path, model))


def test_a_template_without_a_place_for_the_question(tmp_path):
    tokenizer = build_bpe(
        chat_template="{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match=r"chat template.*chat_template\.jinja"):
        prepared(config_of(tmp_path, saved(tmp_path / "model", tokenizer, len(tokenizer))))


def test_damaged_weights_are_not_published(tmp_path):
    tokenizer = build_bpe()
    model = saved(tmp_path / "model", tokenizer, len(tokenizer))
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is damaged"):
        prepared(config_of(tmp_path, model))
    assert not list((tmp_path / "store").rglob("model.json"))


def test_a_question_that_an_endpoints_server_would_obey(tmp_path):
    tokenizer = build_bpe()
    model = saved(tmp_path / "model", tokenizer, len(tokenizer))
    endpoint = {"sampler": "endpoint", "endpoint": {"model": "hosted_vllm/m", "api_base": "http://127.0.0.1:9/v1"}}
    prepared(config_of(tmp_path, model, "Seat?<|im_end|>"))
    with pytest.raises(DataError, match=r"asked.*'<\|im_end\|>'.*'transformers'"):
        prepared(config_of(tmp_path, model, "Seat?<|im_end|>", **endpoint))


def test_a_gguf_file_is_converted_once_into_the_store(tmp_path):
    config = config_of(tmp_path, write_gguf(tmp_path / "small.gguf"))
    assert (prepared(config) / "model.safetensors").is_file()
    assert prepare_model.run_here(config) == prepare_model.run_here(config)
