"""The form of a run: a preset and the few fields that people change, then everything, folded.

A flow's parameter of type ``GenerateForm`` is a :class:`RunConfig` in the flow's body. What a form, a deployment or an
API call gives is a whole config, as one run hands it to another, or ``{"preset": …}`` and what differs from that file
of ``deployments/configs``: short fields, and fields by section. What is left empty is the preset's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mralign_core.config import RunConfig, overridden, parse_config
from mralign_core.config.base import Section
from mralign_core.config.presets import PRESETS, preset_names
from mralign_core.errors import ConfigError
from mralign_core.yaml_files import read_yaml

SHORT = {
    "name": "name",
    "seed": "seed",
    "model_path": "model.path",
    "variants": "train.variants",
    "num_draws": "generate.num_draws",
    "storage_root": "storage.root",
}
"""Field of the short form → the config's."""
OF_FORMS_ONLY = {"preset", "question_limit", "gpu_pool", *(name for name, dotted in SHORT.items() if "." in dotted)}
"""Fields that tell a form from a whole config."""
ON_POOL = ("generate", "train", "evaluate")
"""Sections whose work is a GPU's."""
Schema = dict[str, Any]


class FormError(Exception):
    """What is wrong with a form, in one line: Prefect shows it as the run's state.

    No ``ValueError``: pydantic would set that in lines of its own, and Prefect a traceback below them.
    """


def read_form(given: Any, sections: Collection[str] = ()) -> Any:
    """The config that a form, a deployment or a call gives; what is not a mapping is passed on.

    Args:
        given: a whole config, or a preset and what differs from it.
        sections: those that the flow reads.

    Raises:
        FormError: a field is unknown, out of range or contradictory; the message names each and the remedy.
    """
    if not isinstance(given, Mapping):
        return given
    try:
        is_form = bool(OF_FORMS_ONLY & given.keys())
        return _over_preset(dict(given), sections) if is_form else parse_config(given)
    except ConfigError as error:
        raise FormError(_one_line(str(error))) from None


def _one_line(text: str) -> str:
    """A message of a config that is not valid, without its heading and line breaks."""
    _, _, problems = text.partition("problem(s)\n")
    return "; ".join(line.strip() for line in (problems or text).splitlines())


def _over_preset(given: dict[str, Any], sections: Collection[str]) -> RunConfig:
    preset = given.pop("preset", None)
    if preset not in preset_names():
        said = f"no config {preset!r}" if preset else "none is chosen"
        raise ConfigError(f"preset: {said}; there are {', '.join(preset_names())}")
    values, limit = read_yaml(PRESETS / f"{preset}.yaml", "preset"), given.pop("question_limit", None)
    short = {dotted: given.pop(name, None) for name, dotted in SHORT.items() if "." in dotted}
    if given.pop("gpu_pool", False):
        _lay_over(values, {name: {"where": "deployment"} for name in ON_POOL if name in sections}, RunConfig)
    _lay_over(values, given, RunConfig)
    for dotted, value in short.items():
        section, _, field = dotted.partition(".")
        if value is not None:
            _lay_over(values, {section: {field: value}}, RunConfig)
    config = parse_config(values, origin=f"preset {preset}")
    return _limited(config, limit) if limit else config


def _lay_over(values: dict[str, Any], given: Mapping[str, Any], model: type[Section]) -> None:
    """Put what is given in place of the preset's, field by field.

    A form gives null for a section that is folded, and for any other field that is empty and can't be null.
    """
    for name, value in given.items():
        kind = model.model_fields[name].annotation if name in model.model_fields else None
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
            own = values.get(name)
            values[name] = dict(own) if isinstance(own, Mapping) else {}
            _lay_over(values[name], value, kind)
        elif value is not None or kind is None or type(None) in get_args(kind):
            values[name] = value


def _limited(config: RunConfig, limit: int) -> RunConfig:
    sets = {
        f"questions.{role}": [
            {**each.model_dump(mode="json"), "limit": limit} for each in getattr(config.questions, role)
        ]
        for role in ("train", "eval")
    }
    return overridden(config, sets)


class Form:
    """Shows a parameter ``config`` as a form, and reads it.

    Args:
        sections: those that the flow reads.
    """

    def __init__(self, *sections: str) -> None:
        self._sections = sections

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read a form before the config is validated."""
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, given: Any) -> Any:
        return read_form(given, self._sections)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        """The form: short fields, then the sections that the flow reads, each folded and empty."""
        whole = handler.resolve_ref_schema(handler(schema))
        properties: Schema = whole["properties"]
        form: Schema = {**_short_fields(properties, handler)}
        for name in self._sections:
            form[name] = _folded(name, properties[name], handler, top=True)
        others = [name for name in properties if name not in form]
        shown: Schema = {"title": "What to run", "type": "object", "properties": form, "additionalProperties": False}
        if others:  # one run hands its whole config to another
            shown["patternProperties"] = {f"^({'|'.join(others)})$": {"type": "object"}}
        return shown


def _short_fields(properties: Schema, handler: GetJsonSchemaHandler) -> Schema:
    return {
        "preset": {
            "title": "Preset",
            "type": "string",
            "enum": preset_names(),
            "description": "A config of deployments/configs. What is left empty below is this one's.",
        },
        "name": _empty(properties["name"], "Name"),
        "seed": _empty(properties["seed"], "Seed"),
        "question_limit": {
            "title": "Question limit",
            "type": "integer",
            "minimum": 1,
            "description": "Questions of each set, for training and for evaluation.",
        },
        "gpu_pool": {
            "title": "GPU pool",
            "type": "boolean",
            "description": "Sample, train and score in runs on work pool a800, not in this run's process.",
        },
        **{
            name: _empty(_field(properties, SHORT[name], handler), name.replace("_", " ").capitalize())
            for name in SHORT
            if name not in properties
        },
    }


def _field(properties: Schema, dotted: str, handler: GetJsonSchemaHandler) -> Schema:
    section, _, name = dotted.partition(".")
    return dict(handler.resolve_ref_schema(properties[section])["properties"][name])


def _empty(field: Schema, title: str = "") -> Schema:
    """A field without its default, which a form would fill in, and so override the preset with."""
    kept = {name: value for name, value in field.items() if name not in ("default", "operational")}
    if kept.get("type") == "boolean":  # a form gives false for one that nobody touched
        kept |= {"anyOf": [{"type": "null"}, {"type": "boolean", "title": "yes or no"}], "default": None}
        kept.pop("type")
    return kept | ({"title": title} if title else {})


def _folded(name: str, field: Schema, handler: GetJsonSchemaHandler, *, top: bool = False) -> Schema:
    """A section that can be left out, with its own sections folded too."""
    section = handler.resolve_ref_schema({"$ref": field["$ref"]})
    for inner, each in section["properties"].items():
        if "$ref" in each and "properties" in handler.resolve_ref_schema({"$ref": each["$ref"]}):
            section["properties"][inner] = _folded(inner, each, handler)
        else:
            section["properties"][inner] = _empty(each)
    section.pop("required", None)
    title = name.replace("_", " ").capitalize()
    section["title"] = title
    return {
        "title": title,
        "description": field.get("description", section.get("description", "")),
        "anyOf": [{"type": "null"}, {"$ref": field["$ref"]}],
        "default": None,
    }


PIPELINE = (
    *("storage", "model", "questions", "match", "generate", "annotate", "estimate", "reward", "train", "evaluate"),
    *("judge", "vllm"),
)
PipelineForm = Annotated[RunConfig, Form(*PIPELINE)]
RetrainForm = Annotated[RunConfig, Form(*PIPELINE, "retrain")]
AblateForm = Annotated[RunConfig, Form("ablate", *PIPELINE)]
PrepareForm = Annotated[
    RunConfig, Form("storage", "model", "questions", "match", "generate", "train", "evaluate", "judge", "vllm")
]
GenerateForm = Annotated[RunConfig, Form("storage", "model", "questions", "match", "generate", "estimate", "vllm")]
AnnotateForm = Annotated[RunConfig, Form("storage", "annotate", "estimate")]
EstimateForm = Annotated[RunConfig, Form("storage", "model", "annotate", "estimate", "reward")]
RewardForm = Annotated[RunConfig, Form("storage", "model", "annotate", "estimate", "reward")]
TrainForm = Annotated[RunConfig, Form("storage", "model", "annotate", "train")]
EvaluateForm = Annotated[RunConfig, Form(*PIPELINE)]
InduceForm = Annotated[RunConfig, Form("storage", "induce")]
DistilForm = Annotated[RunConfig, Form("distil", "storage", "annotate")]
CompareForm = Annotated[RunConfig, Form("storage", "annotate", "estimate", "reward", "compare")]
QuestionsForm = Annotated[RunConfig, Form("questions", "model", "judge")]
LineageForm = Annotated[RunConfig, Form("storage")]
ExportForm = Annotated[RunConfig, Form("storage", "model", "retrain")]
