r"""Label sets as YAML files: the paper's 15 labels, one that was induced, or one of the user's own.

A file names its labels in canonical order, which is the order of the states and breaks ties::

    labels:
      - name: recall
        definition: brings in something known
        macro_strategy: knowledge        # optional; groups labels in figures and agreement
        cues: {'\bi (recall|remember)\b': 8}   # optional; what the offline annotators go by, strength 0 to 10
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import regex
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.yaml_files import read_yaml

MAX_LABELS_OF_SET = 200
"""Most labels of a set."""
MAX_CUE_CHARACTERS = 1000
RESERVED_NAMES = {"unlabelled": "a step without a label", "any": "whatever label"}
"""What reports and the workbench say with a word in a label's place."""
Lexicon = Mapping[str, Mapping[str, float]]
"""Label → pattern (of lower-case text) → strength, 0 to 10."""


class LabelSet(NamedTuple):
    """The labels, and what the offline annotators know them by; None is the lexicon of the paper's labels."""

    taxonomy: Taxonomy
    lexicon: Lexicon | None = None

    def fingerprint(self) -> dict[str, Any]:
        """All of it as JSON values, for cache keys."""
        names = self.taxonomy.labels
        return {
            "labels": list(names),
            "macro_strategies": [self.taxonomy.macro_strategies[name] for name in names],
            "definitions": [self.taxonomy.definitions[name] for name in names],
            "lexicon": None if self.lexicon is None else {name: dict(cues) for name, cues in self.lexicon.items()},
        }


PAPER = "paper"
PAPER_LABEL_SET = LabelSet(PAPER_TAXONOMY)


class LabelEntry(BaseModel):
    """One label of a file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    definition: Annotated[str, Field(min_length=1, max_length=500)]
    macro_strategy: Annotated[str, Field(min_length=1, max_length=60)] = "labels"
    cues: dict[str, Annotated[float, Field(gt=0, le=10)]] = {}

    @field_validator("name")
    @classmethod
    def _is_no_other_word(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"label {value!r} would be taken for {RESERVED_NAMES[value]}: give it another name")
        return value

    @field_validator("cues")
    @classmethod
    def _are_patterns(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            if len(pattern) > MAX_CUE_CHARACTERS:
                raise ValueError(f"cue {pattern!r:.80} has more than {MAX_CUE_CHARACTERS} characters: split it")
            try:
                regex.compile(pattern)
            except (regex.error, RecursionError, OverflowError, MemoryError) as error:
                raise ValueError(f"cue {pattern!r:.80} is no regular expression ({error})") from None
        return value


class LabelFile(BaseModel):
    """A label set file."""

    model_config = ConfigDict(extra="forbid")

    labels: list[LabelEntry] = Field(min_length=1, max_length=MAX_LABELS_OF_SET)


def load_label_set(path: str | Path) -> LabelSet:
    """The label set of a YAML file; of `paper` or an empty path, the paper's.

    Raises:
        ConfigError: the file is missing, or a label of it is not valid; the message names the label.
    """
    if str(path) in ("", PAPER):
        return PAPER_LABEL_SET
    values = read_yaml(path, "annotate.label_set (empty means the paper's labels):")
    try:
        entries = LabelFile.model_validate(values).labels
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, p['loc']))}: {p['msg']} (got {p['input']!r:.60})" for p in error.errors()]
        raise ConfigError(f"annotate.label_set: {path}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from None
    taxonomy = Taxonomy(
        labels=tuple(entry.name for entry in entries),
        macro_strategies={entry.name: entry.macro_strategy for entry in entries},
        definitions={entry.name: entry.definition for entry in entries},
    )
    return LabelSet(taxonomy, {entry.name: entry.cues for entry in entries if entry.cues})


def label_set_of(config: RunConfig) -> LabelSet:
    """The label set of a run.

    Raises:
        ConfigError: as :func:`load_label_set`.
    """
    return load_label_set(config.annotate.label_set)


def save_label_set(label_set: LabelSet, path: Path) -> None:
    """Write a label set so that :func:`load_label_set` gives it back."""
    taxonomy, lexicon = label_set.taxonomy, label_set.lexicon or {}
    entries = [
        {
            "name": name,
            "definition": taxonomy.definitions[name],
            "macro_strategy": taxonomy.macro_strategies[name],
            **({"cues": dict(lexicon[name])} if lexicon.get(name) else {}),
        }
        for name in taxonomy.labels
    ]
    text = yaml.safe_dump({"labels": entries}, sort_keys=False, allow_unicode=True, width=110)
    path.write_text(text, encoding="utf-8")
