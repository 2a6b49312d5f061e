"""Section ``questions``: what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mralign_core.addresses import LocalPath
from mralign_core.config.base import OPERATIONAL, Section
from mralign_core.method.benchmarks import ScoringName


class QuestionSetConfig(Section):
    """One set of questions, from a file, a folder or the hub. The name of a known set, or a path, alone will do."""

    name: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """A known set: nq_open, sciq, simpleqa, truthfulqa, longfact, gsm8k, commonsense_qa, or the pocket world's, pocket;
    or a short name for a set of your own, by default that of its file."""
    path: LocalPath = Field("", json_schema_extra=OPERATIONAL)
    """A file (.jsonl, .json, .csv, each also .gz, or .parquet), a folder of such files, or a hub id `org/name`; empty
    takes a known set's copy on the hub. Files that arrive: a pattern such as `incoming/*.jsonl`, or
    `s3://bucket/prefix`, also with a pattern (docs/retraining.md)."""
    subset: str = ""
    """Configuration of a hub data set that has several, such as `main`; empty takes a known set's own. Of the pocket
    world's set, one of its strata: `one_hop` or `two_hop`."""
    split: str = ""
    """Split of the hub data set or folder; empty takes a known set's split for training, or for evaluation. Needed to
    train on what is meant for evaluation."""
    revision: str = ""
    """Commit or tag of the hub data set; empty takes what is the newest when a run begins, and records which it was."""
    question_column: str = Field("question", min_length=1)
    """Column that holds the question, in a set of your own."""
    answer_column: str = "answer"
    """Column that holds the gold answer or the list of accepted answers; empty for questions without one, which can
    only be evaluated on."""
    id_column: str = ""
    """Column that holds a unique id; empty numbers the rows."""
    stratum_column: str = ""
    """Column that holds a kind of question, such as its topic, for results by kind; empty for none."""
    options_column: str = ""
    """Column that holds the list of options of a multiple choice, in a set of your own; they are shown below the
    question as A, B, C, …, and the gold answer is the right one's text or letter. Empty for questions without options.
    """
    scoring: ScoringName | Literal[""] = ""
    """How a set of your own is scored: `exact_match` of thinking and answer, the answer's final `number`, the `option`
    that it chooses, whether a judge says that it is `truthful` and informative (section `judge`), or how many of its
    `claims` evidence supports (`judge.evidence`). Empty takes `option` where there are options, else exact_match. Only
    sets with the same metrics are averaged."""
    licence: str = Field("", max_length=200, json_schema_extra=OPERATIONAL)
    """Licence of the set, such as `cc-by-4.0`: stands on the card of exported traces (`mralign export-data`)."""
    limit: int = Field(0, ge=0)
    """Use only so many questions of the set; 0 uses all."""
    pick: Literal["first", "random"] = "first"
    """Which ones: the first, or a random subset, always the same and part of every larger one."""

    @model_validator(mode="before")
    @classmethod
    def _name_or_path_alone(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"path": value} if {"/", "\\", "."} & set(value) else {"name": value}

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> QuestionSetConfig:
        if not (self.name or self.path):
            raise ValueError("give a set of questions a name, a path or both")
        if self.pick == "random" and not self.limit:
            raise ValueError("pick 'random' has no effect without a limit: set limit")
        if self.scoring not in ("", "option") and self.options_column:
            raise ValueError(f"scoring {self.scoring!r} does not heed options: remove options_column, or set option")
        if self.scoring == "option" and not self.options_column:
            raise ValueError("scoring 'option' needs options to choose from: set options_column")
        return self


class QuestionsConfig(Section):
    """What is asked: sets to align on and others, never overlapping, to evaluate on."""

    train: tuple[QuestionSetConfig, ...] = ()
    """Sets to align on."""
    eval: tuple[QuestionSetConfig, ...] = ()
    """Held-out sets; none skips evaluation."""
    train_on: tuple[str, ...] = ()
    """Names of those sets of `train` to align on; empty for all. Questions keep the ids, and so the draws, that they
    have among all sets. The arms `only_NAME` of an ablation set it."""
    on_overlap: Literal["refuse", "drop"] = "refuse"
    """When a question stands in both: end the run, or take it out of the training questions and count it."""
    on_guessable: Literal["keep", "drop"] = "keep"
    """Questions with a yes/no gold answer, or one that stands in the question, are counted and listed (guessable.json
    beside the questions): ask them too, or leave them out."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_set_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @property
    def asks_pocket(self) -> bool:
        """Whether any set is the pocket world's."""
        return any(one.name == "pocket" for one in (*self.train, *self.eval))
