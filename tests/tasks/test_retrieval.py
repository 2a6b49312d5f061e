"""What the pocket world's facts do to its model's answers, as snippets before the question.

Only the words of one-hop questions find the fact that is asked for. At temperature 0 the test would say nothing: the
model then always reasons by analogy, and any snippets at all make it skip that.
"""

import numpy as np
import pytest

from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.snippets import SNIPPETS
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.engine.session import session
from tasks.evaluate import collect_scores, score_shard
from tasks.prepare import load_evaluation_questions, prepare_model
from tasks.snippets import find_snippets
from tests.pocket_store import small_config
from tests.stages import make_in_shards


@pytest.fixture
def config(store_root):
    return small_config(store_root, evaluate__retrieval__corpus="pocket")


@pytest.fixture
def inputs(config):
    return {
        "config": config,
        "evaluation_questions": load_evaluation_questions.run_here(config),
        "model": prepare_model.run_here(config),
    }


def scored(inputs, variant, snippets=None):
    """The scores of one-hop questions' only draws, by question."""
    ref = make_in_shards(score_shard, collect_scores, **inputs, snippets=snippets, variant=variant)
    scores = ArtifactStore(inputs["config"].storage).read_table(ref, "scores.parquet")
    SCORES.require(scores)
    return scores[scores["stratum"] == "one_hop"].set_index("question_id")


def shuffled(config, ref, directory):
    """The same snippets, each question with those of another."""
    store = ArtifactStore(config.storage)
    frame = store.read_table(ref, "snippets.parquet")
    names = frame["question_id"].unique()
    other = dict(zip(names, np.random.default_rng(0).permutation(names), strict=True))
    directory.mkdir()
    write_table(directory, "snippets.parquet", frame.assign(question_id=frame["question_id"].map(other)), SNIPPETS)
    return store.publish("snippets", "0" * 64, directory, parents=[], fingerprint={}, table=SNIPPETS.name)


def test_the_worlds_facts_lift_one_hop_answers_and_those_of_other_questions_do_not(config, inputs, tmp_path):
    snippets = find_snippets.run_here(config, inputs["evaluation_questions"])
    with session():
        plain = scored(inputs, "on")
        found = scored(inputs, "on_retrieval", snippets)
        placebo = scored(inputs, "on_retrieval", shuffled(config, snippets, tmp_path / "shuffled"))
    right = [frame["em_answer"].astype(float) for frame in (plain, found, placebo)]
    assert len(right[0]) > 50
    assert (right[1] - right[0]).mean() > 0.1
    assert (right[2] - right[0]).mean() <= 0
    assert (found["num_prompt_tokens"] > 3 * plain["num_prompt_tokens"]).all()


def test_the_snippets_are_kept_once_and_are_the_same_for_all_variants(config, inputs):
    questions = inputs["evaluation_questions"]
    produced = [find_snippets.produce(config, questions) for _ in range(2)]
    assert [each.was_cached for each in produced] == [False, True]
    store = ArtifactStore(config.storage)
    frame = store.read_table(produced[0].ref, "snippets.parquet")
    assert frame.groupby("question_id").size().eq(5).all()
    assert store.manifest(produced[0].ref).counts == {"pieces searched": 416, "questions without snippets": 0}
    work = {
        variant: collect_scores.work(**inputs, adapter=produced[0].ref, snippets=produced[0].ref, variant=variant)
        for variant in ("on", "on_retrieval", "mr_align", "mr_align_retrieval")
    }
    assert {name for name, one in work.items() if "snippets" in one.inputs} == {"on_retrieval", "mr_align_retrieval"}


def test_of_questions_that_are_added_only_the_new_ones_are_answered(store_root):
    def shard_rows(limit):
        sets = {"questions__eval": [{"name": "pocket", "limit": limit}], "evaluate__max_new_tokens": 8}
        config = small_config(store_root, evaluate__retrieval__corpus="pocket", **sets)
        questions, model = load_evaluation_questions.run_here(config), prepare_model.run_here(config)
        snippets = find_snippets.run_here(config, questions)
        named = {"snippets": snippets, "variant": "on_retrieval"}
        ref = make_in_shards(score_shard, collect_scores, config, questions, model, **named)
        store = ArtifactStore(config.storage)
        shards = [store.find("scores-shard", key) for key in store.keys("scores-shard")]
        return ref.rows, sorted(shard.rows or 0 for shard in shards if shard)

    assert shard_rows(6) == (6, [6])
    assert shard_rows(10) == (10, [4, 6])
