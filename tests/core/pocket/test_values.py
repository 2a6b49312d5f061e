from collections import Counter

import numpy as np
import pytest

from mralign_core.config import EstimateConfig, parse_config
from mralign_core.errors import ConfigError
from mralign_core.estimation.estimators import make_estimator
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.values import grammar_values
from mralign_core.pocket.world import build_world
from tests.oracles import count_set_pairs


@pytest.mark.parametrize("seed", [0, 5])
def test_values_are_the_shares_of_right_ends_among_traces_with_such_a_move(seed):
    world, rng = build_world(seed), np.random.default_rng(0)
    visits: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for question in world.questions * 10:
        trace = write_trace(world, question, rng)
        for segment in trace.segments:
            visits[segment.label] += 1
            right[segment.label] += trace.answer == question.answer
    values = grammar_values(world)
    assert set(values) == set(visits) - {"synthesis", "summarization"}, "the conclusion is no move of the deliberation"
    for label, value in values.items():
        error = np.sqrt(value * (1 - value) / visits[label])
        # Visits of one trace, and traces of one question, are alike: errors are larger than binomial ones.
        assert abs(right[label] / visits[label] - value) < 6 * error + 0.005, label


def test_the_oracle_weighs_a_move_by_these_values_whatever_the_labelled_traces_say():
    names = PAPER_TAXONOMY.state_names
    analogy, verification, recall = (names.index(name) for name in ("analogy", "self_verification", "retrieval"))
    wrong_way = {
        "plus": [[(recall,), (analogy,)]] * 20,
        "minus": [[(recall,), (verification,)]] * 20,
        "all": [[(recall,), (analogy,)], [(recall,), (verification,)]] * 20,
    }
    pairs = {name: count_set_pairs(steps, len(names)) for name, steps in wrong_way.items()}
    fitted = make_estimator(EstimateConfig(estimator="oracle"), len(names))(pairs)
    ratios = fitted["plus"].p[recall, 1:] / fitted["all"].p[recall, 1:]
    values = grammar_values(build_world(0))
    assert ratios[verification - 1] / ratios[analogy - 1] == pytest.approx(
        values["self_verification"] / values["analogy"]
    )
    assert ratios[analogy - 1] < 1 < ratios[verification - 1]


@pytest.mark.parametrize("other", [{"model": {"source": "hub", "path": "x/y"}}, {"annotate": {"label_set": "my.yaml"}}])
def test_the_oracle_knows_no_other_world_and_no_other_labels(other):
    config = {"model": {"source": "pocket"}, "questions": {"train": "pocket"}, "estimate": {"estimator": "oracle"}}
    parse_config(config)
    if "model" in other:
        other = {**other, "questions": {"train": "nq_open"}}
    with pytest.raises(ConfigError, match=r"'oracle'.*Use 'value'"):
        parse_config({**config, **other})
