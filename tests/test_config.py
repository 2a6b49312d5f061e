"""The run config: what it accepts, what it refuses and how, and what enters a cache key."""

import pytest
import yaml
from pydantic import ValidationError

from mralign_core.config import AnnotateConfig, RewardConfig, RunConfig, Section, load_config, parse_config
from mralign_core.config.base import OPERATIONAL
from mralign_core.errors import ConfigError

LEAST = {"questions": {"train": "q.jsonl"}}
SERVER = {"model": "hosted_vllm/m", "api_base": "http://127.0.0.1:8000/v1"}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**LEAST, "generate": {"num_draws": 5}}))
    return path


def sections(section: type[Section] = RunConfig) -> list[type[Section]]:
    kinds = [field.annotation for field in section.model_fields.values()]
    nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    return [section, *(found for kind in nested for found in sections(kind))]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_is_documented(section):
    kinds = {name: field.annotation for name, field in section.model_fields.items()}
    plain = [name for name, kind in kinds.items() if not (isinstance(kind, type) and issubclass(kind, Section))]
    assert section.__doc__
    assert not [name for name in plain if not section.model_fields[name].description]


def test_defaults_are_the_papers():
    config = parse_config(LEAST)
    assert (config.generate.num_draws, config.generate.temperature, config.generate.top_p) == (3, 0.2, 0.9)
    assert (config.estimate.num_iterations, config.estimate.damping, config.estimate.prior) == (5, 0.6, 0.1)
    assert (config.train.beta, config.train.undesirable_weight) == (0.1, 1.5)
    assert config.reward.clip_min * config.reward.clip_max == pytest.approx(1)


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        parse_config(LEAST).seed = 3  # type: ignore[misc]


def test_overrides_are_read_as_yaml(config_file):
    overrides = {"train.variants": "[kto]", "annotate.budget_usd": "null", "reward.reference": "opposite"}
    config = load_config(config_file, {**overrides, "seed": 4})
    assert config.train.variants == ("kto",)
    assert config.annotate.budget_usd is None
    assert (config.reward.reference, config.seed, config.generate.num_draws) == ("opposite", 4, 5)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"generate": {"num_drawz": 1}}, "generate.num_drawz: no such field; did you mean 'num_draws'?"),
        ({"model": {"pocket": {"seed": 1}}}, "model.pocket.seed: no such field"),
        ({"reward": {"zzz": 1}}, "known fields: reference, form, gamma, clip_min, clip_max"),
        ({"reward": {"clip_min": 1.5}}, "reward.clip_min: Input should be less than or equal to 1 (got 1.5)"),
        ({"train": {"variants": []}}, "train.variants must name at least one variant, each once"),
        ({"train": {"variants": ["kto", "kto"]}}, "train.variants must name at least one variant, each once"),
        (
            {"train": {"global_batch_size": 0}},
            "train.global_batch_size: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"generate": {"min_reasoning_tokens": 2000}}, "min_reasoning_tokens is above generate.max_reasoning_tokens"),
        ({"generate": {"traces_path": "t.jsonl"}}, "generate.traces_path is needed with generate.source 'traces'"),
        ({"model": {"pocket": {"world_seed": 1}}}, "model.pocket has no effect when model.source is 'hub'"),
        (
            {"estimate": {"estimator": "frequency", "damping": 1.0}},
            "estimate.damping has no effect when estimate.estim",
        ),
        ({"estimate": {"estimator": "frequency", "tolerance": 0.1}}, "estimate.tolerance has no effect when estimate"),
        ({"estimate": {"estimator": "em_converged", "num_iterations": 9}}, "estimate.num_iterations has no effect"),
        ({"estimate": {"num_resamples": 0, "confidence": 0.9}}, "estimate.confidence has no effect"),
        (
            {"retrain": {"train_on": "new", "replay_share": 0.5}},
            "retrain.replay_share has no effect when retrain.train_on is 'new'",
        ),
        (
            {"retrain": {"beyond": f"mr_align-{'0' * 64}"}},
            "retrain.beyond has no effect when retrain.train_on is 'all'",
        ),
        (
            {"estimate": {"traces": "all_draws"}},
            "estimate.traces 'all_draws' takes the think-on draws of every question, and generate.draws 'sequential' "
            "makes only those that can still matter to the selection, a biased sample: set generate.draws to 'exhaust",
        ),
        (
            {"estimate": {"traces": "matched"}, "generate": {"source": "traces", "traces_path": "t.jsonl"}},
            "estimate.traces 'matched' takes the think-on draws of each question, and generate.source 'traces' has "
            "none: use estimate.traces 'selected'",
        ),
        (
            {"estimate": {"traces": "matched"}, "generate": {"draws": "exhaustive", "num_draws": 1}},
            "estimate.traces 'matched' compares draws of one question, and generate.num_draws is 1",
        ),
        (
            {"generate": {"concurrency": 3}},
            "generate.concurrency has no effect when generate.sampler is 'transformers'",
        ),
        (
            {"generate": {"sampler": "endpoint", "endpoint": {"model": "openai/m", "use_batch_api": True}}},
            "generate.endpoint.use_batch_api needs generate.draws 'exhaustive'",
        ),
        ({"generate": {"sampler": "vllm", "where": "threads"}}, "generate.where 'threads' can't be used with sampler"),
        (
            {"generate": {"sampler": "endpoint", "endpoint": {"model": "hosted_vllm/m", "temperature": 1}}},
            "generate.endpoint.temperature has no effect beside generate.temperature",
        ),
        (
            {"evaluate": {"concurrency": 8}},
            "evaluate.concurrency has no effect when evaluate.sampler is 'transformers'",
        ),
        (
            {"evaluate": {"sampler": "vllm", "ignored_adapters": "warn"}},
            "evaluate.ignored_adapters has no effect when evaluate.sampler is 'vllm'",
        ),
        (
            {"evaluate": {"sampler": "endpoint", "endpoint": {**SERVER, "temperature": 1}}},
            "evaluate.endpoint.temperature has no effect beside evaluate.temperature",
        ),
        (
            {"evaluate": {"sampler": "endpoint", "endpoint": {**SERVER, "use_batch_api": True}}},
            "evaluate.endpoint.use_batch_api has no effect as no batch API serves adapters",
        ),
        ({"evaluate": {"sampler": "endpoint", "endpoint": "openai/gpt-4o"}}, "evaluate.endpoint needs an api_base"),
        (
            {"evaluate": {"sampler": "endpoint", "endpoint": SERVER}, "vllm": {"environment": "/opt/vllm"}},
            "vllm has no effect when neither generate.sampler nor evaluate.sampler",
        ),
        (
            {"evaluate": {"sampler": "vllm"}, "vllm": {"environment": "/opt/vllm"}},
            "vllm.environment has no effect where no stage starts a server",
        ),
        (
            {
                "evaluate": {"sampler": "endpoint", "endpoint": "hosted_vllm/m", "adapters": "listed"},
                "vllm": {"environment": "/opt/vllm"},
            },
            "evaluate.adapters has no effect where the stage starts the server",
        ),
        ({"vllm": {"max_model_len": 4096}}, "vllm has no effect when neither generate.sampler nor evaluate.sampler"),
        ({"estimate": 3}, "estimate: Input should be a valid dictionary"),
        ({"questions": {}}, "questions.train is needed: what to align on, such as nq_open or a file's path"),
        ({"questions": {"train_path": "q.jsonl"}}, "questions.train_path: no such field; did you mean 'train_on'?"),
        ({"questions": {"train": {"nam": "sciq"}}}, "questions.train.0.nam: no such field; did you mean 'name'?"),
        (
            {"questions": {"train": ["q.jsonl", {}]}},
            "questions.train.1: give a set of questions a name, a path or both",
        ),
        ({"questions": {"train": {"name": "sciq", "pick": "random"}}}, "pick 'random' has no effect without a limit"),
        (
            {"train": {"desirable_weight": 0, "undesirable_weight": 0}},
            "train.desirable_weight (λ_c) and train.undesirable_weight (λ_r) are both 0",
        ),
        ({"train": {"desirable_weight": 0, "positives_only": True}}, "train.positives_only leaves only the positive"),
        ({"generate": {"temperature": 0}}, "at generate.temperature 0 all draws of a question are equal"),
        ({"evaluate": {"temperature": 0, "num_draws": 5}}, "evaluate.num_draws is 5, but at evaluate.temperature 0"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate: Input should be a finite number"),
        ({"train": {"beta": float("nan")}}, "train.beta: Input should be"),
        (
            {"storage": {"endpoint_url": "localhost:9000"}},
            "storage.endpoint_url: a URL starts with http:// or https://",
        ),
        ({"storage": {"root": "s3:/b/x"}}, "storage.root: write s3://b/x"),
        ({"questions": {"train": "pocket"}}, "question set 'pocket' needs model.source 'pocket'"),
    ],
)
def test_what_is_wrong_is_named(values, says):
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, **values}, origin="run.yaml")
    assert str(caught.value).startswith("run.yaml: 1 problem(s)")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("sciq", [{"name": "sciq"}]),
        ("org/sciq", [{"path": "org/sciq"}]),
        ("q.jsonl", [{"path": "q.jsonl"}]),
        ({"name": "sciq", "limit": 3}, [{"name": "sciq", "limit": 3}]),
        (["sciq", "data/q"], [{"name": "sciq"}, {"path": "data/q"}]),
    ],
)
def test_question_sets_can_be_written_short(short, whole):
    assert parse_config({"questions": {"train": short}}) == parse_config({"questions": {"train": whole}})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_fingerprint_has_all_but_operational_fields():
    config = parse_config(LEAST)
    fingerprint = config.fingerprint()
    assert "storage" not in fingerprint or fingerprint["storage"] == {}
    for name, field in type(config.generate).model_fields.items():
        assert (name in fingerprint["generate"]) == (field.json_schema_extra != OPERATIONAL), name
    assert fingerprint == parse_config({**LEAST, "name": "other", "storage": {"root": "x"}}).fingerprint()
    assert fingerprint != parse_config({**LEAST, "seed": 1}).fingerprint()


def test_a_config_survives_json():
    config = parse_config({**LEAST, "train": {"variants": ["kto"]}})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_class_may_have_no_weight_where_something_is_left_to_learn():
    for train in (
        {"desirable_weight": 0},
        {"undesirable_weight": 0},
        {"desirable_weight": 0, "undesirable_weight": 0, "variants": ["sft"]},
    ):
        parse_config({**LEAST, "train": train})


def test_powers_that_no_training_survives_are_refused_and_a_square_is_not():
    RewardConfig(form="power", gamma=2.0)
    with pytest.raises(ValidationError, match=r"reward.gamma 100 makes weights of up to e\^100 of ratios"):
        RewardConfig(form="power", gamma=100.0)
    RewardConfig(form="signed", gamma=100.0, clip_min=1e-9, clip_max=1e9)


def test_what_offline_annotators_do_not_heed_is_refused():
    offline = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    with pytest.raises(
        ValidationError, match=r"annotate\.show_gold_answers has no effect when all annotators are offline"
    ):
        AnnotateConfig.model_validate(offline | {"show_gold_answers": False})
    with pytest.raises(ValidationError, match=r"annotate\.may_merge has no effect when all annotators are offline"):
        AnnotateConfig.model_validate(offline | {"may_merge": False})
    assert not AnnotateConfig.model_validate(
        offline | {"adjudicator": "openai/x", "show_gold_answers": False}
    ).show_gold_answers
