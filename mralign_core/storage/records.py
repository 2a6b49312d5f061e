"""Records in the artifact store: replies that were paid for, what runs paid, batches under way, what runs made."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.storage.artifact import ArtifactRef
from mralign_core.storage.store import ArtifactStore

logger = logging.getLogger("mralign_core.storage")
Parsed = TypeVar("Parsed", bound=BaseModel)


class ReplyStore:
    """LLM replies, one object each, by the digest of their request: what was paid for survives a crash."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def get(self, digest: str) -> dict[str, Any] | None:
        """The reply to a request, or None when it was never made."""
        return self._store.get_json(_reply_name(digest))

    def put(self, digest: str, record: Mapping[str, Any]) -> None:
        """Keep a reply. It is not flushed to disk: losing power may lose it, losing the process can't."""
        self._store.put_json(_reply_name(digest), record, durable=False)


class LedgerRecords:
    """What each run paid for one piece of work, a record a run."""

    def __init__(self, store: ArtifactStore, work: str) -> None:
        self._store = store
        self._folder = f"ledgers/{work}"

    def read(self) -> dict[str, Any]:
        """The records of all runs; None for one that can't be read, as its run may have paid."""
        return self._store.list_any_json(self._folder)

    def write(self, run: str, record: Mapping[str, Any]) -> None:
        """Put a run's record in place of the one before."""
        self._store.put_json(f"{self._folder}/{run}", record, durable=False)


class BatchRecords:
    """Batches under way at providers, a record a batch: what was submitted is found again after a crash."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def read(self) -> dict[str, dict[str, Any]]:
        """The records of all batches."""
        return self._store.list_json("batches")

    def write(self, token: str, record: Mapping[str, Any]) -> None:
        """Put a batch's record in place of the one before; it survives a loss of power."""
        self._store.put_json(f"batches/{token}", record)


class RunRecord(BaseModel):
    """What a run has made so far, and what that was built on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str = ""
    """Which run; empty before there is one."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When its last stage ended (UTC)."""
    artifacts: dict[str, ArtifactRef] = {}
    """By name, such as `candidates` or `adapter:kto`."""
    made_by: dict[str, str] = {}
    """The run that made each; empty where it was named by hand."""
    traces_path: str = ""
    """The file that the candidates were imported from; empty where they were sampled."""

    def agrees_with(self, artifacts: Mapping[str, ArtifactRef]) -> bool:
        """Whether it holds these artifacts, or equal ones."""
        mine = {name: self.artifacts[name].sha256 for name in artifacts.keys() & self.artifacts.keys()}
        return mine == {name: ref.sha256 for name, ref in artifacts.items()}

    def followed_by(
        self, run: str, built_on: Mapping[str, ArtifactRef], made: Mapping[str, ArtifactRef], traces_path: str = ""
    ) -> RunRecord:
        """The record after a stage of a run; ``traces_path`` is what its candidates, if it made any, came from."""
        foreign = dict.fromkeys((name for name, ref in built_on.items() if not self.agrees_with({name: ref})), "")
        return RunRecord(
            run=run,
            artifacts={**self.artifacts, **built_on, **made},
            made_by={**self.made_by, **foreign, **dict.fromkeys(made, run)},
            traces_path=traces_path if "candidates" in made else self.traces_path,
        )


class RunRecords:
    """What the runs of one name made: a record a run, and the record of the run whose stage ended last.

    Each record is of one run and replaced whole, so runs at the same time never mix what they made: of two, the one
    that ends its stage later is the last run, with all that it made and nothing of the other.

    Args:
        store: where they are kept.
        name: the config's.
    """

    _adding = threading.Lock()

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self._store = store
        self._last = f"runs/{name}"

    def last(self) -> RunRecord | None:
        """The record of the last run."""
        return self._parsed(self._last, self._store.get_json(self._last))

    def of(self, run: str) -> RunRecord | None:
        """The record of one run."""
        return self._parsed(run, self._store.get_json(f"{self._last}/{run}"))

    def newest_first(self) -> list[RunRecord]:
        """The records of all runs."""
        records = [self._parsed(run, record) for run, record in self._store.list_json(self._last).items()]
        return sorted((record for record in records if record), key=lambda record: record.at, reverse=True)

    def begin(self, run: str, built_on: Mapping[str, ArtifactRef], last: RunRecord | None) -> None:
        """Note what a run starts from, before it has made anything; it does not make this the last run.

        Args:
            run: which run; nothing is changed where it has a record.
            built_on: what its first stage was given.
            last: the record to go on from: all of it is carried over, if it was built on the same.
        """
        with self._adding:
            if self.of(run) is None:
                self._keep(_start(run, built_on, last))

    def add(
        self,
        run: str,
        built_on: Mapping[str, ArtifactRef],
        made: Mapping[str, ArtifactRef],
        *,
        goes_on: bool,
        traces_path: str = "",
    ) -> None:
        """Note what a stage of a run made, and make this the last run.

        Args:
            run: which run; its stages end one after another.
            built_on: what the stage was given.
            made: what it made.
            goes_on: for the first stage of a run: go on from the last run, as :meth:`begin` does.
            traces_path: the file that candidates, if it made any, were imported from.
        """
        with self._adding:
            before = self.of(run) or _start(run, built_on, self.last() if goes_on else None)
            record = before.followed_by(run, built_on, made, traces_path)
            self._keep(record)
            self._store.put_json(self._last, record.model_dump(mode="json"))

    @staticmethod
    def _parsed(run: str, record: Mapping[str, Any] | None) -> RunRecord | None:
        return parse_record(RunRecord, record, f"the record of run {run}")

    def _keep(self, record: RunRecord) -> None:
        self._store.put_json(f"{self._last}/{record.run}", record.model_dump(mode="json"))


def _start(run: str, built_on: Mapping[str, ArtifactRef], last: RunRecord | None) -> RunRecord:
    before = last if last and last.agrees_with(built_on) else RunRecord()
    return before.followed_by(run, built_on, {})


def parse_record(model: type[Parsed], record: Mapping[str, Any] | None, what: str) -> Parsed | None:
    """What a record says; None, with a warning in the log, where it is damaged, or where there is none.

    Args:
        model: what it is of.
        record: its values; None for none.
        what: what to call it in the warning.
    """
    if record is None:
        return None
    try:
        return model.model_validate(record)
    except ValidationError as error:
        logger.warning("not using %s: %s", what, error)
        return None


def _reply_name(digest: str) -> str:
    return f"replies/{digest[:2]}/{digest}"
