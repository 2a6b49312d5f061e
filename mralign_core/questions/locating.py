"""Where the question sets of a config are: which files or which hub data set, and which split of it.

A set is aligned on only if it is meant for that, or if the config names its split: a test set can't become training
data by a slip. What a set is meant for is told of the known ones, by the hub's split or by words such as ``dev`` in a
file's name; of a set of their own, users know.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mralign_core.config import QuestionsConfig, QuestionSetConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.method.benchmarks import SCORINGS, ScoringName
from mralign_core.questions.columns import Columns
from mralign_core.questions.files import READERS, SPLIT_WORDS, files_of, format_of, split_of
from mralign_core.questions.known_sets import BY_HUB_ID, KNOWN_SETS, KnownSet
from mralign_core.questions.opening import stem, why_not_a_file

POCKET = "pocket"
STRATA = ("one_hop", "two_hop")
"""Of the pocket world's questions."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")
COLUMN_OPTIONS = ("question_column", "answer_column", "stratum_column", "id_column", "options_column")
Role = Literal["train", "eval"]


@dataclass(frozen=True)
class LocatedSet:
    """A set of the config, found: its files, or its hub id; neither for the pocket world's."""

    config: QuestionSetConfig
    role: Role
    field: str
    name: str
    split: str
    known: KnownSet | None = None
    files: tuple[Path, ...] = ()
    hub_id: str = ""

    @property
    def is_pocket(self) -> bool:
        """Whether it is the pocket world's."""
        return self.config.name == POCKET

    @property
    def label(self) -> str:
        """Name and split: what its question ids begin with."""
        return self.name if self.name == self.split else f"{self.name}-{self.split}"

    @property
    def where(self) -> str:
        """Its file, folder or hub id, for messages."""
        return self.hub_id or self.config.path

    @property
    def subset(self) -> str:
        """The configuration of a hub data set."""
        return _subset(self.config, self.known)

    @property
    def scoring(self) -> ScoringName:
        """How its answers are scored."""
        if self.known:
            return self.known.scoring
        return self.config.scoring or ("option" if self.config.options_column else "exact_match")

    @property
    def formats(self) -> Sequence[Columns]:
        """The formats that its rows may have."""
        if self.known:
            return self.known.formats
        return (Columns(*(getattr(self.config, option) for option in COLUMN_OPTIONS)),)


def locate_sets(section: QuestionsConfig) -> list[LocatedSet]:
    """The sets of a config, those to align on first.

    Raises:
        ConfigError: a set is not known, has a setting without effect, or is not meant for what it is used for; two
            sets can't be told apart, or share a name and are scored differently; or ``train_on`` names another set.
        DataError: a path is nothing that can be read.
    """
    roles: dict[Role, Sequence[QuestionSetConfig]] = {"train": section.train, "eval": section.eval}
    located = [
        _locate(one, role, f"questions.{role}" + (f".{number}" if len(sets) > 1 else ""))
        for role, sets in roles.items()
        for number, one in enumerate(sets)
    ]
    labels: dict[str, LocatedSet] = {}
    for one in located:
        if (other := labels.setdefault(one.label, one)) is not one:
            raise ConfigError(
                f"{other.field} and {one.field} are both {one.label!r}, so their questions would share ids: give one "
                "of them another name or split"
            )
    _refuse_overlapping_pocket_sets(located)
    _require_train_on(section, located)
    scorings: dict[str, LocatedSet] = {}
    for one in located:
        if (other := scorings.setdefault(one.name, one)).scoring != one.scoring:
            raise ConfigError(
                f"{other.field} and {one.field} are both named {one.name!r} and scored by {other.scoring!r} and "
                f"{one.scoring!r}, which can't be one result: give one of them another name"
            )
    return located


def _refuse_overlapping_pocket_sets(located: Sequence[LocatedSet]) -> None:
    pocket = [one for one in located if one.is_pocket]
    for whole in (one for one in pocket if not one.subset):
        for part in (one for one in pocket if one.subset and one.role == whole.role):
            raise ConfigError(
                f"{whole.field} is the whole set of the pocket world, and {part.field} a part of it: their questions "
                f"would be there twice. Take one out, or name the parts, {{name: {POCKET}, subset: {STRATA[0]}}} and "
                f"{{name: {POCKET}, subset: {STRATA[1]}}}"
            )


def _require_train_on(section: QuestionsConfig, located: Sequence[LocatedSet]) -> None:
    names = list(dict.fromkeys(one.name for one in located if one.role == "train"))
    if unknown := [name for name in section.train_on if name not in names]:
        raise ConfigError(
            f"questions.train_on: {unknown[0]!r} is no set of questions.train: name some of "
            f"{', '.join(names) or 'them (it has none)'}, or leave it out to align on all"
        )


def _locate(one: QuestionSetConfig, role: Role, field: str) -> LocatedSet:
    name = set_name(one, field)
    known = KNOWN_SETS.get(one.name or BY_HUB_ID.get(one.path, ""))
    for option, what in _without_effect(one, known).items():
        if getattr(one, option) != type(one).model_fields[option].default:
            raise ConfigError(f"{field}.{option} has no effect on {what}: remove it")
    if one.name == POCKET:
        return LocatedSet(one, role, field, name, role)
    _require_gold(one, name, known, role, field)
    files = _files(one, known, field)
    told = sorted({split_of(path) for path in files} - {""})
    split = one.split or _split_meant(name, known, role, told, is_hub=not files, field=field)
    if len(files) > 1 and told:
        files = _of_split(files, split, told, field)
    hub_id = "" if files else one.path or _hub_id(known)
    return LocatedSet(one, role, field, name, split, known, tuple(files), hub_id)


def set_name(one: QuestionSetConfig, field: str) -> str:
    """The name of a set, which its questions have as their source; its files need not be there.

    Raises:
        ConfigError: it is a part of the pocket world's set that there is not.
    """
    if one.name == POCKET:
        return _pocket_name(one, field)
    return one.name or BY_HUB_ID.get(one.path) or _name_of(one.path)


def _pocket_name(one: QuestionSetConfig, field: str) -> str:
    """``pocket``, or that and the stratum that the set is of."""
    if one.subset not in ("", *STRATA):
        raise ConfigError(f"{field}.subset {one.subset!r}: the pocket world's set has {' and '.join(STRATA)}")
    return f"{POCKET}-{one.subset}" if one.subset else POCKET


def _require_gold(one: QuestionSetConfig, name: str, known: KnownSet | None, role: Role, field: str) -> None:
    """Refuse to align on, or to score, what no gold answer decides."""
    has_gold = bool(known.formats[0].answer if known else one.answer_column)
    needs_judge = SCORINGS[known.scoring if known else one.scoring or "exact_match"].is_right is None
    if role == "train" and not has_gold:
        raise ConfigError(f"{field}: {name!r} has no gold answers: it can be evaluated on, not aligned on")
    if role == "train" and needs_judge:
        raise ConfigError(
            f"{field}: {name!r} is scored by a judge, and the selection compares texts, so that no answer to it is "
            "right or wrong there: it can be answered (questions.eval), not aligned on. To align on its gold answers "
            "by exact match, give the file as a set of your own: another name, its columns, and scoring: exact_match"
        )
    if not has_gold and one.scoring not in ("", "claims"):
        raise ConfigError(f"{field}.scoring {one.scoring!r} needs gold answers: set answer_column, or remove scoring")


def _name_of(path: str) -> str:
    name = stem(Path(path)) if format_of(path) else Path(path).resolve().name
    return re.sub(r"[^\w.-]+", "-", name)


def _without_effect(one: QuestionSetConfig, known: KnownSet | None) -> dict[str, str]:
    """Options that this set does not heed, and what it is that does not."""
    if one.name == POCKET:
        return dict.fromkeys(("path", "split", "revision", *COLUMN_OPTIONS, "scoring"), "the pocket world's set")
    ignored = {}
    if known:
        own = "a known set, whose columns are known; give a set of your own another name"
        ignored.update(dict.fromkeys((*COLUMN_OPTIONS, "scoring"), own))
    if one.path and Path(one.path).is_file():
        ignored.update(dict.fromkeys(("subset", "revision"), "a file"))
    if one.path and Path(one.path).is_dir():
        ignored["revision"] = "a folder"
    return ignored


def _files(one: QuestionSetConfig, known: KnownSet | None, field: str) -> list[Path]:
    """The files of a set, in order; none when it is on the hub."""
    if not one.path:
        _require_on_hub(one.name, known, field)
        return []
    path, formats = Path(one.path), ", ".join(READERS)
    if url := URL.fullmatch(one.path):
        what = f"write its path, {url[2]}" if url[1].lower() == "file" else "copy it here and name the file or folder"
        raise DataError(f"{field}: {one.path} is a URL: {what}, or give a hub id such as org/name")
    if what := why_not_a_file(path):
        raise DataError(f"{field}: {path} is {what}")
    if path.is_dir():
        subset = path / _subset(one, known)
        if not (files := files_of(subset if subset.is_dir() else path, field)):
            raise DataError(f"{field}: folder {path} holds no question file ({formats}; hidden ones don't count)")
        return files
    if path.is_file():
        if not format_of(path):
            raise DataError(f"{field}: {path} is of no known format; give a file that ends in {formats}")
        return [path]
    if format_of(path) or not HUB_ID.fullmatch(one.path):
        raise DataError(f"{field}: {path} is not a file or folder; name one ({formats}), or a hub id such as org/name")
    return []


def _require_on_hub(name: str, known: KnownSet | None, field: str) -> None:
    if known is None:
        names = [*KNOWN_SETS, POCKET]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}; or give a path"
        raise ConfigError(f"{field}: no known question set {name!r}; {hint}")
    if not known.hub_id:
        raise ConfigError(f"{field}: {name!r} is not on the hub: name the folder that holds its files in path")


def _hub_id(known: KnownSet | None) -> str:
    return known.hub_id if known else ""


def _subset(one: QuestionSetConfig, known: KnownSet | None) -> str:
    return one.subset or (known.subset if known else "")


def _split_meant(name: str, known: KnownSet | None, role: Role, told: list[str], *, is_hub: bool, field: str) -> str:
    """The split to take where the config names none; ``told`` are those that names of files tell.

    Raises:
        ConfigError: it must name one, or the set is not meant for its role.
    """
    if known is None:
        if len(told) > 1 or (is_hub and role == "eval"):
            there_are = f": there are {', '.join(told)}" if told else ", such as split: validation"
            raise ConfigError(f"{field}: which split of {name!r}? Set split{there_are}")
        return role
    meant = known.train_split if role == "train" else known.eval_split
    split = told[0] if len(told) == 1 else meant
    if (split == "train" and bool(meant)) != (role == "train"):
        purposes = {"train": ("evaluation", "alignment"), "eval": ("alignment", "evaluation")}
        its, wanted = purposes[role]
        split = split or known.eval_split
        raise ConfigError(
            f"{field}: {name!r} ({split}) is meant for {its}, not for {wanted}. If you do mean it, name its "
            f"split: {{name: {name}, split: {split}}}"
        )
    return split or role


def _of_split(files: list[Path], split: str, told: list[str], field: str) -> list[Path]:
    """The files of a folder that are of a split."""
    wanted = SPLIT_WORDS.get(split.lower(), split)
    if wanted not in told:
        raise DataError(f"{field}: no file of the folder is of split {split!r}; there are {', '.join(told)}")
    return [path for path in files if split_of(path) == wanted]
