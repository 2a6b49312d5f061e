"""A set that grows: only what is new of it is sampled, labelled and scored, whatever the shards; requests count."""

import json
import pathlib

import pytest
from chat_server import ChatServer, says

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactStore
from tasks.engine.session import session
from tasks.engine.shards import lay_out
from tasks.evaluate import collect_scores, score_shard
from tasks.generate import collect_generations
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tests.core.generation.random_models import build_bpe, build_model
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import draw, label, make_in_shards
from tests.tasks.test_paid_once import CountingServer

FREE = {"input_usd_per_million": 0, "output_usd_per_million": 0}


@pytest.fixture
def server():
    server = ChatServer()
    server.play(*[says("<think>\nIt is Tehran.\n</think>\n\n<answer>Tehran</answer>")] * 200)
    yield server
    server.close()


@pytest.fixture
def config_of(server, tmp_path):
    """Makes the config of a run on so many questions, numbered from one number on."""
    tokenizer = build_bpe()
    build_model("qwen3", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def write(name, numbers):
        rows = [
            json.dumps({"id": f"{name}{n}", "question": f"Seat of {name} {n}?", "answer": "Tehran"}) for n in numbers
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        return {"path": str(tmp_path / f"{name}.jsonl"), "id_column": "id"}

    def config(numbers, held_out=range(0), **generate):
        endpoint = {"model": "openai/m", "api_base": server.url, **FREE}
        sampled = {"sampler": "endpoint", "endpoint": endpoint, "num_draws": 2, "draws": "exhaustive", "shard_size": 4}
        return RunConfig.model_validate(
            {
                "storage": {"root": str(tmp_path / "store")},
                "model": {"path": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"},
                "questions": {
                    "train": write("train", numbers),
                    **({"eval": write("eval", held_out)} if held_out else {}),
                },
                "generate": {**sampled, **generate},
                "evaluate": {"num_draws": 1, "max_new_tokens": 4, "shard_size": generate.get("shard_size", 4)},
            }
        )

    return config


def drawn(config):
    return draw(config, load_questions.run_here(config), prepare_model.run_here(config))


@pytest.mark.parametrize("shard_size", [4, 3, 50])
def test_of_a_set_that_grows_only_the_new_questions_are_sampled(server, config_of, shard_size):
    first = drawn(config_of(range(10, 20)))
    assert len(server.requests) == 40
    # New questions before and after the old ones, so that every row has another number.
    grown = config_of(range(8, 23), shard_size=shard_size)
    second = drawn(grown)
    assert len(server.requests) == 40 + 5 * 4
    store = ArtifactStore(grown.storage)
    rows = store.read_table(second, "generations.parquet")
    assert rows["question_id"].drop_duplicates().tolist() == [f"train{n}" for n in range(8, 23)]
    assert store.manifest(second).counts["draws"] == 60 and store.manifest(second).counts["questions"] == 15
    before = store.read_table(first, "generations.parquet")
    same = rows[rows["question_id"].isin(before["question_id"])].reset_index(drop=True)
    assert same.to_dict("records") == before.to_dict("records")


def test_the_draws_of_a_smaller_set_are_those_of_a_run_on_it_alone(server, config_of, tmp_path):
    drawn(config_of(range(12)))
    sent = len(server.requests)
    smaller = config_of(range(5, 9))
    assert drawn(smaller)
    assert len(server.requests) == sent
    alone = smaller.model_copy(update={"storage": smaller.storage.model_copy(update={"root": str(tmp_path / "alone")})})
    assert drawn(alone).sha256 == drawn(smaller).sha256


def test_a_change_of_the_held_out_questions_touches_no_draw(server, config_of):
    first = drawn(config_of(range(6)))
    sent = len(server.requests)
    for held_out in (range(3), range(9)):
        assert drawn(config_of(range(6), held_out=held_out)).sha256 == first.sha256
    assert len(server.requests) == sent


def test_another_answer_is_another_question(server, config_of, tmp_path):
    config = config_of(range(6))
    drawn(config)
    sent = len(server.requests)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace('"answer": "Tehran"', '"answer": "Rome"', 1))
    drawn(config)
    assert len(server.requests) == sent  # asked with the same words: the kept replies serve
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    with session():
        layout = lay_out(collect_generations.work(config, questions, model), ArtifactStore(config.storage))
    assert not layout.missing and len({ref.key for ref in layout.shards.values()}) == 3


def test_of_held_out_questions_only_the_new_ones_are_scored(config_of):
    def scored(held_out, **changes):
        config = config_of(range(2), held_out=held_out, **changes)
        inputs = config, load_evaluation_questions.run_here(config), prepare_model.run_here(config)
        ref = make_in_shards(score_shard, collect_scores, *inputs, variant="on")
        return ArtifactStore(config.storage), ref

    def shard_rows(store):
        return sorted(store.find("scores-shard", key).rows for key in store.keys("scores-shard"))

    store, _ = scored(range(4, 10))
    assert shard_rows(store) == [2, 4]
    store, second = scored(range(2, 12), shard_size=50)
    assert shard_rows(store) == [2, 4, 4]
    names = store.read_table(second, "scores.parquet")["question_id"].tolist()
    assert [name.rpartition("eval")[2] for name in names] == [str(n) for n in range(2, 12)]


def test_a_second_benchmark_scores_nothing_of_the_first_again(config_of, tmp_path):
    def scored(*names):
        config = config_of(range(2), held_out=range(3))
        for name in names[1:]:
            rows = [{"id": f"{name}{n}", "question": f"What of {name} {n}?", "answer": "Tehran"} for n in range(2)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        sets = [{"path": str(tmp_path / f"{name}.jsonl"), "id_column": "id"} for name in names]
        values = config.model_dump()
        config = RunConfig.model_validate({**values, "questions": {**values["questions"], "eval": sets}})
        inputs = config, load_evaluation_questions.run_here(config), prepare_model.run_here(config)
        ref = make_in_shards(score_shard, collect_scores, *inputs, variant="on")
        store = ArtifactStore(config.storage)
        return len(store.keys("scores-shard")), store.read_table(ref, "scores.parquet")

    num_shards, alone = scored("eval")
    assert (num_shards, set(alone["stratum"])) == (1, {""})
    num_shards, both = scored("eval", "other")
    assert num_shards == 2 and both["stratum"].tolist() == ["eval"] * 3 + ["other"] * 2
    assert both["completion"].tolist()[:3] == alone["completion"].tolist()


def test_a_damaged_note_is_as_none(server, config_of):
    config = config_of(range(6))
    first = drawn(config)
    for path in (pathlib.Path(config.storage.root) / "records" / "items").rglob("*.json"):
        path.write_text('{"items": [[1]]}')
    drawn(config_of(range(7)))
    assert drawn(config_of(range(6))) == first


def test_of_traces_that_grow_only_the_new_ones_are_labelled(tmp_path):
    server = CountingServer()
    models = {"annotator_a": "openai/a", "annotator_b": "openai/b", "adjudicator": "openai/judge"}
    annotate = {role: {"model": model, "api_base": server.url, **FREE} for role, model in models.items()}

    def labelled(numbers, shard_size):
        config = RunConfig(
            storage={"root": str(tmp_path / "store")},
            questions={"train": "nq_open"},
            annotate={**annotate, "shard_size": shard_size},
        )
        rows = [candidate_row(f"t{n}", [f"Wait, let me check number {n}.", "So it is Galen."]) for n in numbers]
        ref = label(config, publish_candidates(config.storage, rows, tmp_path / f"candidates{len(rows)}"))
        return ArtifactStore(config.storage), ref

    store, _ = labelled(range(5, 15), 4)
    assert len(server.requests) == 30
    store, second = labelled(range(18), 7)
    assert len(server.requests) == 30 + 8 * 3
    sizes = sorted(store.find("annotations-shard", key).rows for key in store.keys("annotations-shard"))
    assert sum(sizes) == 18 * 2 and len(sizes) == 5
    labels = store.read_table(second, "annotations.parquet")["trace_id"].drop_duplicates().tolist()
    assert labels == [f"t{n}" for n in range(18)]
    server.close()
