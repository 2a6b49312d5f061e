"""The form of a run: a preset with what differs from it; what a whole config means stays as it is."""

import jsonschema
import pytest
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from deployments.keeping import merge
from flows.ablate import ablate
from flows.evaluate import evaluate
from flows.form import FormError, read_form
from flows.generate import generate
from flows.pipeline import pipeline
from flows.reward import reward
from flows.train import train
from flows.weekly_retrain import weekly_retrain
from mralign_core.config import RunConfig, load_config
from mralign_core.config.presets import PRESETS, preset_names
from tasks.engine.graph import graph

POCKET = load_config(PRESETS / "pocket.yaml")
UNTOUCHED_V1 = {"preset": "pocket", "gpu_pool": False, "storage": None, "model": None, "judge": {"evidence": None}}
"""What Prefect's V1 form sends of folded sections, and of an open one that nobody touched."""


def form_of(flow):
    return parameter_schema(flow.fn).model_dump()


def read(flow, **config):
    return flow.validate_parameters({"config": config})["config"]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_by_itself_is_the_config_file(name):
    assert read(pipeline, preset=name) == load_config(PRESETS / f"{name}.yaml")


@pytest.mark.parametrize("over", [{}, {"preset": "pocket"}])
@pytest.mark.parametrize("name", preset_names())
def test_a_whole_config_is_itself_with_or_without_a_preset(name, over):
    whole = load_config(PRESETS / f"{name}.yaml")
    assert read(pipeline, **over, **whole.model_dump(mode="json")) == whole


def test_a_config_object_is_passed_on():
    assert pipeline.validate_parameters({"config": POCKET})["config"] == POCKET


def test_what_a_form_sends_untouched_is_the_preset():
    assert read(pipeline, **UNTOUCHED_V1) == POCKET


def test_short_fields_and_sections_are_laid_over_the_preset():
    short = {"seed": 4, "variants": ["kto"], "num_draws": 2, "storage_root": "/tmp/other", "question_limit": 7}
    config = read(
        pipeline, preset="pocket", **short, train={"learning_rate": 3e-5}, model={"pocket": {"world_seed": 2}}
    )
    assert (config.seed, config.train.variants, config.generate.num_draws) == (4, ("kto",), 2)
    assert config.storage.root == "/tmp/other"
    assert {each.limit for role in ("train", "eval") for each in getattr(config.questions, role)} == {7}
    assert (config.train.learning_rate, config.model.pocket.world_seed) == (3e-5, 2)
    assert config.train.global_batch_size == POCKET.train.global_batch_size, "the rest is the preset's"


def test_a_null_empties_what_can_be_empty_and_nothing_else():
    assert read(pipeline, preset="pocket", questions={"train": None}, seed=None) == POCKET
    assert read(pipeline, preset="pocket", annotate={"budget_usd": None}).annotate.budget_usd is None


def test_the_gpu_pool_takes_the_work_of_the_sections_that_a_flow_reads():
    def places(config):
        return [getattr(config, name).where for name in ("generate", "train", "evaluate")]

    assert places(read(pipeline, preset="pocket", gpu_pool=True)) == ["deployment"] * 3
    assert places(read(train, preset="pocket", gpu_pool=True)) == ["inline", "deployment", "inline"]
    given = read(pipeline, preset="pocket", gpu_pool=True, generate={"where": "threads"})
    assert places(given) == ["threads", "deployment", "deployment"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"preset": "pockett"}, "preset: no config 'pockett'"),
        ({"preset": None}, "preset: none is chosen; there are pocket, smoke"),
        ({"gpu_pool": True, "seed": 1}, "preset: none is chosen"),
        ({"preset": "pocket", "seed": -1}, "seed: .* greater than or equal to 0 .*-1"),
        (
            {"preset": "pocket", "generate": {"num_drawz": 3}},
            "generate.num_drawz: no such field; did you mean 'num_draws'",
        ),
        ({"preset": "pocket", "reward": {"gamma": 2.0}}, "reward.gamma has no effect .*: remove it"),
        ({"preset": "pocket", "estimate": {"traces": "all_draws"}}, "estimate.traces .* set generate.draws to"),
        ({"seed": -1}, "seed: "),
    ],
)
def test_a_wrong_form_is_told_in_one_line_with_field_and_remedy(config, told):
    with pytest.raises(FormError, match=told) as raised:
        read_form(config)
    assert "\n" not in str(raised.value)


@pytest.mark.server
@pytest.mark.usefixtures("prefect_api")
def test_a_run_with_a_wrong_form_fails_with_that_line():
    state = pipeline(config={"preset": "pocket", "reward": {"gamma": 2.0}}, return_state=True)
    assert state.is_failed()
    told = str(state.message)
    assert "\n" not in told
    assert "reward.gamma has no effect when reward.form is 'ratio': remove it" in told


class TestSchema:
    """What the server checks at submission, and what the two UIs make a form of."""

    def test_the_short_fields_come_first_and_sections_are_folded_and_empty(self):
        config = form_of(pipeline)["properties"]["config"]
        names = list(config["properties"])
        assert names[:4] == ["preset", "name", "seed", "question_limit"]
        folded = [
            name for name, field in config["properties"].items() if field.get("anyOf", [{}])[0] == {"type": "null"}
        ]
        assert folded == names[names.index("storage") :]
        assert config["properties"]["preset"]["enum"] == preset_names()

    def test_no_field_has_a_default_that_a_form_would_put_in_place_of_the_presets(self):
        form = form_of(pipeline)
        whole = [form["properties"]["config"], *form["definitions"].values()]
        values = {"QuestionSetConfig", "ArmConfig", "PanelConfig"}  # items of lists: given whole
        defaults = {
            f"{one.get('title')}.{name}": field["default"]
            for one in whole
            if one.get("title") not in values
            for name, field in one["properties"].items()
            if field.get("default") is not None
        }
        assert not defaults

    @pytest.mark.parametrize("flow", [pipeline, generate, train, reward, evaluate, ablate, weekly_retrain])
    def test_every_flow_takes_a_form_and_a_whole_config(self, flow):
        schema = form_of(flow)
        for config in (UNTOUCHED_V1, POCKET.model_dump(mode="json"), {"preset": "pocket", "gpu_pool": True}):
            if flow in (pipeline, evaluate, ablate, weekly_retrain) or "judge" not in config:
                jsonschema.validate({"config": config}, schema)

    @pytest.mark.parametrize("config", [{"typo": 1}, {"seed": "x"}, {"preset": "no"}, {"train": {"learning_rate": -1}}])
    def test_what_a_schema_can_tell_is_refused_at_submission(self, config):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"config": config}, form_of(pipeline))


# Field → where the key of an artifact of a stage goes by it.
STAGE_FIELDS = {
    "generate": ["generate.temperature", "match.containment", "model.family"],
    "annotate": ["annotate.confidence_threshold"],
    "estimate": ["estimate.damping", "reward.gamma", "annotate.label_set"],
    "reward": ["reward.clip_max"],
    "train": ["train.lora_r", "model.dtype"],
    "evaluate": ["evaluate.temperature", "judge.graded"],
}


@pytest.mark.parametrize(("stage", "fields"), STAGE_FIELDS.items())
def test_a_stage_shows_the_sections_that_it_reads_and_few_others(stage, fields):
    shown = set(form_of(load_flow_from_entrypoint(f"flows.{stage}.{stage}"))["properties"]["config"]["properties"])
    sections = shown & set(RunConfig.model_fields) - {"name", "seed"}
    assert {field.partition(".")[0] for field in fields} <= sections
    assert not {"compare", "induce", "distil"} & sections
    assert stage == "evaluate" or len(sections) < 9
    assert any(artifact.stage == stage for artifact in graph().values())


def test_what_a_user_changed_in_a_whole_config_is_what_differs_from_the_preset_now():
    last = {"config": POCKET.model_dump(mode="json")}
    current = {"config": {**last["config"], "train": {**last["config"]["train"], "learning_rate": 3e-5}}}
    merged = merge(last, current, {"config": {"preset": "pocket", "gpu_pool": True}})
    kept = {"preset": "pocket", "gpu_pool": True, "train": {"learning_rate": 3e-5}}
    assert (merged.value, merged.kept) == ({"config": kept}, ("config.train.learning_rate",))
