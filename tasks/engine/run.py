"""How an artifact is made once: look it up, else claim it, build it in a scratch folder and publish it.

The store is the cache. A key names an artifact, its manifest proves it, and a missing or damaged one is a miss; so the
same hit is found from any host, with or without a Prefect server. A task whose artifact was there ends in a state
named "Cached", and so does one that waited while another run made it (:mod:`mralign_core.storage.claims`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import httpx
from botocore.exceptions import BotoCoreError
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from mralign_core.config import AskAgain, RunConfig
from mralign_core.errors import StoreUnavailableError, UserError
from mralign_core.redaction import redact, redact_error
from mralign_core.storage import (
    LEFT_OUT,
    TO_ASK_AGAIN,
    ArtifactRef,
    ArtifactStore,
    Holder,
    file_sha256,
    scratch_folder,
)
from tasks.clients import run_name
from tasks.engine.graph import RECIPES
from tasks.engine.progress import OnProgress, progress

logger = logging.getLogger("mralign_core.tasks")
P = ParamSpec("P")

LONGEST_PART = 40
"""Of a part's value in a log line; digests of files are longer."""
CAN_PASS = (OSError, httpx.TransportError, BotoCoreError)


class Built(NamedTuple):
    """What a build function says about the files it wrote."""

    table: str = ""
    counts: Mapping[str, Any] | None = None
    cost_usd: float = 0.0
    model_revision: str = ""
    deciding: Sequence[str] = ()
    """Files that later stages go by: where an unfinished artifact has the same ones, and lacks as much, it stays, with
    its digest."""


class Produced(NamedTuple):
    """An artifact, and whether it was already there."""

    ref: ArtifactRef
    was_cached: bool


Build = Callable[[ArtifactStore, Path], Built]


@dataclass(frozen=True)
class Work:
    """One artifact to have: its recipe's name, the inputs by name, and the part of it this is (shard, variant).

    ``ask_again`` says what of it a later run asks again when models or their servers failed on it.
    """

    name: str
    config: RunConfig
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    part: Mapping[str, Any] = field(default_factory=dict)
    ask_again: AskAgain = "never"

    @property
    def key(self) -> str:
        """The cache key."""
        return RECIPES[self.name].key(self.config, self.inputs, self.part)

    def find(self, store: ArtifactStore) -> ArtifactRef | None:
        """The artifact, when the store holds an intact one."""
        return store.find(self.name, self.key)

    def num_to_ask(self, store: ArtifactStore, found: ArtifactRef) -> int:
        """How many traces, or draws, a stored artifact lacks that are to be asked again; it is finished if none."""
        if self.ask_again == "never":
            return 0
        return int(store.manifest(found).counts.get(TO_ASK_AGAIN if self.ask_again == "auto" else LEFT_OUT, 0))

    def is_finished(self, store: ArtifactStore) -> bool:
        """Whether the store holds it, with nothing in it to ask again."""
        found = self.find(store)
        return found is not None and not self.num_to_ask(store, found)

    def produce(self, build: Build) -> Produced:
        """Return the stored artifact, or build and publish it.

        Args:
            build: writes the artifact's files into the folder it is given and describes them.
        """
        store = ArtifactStore(self.config.storage)
        before = self.find(store)
        if before and not self.num_to_ask(store, before):
            return self._found(before)
        claims, name = store.claims(_name_of(flow_run.id)), f"{self.name}/{self.key}"

        def find_other() -> ArtifactRef | None:
            """What another has made, which may leave traces out again; the next run asks for those."""
            found = self.find(store)
            return found if found != before else None

        with _saying_who_works(self.label) as say, claims.hold(name, find_other, say) as turn:
            if turn.found:
                return self._found(turn.found)
            made = self._make(store, build)
            if made.was_cached or turn.is_alone:
                return made
            # Another that has made it too, because of a stop of this process, may have been first.
            return Produced(self.find(store) or made.ref, False)

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return " ".join([self.name, *(text for text in map(str, self.part.values()) if len(text) < LONGEST_PART)])

    def _found(self, ref: ArtifactRef) -> Produced:
        logger.info("%s: found in the store (%s)", self.label, ref.uri)
        return Produced(ref, True)

    def _make(self, store: ArtifactStore, build: Build) -> Produced:
        started = time.monotonic()
        with scratch_folder() as scratch:
            built = build(store, scratch)
            if built.deciding and (same := self._same(store, scratch, built)):
                return Produced(same, True)
            ref = store.publish(
                self.name,
                self.key,
                scratch,
                parents=list(self.inputs.values()),
                fingerprint=RECIPES[self.name].fingerprint(self.config, self.part),
                table=built.table,
                counts=dict(built.counts or {}),
                seed=self.config.seed,
                model_revision=built.model_revision,
                wall_time_s=time.monotonic() - started,
                cost_usd=built.cost_usd,
            )
        logger.info("%s: made in %.1f s (%s)", self.label, time.monotonic() - started, ref.uri)
        return Produced(ref, False)

    def _same(self, store: ArtifactStore, scratch: Path, built: Built) -> ArtifactRef | None:
        """The stored artifact, when it has the deciding files already, and as much of it is to be asked again."""
        found = self.find(store)
        if found is None:
            return None
        stored, counts = store.manifest(found), built.counts or {}
        if any(stored.counts.get(name, 0) != counts.get(name, 0) for name in (LEFT_OUT, TO_ASK_AGAIN)):
            return None
        files = stored.files
        is_same = all(name in files and files[name].sha256 == file_sha256(scratch / name) for name in built.deciding)
        return found if is_same else None


@functools.lru_cache(maxsize=8)  # the server is asked who the parents of a run are
def _name_of(_: str | None) -> str:
    return run_name()


@contextlib.contextmanager
def _saying_who_works(label: str) -> Iterator[Callable[[Holder], None]]:
    """Yield what tells the log once, and the progress, that another run makes this and is waited for."""
    with contextlib.ExitStack() as shown:
        reports: list[OnProgress] = []

        def say(holder: Holder) -> None:
            if not reports:
                logger.info("%s: %s is making it; waiting until it has, or has ended", label, holder)
                reports.append(shown.enter_context(progress(f"{label}: waiting", "waiting")))
            reports[0](0, 1, str(holder))

        yield say


class StageTask(Task[P, ArtifactRef]):
    """A task that produces one artifact, and ends in a state named "Cached" when the artifact was already there."""

    def __init__(self, function: Callable[P, Produced], **options: Any) -> None:
        self.function = function

        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> Any:
            produced = self._run_function(*args, **kwargs)
            return Completed(name="Cached", data=produced.ref) if produced.was_cached else produced.ref

        super().__init__(body, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        returned = super().__call__(*args, **kwargs)
        return returned.result() if isinstance(returned, State) else returned

    def run_here(self, *args: P.args, **kwargs: P.kwargs) -> ArtifactRef:
        """Run the body in this process, with no server, for debugging."""
        return self._run_function(*args, **kwargs).ref

    def _run_function(self, *args: P.args, **kwargs: P.kwargs) -> Produced:
        """Run the function; what it raises holds no secret, since Prefect stores it with the run."""
        try:
            return self.function(*args, **kwargs)
        except Exception as error:
            if redact_error(error):
                raise
            text = redact(f"{type(error).__name__}: {error}")
        raise RuntimeError(text)


def stage_task(name: str, run_name: str = "") -> Callable[[Callable[P, Produced]], StageTask[P]]:
    """Make a task of a function that produces one artifact.

    The task retries, with exponential back-off and jitter, what can pass (I/O, time-outs), never what can't (bad
    config, bad data, a bug).
    """

    def decorate(function: Callable[P, Produced]) -> StageTask[P]:
        return StageTask(
            function,
            name=name,
            task_run_name=run_name or name,
            retries=3,
            retry_delay_seconds=exponential_backoff(backoff_factor=2),
            retry_jitter_factor=1.0,
            retry_condition_fn=can_pass,
            persist_result=False,
            cache_policy=NO_CACHE,
        )

    return decorate


def can_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth another attempt."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StoreUnavailableError):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False  # nobody frees a disk by waiting
    if isinstance(error, UserError | FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    return isinstance(error, CAN_PASS)


def file_digests(**paths: str) -> dict[str, str]:
    """The digest of each user's file that a stage reads, by its role; a file that is not there has none.

    The stage itself reports a missing file, with its remedy.
    """
    return {role: file_sha256(Path(path)) for role, path in paths.items() if path and Path(path).is_file()}


def shard_bounds(num_rows: int, shard_size: int) -> Sequence[tuple[int, int]]:
    """Half-open row ranges of the shards.

    Example:
        >>> shard_bounds(5, 2)
        [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + shard_size, num_rows)) for start in range(0, num_rows, shard_size)]
