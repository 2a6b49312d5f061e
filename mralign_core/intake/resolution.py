"""What a run's config meant when the run began: each reference, what it was resolved to, when and from where.

A record of each run, and of the last one, under ``records/resolutions/`` in the store::

    resolutions/<name of the config>          the last one
    resolutions/<name of the config>/<run>    that of a run
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mralign_core.storage import ArtifactStore
from mralign_core.storage.artifact import Sha256, relative_name
from mralign_core.storage.records import parse_record

logger = logging.getLogger("mralign_core.intake")
DIGEST_PART = re.compile(r"[0-9a-f]{64}")
"""The folder of a copy of what arrived, in a path."""
SHORT = 12
"""Characters of a digest or commit in messages."""


class ConfigReference(BaseModel):
    """One reference of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    field: str
    """Config field that has it, such as `questions.train.0`."""
    kind: Literal["hub", "arrivals", "contents", "endpoint", "alias"]
    """A repository of the hub, a pattern or bucket, something whose contents count, a model behind an API, or an alias
    of a version."""
    asked: str
    """As the config has it: what is asked for again when a later run can't reach it."""
    pinned: str = ""
    """What it stood for: a commit, a digest, or a model's dated name; empty where nobody says."""
    source: str = ""
    """Who said so."""
    files: dict[Annotated[str, AfterValidator(relative_name)], Sha256] = {}
    """Of arrivals: the SHA-256 of each file."""
    tags: dict[str, str] = {}
    """Of arrivals in a bucket: the server's own mark of each file's contents."""
    recalled_from: str = ""
    """The run that resolved it, where this one could not and took over what that one had recorded."""
    note: str = ""
    """What else there is to know."""

    @model_validator(mode="after")
    def _arrivals_are_pinned_by_digest(self) -> ConfigReference:
        if self.kind == "arrivals" and self.pinned and not DIGEST_PART.fullmatch(self.pinned):  # it names a folder here
            raise ValueError(f"{self.field}: {self.pinned!r} is not the SHA-256 of what arrived")
        return self


class Resolution(BaseModel):
    """All references of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    config: str
    """The config's name."""
    run: str = ""
    """Which run; empty for one that was only looked at."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When (UTC)."""
    references: list[ConfigReference] = []

    def answer_to(self, asked: ConfigReference) -> ConfigReference | None:
        """What the same reference was resolved to; None where it was not among these."""
        found = [one for one in self.references if (one.kind, one.asked) == (asked.kind, asked.asked) and one.pinned]
        same = [one for one in found if one.field == asked.field]
        return next(iter([*same, *found]), None)


def changed_references(before: Resolution | None, after: Resolution) -> list[str]:
    """A line for each reference that stands for something else than before, or is new; gone ones are not told.

    Nothing is told of one that nobody knew before, or knows now: replies may name an alias' model in one run, and
    another run has not asked yet.

    Example:
        >>> one = ConfigReference(field="model", kind="hub", asked="a/b@", pinned="c0ffee")
        >>> two = one.model_copy(update={"pinned": "d1"})
        >>> changed_references(Resolution(config="x", references=[one]), Resolution(config="x", references=[two]))
        ['model: a/b@ was c0ffee and is d1']
    """
    earlier = {one.field: one for one in before.references} if before else {}
    lines = []
    for one in after.references:
        other = earlier.get(one.field)
        if other is None or other.asked != one.asked:
            lines.append(f"{one.field}: {one.asked} is new" + (f", and is {_short(one)}" if one.pinned else ""))
        elif one.pinned and other.pinned and other.pinned != one.pinned:
            lines.append(f"{one.field}: {one.asked} was {_short(other)} and is {_short(one)}")
    return lines


def _short(reference: ConfigReference) -> str:
    """What it stands for, in words: of a digest or commit, its beginning."""
    return reference.pinned if reference.kind in ("endpoint", "alias") else reference.pinned[:SHORT]


class Resolutions:
    """The records of one config's name.

    Args:
        store: where they are kept.
        name: the config's.
    """

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self._store = store
        self._last = f"resolutions/{name}"

    def last(self) -> Resolution | None:
        """That of the last run."""
        return self._read(self._last)

    def of(self, run: str) -> Resolution | None:
        """That of a run."""
        return self._read(f"{self._last}/{run}") if run else None

    def keep(self, resolution: Resolution, *, is_last: bool = True) -> None:
        """Note that of a run; ``is_last`` says whether it is the last one's."""
        record = resolution.model_dump(mode="json")
        self._store.put_json(f"{self._last}/{resolution.run}", record)
        if is_last:
            self._store.put_json(self._last, record)

    def _read(self, name: str) -> Resolution | None:
        return parse_record(Resolution, self._store.get_json(name), f"the record {name}")
