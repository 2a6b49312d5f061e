"""The oracle has the matrices of the grammar, whatever the labelled traces say; elsewhere it is refused."""

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, parse_config
from mralign_core.errors import ConfigError
from mralign_core.estimation.estimators import estimate_tables, make_estimator
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import DELIBERATION
from mralign_core.pocket.walks import grammar_walks
from mralign_core.pocket.world import build_world
from tests.oracles import count_set_pairs

NAMES = PAPER_TAXONOMY.state_names
STATE = {name: state for state, name in enumerate(NAMES)}
WRONG_WAY = {
    "plus": [[(STATE["retrieval"],), (STATE["analogy"],)]] * 20,
    "minus": [[(STATE["retrieval"],), (STATE["self_verification"],)]] * 20,
}


def oracle_of(steps):
    pairs = {
        name: count_set_pairs(part, len(NAMES))
        for name, part in {**steps, "all": steps["plus"] + steps["minus"]}.items()
    }
    return pairs, make_estimator(EstimateConfig(estimator="oracle"), len(NAMES))(pairs)


def test_walks_are_the_traces_of_every_question_and_a_seed_decides_them():
    world = build_world(2)
    walks = grammar_walks(world, 2, seed=1)
    assert len(walks) == 2 * len(world.questions) and walks == grammar_walks(world, 2, seed=1)
    assert walks != grammar_walks(world, 2, seed=2)
    assert {label for walk in walks for label in walk.labels} <= set(PAPER_TAXONOMY.labels)
    assert 0.65 < np.mean([walk.is_right for walk in walks]) < 0.82


def test_the_oracle_has_the_moves_of_the_grammar():
    _, fitted = oracle_of(WRONG_WAY)
    p = fitted["all"].p
    for state in ("evaluation", "analogy", "explanation"):
        for move, prob in DELIBERATION[state].items():
            if move != "finish":
                assert p[STATE[state], STATE[move]] == pytest.approx(prob, abs=0.03), (state, move)
        finish = p[STATE[state], [STATE["synthesis"], STATE["summarization"]]].sum()
        assert finish == pytest.approx(DELIBERATION[state]["finish"], abs=0.03)


def test_it_knows_which_moves_end_right_whatever_the_labelled_traces_say():
    pairs, fitted = oracle_of(WRONG_WAY)
    ratios = fitted["plus"].p[1:-1, 1:] / fitted["all"].p[1:-1, 1:]

    def ratio(source, target):
        return ratios[STATE[source] - 1, STATE[target] - 1]

    assert ratio("retrieval", "analogy") < 0.9 and ratio("backtracking", "analogy") < 0.9
    assert ratio("analogy", "synthesis") < 0.7 < 1.5 < ratio("analogy", "self_verification")
    assert fitted["plus"].counts.sum() == pytest.approx(pairs["plus"].multiplicities.sum()), (
        "support is the traces' own"
    )
    tables = estimate_tables(
        EstimateConfig(estimator="oracle"), pairs["all"], *(pairs["all"].multiplicities[None] * k for k in (1, 2))
    )
    for name, table in tables.items():
        np.testing.assert_array_equal(table.p[0], fitted[name].p)


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"source": "hub", "path": "x/y"}, "questions": {"train": "nq_open"}},
        {"annotate": {"label_set": "my.yaml"}},
        {"estimate": {"estimator": "oracle", "permute_polarity": True}},
        {"estimate": {"estimator": "oracle", "traces": "matched"}, "generate": {"draws": "exhaustive"}},
        {"reward": {"leave_own_question_out": True}},
    ],
)
def test_it_is_refused_where_it_knows_nothing_and_with_what_changes_nothing(other):
    config = {"model": {"source": "pocket"}, "questions": {"train": "pocket"}, "estimate": {"estimator": "oracle"}}
    parse_config(config)
    with pytest.raises(ConfigError, match="'oracle'"):
        parse_config({**config, **other})
