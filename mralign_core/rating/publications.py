"""Which of a person's labels were published last: a record of each publication, beside the ratings.

Layout under ``storage.root``::

    ratings/published/<rater>/<n as 8 digits>-<digest>.json   one publication; written once

Decisions:

* An artifact can't tell it. Labels that are published again, after others, have the key that they had, and so the time
  at which they were first made.
* The records stand among the ratings: a collection removes none, ``mralign verify`` reads each. The name of a file has
  all that a lookup needs.
* Two publications at one time may have one number. Neither is the later one; they are ordered by digest, the same for
  every reader.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mralign_core.storage import ArtifactRef, ArtifactStore

PUBLICATIONS_FOLDER = "ratings/published"
PUBLISHED_KEY = re.compile(r"(?P<name>[a-z][a-z0-9_]{0,31})-(?P<digest>[0-9a-f]{16})")
PUBLICATION_FILE = re.compile(r"(\d{8})-([0-9a-f]{16})\.json")


class Publication(BaseModel):
    """That a person's labels became the newest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n: Annotated[int, Field(ge=1, lt=100_000_000)]
    """Its number among those of the person."""
    key: str
    """Of the artifact."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When, by the clock of the publisher."""


def add_publication(store: ArtifactStore, rater: str, key: str) -> None:
    """Make labels the newest of a person; what is the newest already is not said again.

    Args:
        store: where the artifact is.
        rater: whose.
        key: of the artifact, which ends in its digest.
    """
    numbers, digest = publication_numbers(store, rater), key.rpartition("-")[2]
    last = max(numbers.values(), default=0)
    if last and max(numbers, key=lambda each: (numbers[each], each)) == digest:
        return
    path = f"{PUBLICATIONS_FOLDER}/{rater}/{last + 1:08d}-{digest}.json"
    store.write_once(path, Publication(n=last + 1, key=key).model_dump_json().encode())
    store.files.flush(path)


def publication_numbers(store: ArtifactStore, rater: str) -> dict[str, int]:
    """Digest → the number of its last publication."""
    found = filter(None, map(PUBLICATION_FILE.fullmatch, sorted(store.files.names(f"{PUBLICATIONS_FOLDER}/{rater}"))))
    return {match[2]: int(match[1]) for match in found}


def published_under(store: ArtifactStore, stage: str, name: str, digest: str, noted_as: str) -> list[ArtifactRef]:
    """The artifacts of a stage whose key is the name, a hyphen, and a digest that begins so; the one published last
    ends the list. One without a record, as where the publisher was killed, is older than all that have one.

    Args:
        store: where they are.
        stage: theirs.
        name: what a config calls them.
        digest: how it begins; empty for any.
        noted_as: whose publications theirs are among.
    """
    numbers = publication_numbers(store, noted_as)
    found = [
        (numbers.get(match["digest"], 0), store.manifest(ref).created_at, ref.key, ref)
        for key in store.keys(stage)
        if (match := PUBLISHED_KEY.fullmatch(key)) and match["name"] == name and match["digest"].startswith(digest)
        if (ref := store.find(stage, key))
    ]
    return [ref for *_, ref in sorted(found, key=lambda each: each[:3])]


def check_publication(data: bytes, file: str) -> None:
    """Read a record, and compare it with its name.

    Raises:
        ValueError: it is none, or another.
    """
    published = Publication.model_validate_json(data)
    match = PUBLICATION_FILE.fullmatch(file)
    if match is None or (published.n, published.key.rpartition("-")[2]) != (int(match[1]), match[2]):
        raise ValueError(f"it is publication {published.n} of {published.key}, and its name says otherwise")
