"""Real files of seven sets in one evaluation: a tiny model that learnt their answers, judges over HTTP, the table."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer
from transformers import Qwen3Config, Qwen3ForCausalLM

from mralign_core.config import RunConfig
from mralign_core.generation.prompts import render_prompt
from mralign_core.models.families import family_of
from mralign_core.reporting.judged_findings import judged_tables, read_judged
from mralign_core.reporting.run_findings import read_results
from mralign_core.reporting.set_table import set_table
from mralign_core.storage import ArtifactStore
from tasks.evaluate import collect_scores, compute_results, score_shard
from tasks.prepare import load_evaluation_questions, prepare_model
from tests.core.generation.random_models import build_bpe
from tests.judging import PRICE, check_claims, judge_by_references, shown_in
from tests.stages import judge_all, make_in_shards

REAL_DATA = os.environ.get("MRALIGN_REAL_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL_DATA, reason="MRALIGN_REAL_DATA names no folder with real question sets"),
]
FILES = {
    "nq_open": "nq_open/NQ-open.dev.jsonl",
    "sciq": "sciq/test.csv",
    "simpleqa": "simpleqa/simple_qa_test_set.csv",
    "truthfulqa": "truthfulqa/TruthfulQA.csv",
    "longfact": "longfact",
    "gsm8k": "gsm8k/test.300.jsonl",
    "commonsense_qa": "commonsenseqa/dev_rand_split.jsonl",
}
VARIANTS = ("off", "on", "self_refine")
CLAIMS = ["The moon of Rome is red. The moon of Oslo is blue.", "The moon of Oslo is blue."]
"""Its answers to LongFact's two prompts; what it says of Oslo stands in the collection."""


@pytest.fixture
def server():
    server = ChatServer()
    server.script = lambda request, number: (
        check_claims(request) if {"sentence", "claim"} & shown_in(request).keys() else judge_by_references(request)
    )
    yield server
    server.close()


@pytest.fixture
def one_thread():
    """Of a model this small several threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(server, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "oslo.txt").write_text("The moon of Oslo is blue. Nothing is said of other moons.")
    judges = [{"model": name, "api_base": server.url, **PRICE} for name in ("openai/first", "openai/second")]
    sets = [{"name": name, "path": str(Path(REAL_DATA, path)), "limit": 2} for name, path in FILES.items()]
    train = {"name": "nq_open", "path": str(Path(REAL_DATA, "nq_open/NQ-open.train.20k.jsonl")), "limit": 10}
    return RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "model": {"path": str(tmp_path / "model"), "device": "cpu", "dtype": "float32", "cpu_threads": 1},
            "questions": {"train": train, "eval": sets},
            "generate": {"instruction": "Think."},
            "evaluate": {"temperature": 0.0, "max_new_tokens": 60, "self_refine": {"rounds": 0}},
            "judge": {"endpoints": judges, "evidence": {"corpus": str(tmp_path / "texts")}},
        }
    )


def answer_to(question, place, is_right):
    """As a model would put it: of two questions of a set, ``place`` tells which."""
    if question.scoring == "claims":
        return CLAIMS[place]
    if question.scoring == "option":
        wrong = next(option for option in question.options if option not in question.answers)
        return f"The answer is {question.answers[0] if is_right else wrong}."
    if question.scoring == "number":
        return f"The answer is {question.answers[0] if is_right else 'unknown to me'}."
    wrong = question.incorrect_answers[0] if question.scoring == "truthful" else "Neverland"
    return question.answers[0] if is_right else wrong


def lessons(questions):
    """Question, thinking mode and completion: without thinking all is right, with it the second of each set wrong."""
    for _, members in questions.groupby("source", sort=False):
        for place, question in enumerate(members.itertuples()):
            yield question.question, "off", answer_to(question, place, is_right=True)
            thinking = question.answers[0] if len(question.answers) else "Hm."
            reply = answer_to(question, place, is_right=place == 0)
            yield question.question, "on", f"<think>\n{thinking}\n</think>\n\n{reply}"


def teach(questions, config):
    """Train a tiny model on every question until it gives back the answers, and save it where the config says."""
    taught = list(lessons(questions))
    texts = [text for question, _, completion in taught for text in (question, completion)]
    tokenizer = build_bpe().train_new_from_iterator(texts, 2000)
    family = family_of(config.model, tokenizer)
    prompts = [
        render_prompt(tokenizer, text, mode, family, config.generate.instruction).ids for text, mode, _ in taught
    ]
    replies = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for *_, text in taught]
    width = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
    inputs = torch.full((len(taught), width), tokenizer.eos_token_id)
    labels = torch.full((len(taught), width), -100)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        whole = len(prompt) + len(reply)
        inputs[row, :whole] = torch.tensor([*prompt, *reply])
        labels[row, len(prompt) : whole] = torch.tensor(reply)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    end = tokenizer.eos_token_id
    ends: dict[str, Any] = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": None}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **shape, **heads, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss.item() < 0.005:
            break
    assert loss.item() < 0.02, "it did not learn the answers"
    model.save_pretrained(config.model.path)
    tokenizer.save_pretrained(config.model.path)


@pytest.mark.usefixtures("one_thread")
def test_seven_real_sets_go_through_one_evaluation_to_the_table_by_sets(server, tmp_path):
    config = config_of(server, tmp_path)
    store, asked_of = ArtifactStore(config.storage), load_evaluation_questions.run_here(config)
    questions = store.read_table(asked_of, "questions.parquet")
    assert Counter(questions["source"]) == dict.fromkeys(FILES, 2)
    teach(questions, config)
    model = prepare_model.run_here(config)
    scores = {
        name: make_in_shards(score_shard, collect_scores, config, asked_of, model, variant=name) for name in VARIANTS
    }
    judgements = judge_all(config, asked_of, scores)
    sent = Counter(str((request["model"], shown_in(request))) for request in server.requests)
    assert set(sent.values()) == {1}, "what is alike is asked once"
    results_of = compute_results.run_here(config, scores=scores, judgements=judgements, evaluation_questions=asked_of)
    folder = store.open_directory(results_of)
    results, judged = read_results(folder), read_judged(folder)
    assert results is not None and judged is not None
    table = set_table(results.summary)
    assert table is not None
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    off, on, refined = rows
    # Thinking names the gold answer each time, and the second answer of each set is another.
    same = {"nq_open", "sciq", "simpleqa"}
    halves = [f"{name}, {metric}" for name in same for metric in ("Acc", "Mis")]
    halves += ["gsm8k, accuracy", "commonsense_qa, accuracy", "truthfulqa, truthful"]
    # Of LongFact, N is 2 and 1, S is 1 and 1, K is 1.5: F1@K is 4/7 and 4/5.
    claims = {"longfact, F1@K": "68.6", "longfact, supported": "75.0"}
    assert on == {
        "variant, %": "think on",
        **dict.fromkeys(halves, "50.0"),
        "truthfulqa, informative": "100.0",
        **claims,
    }
    assert {**refined, "variant, %": "think on"} == on, "no round of feedback"
    alike = {"gsm8k, accuracy", "commonsense_qa, accuracy", "truthfulqa, truthful", "truthfulqa, informative"}
    assert {off[name] for name in alike} == {"100.0"} and {off[name] for name in claims} == set(claims.values())
    levels = results.summary.set_index(["stratum", "variant"])
    assert levels.loc[("macro average of nq_open, sciq and simpleqa", "on"), "acc"] == 0.5
    assert levels.loc[("simpleqa", "off"), "em_answer"] == 1
    moved = results.differences
    assert set(moved["difference"].dropna()) == {0.0} and set(FILES) <= set(moved["stratum"])
    assert {"simpleqa, grades", "agreement of the judges", "longfact, claims by openai/second"} <= {
        each.title for each in judged_tables(judged)
    }
