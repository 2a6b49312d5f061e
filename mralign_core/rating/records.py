"""Rounds and ratings in a store: immutable records, so that no rating is lost and none is counted twice.

Layout under ``storage.root``::

    ratings/<round>/round.json                       what is rated, as raters see it; written once
    ratings/<round>/<rater>/<n as 8 digits>-<item>.json   one thing that a rater said; written once
    ratings/<round>/<rater>/results-seen.json        when the rater first saw the results; written once

Decisions:

* A folder of their own, as aliases have, and no artifact: an artifact is made again from its parents when it is gone,
  and nothing makes a person's work again. A collection (``mralign gc``) removes nothing in it, ``mralign verify``
  reads every record.
* One file a rating, created whole or not at all, in a folder and in a bucket alike. A rating is in the store before the
  page hears of it, and a writer that is killed has written it or has not.
* What a rater says later of an item is another record, with a higher ``n``; the last one counts. Undo is such a record
  too, so the history of a round is whole.
* ``n`` is the page's. A rating that is sent again, since the reply to the first try was lost, has the same ``n`` and
  item, and is found. Of two pages of one rater, one may not know how far the other is: what it says of an item has to
  have a higher ``n`` than all that was said of it, or is refused with how far to go, since it would not count.
* A rater is blind until the results were first asked for, which is a record, and not until all items were gone through:
  what was skipped and is rated before that counts.
* A round holds the texts that it shows. It can be rated when the run's artifacts are gone, and always is of the texts
  that it was begun with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.comparison.sheets import NO_LABEL
from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, ConfigError, UserError
from mralign_core.evaluation.judge_sheet import VERDICT_COLUMNS, WORDS_TO_WRITE
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.rating.publications import PUBLICATIONS_FOLDER, check_publication
from mralign_core.spreadsheets import opaque_id
from mralign_core.storage import ArtifactRef, ArtifactStore, key_of
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE

RATINGS_FOLDER = "ratings"
ROUND_FILE = "round.json"
SEEN_FILE = "results-seen.json"
RATER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
ROUND_NAME = re.compile(r"[a-z]{12}")
RATING_FILE = re.compile(r"(\d{8})-([a-z]{12})\.json")
LONGEST_NOTE = 2_000
"""Characters."""
LABEL_COLUMNS = ("label_1", "label_2")

RatedKind = Literal["labels", "verdicts"]
State = Literal["rated", "skipped", "cleared"]
Item = Annotated[str, Field(pattern=r"^[a-z]{12}$")]


class RatingError(UserError):
    """What a rater sent can't be taken."""


class RatingConflictError(RatingError):
    """Another page of the same rater has said something else of this item, under this number or a higher one."""


class Choice(BaseModel):
    """How what is rated was chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    by: Literal["random", "disagreement", "pull"] = "random"
    """At random, where the annotators differ most, or where weights pull most on training."""
    num: Annotated[int, Field(ge=1, le=2_000)] = 20
    """How many traces, or questions with their answers."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Chooses at random, breaks ties, and shuffles."""
    again: bool = False
    """Of what the rater has rated before, to see how alike one rates twice; else of what the rater has not."""


class LabelNames(BaseModel):
    """The labels that a rater chooses from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    labels: tuple[str, ...]
    """In canonical order."""
    macro_strategies: tuple[str, ...]
    """Of each."""
    definitions: tuple[str, ...]
    """Of each."""

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> LabelNames:
        """Those of a taxonomy."""
        names = taxonomy.labels
        return cls(
            labels=tuple(names),
            macro_strategies=tuple(taxonomy.macro_strategies[name] for name in names),
            definitions=tuple(taxonomy.definitions[name] for name in names),
        )

    @property
    def taxonomy(self) -> Taxonomy:
        """As the method has them."""
        return Taxonomy(
            self.labels,
            dict(zip(self.labels, self.macro_strategies, strict=True)),
            dict(zip(self.labels, self.definitions, strict=True)),
        )


class Shown(BaseModel):
    """One thing to rate: a segment, or an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    item: Item
    """Its opaque id, that of the CSV sheets."""
    about: str
    """The trace's or the question's id, which raters are not shown."""
    cells: dict[str, str | int]
    """What raters see, by the column of a sheet."""
    asked: tuple[str, ...]
    """The columns that a rater fills in."""

    @property
    def segment(self) -> int:
        """Of a segment, its number in the trace, from 0."""
        return int(self.cells["segment"]) - 1


class Round(BaseModel):
    """What some raters rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: RatedKind
    """Labels of segments, or verdicts on answers."""
    choice: Choice
    """How it was chosen."""
    run: str
    """What the run was called."""
    artifacts: dict[str, ArtifactRef]
    """What it was made from, and what raters are compared with, by the run's names."""
    label_set: LabelNames | None = None
    """Of labels."""
    columns: tuple[str, ...]
    """Of its sheet."""
    items: tuple[Shown, ...]
    """In the order in which they are rated."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it was begun."""

    @property
    def name(self) -> str:
        """Its name, the same whoever begins it: two who choose alike from the same artifacts rate the same items."""
        made_from = {name: ref.sha256 for name, ref in self.artifacts.items()}
        items = [each.item for each in self.items]
        choice = self.choice.model_dump(exclude=set() if self.choice.again else {"again"})
        return opaque_id("round", key_of(kind=self.kind, choice=choice, of=made_from, items=items))

    def shown(self, item: str) -> Shown:
        """The item of an id.

        Raises:
            RatingError: it is none of this round's.
        """
        for each in self.items:
            if each.item == item:
                return each
        raise RatingError(f"{item!r} is no item of round {self.name}")


class Said(BaseModel):
    """What a rater said of an item, as a page sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n: Annotated[int, Field(ge=1, lt=100_000_000)]
    """Its number among all that the rater said in this round, which may have gaps."""
    item: Item
    """Of what."""
    state: State
    """Rated, passed over for now, or as if nothing had been said."""
    said: dict[str, str] = {}
    """Column of the sheet → what stands in it."""
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] = ""
    """In the rater's words."""
    undoes: Annotated[int, Field(ge=0)] = 0
    """The ``n`` of what this takes back; 0 for none."""

    def says_as(self, other: Said) -> bool:
        """Whether it is the same rating, sent again."""
        own, others = (each.model_dump(include=set(Said.model_fields)) for each in (self, other))
        return own == others

    def check(self, of: Round) -> None:
        """Refuse what the sheet of a round could not hold.

        Raises:
            RatingError: it names the item, the column and the value.
        """
        asked = of.shown(self.item).asked
        if unknown := sorted(set(self.said) - set(asked)):
            raise RatingError(f"item {self.item}: {unknown[0]!r} is not asked; {', '.join(asked)} is")
        if self.state != "rated":
            if self.said:
                raise RatingError(f"item {self.item}: what is {self.state} says nothing, and this says {self.said}")
            return
        problem = _label_problem(self.said, of.label_set) if of.label_set else _verdict_problem(self.said, asked)
        if problem:
            raise RatingError(f"item {self.item}: {problem}")


class Rating(Said):
    """What a rater said of an item, as it is kept: with what only the server says of it."""

    is_blind: bool = True
    """Whether the rater had not seen the results."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it came, by the clock of the server."""


class Kept(NamedTuple):
    """A rating that is in the store, and all ratings of its rater in its round, in order."""

    rating: Rating
    ratings: list[Rating]


class ResultsSeen(BaseModel):
    """That a rater saw the results of a round."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When for the first time, by the clock of the server."""


def _label_problem(said: Mapping[str, str], label_set: LabelNames | None) -> str:
    first, second = (said.get(column, "") for column in LABEL_COLUMNS)
    known = label_set.labels if label_set else ()
    if first not in (*known, NO_LABEL):
        return f"label_1: {first!r} is none of {', '.join(known)}, nor {NO_LABEL!r}"
    if second and (second not in known or second == first or first == NO_LABEL):
        return f"label_2: {second!r} is no second label beside {first!r}"
    return ""


def _verdict_problem(said: Mapping[str, str], asked: Sequence[str]) -> str:
    for column in asked:
        words = verdict_words(column)
        if said.get(column) not in words:
            return f"{column}: {said.get(column)!r} is neither {' nor '.join(map(repr, words))}"
    return ""


def verdict_words(column: str) -> list[str]:
    """What a rater may say in a column of verdicts."""
    return WORDS_TO_WRITE[column].split(" or ") if column in VERDICT_COLUMNS.values() else []


def labels_said(said: Mapping[str, str]) -> list[str]:
    """The labels that a rater gave a segment; none where none fits.

    >>> labels_said({"label_1": "framing", "label_2": ""}), labels_said({"label_1": NO_LABEL})
    (['framing'], [])
    """
    return [label for column in LABEL_COLUMNS if (label := said.get(column)) and label != NO_LABEL]


def check_rater(name: str) -> str:
    """A rater's name, which names a folder and, in a config, an annotator.

    Raises:
        ConfigError: it is none.
    """
    if not RATER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.50} is no name for a rater: a small letter, then up to 31 of a-z, 0-9 and _")
    return name


class RatingRecords:
    """The rounds and ratings of a store.

    Args:
        store: where they are.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._files = store.files
        self._known: dict[str, Any] = {}  # records never change

    def begin(self, new: Round) -> str:
        """Keep a round; one that is there already is gone on with.

        Returns:
            Its name.
        """
        self._keep(f"{RATINGS_FOLDER}/{new.name}/{ROUND_FILE}", new)
        return new.name

    def names(self) -> list[str]:
        """All rounds."""
        return sorted(filter(ROUND_NAME.fullmatch, self._files.names(RATINGS_FOLDER)))

    def rounds(self) -> dict[str, Round]:
        """All rounds by name, but for those whose ratings alone are there: who chooses alike begins them anew.

        Raises:
            ArtifactError: one can't be read.
        """
        paths = {name: f"{RATINGS_FOLDER}/{name}/{ROUND_FILE}" for name in self.names()}
        return {name: found for name, path in paths.items() if (found := self._read(path, Round))}

    def round(self, name: str) -> Round:
        """A round.

        Raises:
            ArtifactError: there is none of that name, or it can't be read.
        """
        path = f"{RATINGS_FOLDER}/{name}/{ROUND_FILE}"
        found: Round | None = self._read(path, Round) if ROUND_NAME.fullmatch(name) else None
        if found is None:
            raise ArtifactError(f"{self._store.root_uri} has no round of ratings {name!r:.50}")
        return found

    def raters(self, name: str) -> list[str]:
        """Who rated in a round."""
        return sorted(filter(RATER_NAME.fullmatch, self._files.names(f"{RATINGS_FOLDER}/{name}")))

    def ratings(self, name: str, rater: str) -> list[Rating]:
        """All that a rater said in a round, in order.

        Raises:
            ArtifactError: one can't be read, and is not left out silently.
        """
        folder = f"{RATINGS_FOLDER}/{name}/{check_rater(rater)}"
        files = sorted(filter(RATING_FILE.fullmatch, self._files.names(folder)))
        paths = [f"{folder}/{file}" for file in files]
        new = [path for path in paths if path not in self._known]
        if new:
            with ThreadPoolExecutor(1 if self._files.is_local else REQUESTS_AT_ONCE) as readers:
                list(readers.map(lambda path: self._read(path, Rating), new))
        return [self._known[path] for path in paths if path in self._known]

    def keep(self, name: str, rater: str, said: Said) -> Kept:
        """Keep a rating; when this returns, it is in the store.

        Args:
            name: of the round.
            rater: whose.
            said: when it came, and whether the rater was blind, is found here and taken from nobody.

        Returns:
            What is kept, of one that was sent before the first; and all that the rater has said in the round.

        Raises:
            RatingConflictError: another rating of its item has its number or a higher one.
            RatingError: the round has no such item, or the sheet could not hold it.
        """
        said.check(self.round(name))
        before = self.ratings(name, rater)
        of_number = (each for each in before if (each.n, each.item) == (said.n, said.item))
        if sent_before := next((each for each in of_number if each.says_as(said)), None):
            return Kept(sent_before, before)
        if said.n <= max((each.n for each in before if each.item == said.item), default=0):
            raise _conflict(said, rater, before)
        path = f"{RATINGS_FOLDER}/{name}/{rater}/{said.n:08d}-{said.item}.json"
        fields = said.model_dump(include=set(Said.model_fields))
        self._keep(path, Rating(**fields, is_blind=not self.has_seen_results(name, rater)))
        kept = self._read(path, Rating)
        if kept is None or not kept.says_as(said):  # another page was faster
            raise _conflict(said, rater, self.ratings(name, rater))
        return Kept(kept, sorted([*before, kept], key=lambda each: (each.n, each.item)))

    def add(self, name: str, rater: str, said: Said) -> Rating:
        """:meth:`keep`, for who asks for the rating alone."""
        return self.keep(name, rater, said).rating

    def note_results_seen(self, name: str, rater: str) -> None:
        """Keep that a rater is no longer blind, before the results are shown."""
        if not self.has_seen_results(name, rater):
            self._keep(self._seen(name, rater), ResultsSeen())

    def has_seen_results(self, name: str, rater: str) -> bool:
        """Whether the results of a round were shown to a rater."""
        return self._read(self._seen(name, rater), ResultsSeen) is not None

    def _seen(self, name: str, rater: str) -> str:
        return f"{RATINGS_FOLDER}/{name}/{check_rater(rater)}/{SEEN_FILE}"

    def _keep(self, path: str, record: BaseModel) -> None:
        self._store.write_once(path, record.model_dump_json().encode())
        self._files.flush(path)

    def _read(self, path: str, model: type[Any]) -> Any:
        if path not in self._known:
            try:
                found = self._files.read_as(path, model.model_validate_json)
            except ValidationError as error:
                problem = error.errors()[0]["msg"]
                raise ArtifactError(f"{self._files.uri(path)} can't be read ({problem}): {remedy_of(path)}") from None
            if found is None:
                return None
            self._known[path] = found
        return self._known[path]


def _conflict(said: Said, rater: str, kept: Sequence[Rating]) -> RatingConflictError:
    of_item = max((each.n for each in kept if each.item == said.item), default=0)
    highest = max((each.n for each in kept), default=0)
    return RatingConflictError(
        f"rating {said.n} of item {said.item} would not count, since rating {of_item} says something else of it, "
        f"perhaps from another page of {rater}'s: send it with a number above {highest}, or load this page anew"
    )


@functools.lru_cache(maxsize=8)
def records_in(storage: StorageConfig) -> RatingRecords:
    """Those of a store, the same ones each time, so that a record is read once: a page asks after each rating."""
    return RatingRecords(ArtifactStore(storage))


def latest(ratings: Sequence[Rating], *, blind_only: bool = False) -> dict[str, Rating]:
    """Item → what was last said of it.

    Args:
        ratings: of one rater, in order.
        blind_only: as it was before the rater saw any results.
    """
    return {each.item: each for each in ratings if each.is_blind or not blind_only}


def is_done(of: Round, ratings: Sequence[Rating]) -> bool:
    """Whether a rater has gone through all items: rated each, or passed it over. Once so, it stays so."""
    seen: dict[str, State] = {}
    for each in ratings:
        seen[each.item] = each.state
        if len(seen) == len(of.items) and "cleared" not in seen.values():
            return True
    return False


def remedy_of(path: str) -> str:
    """What to do when a record of rating can't be read.

    Args:
        path: of the record, in its store.
    """
    folder, _, file = path.rpartition("/")
    rater = folder.rpartition("/")[2]
    put_back = "put back what it said"
    if folder.startswith(PUBLICATIONS_FOLDER):
        again = f"rate --rater {rater} --publish"
        if rater.startswith("local."):
            again = f"distil-annotator --name {rater.removeprefix('local.')}"
        return f"{put_back}; or remove it, and publish again: mralign {again}"
    if file == ROUND_FILE:
        return (
            f"{put_back}; or remove it, and begin the round again by the same choice from the same run: it has the "
            "same name, and its ratings are in it"
        )
    if file == SEEN_FILE:
        return f"{put_back}, since it says when {rater} was no longer blind; without it, what is rated from now counts"
    return f"{put_back}; or remove it, and have {rater} rate that item again"


def check_round(data: bytes, path: str) -> None:
    """Read a record as its readers do.

    Raises:
        ValueError: it is none.
    """
    folder, _, file = path.removeprefix(f"{RATINGS_FOLDER}/").rpartition("/")
    if path.startswith(f"{PUBLICATIONS_FOLDER}/"):
        check_publication(data, file)
    elif file == ROUND_FILE:
        if Round.model_validate_json(data).name != folder:
            raise ValueError("it is another round than its folder says")
    elif file == SEEN_FILE:
        ResultsSeen.model_validate_json(data)
    elif match := RATING_FILE.fullmatch(file):
        rating = Rating.model_validate_json(data)
        if (rating.n, rating.item) != (int(match[1]), match[2]):
            raise ValueError(f"it is rating {rating.n} of {rating.item}, and its name says otherwise")
