"""The mapping between label vocabularies, and the benchmark that uses it."""

import doctest
import os
from pathlib import Path

import pytest

from benchmarks import labels_of_others
from mralign_core.method.taxonomy import PAPER_TAXONOMY

REAL_DATA = os.environ.get("MRALIGN_REAL_DATA", "")
MAPPINGS = labels_of_others.load_mappings()


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_names_our_labels_and_a_reason(name):
    for label, entry in MAPPINGS[name].items():
        assert set(entry) in ({"ours", "why"}, {"unmapped"}), label
        assert set(entry.get("ours", ())) <= set(PAPER_TAXONOMY.labels), label
        assert entry.get("why") or entry.get("unmapped"), label


def test_scores_are_worked_by_hand():
    assert doctest.testmod(labels_of_others).failed == 0


def test_chance_is_what_random_labels_reach():
    """Labels given to random segments score what the chance columns say."""
    import numpy as np

    rng = np.random.default_rng(0)
    theirs = [str(label) for label in rng.choice(["a", "b"], 4000, p=[0.3, 0.7])]
    ours = [{"x"} if given else set() for given in rng.random(4000) < 0.2]
    (found,) = labels_of_others.score(theirs, ours, {"a": {"ours": ["x"]}, "b": {"unmapped": "no"}})
    assert found.precision == pytest.approx(found.chance_precision, abs=0.04)
    assert found.recall == pytest.approx(found.chance_recall, abs=0.03)
    assert found.kappa == pytest.approx(0, abs=0.04)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason="MRALIGN_REAL_DATA names no folder with real traces")
@pytest.mark.parametrize("name", MAPPINGS)
def test_real_labels_are_all_mapped_or_listed_and_beaten_somewhere(name):
    path = Path(REAL_DATA, "traces/labelled", f"{name}.jsonl.gz")
    traces = list(labels_of_others.read_traces(path, labels_of_others.MAIN_SPLIT.get(name)))[:20]
    theirs, annotators = labels_of_others.annotate(traces, noise=False)
    assert set(theirs) <= set(MAPPINGS[name])
    scores = labels_of_others.score(theirs, annotators["cue pipeline"], MAPPINGS[name])
    assert max(score.kappa for score in scores) > 0.2
