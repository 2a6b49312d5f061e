"""On the pocket world: one draw at a time gives the traces of all draws, whatever the shards."""

import pandas as pd
import pytest

from mralign_core.storage import ArtifactStore
from tasks.generate import read_draws, select_candidates
from tasks.prepare import load_questions, prepare_model
from tests.pocket_store import copy_store, small_config
from tests.stages import draw


def generated(root, **changes):
    """The draws, the digest of the candidates, and the thinking tokens they took."""
    config = small_config(root, questions__train={"name": "pocket", "limit": 160}, **changes)
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    generations = draw(config, questions, model)
    candidates = select_candidates.run_here(config, questions, model, generations)
    store = ArtifactStore(config.storage)
    counts = read_draws(store, generations).set_index("thinking_mode")
    return store.read_table(generations, "generations.parquet"), candidates.sha256, counts.loc["on", "tokens"]


@pytest.fixture(scope="module")
def sequential(pocket_store, tmp_path_factory):
    root = copy_store(pocket_store, tmp_path_factory.mktemp("sequential") / "store")
    return generated(root)


def test_all_draws_give_the_same_candidates_from_more_thinking(sequential, store_root):
    draws, candidates, tokens = generated(store_root, generate__draws="exhaustive")
    assert len(draws) == 2 * 3 * draws["question_id"].nunique() > len(sequential[0])
    assert candidates == sequential[1]
    assert sequential[2] < 0.6 * tokens


def test_shards_and_batches_change_nothing(sequential, store_root):
    draws, candidates, _ = generated(store_root, generate__shard_size=60, generate__batch_size=50)
    pd.testing.assert_frame_equal(draws, sequential[0])
    assert candidates == sequential[1]
