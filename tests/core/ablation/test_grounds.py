"""Arms with a model or traces of their own: what they share, what they are compared with, and what is refused."""

import pytest

from mralign_core.ablation.grid import arm_comparisons, arms_of, arms_on, grounds_of, worlds_of
from mralign_core.config import RunConfig, parse_config
from mralign_core.errors import ConfigError

SETS = {"train": ["nq_open", "sciq"], "eval": "simpleqa"}
LLAMA = {"model.path": "meta-llama/Llama-3.1-8B"}


def config(arms, **sections) -> RunConfig:
    extra = sections.pop("extra_arms", {})
    model = {"path": "Qwen/Qwen3-4B", "revision": "abc", "family": "qwen3"}
    values = {"name": "big", "model": model, "questions": SETS, "ablate": {"arms": arms, "extra_arms": extra}}
    return parse_config(values | sections)


def test_an_arm_of_one_set_trains_on_that_set_and_is_compared_like_any_other():
    its_config = config(["kto", "mr_align", "only_nq_open", "only_sciq"])
    arms = arms_of(its_config)
    assert arms["only_nq_open"].config.questions.train_on == ("nq_open",)
    assert arms["only_nq_open"].config.questions.train == its_config.questions.train, "so that ids stay"
    assert [arm.title for arm in arms.values()][2:] == ["nq_open only", "sciq only"]
    baselines = [baseline for arm, baseline in arm_comparisons(arms) if arm == "only_sciq"]
    assert baselines == ["on", "kto", "mr_align"]
    grounds = grounds_of(its_config)
    assert [(ground.arms, ground.backbone, ground.config.name) for ground in grounds] == [
        (("kto", "mr_align"), "", "big"),
        (("only_nq_open",), "", "big-only_nq_open"),
        (("only_sciq",), "", "big-only_sciq"),
    ]


def test_another_model_is_its_arms_baseline_and_takes_nothing_over_that_was_said_of_the_runs():
    extra = {"llama": {"set": LLAMA}, "llama_kto": {"variant": "kto", "set": LLAMA}}
    its_config = config(["mr_align", "kto", "llama_kto", "llama"], extra_arms=extra)
    arms = arms_of(its_config)
    model = arms["llama"].config.model
    assert (model.path, model.revision, model.family) == (LLAMA["model.path"], "", "auto")
    pairs = arm_comparisons(arms)
    assert [pair for pair in pairs if "llama" in pair[0]] == [
        ("llama_kto", "on@llama_kto"),
        ("llama", "on@llama_kto"),
        ("llama", "llama_kto"),
    ]
    assert [(ground.arms, ground.backbone) for ground in grounds_of(its_config)] == [
        (("mr_align", "kto"), ""),
        (("llama_kto", "llama"), "llama_kto"),
    ]


def test_of_several_kto_arms_on_a_ground_the_plain_one_is_what_others_are_compared_with():
    extra = {
        "llama": {"set": LLAMA},
        "llama_kto_average": {"variant": "kto", "set": {**LLAMA, "train.kl_every": 4}},
        "llama_kto": {"variant": "kto", "set": LLAMA},
    }
    pairs = arm_comparisons(arms_of(config([*extra, "mr_align"], extra_arms=extra)))
    assert [pair for pair in pairs if pair[1] in extra] == [("llama", "llama_kto"), ("llama_kto_average", "llama_kto")]


def test_arms_take_what_their_ground_was_pinned_to_and_the_seed_of_the_run():
    its_config = config(["mr_align", "llama"], extra_arms={"llama": {"set": LLAMA}})
    ground = grounds_of(its_config)[1]
    pinned = ground.config.model_copy(update={"model": ground.config.model.model_copy(update={"revision": "c0ffee"})})
    (arm,) = arms_on(ground._replace(config=pinned), its_config.model_copy(update={"seed": 7})).values()
    assert (arm.config.model.revision, arm.config.seed) == ("c0ffee", 7)


def test_what_an_arm_of_another_ground_makes_does_not_pass_for_the_runs_last():
    its_config = config(["mr_align", "only_sciq"])
    own, other = grounds_of(its_config)
    assert [arm.config.name for arm in arms_on(own, its_config).values()] == ["big"]
    assert [arm.config.name for arm in arms_on(other, its_config).values()] == ["big-only_sciq"]


def test_an_arms_model_is_that_of_the_world():
    pocket = {"model": {"source": "pocket"}, "questions": {"train": "pocket", "eval": "pocket"}}
    its_config = config(["mr_align", "backbone_llama"], **pocket)
    models = [grounds_of(world)[1].config.model.pocket for world in worlds_of(its_config).values()]
    assert {model.architecture for model in models} == {"llama"}
    assert [model.world_seed for model in models] == list(worlds_of(its_config))


def test_teachers_are_arms_by_their_file_of_traces(tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("all", "a", "b")}
    for path in files.values():
        path.touch()
    extra = {name: {"set": {"generate.traces_path": str(files[name])}} for name in ("a", "b")}
    traces = {"source": "traces", "traces_path": str(files["all"])}
    questions = {"eval": "simpleqa"}
    grounds = grounds_of(config(["mr_align", "a", "b"], generate=traces, questions=questions, extra_arms=extra))
    assert [ground.config.generate.traces_path for ground in grounds] == [str(path) for path in files.values()]
    files["b"].unlink()
    with pytest.raises(ConfigError, match=r"arm 'b': generate\.traces_path \S+ is not a file: name one, or take the"):
        arms_of(config(["mr_align", "b"], generate=traces, questions=questions, extra_arms=extra))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"arms": ["only_simpleqa"]},
            "ablate.arms: 'only_simpleqa' trains on one of several sets of questions.train; there are only_nq_open, "
            "only_sciq",
        ),
        (
            {"arms": ["only_nq_open"], "questions": {"train": "nq_open", "eval": "simpleqa"}},
            "questions.train has 1 set(s): name several",
        ),
        ({"arms": ["backbone_llama"]}, "arm 'backbone_llama': 1 problem(s)\n  model: model.pocket has no effect when"),
        (
            {
                "arms": ["llama"],
                "extra_arms": {"llama": {"set": LLAMA}},
                "generate": {"sampler": "endpoint"},
            },
            "arm 'llama' has another model, and generate.sampler 'endpoint' samples from the one that your server "
            "serves: set generate.sampler to transformers or vllm",
        ),
        (
            {"arms": ["mr_align", "same"], "extra_arms": {"same": {"set": {"questions.train": ["nq_open", "sciq"]}}}},
            "'same' would train the same adapter as 'mr_align'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_by_the_arms_name_with_a_remedy(given, says):
    with pytest.raises(ConfigError) as caught:
        arms_of(config(**given))
    assert says in str(caught.value)
