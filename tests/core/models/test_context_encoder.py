"""Vectors of segments by a language model that reads their trace: which tokens, in what context, of which layer."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mralign_core.errors import ConfigError
from mralign_core.models.context_encoder import (
    WINDOW,
    holds_language_model,
    load_context_encoder,
    mean_states,
)
from tests.core.training.tiny import make_model, make_tokenizer

TRACE = ["w1 w2 w3", "w4 w5", "w6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model("qwen3").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_of_a_middle_layers_states(folder):
    encode = load_context_encoder(str(folder), "distil.encoder", "leave it out")
    model, tokenizer = make_model("qwen3"), make_tokenizer()
    ids = tokenizer(" ".join(TRACE), add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    wanted = [states[start:end].mean(dim=0).numpy() for start, end in ((0, 3), (3, 5), (5, 6))]
    np.testing.assert_allclose(encode(TRACE), wanted, atol=1e-5)


def test_what_comes_before_counts_and_what_comes_after_does_not(folder):
    encode = load_context_encoder(str(folder), "distil.encoder", "leave it out")
    whole, first, other = encode(TRACE), encode(TRACE[:1]), encode(["w9 w9 w9", *TRACE[1:]])
    np.testing.assert_allclose(first[0], whole[0], atol=1e-5)
    assert np.abs(other[1] - whole[1]).max() > 1e-2
    assert encode(["", "w1"]).shape == (2, 32), "a segment without tokens has a vector too"


def test_long_traces_are_read_in_windows_that_look_back():
    read = []

    def states(ids):
        read.append((ids[0], len(ids)))
        return np.array(ids, dtype=float)[:, None]

    segments = [list(range(start, start + 10)) for start in range(0, 3000, 10)]
    np.testing.assert_allclose(mean_states(segments, states)[:, 0], np.arange(300) * 10 + 4.5)
    assert read[:2] == [(0, WINDOW), (WINDOW * 3 // 4, WINDOW)] and all(length <= WINDOW for _, length in read)


def test_a_model_of_few_positions_reads_no_more_of_them(tmp_path):
    sizes = {"n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(make_tokenizer()), **sizes)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert holds_language_model(str(tmp_path))
    encode = load_context_encoder(str(tmp_path), "distil.encoder", "leave it out")
    assert np.isfinite(encode(20 * TRACE)).all()


def test_a_folder_is_a_language_models_unless_it_is_a_sentence_encoders(folder, tmp_path):
    assert holds_language_model(str(folder)) and not holds_language_model("")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}), encoding="utf-8")
    assert not holds_language_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}), encoding="utf-8")
    assert holds_language_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)distil\.encoder: .* can't be loaded .*or leave it out"):
        load_context_encoder(str(tmp_path), "distil.encoder", "leave it out")
    for damaged in ("[]", "{", "\udcff"):
        (tmp_path / "config.json").write_text(damaged, encoding="utf-8", errors="surrogateescape")
        assert not holds_language_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}), encoding="utf-8")
    (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
    assert not holds_language_model(str(tmp_path))
