"""The fields of a family, the built-in families of ``families.yaml``, and those in files of the user."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.method.traces import Tags
from mralign_core.yaml_files import read_yaml

AUTO = "auto"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModeRequest(_Entry):
    """How one thinking mode is asked for; what is left empty is not used."""

    template: dict[str, bool | str] = {}
    """Variables of the chat template."""
    system: str = ""
    """System message."""
    instruction: str = ""
    """Sentence put after the run's instruction. In mode on it is left out where that names the think tag already."""
    prefill: str = ""
    """Beginning of the reply, written into the prompt. A think tag that the template opened is not opened twice."""


class Family(_Entry):
    """One family of reasoning models."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    """Short name, for messages."""
    recognised_by: list[str] = []
    """Texts that a chat template of this family holds, all of them; `auto` goes by these."""
    mode_on: ModeRequest = ModeRequest()
    """How thinking is asked for."""
    mode_off: ModeRequest = ModeRequest()
    """How an answer without thinking is asked for."""
    think_open: str = Field("<think>", min_length=1)
    """Tag that opens the thinking."""
    think_close: str = Field("</think>", min_length=1)
    """Tag that closes the thinking."""
    reply_open: str = ""
    """Text that opens the reply, where the reply is not simply what follows the thinking."""
    answer_open: str = Field("<answer>", min_length=1)
    """Tag that opens the answer inside the reply; without it the whole reply is the answer."""
    answer_close: str = Field("</answer>", min_length=1)
    """Tag that closes the answer."""
    think_words: str = ""
    """What the instruction says in place of `<think></think>`; empty for the family's own tags."""
    layout: str = ""
    """How a trace that exists only as text is written, with {thinking} and {answer}; empty for tags on lines of their
    own."""

    @property
    def tags(self) -> Tags:
        """The tags, as parsing needs them."""
        return Tags(self.think_open, self.think_close, self.answer_open, self.answer_close, self.reply_open)

    def mode(self, thinking_mode: str) -> ModeRequest:
        """How this mode is asked for."""
        return self.mode_on if thinking_mode == "on" else self.mode_off

    def write_completion(self, thinking: str | None, answer: str | None, *, opened_by_prompt: bool) -> str:
        r"""The text of a completion of which only the parts are known, as the model would have written it.

        Args:
            thinking: the thinking; None writes no think block.
            answer: what follows the thinking, answer tags included; None leaves the think block open.
            opened_by_prompt: the prompt ends inside the think block, so that the completion begins there.

        >>> GENERIC.write_completion("Iran's seat?", "Tehran", opened_by_prompt=False)
        "<think>\nIran's seat?\n</think>\n\nTehran"
        """
        if thinking is None:
            return answer or ""
        layout = self.layout or f"{self.think_open}\n{{thinking}}\n{self.think_close}\n\n{{answer}}"
        head, _, rest = layout.partition("{thinking}")
        between, _, tail = rest.partition("{answer}")
        closed = "" if answer is None else f"{between}{answer}{tail}"
        return f"{'' if opened_by_prompt else head}{thinking}{closed}"

    @model_validator(mode="after")
    def _modes_differ(self) -> Family:
        if self.mode_on == self.mode_off:
            raise ValueError("mode_on and mode_off are the same: say in one of them how thinking is switched")
        return self

    @model_validator(mode="after")
    def _layout_has_both_places_in_order(self) -> Family:
        thinking, answer = self.layout.find("{thinking}"), self.layout.find("{answer}")
        if self.layout and not (self.layout.startswith(self.think_open) and 0 < thinking < answer):
            raise ValueError("layout must begin with think_open and hold {thinking} and, after it, {answer}")
        return self


@functools.cache
def built_in_families() -> dict[str, Family]:
    """The families of ``families.yaml`` by name, in the order in which `auto` tries them."""
    text = resources.files(__package__).joinpath("families.yaml").read_text(encoding="utf-8")
    return {name: Family(name=name, **fields) for name, fields in yaml.safe_load(text).items()}


def load_family(path: str | Path) -> Family:
    """The family of a user's YAML file.

    Raises:
        ConfigError: the file is missing or not YAML, or fields are wrong; the message names each, and the remedy.
    """
    values = read_yaml(path, "model.family:")
    try:
        return Family.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']} (got {p['input']!r:.60})" for p in error.errors()
        ]
        raise ConfigError(
            f"model.family: {path}: {len(problems)} problem(s)\n  "
            + "\n  ".join(problems)
            + "\nEach field is described in docs/model-families.md"
        ) from None


def named_family(name: str) -> Family:
    """A built-in family by its name, or that of a YAML file.

    Raises:
        ConfigError: there is no such family; or as :func:`load_family`.
    """
    families = built_in_families()
    if name in families:
        return families[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return load_family(name)
    close = difflib.get_close_matches(name, [AUTO, *families], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigError(
        f"model.family {name!r} is no family{hint}: give {AUTO}, one of {', '.join(families)}, or a YAML file"
    )


def family_fingerprint(model: ModelConfig) -> dict[str, Any]:
    """What of the family enters cache keys: its fields, or for `auto` the whole table, as no tokenizer is at hand.

    Raises:
        ConfigError: as :func:`named_family`.
    """
    if model.family == AUTO:
        return {name: family.model_dump(mode="json") for name, family in built_in_families().items()}
    return named_family(model.family).model_dump(mode="json")


GENERIC = built_in_families()["generic"]
