"""Sampling in shards: what a shard leaves in the account, and how far all shards are."""

import json

import pytest
from chat_server import ChatServer, says

from mralign_core.config import RunConfig
from mralign_core.generation.sampling import Tally
from mralign_core.storage import ArtifactStore
from tasks.clients import read_account
from tasks.generate import sample_shard
from tasks.prepare import load_questions, prepare_model
from tasks.sampling import Sampled
from tests.core.generation.random_models import build_bpe, build_model

QUESTIONS = ["Seat of Iran?", "Who wrote Emma?"]


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def config(server, tmp_path):
    """Questions that a server of the user's own answers, which costs nothing."""
    rows = [json.dumps({"question": text, "answer": "Tehran"}) for text in QUESTIONS]
    (tmp_path / "asked.jsonl").write_text("\n".join(rows))
    tokenizer = build_bpe()
    build_model("qwen3", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    free = {"input_usd_per_million": 0, "output_usd_per_million": 0}
    return RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "model": {"path": str(tmp_path / "model"), "device": "cpu"},
            "questions": {"train": str(tmp_path / "asked.jsonl")},
            "generate": {
                "sampler": "endpoint",
                "endpoint": {"model": "openai/m", "api_base": server.url, **free},
                "num_draws": 2,
                "draws": "exhaustive",
            },
        }
    )


def test_free_requests_of_an_endpoint_are_in_the_ledger(config, server):
    server.play(says("<think>\nIt is Tehran.\n</think>\n\n<answer>Tehran</answer>"))
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    shard = sample_shard.run_here(config, questions, model, rows=[0, 1])
    store = ArtifactStore(config.storage)
    assert store.manifest(shard).counts["draws"] == len(server.requests) == 8
    account = read_account(store, f"generate/{questions.sha256}")
    assert account["requests"].tolist() == [8] and account["cost_usd"].tolist() == [0]


def test_the_sum_over_shards_stands_while_another_thread_adds_a_shard():
    sampled = Sampled()

    class Meanwhile(Tally):
        def __radd__(self, other):
            sampled.shards[512] = Tally(questions=1)
            return Tally.__add__(other, self)

    assert sampled.update(0, Meanwhile(questions=2)) == Tally(questions=2)
    assert sampled.update(256, Tally(questions=3)).questions == 6


def test_no_speed_is_told_before_there_is_one(monkeypatch):
    """A slow server's first reply, after minutes, was "131,153 tokens/s"."""
    now = 1000.0
    monkeypatch.setattr("tasks.sampling.time.monotonic", lambda: now)
    sampled = Sampled()
    assert "tokens/s" not in sampled.note(sampled.update(0, Tally(tokens=500)), 80)
    now += 10
    assert sampled.note(sampled.update(0, Tally(tokens=530)), 80).startswith("3 tokens/s")
