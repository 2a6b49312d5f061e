"""Which arms, worlds and seeds there are, with which config, and which pairs are compared."""

import math

import pytest

from mralign_core.ablation.grid import arm_comparisons, arms_of, require_comparable_sets, seeds_of, worlds_of
from mralign_core.config import RunConfig, overridden, parse_config
from mralign_core.config.arms import ARMS
from mralign_core.errors import ConfigError

POCKET = {"name": "pocket", "model": {"source": "pocket"}, "questions": {"train": "pocket", "eval": "pocket"}}
ALL_ARMS = {"ablate": {"arms": list(ARMS)}, "generate": {"draws": "exhaustive"}}
HUB = {"name": "big", "questions": {"train": "nq_open", "eval": "sciq"}}


def config(base=POCKET, **sections) -> RunConfig:
    return parse_config({**base, **sections})


def dotted(values: dict, prefix: str = "") -> dict:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differing(one: RunConfig, other: RunConfig) -> dict:
    before, after = (dotted(each.model_dump()) for each in (one, other))
    return {name: value for name, value in after.items() if value != before.get(name)}


def test_every_arm_differs_from_the_run_in_its_overrides_and_in_what_it_trains_and_nothing_else():
    base = config(**ALL_ARMS)
    for name, arm in arms_of(base).items():
        found = differing(base, arm.config)
        assert found.pop("train.variants") == (ARMS[name].variant,)
        assert found.pop("ablate.arms", None)
        assert found == dict(ARMS[name].overrides), name


def test_no_two_arms_are_alike_and_placebos_are_known_as_such():
    arms = arms_of(config(**ALL_ARMS))
    placebos = {name for name, arm in arms.items() if arm.is_placebo}
    forms = ("squared", "linear", "signed", "matched_squared", "matched_signed")
    own = {form: f"{form}_placebo" for form in forms}
    assert placebos == {"placebo_within", "placebo_others", "placebo_polarity", *own.values()}
    assert set(own.items()) <= set(arm_comparisons(arms))
    assert len({repr(arm.identity) for arm in arms.values()}) == len(ARMS)
    assert arms["wide_clip"].config.reward.clip_max == pytest.approx(math.e**2)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"reward": {"reference": "opposite"}}, "'contrast' would train the same adapter as 'mr_align'"),
        (
            {"estimate": {"damping": 0.5}, "ablate": {"arms": ["frequency"]}},
            "arm 'frequency': 1 problem(s)\n  estimate: estimate.damping has no effect when estimate.estimator is",
        ),
        (
            {"ablate": {"arms": ["matched"]}},
            "arm 'matched': 1 problem(s)\n  estimate.traces 'matched' takes the think-on draws of every question, and "
            "generate.draws 'sequential' makes only those that can still matter to the selection, a biased sample: set "
            "generate.draws to 'exhaustive'",
        ),
        ({"questions": {"train": "pocket"}}, "questions.eval names no set: arms are compared on held-out questions"),
        (
            {"ablate": {"arms": ["sft", "mine"], "extra_arms": {"mine": {"variant": "sft", "set": {"train.beta": 1}}}}},
            "'mine' would train the same adapter as 'sft'",
        ),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(sections, says):
    with pytest.raises(ConfigError) as caught:
        arms_of(config(**sections))
    assert says in str(caught.value)


def test_arms_of_ones_own():
    mine = {"hard": {"title": "hard clip", "set": {"reward.clip_min": 0.9, "reward.clip_max": 1.1}}}
    arms = arms_of(config(ablate={"arms": ["kto", "hard"], "extra_arms": mine}))
    assert (arms["hard"].title, arms["hard"].variant) == ("hard clip", "mr_align")
    assert (arms["hard"].config.reward.clip_min, arms["kto"].config.reward.clip_max) == (0.9, math.e)


@pytest.mark.parametrize(
    ("ablate", "says"),
    [
        ({"arms": ["kto", "kta"]}, "ablate.arms: unknown arm 'kta'; there are sft, kto, mr_align, contrast"),
        ({"arms": []}, "ablate.arms must name at least one arm, each once"),
        ({"arms": ["kto", "kto"]}, "ablate.arms must name at least one arm, each once"),
        ({"extra_arms": {"kto": {}}}, "ablate.extra_arms.kto: take another name"),
        ({"extra_arms": {"on": {}}}, "ablate.extra_arms.on: take another name"),
        ({"extra_arms": {"self_refine": {}}}, "ablate.extra_arms.self_refine: take another name"),
        ({"extra_arms": {"only_x": {}}}, "ablate.extra_arms.only_x: take another name"),
        ({"extra_arms": {"x": {"set": {"model.pocket.world_seed": 3}}}}, "set 'model.pocket.world_seed': an arm of"),
        ({"extra_arms": {"x": {"sett": {}}}}, "ablate.extra_arms.x.sett: no such field; did you mean 'set'?"),
        ({"extra_arms": {"x": {"set": {"reward.clip_mx": 2}}}}, "reward.clip_mx: no such field; did you mean 'clip_ma"),
        ({"extra_arms": {"x": {"set": {"reward.clip_max": 0.5}}}}, "reward.clip_max: Input should be greater than or"),
        (
            {"extra_arms": {"x": {"set": {"generate.num_draws": 1}}}},
            "may differ only in estimate.*, reward.*, train.*, model.source, ",
        ),
        ({"extra_arms": {"x": {"set": {"train.variants": ["sft"]}}}}, "set 'train.variants': an arm of variant"),
        (
            {"extra_arms": {"x": {"variant": "kto", "set": {"reward.clip_max": 3}}}},
            "an arm of variant 'kto' may differ only in train.*, model.source, ",
        ),
    ],
)
def test_wrong_arms_are_refused_when_the_config_is_read(ablate, says):
    with pytest.raises(ConfigError) as caught:
        config(ablate=ablate)
    assert says in str(caught.value)


def test_pairs_of_the_default_grid():
    found = arm_comparisons(arms_of(config()))
    assert [pair for pair in found if pair[1] == "on"] == [(name, "on") for name in config().ablate.arms]
    placebos = ["placebo_within", "placebo_others", "placebo_polarity"]
    assert [pair for pair in found if pair[1] == "kto"] == [
        (name, "kto") for name in ("sft", "mr_align", "contrast", "mean_one", *placebos)
    ]
    rest = [pair for pair in found if pair[1] not in ("on", "kto")]
    of_placebos = [("mr_align", placebo) for placebo in placebos]
    assert rest == [*of_placebos, ("contrast", "mr_align"), ("mean_one", "mr_align")]


def test_a_placebo_is_compared_with_the_arm_that_it_is_a_placebo_of():
    fake = {"set": {"reward.reference": "opposite", "reward.placebo": "within_trace"}}
    ablate = {"arms": ["mr_align", "contrast", "fake"], "extra_arms": {"fake": fake}}
    found = arm_comparisons(arms_of(config(ablate=ablate)))
    assert [arm for arm, baseline in found if baseline == "fake"] == ["contrast"]
    assert ("fake", "mr_align") not in found


def test_worlds_follow_the_first_have_names_of_their_own_and_a_reserve():
    base = config(ablate={"num_worlds": 2, "first_world": 7, "max_refused_worlds": 1, "where": "deployment"})
    worlds = worlds_of(base)
    assert list(worlds) == [7, 8, 9]
    assert [world.model.pocket.world_seed for world in worlds.values()] == [7, 8, 9]
    assert len({base.name, *(world.name for world in worlds.values())}) == 4
    assert all(overridden(world, {}).name == world.name for world in worlds.values())
    assert {world.ablate.where for world in worlds.values()} == {"inline"}
    assert {world.seed for world in worlds.values()} == {base.seed}
    longest = worlds_of(config({**POCKET, "name": "x" * 64}))
    assert all(overridden(world, {}).name.endswith(f"-world-{number}") for number, world in longest.items())


def test_another_model_has_one_world():
    (world,) = worlds_of(config(HUB)).values()
    assert world.model == config(HUB).model
    with pytest.raises(ConfigError, match=r"ablate\.num_worlds has no effect when model\.source is 'hub'"):
        config(HUB, ablate={"num_worlds": 2})


def test_seeds_follow_the_runs():
    assert [each.seed for each in seeds_of(config(seed=4, ablate={"num_seeds": 3}))] == [4, 5, 6]


def test_sets_that_only_a_judge_can_score_are_refused_before_anything_is_trained(caplog):
    with pytest.raises(ConfigError, match="truthfulqa can only be scored by a judge"):
        require_comparable_sets(config(HUB, questions={"train": "nq_open", "eval": "truthfulqa"}))
    require_comparable_sets(config(HUB, questions={"train": "nq_open", "eval": ["sciq", "truthfulqa"]}))
    assert not caplog.text
    require_comparable_sets(config(HUB, evaluate={"self_refine": {"rounds": 1}}))
    assert "evaluate.self_refine not used" in caplog.text


def test_ceilings_hold_for_each_model_and_file_of_traces():
    assert config().ablate.num_accounts == 1
    assert config(ablate={"arms": ["kto", "mr_align", "squared"]}).ablate.num_accounts == 1
    others = {"llama": {"set": {"model.pocket.architecture": "llama"}}, "set": {"set": {"questions.train": "pocket"}}}
    arms = {"extra_arms": others, "arms": ["mr_align", "set", "llama", "backbone_llama", "backbone_deeper"]}
    assert config(ablate=arms).ablate.num_accounts == 3
