import doctest

import numpy as np
import pytest

from flows.commands.cli import read_config
from mralign_core.config import EvaluateConfig
from mralign_core.errors import ConfigError
from mralign_core.evaluation import self_refine, snippet_prompt, token_costs, variants
from mralign_core.evaluation.metrics import comparisons, paired_differences
from mralign_core.evaluation.token_costs import mean_tokens
from mralign_core.evaluation.variants import variants_to_score
from mralign_core.reporting.titles import VARIANT_TITLES
from mralign_core.reporting.token_table import read_mean_tokens, token_table
from tests.core.evaluation.sample_run import as_scores, random_scores, score

ALL = ("off", "on", "self_refine", "on_retrieval", "sft", "kto", "mr_align", "mr_align_retrieval")
BESIDE = {"evaluate.self_refine.rounds": 1, "evaluate.retrieval.corpus": "pocket"}


@pytest.mark.parametrize("module", [self_refine, snippet_prompt, token_costs, variants])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_variants_beside_the_plain_ones_are_scored_where_they_are_asked_for():
    assert variants_to_score(read_config("pocket")) == ("off", "on", "sft", "kto", "mr_align")
    assert variants_to_score(read_config("pocket", BESIDE)) == ALL == tuple(VARIANT_TITLES)
    only_kto = variants_to_score(read_config("pocket", {**BESIDE, "train.variants": ["kto"]}))
    assert only_kto == ("off", "on", "self_refine", "on_retrieval", "kto")
    assert variants_to_score(read_config("pocket", BESIDE), []) == ("off", "on", "self_refine", "on_retrieval")
    assert variants_to_score(read_config("pocket", {**BESIDE, "questions.eval": []})) == ()
    assert "self_refine" in variants_to_score(read_config("pocket", {"evaluate.self_refine.rounds": 0}))


def test_what_is_compared():
    plain = [("sft", "on"), ("kto", "on"), ("mr_align", "on"), ("mr_align", "kto")]
    assert comparisons(["off", "on", "sft", "kto", "mr_align"]) == plain
    assert comparisons(ALL) == [
        *plain,
        ("self_refine", "on"),
        ("on_retrieval", "on"),
        ("mr_align_retrieval", "on_retrieval"),
        ("mr_align_retrieval", "mr_align"),
    ]


def test_variants_beside_the_plain_ones_move_no_other_difference():
    scores = random_scores(np.random.default_rng(1), ALL, 40)

    def differences(frame):
        found = paired_differences(frame, num_resamples=200, confidence=0.9, rng=np.random.default_rng(0))
        return found.set_index(["variant", "baseline", "stratum", "metric"])

    plain = differences(scores[scores["variant"].isin(["off", "on", "sft", "kto", "mr_align"])])
    everything = differences(scores)
    assert everything.loc[plain.index].equals(plain) and len(everything) == 2 * len(plain)


def test_settings_without_effect_or_sense_are_refused():
    with pytest.raises(ConfigError, match=r"evaluate\.retrieval\.top_k has no effect without evaluate\.retrieval\.cor"):
        read_config("pocket", {"evaluate.retrieval.top_k": 3})
    with pytest.raises(ConfigError, match=r"corpus 'pocket' .* needs model\.source 'pocket'; a folder .* is \./pocket"):
        read_config("qwen3-8b-paper", {"evaluate.retrieval.corpus": "pocket"})
    with pytest.raises(ConfigError, match=r"evaluate\.self_refine\.rounds"):
        read_config("pocket", {"evaluate.self_refine.rounds": -1})
    assert EvaluateConfig().self_refine.rounds is None


def test_tokens_are_shown_by_variant_beside_those_of_think_on(tmp_path):
    tokens = [("off", 9, 2), ("on", 9, 10), ("on", 11, 30), ("self_refine", 40, 55)]
    rows = [
        score(variant, f"q{place}", None, None, num_prompt_tokens=read, num_tokens=drawn)
        for place, (variant, read, drawn) in enumerate(tokens)
    ]
    means = mean_tokens(as_scores(rows))  # of answers without a gold answer too
    assert token_table(means).rows == [
        ["think off", "9.0", "2.0", "0.10 ×"],
        ["think on", "10.0", "20.0", "1.00 ×"],
        ["Self-Refine", "40.0", "55.0", "2.75 ×"],
    ]
    assert read_mean_tokens(tmp_path) is None
    means.to_json(tmp_path / "tokens.json", orient="records")
    found = read_mean_tokens(tmp_path)
    assert found is not None and token_table(found) == token_table(means)
    assert token_table(means[means["variant"] == "off"]).rows == [["think off", "9.0", "2.0", "–"]]
