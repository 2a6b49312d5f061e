"""Evaluation on a server that the stage starts, an adapter on it, over a real tiny model; and what is kept of it."""

import json
import os
import signal

import psutil
import pytest
from chat_server import ChatServer, fails, says

from flows.evaluate import score_variants
from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.evaluation.held_out import answer_questions
from mralign_core.generation import Sample
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.reporting.inputs import joined_ledger
from mralign_core.serving.adapters import ServerApi
from mralign_core.storage import ArtifactStore
from tasks.clients import read_account
from tasks.engine.session import session
from tasks.evaluate import read_scoring_ledger, score_shard
from tasks.prepare import check_prompts, load_evaluation_questions, load_questions, prepare_model
from tasks.servers import check_listed, make_room_for, own_server
from tasks.snippets import check_snippets, find_snippets
from tests.core.generation.random_models import build_bpe, build_model
from tests.core.generation.sampler_fixtures import save_adapter
from tests.core.serving.test_vllm_server import left_of, put_stand_in, started
from tests.vllm_command import install

QUESTIONS = ["Seat of Iran?", "Who wrote Emma?", "Capital of Chad?"]


@pytest.fixture
def values(tmp_path):
    rows = [json.dumps({"question": text, "answer": "Tehran"}) for text in QUESTIONS]
    (tmp_path / "asked.jsonl").write_text("\n".join(rows))
    (tmp_path / "others.jsonl").write_text(json.dumps({"question": "Seat of Chad?", "answer": "N'Djamena"}))
    tokenizer = build_bpe()
    build_model("qwen3", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return {
        "storage": {"root": str(tmp_path / "store")},
        "model": {"path": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"},
        "questions": {"train": str(tmp_path / "others.jsonl"), "eval": str(tmp_path / "asked.jsonl")},
        "evaluate": {"temperature": 0.0, "max_new_tokens": 12},
    }


@pytest.fixture
def adapter(values, tmp_path):
    folder = save_adapter(values["model"]["path"], tmp_path / "adapter", std=0.5)
    store = ArtifactStore(RunConfig.model_validate(values).storage)
    return store.publish("adapter", "made-for-a-test", folder, parents=[], fingerprint={})


def served(values, tmp_path):
    """The config with a server that the stage starts."""
    evaluate = {"sampler": "endpoint", "endpoint": {"model": "hosted_vllm/tiny", "timeout_s": 60.0}}
    vllm = {"environment": str(tmp_path / "venv"), "log_folder": str(tmp_path / "logs"), "start_timeout_s": 300}
    return RunConfig.model_validate(values | {"evaluate": values["evaluate"] | evaluate, "vllm": vllm})


def test_a_server_of_the_stage_scores_as_the_transformers_sampler_and_ends_with_the_stage(values, adapter, tmp_path):
    install(tmp_path / "venv")
    local, remote = RunConfig.model_validate(values), served(values, tmp_path)
    store = ArtifactStore(local.storage)
    questions, model = load_evaluation_questions.run_here(local), prepare_model.run_here(local)
    variants = {"on": None, "kto": adapter}

    def answers(config, rows):
        with session():
            refs = {
                name: score_shard.run_here(config, questions, model, adapter=ref, variant=name, rows=rows)
                for name, ref in variants.items()
            }
            servers = [each for each in psutil.Process().children(recursive=True) if "serve" in each.cmdline()]
        assert not any(each.is_running() for each in servers)
        return {name: store.read_table(ref, "scores.parquet") for name, ref in refs.items()}, len(servers)

    (theirs, num_servers), (ours, _) = answers(remote, [0, 1]), answers(local, [0, 1])
    assert num_servers == 2  # vLLM, and what keeps it
    for name in variants:
        assert theirs[name]["completion"].tolist() == ours[name]["completion"].tolist()
    assert theirs["on"]["completion"].tolist() != theirs["kto"]["completion"].tolist()
    account = read_account(store, f"evaluate/{questions.sha256}")
    assert account["requests"].sum() == 4 + 12 and account["model"].str.contains("/kto-").sum() == 1
    answers(remote, [1])  # at another port, and with another key
    account = read_account(store, f"evaluate/{questions.sha256}")
    assert account["requests"].sum() == 4 + 12 + 12  # it may be another server, so the adapter's use is looked at anew
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_a_server_that_ended_is_started_anew_and_both_end_with_the_session(values, tmp_path, monkeypatch):
    config = served(values, tmp_path)
    put_stand_in(tmp_path / "venv", tmp_path, monkeypatch)
    store, model = ArtifactStore(config.storage), prepare_model.run_here(config)
    server = own_server(store, config, model, "evaluate")
    assert server and own_server(store, config, model, "generate") is None
    with session():
        first = server.reach()
        assert server.reach() == first
        [(_, _, (pid, _))] = started(tmp_path)
        os.kill(pid, signal.SIGKILL)
        assert "ended with code 137" in first.last_words()
        second = server.reach()
        assert second[:2] != first[:2] and ServerApi(*second[:2]).names() == [server.name]
    assert not left_of([pid for _, _, pids in started(tmp_path) for pid in pids])


def test_a_server_makes_room_for_the_largest_adapter_that_is_to_be_scored(values, adapter, tmp_path, monkeypatch):
    config = served(values, tmp_path)
    store, model = ArtifactStore(config.storage), prepare_model.run_here(config)
    small = save_adapter(values["model"]["path"], tmp_path / "small")
    settings = json.loads((small / "adapter_config.json").read_text())
    (small / "adapter_config.json").write_text(json.dumps(settings | {"r": 4}))
    other = store.publish("adapter", "another", small, parents=[], fingerprint={})
    started_for = []

    def start(section, base, report):
        started_for.append(base.lora_rank)
        raise ConfigError("not started")

    monkeypatch.setattr("tasks.servers.VllmServer", start)
    for adapters in ({}, {"sft": other}, {"sft": other, "kto": adapter}):
        with session():
            make_room_for(config, adapters)
            own = own_server(store, config, model, "evaluate")
            assert own is not None
            with pytest.raises(ConfigError, match="not started"):
                own.reach()
    assert started_for == [config.train.lora_r, 4, 20]


def test_what_a_server_can_not_be_asked_is_refused_before_anything_is_spent(values, tmp_path):
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": "What is <think>?", "answer": "Tehran"}))
    config = served(values, tmp_path)
    asked = [task.run_here(config) for task in (load_questions, prepare_model, load_evaluation_questions)]
    with pytest.raises(DataError, match=r"evaluate\.endpoint would obey: .*'<think>'.* use evaluate\.sampler"):
        check_prompts(config, *asked)


def test_snippets_that_a_server_would_obey_are_refused_with_their_document(values, tmp_path):
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "tags.txt").write_text("The seat of Iran is written <think> Tehran </think> there.")
    with_corpus = values | {"evaluate": values["evaluate"] | {"retrieval": {"corpus": str(corpus)}}}
    served_by, here = served(with_corpus, tmp_path), RunConfig.model_validate(with_corpus)
    questions, model = load_evaluation_questions.run_here(served_by), prepare_model.run_here(served_by)
    snippets = find_snippets.run_here(served_by, questions)
    with pytest.raises(DataError, match=r"1 document\(s\) of evaluate\.retrieval\.corpus.* tags.*'<think>'"):
        check_snippets(served_by, snippets, model)
    check_snippets(here, snippets, model)


def test_what_was_asked_is_on_account_though_the_server_failed_and_nothing_is_where_it_was_not_asked(values):
    server = ChatServer()
    server.pages["/v1/models"] = {"data": [{"id": "tiny"}]}
    server.script = lambda request, number: says("Tehran") if number else fails(500)
    endpoint = {"model": "hosted_vllm/tiny", "api_base": server.url, "max_attempts": 1}
    evaluate = values["evaluate"] | {"sampler": "endpoint", "endpoint": endpoint, "concurrency": 1}
    config = RunConfig.model_validate(values | {"evaluate": evaluate})
    questions, model = load_evaluation_questions.run_here(config), prepare_model.run_here(config)

    def score():
        with session():
            score_shard.run_here(config, questions, model, variant="on", rows=[0, 1])
        return read_account(ArtifactStore(config.storage), f"evaluate/{questions.sha256}")["requests"].sum()

    with pytest.raises(DataError, match="failed to answer 1 of 2"):
        score()
    account = read_scoring_ledger(config, questions)
    assert account["requests"].tolist() == [1] and account["model"].tolist() == ["hosted_vllm/tiny"]  # one was answered
    for annotation, num_requests in ((account[:0], 1), (account, 2)):
        [row] = joined_ledger(annotation, account).to_dict("records")  # as the report shows it
        assert row["requests"] == num_requests and isinstance(row["cost_usd"], float)
    assert joined_ledger(annotation[:0], account)["cost_usd"].dtype == "float64"
    server.close()
    with pytest.raises(EndpointUnavailableError, match="gave no answer to GET /models"):
        score()


def test_all_adapters_that_a_server_lacks_are_named_before_any_is_asked(values, adapter):
    server = ChatServer()
    server.pages["/v1/models"] = {"data": [{"id": "tiny"}, {"id": f"sft-{adapter.sha256[:12]}"}]}
    endpoint = {"model": "hosted_vllm/tiny", "api_base": server.url}
    evaluate = {"sampler": "endpoint", "endpoint": endpoint, "adapters": "listed"}
    config = RunConfig.model_validate(values | {"evaluate": values["evaluate"] | evaluate})
    check_listed(config, {"sft": adapter})
    with pytest.raises(ConfigError) as caught:
        check_listed(config, dict.fromkeys(("sft", "kto", "mr_align"), adapter))
    server.close()
    folder = ArtifactStore(config.storage).open_directory(adapter)
    modules = " ".join(f"{variant}-{adapter.sha256[:12]}={folder}" for variant in ("kto", "mr_align"))
    assert f"--max-lora-rank 32 --lora-modules {modules}" in str(caught.value) and not server.requests


def test_of_the_adapters_a_server_must_list_those_that_are_still_to_be_scored(values, adapter, monkeypatch):
    class NothingIsListedError(Exception):
        pass

    def check(config, adapters):
        raise NothingIsListedError(*adapters)

    missing = {"on": [[0]], "sft": [], "kto": [[0]], "mr_align": []}
    monkeypatch.setattr("flows.evaluate.check_listed", check)
    monkeypatch.setattr("flows.evaluate.missing_shards", lambda work: missing[work.part["variant"]])
    config = RunConfig.model_validate(values)
    questions, model = load_evaluation_questions.run_here(config), prepare_model.run_here(config)
    adapters = dict.fromkeys(("sft", "kto", "mr_align"), adapter)
    with pytest.raises(NothingIsListedError, match=r"^kto$"):
        score_variants(config, questions, model, adapters, variants=list(missing))


def test_answers_that_a_server_failed_to_give_are_not_left_out_of_the_scores(values):
    class Failing(TransformersSampler):
        def __init__(self):
            pass

        def draw(self, requests, decoding, follow_up=None):
            yield requests[0], Sample("p", [1], [2], "<answer>x</answer>", "stop")
            yield requests[1], Sample("p", [1], [], "", "failed", "encoded")

    config = RunConfig.model_validate(values)
    questions = ArtifactStore(config.storage).read_table(
        load_evaluation_questions.run_here(config), "questions.parquet"
    )
    with pytest.raises(
        DataError, match=r"failed to answer 1 of 2 requests of variant 'on', first question '.*', draw 0"
    ):
        answer_questions(
            Failing(),
            questions.iloc[:2],
            "on",
            config.evaluate,
            seed=0,
            rules=config.match.rules,
            on_progress=lambda *_: None,
        )
