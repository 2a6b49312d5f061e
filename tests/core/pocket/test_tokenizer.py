from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.names import ENTITY_NAMES
from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import build_world

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def texts(world):
    generator = np.random.default_rng(0)
    traces = [write_trace(world, question, generator).completion for question in world.questions]
    return [question.text for question in world.questions] + traces


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_loads_as_a_fast_tokenizer_with_the_same_vocabulary(tokenizer, loaded):
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.decode([loaded.eos_token_id]) == "<|im_end|>"


def test_every_text_of_the_world_is_in_the_vocabulary_and_comes_back(loaded, texts):
    encoded = loaded(texts, add_special_tokens=False)["input_ids"]
    assert not any(loaded.unk_token_id in ids for ids in encoded)
    assert loaded.batch_decode(encoded) == texts


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
def test_encoding_inverts_decoding(ids):
    text = TOKENIZER.decode(ids)
    assert text == "".join(TOKENIZER.convert_ids_to_tokens(ids))
    assert TOKENIZER(text)["input_ids"] == ids


def test_offsets_cover_the_text_without_gaps(loaded, texts):
    for text in texts[::50]:
        encoded = loaded(text, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        assert [text[start:end] for start, end in offsets] == loaded.convert_ids_to_tokens(encoded["input_ids"])
        assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
        assert all(before[1] == after[0] for before, after in pairwise(offsets))


def test_entities_and_tags_are_single_tokens(loaded):
    names = [f" {name}" for group in ENTITY_NAMES.values() for name in group]
    for text in [*names, "<think>", "</think>", "<answer>", "</answer>", "\n\n"]:
        assert loaded.tokenize(text) == [text]


def test_unknown_words_become_the_unknown_token(loaded):
    assert loaded.unk_token_id in loaded("What is the capital of France?")["input_ids"]


def test_tags_survive_skipping_special_tokens(loaded):
    ids = loaded("<think>Wait</think><|im_end|>")["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == "<think>Wait</think>"


@pytest.mark.parametrize(("enable_thinking", "ending"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_chat_template_in_both_modes(loaded, enable_thinking, ending):
    messages = [{"role": "user", "content": "What is the river of Kilton?"}]
    prompt = loaded.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    turn = "<|im_start|> user\n\nWhat is the river of Kilton?<|im_end|><|im_start|> assistant\n\n"
    assert prompt == turn + ending
    ids = loaded.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=enable_thinking, return_dict=False
    )
    assert ids == loaded(prompt)["input_ids"]
    assert loaded.unk_token_id not in ids


def test_thinking_is_on_unless_it_is_switched_off(loaded):
    messages = [{"role": "user", "content": "What is the river of Kilton?"}]
    default = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert default.endswith("<|im_start|> assistant\n\n")


def test_vocabulary_does_not_depend_on_the_world(tokenizer):
    texts = [question.text for question in build_world(seed=9).questions]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])
