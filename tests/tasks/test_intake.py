"""Weeks, one after another: a config is pinned once a run; what is new of its questions is told and paid for alone."""

import json
import logging
import shutil

import pytest
from chat_server import ChatServer, says

from mralign_core.config import RunConfig
from mralign_core.intake import Resolutions
from mralign_core.schemas.annotations import RAW_ANNOTATIONS
from mralign_core.storage import ArtifactStore, ReplyStore
from mralign_core.storage.quarantine import write_rows
from tasks.engine import last_run as runs
from tasks.engine.last_run import remember
from tasks.engine.one_task import run_one
from tasks.engine.plan import plan
from tasks.intake import changed_references_of, note_models_in_replies, pin_references, tell_what_is_new, what_is_new
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tests.core.generation.random_models import build_bpe, build_model
from tests.stages import draw

FREE = {"input_usd_per_million": 0, "output_usd_per_million": 0}


def lines(*numbers):
    rows = [{"question": f"Seat of town {n}?", "answer": "Tehran"} for n in numbers]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def as_run(monkeypatch):
    """Makes what follows part of a run."""

    def as_run(name):
        monkeypatch.setattr(runs, "root_flow_run_id", lambda: name)
        monkeypatch.setattr(runs, "_is_by_itself", lambda: False)

    return as_run


@pytest.fixture
def incoming(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


@pytest.fixture
def server():
    server = ChatServer()
    server.play(*[says("<think>\nIt is Tehran.\n</think>\n\n<answer>Tehran</answer>")] * 200)
    yield server
    server.close()


@pytest.fixture
def config(incoming, tmp_path, server):
    tokenizer = build_bpe()
    build_model("qwen3", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    endpoint = {"model": "openai/m", "api_base": server.url, **FREE}
    sampled = {"sampler": "endpoint", "endpoint": endpoint, "num_draws": 2, "draws": "exhaustive", "shard_size": 4}
    (tmp_path / "held.jsonl").write_text(lines(900, 901))
    return RunConfig.model_validate(
        {
            "name": "weekly",
            "storage": {"root": str(tmp_path / "store")},
            "model": {"path": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"},
            "questions": {"train": str(incoming / "*.jsonl"), "eval": str(tmp_path / "held.jsonl")},
            "generate": sampled,
            "annotate": {"annotator_a": endpoint, "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"},
        }
    )


def prepared(config):
    """What the first stage makes, noted as made by this run."""
    pinned = pin_references(config)
    questions, held_out = load_questions.run_here(pinned), load_evaluation_questions.run_here(pinned)
    remember(pinned, {}, **{"questions": questions, "evaluation-questions": held_out})
    return pinned, questions, held_out


def finish(config, questions):
    remember(config, {}, report=questions)


def test_of_files_that_arrive_only_the_new_questions_are_sampled(server, config, incoming, as_run, caplog):
    (incoming / "week-2.jsonl").write_text(lines(*range(10)))
    as_run("first")
    pinned, questions, held_out = prepared(config)
    draw(pinned, questions, prepare_model.run_here(pinned))
    assert len(server.requests) == 10 * 2 * 2
    finish(pinned, questions)
    as_run("second")
    (incoming / "week-1.jsonl").write_text(lines(*range(20, 25)))  # in order of names it comes before the others
    (incoming / "week-3.jsonl").write_text(lines(3, 4))  # delivered again
    pinned, questions, held_out = prepared(config)
    with caplog.at_level(logging.INFO, "mralign_core.intake"):
        news = tell_what_is_new(pinned, questions, held_out)
    draw(pinned, questions, prepare_model.run_here(pinned))
    assert len(server.requests) == 40 + 5 * 2 * 2
    assert not news.is_nothing_new and len(news.sets["train incoming"].added) == 5
    (line,) = [text for text in caplog.messages if "new since" in text]
    assert line.startswith("config 'weekly': new since the run of 20")
    assert line.endswith(" UTC: train incoming: 5 added (10 as before); eval held: nothing new (2 as before)")


def test_nothing_new_is_told_against_the_last_run_that_went_to_its_end(config, incoming, as_run):
    (incoming / "a.jsonl").write_text(lines(1, 2))
    as_run("first")
    pinned, questions, held_out = prepared(config)
    assert len(what_is_new(pinned, questions, held_out).sets["train incoming"].added) == 2
    finish(pinned, questions)
    (incoming / "b.jsonl").write_text(lines(3))
    as_run("broken-off")
    prepared(config)
    as_run("again")
    news = what_is_new(*prepared(config))
    assert len(news.sets["train incoming"].added) == 1  # what was never trained on is still new
    finish(*prepared(config)[:2])
    as_run("last")
    news = what_is_new(*prepared(config))
    assert news.is_nothing_new and str(news).startswith("nothing new since the run of 20")
    assert str(news).endswith(": 5 questions as before")


def test_where_the_earlier_questions_are_gone_all_are_new(config, incoming, as_run, caplog):
    (incoming / "a.jsonl").write_text(lines(1, 2))
    as_run("first")
    pinned, questions, _ = prepared(config)
    finish(pinned, questions)
    ArtifactStore(config.storage).remove("questions", questions.key)
    as_run("second")
    news = what_is_new(*prepared(config))
    assert news.is_nothing_new  # made again, and found again
    ArtifactStore(config.storage).remove("questions", questions.key)
    (incoming / "b.jsonl").write_text(lines(3))
    as_run("third")
    news = what_is_new(*prepared(config))
    assert len(news.sets["train incoming"].added) == 3 and "can't be told against the last run" in caplog.text


def test_a_model_that_changed_is_told_beside_the_questions(config, incoming, as_run, tmp_path, caplog):
    (incoming / "a.jsonl").write_text(lines(1, 2))
    as_run("first")
    finish(*prepared(config)[:2])
    weights = tmp_path / "model" / "generation_config.json"
    weights.write_text(json.dumps(json.loads(weights.read_text()) | {"temperature": 0.5}))
    as_run("second")
    with caplog.at_level(logging.INFO, "mralign_core.intake"):
        news = tell_what_is_new(*prepared(config))
    assert news.is_nothing_new
    (line,) = [text for text in caplog.messages if "nothing new" in text]
    assert f"; model: {tmp_path / 'model'} was " in line and changed_references_of(config) == [line.rpartition("; ")[2]]


def test_a_dry_run_sees_what_has_arrived_and_one_task_what_the_last_run_saw(config, incoming, as_run):
    def status():
        return {planned.name: planned.status for planned in plan(config).everything}["questions"]

    (incoming / "a.jsonl").write_text(lines(1, 2))
    as_run("first")
    _, questions, _ = prepared(config)
    assert status() == "cached"
    (incoming / "b.jsonl").write_text(lines(3))
    assert status() == "to compute"
    assert run_one(config, "questions", shard=0, variant="", named={}) == questions


def test_a_run_that_was_given_a_pinned_config_resolves_nothing(config, incoming, as_run, monkeypatch, tmp_path):
    """As a child on a pool, which is given the config by value."""
    (incoming / "a.jsonl").write_text(lines(1, 2))
    as_run("first")
    pinned, questions, _ = prepared(config)
    (incoming / "b.jsonl").write_text(lines(3))
    by_value = RunConfig.model_validate(pinned.model_dump(mode="json"))
    as_run("child")
    assert pin_references(by_value) == pinned
    assert load_questions.run_here(by_value) == questions
    monkeypatch.setenv("HOME", str(tmp_path / "another-host"))
    shutil.rmtree(tmp_path / "home")
    of_child = pin_references(by_value)
    assert of_child != pinned
    assert load_questions.run_here(of_child) == questions


def test_what_replies_name_as_their_model_is_added_to_the_record(config, incoming, as_run, tmp_path):
    (incoming / "a.jsonl").write_text(lines(1))
    as_run("first")
    pinned = pin_references(config)
    store = ArtifactStore(config.storage)
    row = {"trace_id": "t", "attempt": 0, "prompt_digest": "p", "reply": "", "problem": "", "cost_usd": 0.0}
    row |= {"prompt_tokens": 1, "completion_tokens": 1}
    rows = [row | {"role": "annotator_a", "model": "openai/m", "request_digest": "ab12"}]
    rows += [row | {"role": "annotator_b", "model": "cue/b", "request_digest": "none"}]
    folder = tmp_path / "labels"
    folder.mkdir()
    write_rows(folder, "raw_annotations.parquet", RAW_ANNOTATIONS.frame(rows), RAW_ANNOTATIONS)
    labels = store.publish("annotations", "k" * 64, folder, parents=[], fingerprint={})

    def recorded():
        resolution = Resolutions(store, "weekly").of("first")
        assert resolution
        return {one.field: one for one in resolution.references}["annotate.annotator_a"]

    note_models_in_replies(pinned, labels)
    assert recorded().pinned == "" and "is not known" in recorded().note
    ReplyStore(store).put("ab12", {"response": {"model": "m-2026-11-01"}})
    note_models_in_replies(pinned, labels)
    assert (recorded().pinned, recorded().note) == ("m-2026-11-01", "")
