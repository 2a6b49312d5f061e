"""Embedders: lexical, an endpoint over real HTTP, and a real sentence-transformers model on disk."""

import json
import sys

import numpy as np
import pytest
from chat_server import Turn, fails, hangs_up
from open_vocabulary import embed_all

from mralign_core.config import InduceConfig
from mralign_core.errors import BudgetError, ConfigError, DataError, UserError
from mralign_core.induction.embedding import embed
from mralign_core.induction.embedding_endpoint import Embeddings
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger
from tests.kept_replies import MemoryReplyStore

PHRASES = ["recall fact", "check claim", "retrieve fact", "state answer", "verify claim"]


def remote(server, **settings):
    prices = {"input_usd_per_million": 1e6, "output_usd_per_million": 0}
    endpoint = {"model": "openai/embedder", "api_base": server.url, "max_attempts": 3} | prices
    return InduceConfig(embedder="endpoint", embedding=endpoint | settings, embedding_batch_size=2)


def ask(section, replies=None, ledger=None, phrases=PHRASES):
    kept = MemoryReplyStore() if replies is None else replies
    client = LLMClient(kept, concurrency=4, ledger=ledger, first_pause_s=0.01, service=Embeddings())
    return embed(phrases, section, client)


def test_ngrams_see_shared_words_and_not_meaning():
    vectors = embed(PHRASES, InduceConfig()).vectors
    likeness = vectors @ vectors.T
    assert np.diag(likeness) == pytest.approx(np.ones(5))
    assert likeness[0, 2] > 0.2 and likeness[0, 3] < 0.1


def test_an_endpoint_is_asked_in_batches_and_its_vectors_go_to_their_texts(server):
    server.script = lambda request, _: embed_all(request)
    vectors, cost_usd = ask(remote(server))
    assert sorted(len(request["input"]) for request in server.requests) == [1, 2, 2]
    likeness = vectors @ vectors.T
    assert np.diag(likeness) == pytest.approx(np.ones(5))
    assert likeness[0, 2] > 0.99 > likeness[0, 1] and likeness[1, 4] > 0.99
    assert cost_usd == pytest.approx(15.0)


def test_replies_are_kept_and_not_paid_for_again(server):
    server.script = lambda request, _: embed_all(request)
    replies = MemoryReplyStore()
    first = ask(remote(server), replies)
    again = ask(remote(server), replies)
    assert len(server.requests) == 3 and again.cost_usd == 0
    assert np.array_equal(first.vectors, again.vectors)


@pytest.mark.parametrize(
    "fault",
    [fails(429, headers={"Retry-After": "0.1"}), fails(500), fails(503), hangs_up(), hangs_up(20)],
    ids=["429", "500", "503", "hang-up", "cut"],
)
def test_what_can_pass_is_tried_again(server, fault):
    server.script = lambda request, number: fault if number == 0 else embed_all(request)
    assert ask(remote(server), phrases=PHRASES[:2]).vectors.shape == (2, 3)
    assert len(server.requests) == 2


def test_an_endpoint_that_stays_away_ends_the_run_after_its_attempts(server):
    server.play(fails(500))
    with pytest.raises(EndpointUnavailableError, match="3 attempt"):
        ask(remote(server), phrases=PHRASES[:2])
    assert len(server.requests) == 3


def test_what_cannot_pass_is_not_repeated(server):
    server.play(fails(401))
    with pytest.raises(UserError, match="API key"):
        ask(remote(server), phrases=PHRASES[:2])
    assert len(server.requests) == 1


def test_the_budget_holds_for_embeddings_too(server):
    server.script = lambda request, _: embed_all(request)
    with pytest.raises(BudgetError, match=r"induce\.budget_usd"):
        ask(remote(server), ledger=Ledger(ceiling_usd=1.0, ceiling_field="induce.budget_usd"))
    assert not server.requests


def broken(vectors):
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return Turn({"object": "list", "model": "embedder", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})


@pytest.mark.parametrize(
    "vectors",
    [[], [[1.0, 2.0]], [[1.0, 2.0], [1.0]], [[1.0, 2.0], [0.0, 0.0]]],
    ids=["none", "too-few", "ragged", "zero"],
)
def test_vectors_that_cannot_be_used_are_asked_for_once_more(server, vectors):
    server.script = lambda request, number: broken(vectors) if number == 0 else embed_all(request)
    assert ask(remote(server), phrases=PHRASES[:2]).vectors.shape == (2, 3)
    server.play(broken(vectors))
    with pytest.raises(DataError, match=r"induce\.embedding.*can't be used"):
        ask(remote(server), phrases=PHRASES[:2])


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mr-align\[embeddings\]'"):
        embed(PHRASES, InduceConfig(embedder="some/model"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A BERT of random weights with mean pooling, as sentence-transformers saves one."""
    why = "package sentence-transformers (extra `embeddings`) is not installed"
    models = pytest.importorskip("sentence_transformers", reason=why)
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for phrase in PHRASES for word in phrase.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16}))
    model = models.SentenceTransformer(str(folder))
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"


def test_a_sentence_transformers_model_is_loaded_from_its_folder(tiny_model):
    vectors = embed([*PHRASES, PHRASES[0]], InduceConfig(embedder=str(tiny_model))).vectors
    assert vectors.shape == (6, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6))
    assert vectors[0] == pytest.approx(vectors[5], abs=1e-5)
    assert abs(vectors[0] - vectors[1]).max() > 0.01


def test_a_folder_without_a_model_is_named(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"induce\.embedder.*nothing"):
        embed(PHRASES, InduceConfig(embedder=str(tmp_path / "nothing")))


@pytest.mark.parametrize("fault", [hangs_up(), hangs_up(20), fails(500), Turn("<html>")])
def test_an_attempt_at_embeddings_whose_reply_is_lost_counts_as_billed(server, fault):
    server.script = lambda request, number: fault if number == 0 else embed_all(request)
    ledger = Ledger(ceiling_usd=1000)
    priced = {"input_usd_per_million": 1_000_000, "output_usd_per_million": 0}
    ask(remote(server, **priced), phrases=PHRASES[:2], ledger=ledger)
    [usage] = ledger.usage.values()
    assert usage.lost_usd >= sum(len(phrase.encode()) for phrase in PHRASES[:2]) and usage.set_aside_usd == 0
