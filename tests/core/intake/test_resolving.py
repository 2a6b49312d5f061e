"""A config's references, pinned at a hub that is a real HTTP server, recorded, and recalled where it is away."""

import doctest
import importlib
import json
import logging

import datasets
import pytest
from chat_server import ChatServer
from huggingface_hub import constants

from flows.commands.cli import _check_files
from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.intake import Resolution, Resolutions, changed_references, resolve, with_replies
from mralign_core.questions.loading import read_question_sets
from mralign_core.storage import ArtifactStore
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tests.hub_server import hub_server  # noqa: F401 (fixture)

SET = "datasets/own/set"


def rows(count):
    lines = [json.dumps({"question": f"Who is number {n}?", "answer": f"name {n}"}) for n in range(count)]
    return {"data/train.jsonl": "\n".join(lines)}


@pytest.fixture
def hub(hub_server):  # noqa: F811
    """A hub with a set of three questions and a model."""
    hub_server.push("models/own/model", {"config.json": "{}"})
    hub_server.push(SET, rows(3))
    return hub_server


@pytest.fixture
def config(tmp_path):
    return config_of(tmp_path)


def config_of(tmp_path, **fields):
    return RunConfig.model_validate(
        {
            "name": "weekly",
            "storage": {"root": str(tmp_path / "store")},
            "model": {"path": "own/model"},
            "questions": {"train": "own/set"},
            "annotate": {role: f"cue/{role[-1]}" for role in ("annotator_a", "annotator_b")}
            | {"adjudicator": "cue/adjudicator"},
        }
        | fields
    )


def resolved(config, run, **options):
    return resolve(config, ArtifactStore(config.storage), run=run, **options)


def out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def by_field(resolution):
    return {one.field: one for one in resolution.references}


def test_week_two_has_twice_the_rows_and_gets_them(hub, config):
    first = resolved(config, "week-1")
    made = load_questions.run_here(first.config)
    head = hub.push(SET, rows(6))
    store = ArtifactStore(config.storage)
    # As it was: the hub's id alone is in the key, and the first week's artifact is found for ever.
    assert load_questions.work(config).key == load_questions.work(config).key != load_questions.work(first.config).key
    second = resolved(config, "week-2")
    assert second.config.questions.train[0].revision == head
    again = load_questions.run_here(second.config)
    counts = [store.manifest(ref).counts for ref in (made, again)]
    assert [count["train"] for count in counts] == [3, 6]
    assert counts[1]["revision of set-train"] == head
    assert load_questions.run_here(resolved(config, "week-3").config) == again
    assert changed_references(first.resolution, second.resolution) == [
        f"questions.train: own/set@ was {counts[0]['revision of set-train'][:12]} and is {head[:12]}"
    ]


def test_the_model_is_pinned_too_and_its_key_follows(hub, config):
    first = resolved(config, "week-1").config
    assert prepare_model.work(first).key == prepare_model.work(resolved(config, "week-2").config).key
    head = hub.push("models/own/model", {"config.json": "{ }"})
    second = resolved(config, "week-3").config
    assert second.model.revision == head
    assert prepare_model.work(first).key != prepare_model.work(second).key


def test_what_it_was_when_and_from_where_is_recorded(hub, config):
    resolved(config, "week-1")
    records = Resolutions(ArtifactStore(config.storage), "weekly")
    of_run, last = records.of("week-1"), records.last()
    assert of_run and of_run == last and of_run.run == "week-1" and of_run.at.tzinfo
    found = by_field(of_run)
    assert found["questions.train"].source == found["model"].source == hub.url
    assert found["questions.train"].pinned == hub.repositories[SET][0][0]
    assert set(found) == {"questions.train", "model", "annotate.label_set", "prompts"}
    assert len(found["prompts"].pinned) == len(found["annotate.label_set"].pinned) == 64


def test_a_run_asks_once_and_what_it_resolved_stays(hub, config):
    first = resolved(config, "week-1")
    hub.push(SET, rows(6))
    visits = len(hub.visits)
    assert resolved(first.config, "week-1").config == first.config  # as `prepare` in the pipeline, or a child's run
    assert resolved(config, "week-1").config == first.config  # as a flow of the same run that was given the file's
    assert resolved(first.config, "child-of-its-own").config == first.config
    assert len(hub.visits) == visits
    assert resolved(config, "week-2").config != first.config


def test_one_task_takes_what_the_last_run_had_and_a_dry_run_what_a_run_would(hub, config):
    first = resolved(config, "week-1")
    head = hub.push(SET, rows(6))
    assert resolved(config, "", prefers_recorded=True).config == first.config
    assert resolved(config, "").config.questions.train[0].revision == head
    last = Resolutions(ArtifactStore(config.storage), "weekly").last()
    assert last and last.run == "week-1"


@pytest.mark.parametrize("how", ["away", "HF_HUB_OFFLINE"])
def test_offline_the_last_resolution_is_used_and_said(hub, config, monkeypatch, caplog, how):
    first = resolved(config, "week-1")
    hub.push(SET, rows(6))
    if how == "away":
        out_of_reach(monkeypatch)
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "mralign_core.intake"):
        second = resolved(config, "week-2")
        third = resolved(config, "week-3")
    assert second.config == third.config == first.config
    assert [one.field for one in second.recalled] == ["questions.train", "model"]
    assert len(caplog.messages) == 2  # a line a run
    assert "'weekly': out of reach" in caplog.messages[1] and "from run week-1 of 20" in caplog.messages[1]
    assert load_questions.work(second.config).key == load_questions.work(first.config).key


def test_offline_the_command_line_reads_only_what_is_not_made_yet(hub, config, monkeypatch):
    pinned = resolved(config, "week-1").config
    out_of_reach(monkeypatch)
    with pytest.raises(DataError, match="can't be reached"):
        _check_files(config)  # recalled, but what it stands for is on the hub alone
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    load_questions.run_here(pinned)
    load_evaluation_questions.run_here(pinned)
    out_of_reach(monkeypatch)
    _check_files(config)


def test_offline_by_choice_the_recorded_commit_is_loaded_from_the_hubs_cache(hub, config, monkeypatch, tmp_path):
    read_question_sets(resolved(config, "week-1").config.questions, config.model.pocket)
    hub.push(SET, rows(6))
    out_of_reach(monkeypatch)
    for section in (constants, datasets.config):
        monkeypatch.setattr(section, "HF_HUB_OFFLINE", True)
    found = resolved(config, "week-2")
    assert len(read_question_sets(found.config.questions, config.model.pocket).questions) == 3


def test_offline_with_nothing_recorded_the_error_is_the_one_that_it_was(hub, config, monkeypatch, tmp_path):
    resolved(config, "week-1")
    out_of_reach(monkeypatch)
    other = config.model_copy(update={"name": "another"})
    with pytest.raises(DataError, match=r"the hub can't be reached .*Name a file or folder in path"):
        resolved(other, "week-1")
    file = tmp_path / "mine.jsonl"
    file.write_text(rows(1)["data/train.jsonl"])
    with pytest.raises(ConfigError, match=r"model\.path 'own/model'.*can't be reached.*HF_HUB_OFFLINE=1"):
        resolved(config_of(tmp_path, name="another", questions={"train": str(file)}), "week-1")
    assert resolved(other, "").config == other  # a dry run tells what it can


def test_a_set_that_the_hub_does_not_have_is_told_and_not_recalled(hub, config, tmp_path):
    resolved(config, "week-1")
    hub.repositories.pop(SET)
    with pytest.raises(DataError, match="the hub gives no such data set"):
        resolved(config, "week-2")
    other = config_of(tmp_path, model={"path": "own/model", "revision": "v2"}, questions={"train": "a.jsonl"})
    with pytest.raises(ConfigError, match=r"nor a model the hub gives, or has no revision 'v2'"):
        resolved(other, "week-2")


def test_a_config_in_which_nothing_floats_comes_back_as_it_is(tmp_path, monkeypatch):
    out_of_reach(monkeypatch)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "set.jsonl").write_text('{"question": "a", "answer": "b"}')
    pinned = {"path": "own/set", "revision": "0123456789" * 4}
    fixed = config_of(
        tmp_path,
        model={"path": str(tmp_path / "model")},
        questions={"train": [str(tmp_path / "set.jsonl"), pinned]},
    )
    found = resolved(fixed, "week-1")
    assert found.config is fixed
    references = by_field(found.resolution)
    assert references["questions.train.1"].pinned == pinned["revision"]
    assert references["questions.train.0"].kind == references["model"].kind == "contents"
    (tmp_path / "set.jsonl").write_text('{"question": "a", "answer": "c"}')
    assert changed_references(found.resolution, resolved(fixed, "week-2").resolution)[0].startswith("questions.train.0")


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    out_of_reach(monkeypatch)
    wrong = config_of(tmp_path, model={"source": "smollm2"}, questions={"train": "data/none.jsonl"})
    section = resolved(wrong, "week-1").config.questions
    with pytest.raises(DataError, match=r"questions\.train: data/none\.jsonl is not a file or folder"):
        read_question_sets(section, wrong.model.pocket)


ENDPOINTS = ("annotator_a", "annotator_b", "adjudicator")


def test_what_a_models_name_stands_for_is_recorded_where_someone_says_so_and_never_guessed(tmp_path):
    server = ChatServer()
    server.pages["/v1/models"] = {"data": [{"id": "best", "root": "/models/qwen-32b"}, {"id": "x", "root": "x"}]}
    here = {"api_base": f"{server.url}"}
    models = ({"model": "openai/best", **here}, {"model": "openai/x", **here}, {"model": "openai/gpt-4o-2024-08-06"})
    annotate = dict(zip(ENDPOINTS, models, strict=True))
    config = config_of(tmp_path, model={"source": "smollm2"}, annotate=annotate, questions={"train": "a.jsonl"})
    found = by_field(resolved(config, "week-1").resolution)
    server.close()
    best, same, dated = (found[f"annotate.{role}"] for role in ENDPOINTS)
    assert (best.pinned, best.source) == ("/models/qwen-32b", f"{server.url}/models")
    assert same.pinned == "" and "is not known" in same.note and "does not list it as another" in same.note
    assert dated.pinned == "gpt-4o-2024-08-06"
    named = {"annotate.annotator_b": ["x-20260101", "x-20260101"], "annotate.adjudicator": [""]}
    replied = {one.field: one for one in with_replies([best, same, dated], named)}
    assert replied["annotate.annotator_b"].pinned == "x-20260101"
    assert replied["annotate.annotator_b"].source == "the model that its replies name"
    assert replied["annotate.adjudicator"] == dated and replied["annotate.annotator_a"] == best
    (beside,) = with_replies([best], {"annotate.annotator_a": ["qwen-32b-awq"]})
    assert beside.pinned == best.pinned and beside.note == "its replies name qwen-32b-awq"
    before, now = (Resolution(config="x", references=[one]) for one in (replied["annotate.annotator_b"], same))
    assert changed_references(before, now) == changed_references(now, before) == []  # nobody knows: that is no news
    moved = replied["annotate.annotator_b"].model_copy(update={"pinned": "x-20260601"})
    (line,) = changed_references(before, Resolution(config="x", references=[moved]))
    assert line.endswith(" was x-20260101 and is x-20260601")
    (two,) = with_replies([same], {"annotate.annotator_b": ["x-1", "x-2"]})
    assert two.pinned == "" and two.note == "its replies name several models: x-1, x-2"
    (none,) = with_replies([same], {"annotate.annotator_b": ["x"]})
    assert none.pinned == "" and "no other model than was asked for" in none.note


@pytest.mark.parametrize("name", ["arrivals", "novelty", "resolution"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"mralign_core.intake.{name}"))
    assert results.attempted and not results.failed
