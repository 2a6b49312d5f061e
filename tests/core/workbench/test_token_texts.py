"""Tokens of a trace with their texts, weights and log-probabilities, from what is on this machine."""

import dataclasses
import json
import time

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.decoders import ByteLevel as BytesTogether
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel

from mralign_core.storage import key_of
from mralign_core.workbench import token_texts as texts
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.token_texts import NoTokenizerError, read_tokens, token_texts, tokenizer_of

WORDS = {f"w{number}": number for number in range(50_000)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder, as far as the workbench reads it."""
    folder = tmp_path_factory.mktemp("model")
    Tokenizer(WordLevel(WORDS, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def with_model(run, store, tmp_path):
    """The run with a model that is a pointer, or a folder of its own."""

    def with_model(**pointer):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "model.json").write_text(json.dumps(pointer))
        ref = store.publish("pointer", key_of(**pointer), tmp_path / "made", parents=[], fingerprint={})
        return dataclasses.replace(run, artifacts={**run.artifacts, "model": ref}, _opened={})

    return with_model


def test_a_character_in_several_tokens_is_told_once_and_control_tokens_are_shown():
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({each: place for place, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), BytesTogether()
    tokenizer.add_special_tokens(["<end>"])
    ids = [*tokenizer.encode("a é 鱻").ids, tokenizer.token_to_id("<end>"), None]
    assert token_texts(tokenizer, ids) == ["a", " ", "", "é", " ", "", "", "鱻", "<end>", ""]


@pytest.fixture(scope="module")
def fallback():
    """A tokenizer as Llama's: a character that it has no token for is a token a byte."""
    words = ["▁a", "b", "<0xE9>", "<0xB1>", "<0xBB>"]
    tokenizer = Tokenizer(BPE({each: place for place, each in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    return tokenizer


def test_a_broken_character_behind_a_whole_one_is_shown_as_broken(fallback):
    a, b, first, second, third = range(5)
    ids = [first, second, third, first, b, b, first, second, third]
    assert token_texts(fallback, ids) == ["", "", "鱻", "", "�b", "b", "", "", "鱻"]
    assert token_texts(fallback, [a, first, second, third, a]) == ["a", "", "", "鱻", " a"]


def test_thousands_of_bytes_that_are_no_character_take_no_longer_than_as_many_that_are(fallback):
    started = time.process_time()
    texts = token_texts(fallback, [2] * 4_000 + [0])
    assert time.process_time() - started < 0.5  # all decoded with each: seconds
    assert "".join(texts).count("�") == 4_000 and texts[-1] == "a"


def test_every_token_has_its_text_its_weight_and_its_log_probabilities(with_model, folder, store, run):
    tables = with_model(path=str(folder), revision="x")
    tokens = read_tokens(shared_database(), tables, "trace-000007")
    row = store.read_table(run.artifacts["candidates"], "candidates.parquet").iloc[7]
    assert [text.strip() for text in tokens["texts"]] == [f"w{each}" for each in row["completion_ids"]]
    assert not tokens["problem"]
    weights = store.read_table(run.artifacts["weights"], "weights.parquet")
    own = weights[weights["trace_id"] == "trace-000007"]["weight"].tolist()
    for place, span in enumerate(row["segments"]):
        assert tokens["weights"][span["token_start"]] == pytest.approx(own[place])
    assert tokens["weights"][row["segments"][-1]["token_end"] :] == [1.0] * 4
    after = store.read_table(run.artifacts["policy-logps:mr_align"], "policy.parquet").iloc[7]
    assert tokens["after"] == {"mr_align": after["logps"]} and len(tokens["before"]) == len(tokens["texts"])


def test_without_a_tokenizer_on_this_machine_the_page_says_why(get, run, with_model, tmp_path, monkeypatch):
    tokens = get("tokens", id="trace-000007").json()
    assert tokens["texts"] is None and "notes no model" in tokens["problem"] and len(tokens["weights"]) == 24
    with pytest.raises(NoTokenizerError, match=r"gone/tokenizer.json, .*is not on this machine"):
        tokenizer_of(with_model(path=str(tmp_path / "gone"), revision="x"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NoTokenizerError, match=r"Qwen/Qwen3-8B@abc, .*not in the hub's cache"):
        tokenizer_of(with_model(path="Qwen/Qwen3-8B", revision="abc"))
    for path in ("a/b/c", "..", ""):  # names that the hub has not
        with pytest.raises(NoTokenizerError, match="not in the hub's cache"):
            tokenizer_of(with_model(path=path, revision=""))
    asked = []
    monkeypatch.setattr(texts, "try_to_load_from_cache", lambda *_, **more: asked.append(more["revision"]))
    for revision in ("../../elsewhere", "main"):
        with pytest.raises(NoTokenizerError):
            tokenizer_of(with_model(path="Qwen/Qwen3-8B", revision=revision))
    assert asked == ["main"]
    (tmp_path / "tokenizer.json").write_text("{}")
    texts._load.cache_clear()
    with pytest.raises(NoTokenizerError, match="can't be read by package tokenizers"):
        tokenizer_of(with_model(path=str(tmp_path), revision="y"))
    assert get("tokens", id="trace-9").status_code == 404
