"""What is being named must not go at that moment: what namers and the collector of garbage agree on.

A promotion reads a version, finds it whole, and names it; a collection finds that nothing names it, and removes it.
Each could come between the other's two steps. So each first shows what it is about to do, and looks only then:

* who names (:func:`kept`): 1. show a claim that says what is read; 2. see that the collector holds no claim on it;
  3. see that it is whole, and name it; 4. take the claim away.
* the collector: 1. take the claim on the artifact (:func:`claim_name`); 2. see that nobody shows, and nothing has, its
  name (:func:`being_named`, the aliases, the pins); 3. remove it; 4. let the claim go.

Whatever the order of these steps, one of the two sees the other. If the namer's 1 comes before the collector's 2, the
collector sees the claim, or, once it is gone, the name that was written before it went, and spares the artifact. If
it comes after, so does the namer's 2 after the collector's 1: the namer sees the collector's claim and waits for its
end, or that has ended, and the artifact is gone, which the namer's 3 finds. Both may hold back; then the artifact
stays, and the namer, who waits, goes on.

Neither takes anything from one whose process isn't known to be gone, however long it says nothing, so a process that
was stopped for longer than its lease changes none of this; a day without a sign is taken for its end, as everywhere.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator

from mralign_core.errors import ArtifactError
from mralign_core.storage.claims import FOLDER, Claim, Holder
from mralign_core.storage.store import ArtifactStore

COLLECTOR = "mralign gc"
"""The run that claims name whose owner removes what is claimed."""
NAMED_SOON = "naming"
"""Kind of the claims of who is about to name something."""
CHECKPOINT, ADAPTER = "checkpoint", "adapter"
REMOVAL_S = 20.0
"""To wait for the collector, which holds a claim for as long as it takes to remove one artifact."""
LOOK_AGAIN_AT_REMOVAL_S = 0.1


@contextlib.contextmanager
def kept(store: ArtifactStore, run: str, paths: Iterable[str]) -> Iterator[None]:
    """Inside the ``with``, no collection removes these artifacts, nor what they were made from.

    Args:
        store: where they are.
        run: what the claim calls who names them.
        paths: of their folders, relative to the root; whether they are whole is to be seen inside.

    Raises:
        ArtifactError: the collector is removing one of them, and does not come to an end.
        StorageError: the store fails, or takes no claim.
    """
    reads = tuple(paths)
    token = uuid.uuid4().hex
    claim = Claim.make(store.claims(run), f"{NAMED_SOON}/{token}", 1, token, reads)
    assert claim is not None  # nobody else has its name
    try:
        for path in reads:
            _wait_for_collector(store, path)
        yield
    finally:
        claim.release()


def claim_name(name: str) -> str:
    """What is claimed by who makes or removes an artifact, ``stage/key``: of a checkpoint, the adapter that is trained.

    >>> claim_name("checkpoint/abc/step-000000010")
    'adapter/abc'
    """
    root, _, rest = name.partition("/")
    return f"{ADAPTER}/{rest.rpartition('/')[0]}" if root == CHECKPOINT else name


def being_named(store: ArtifactStore) -> set[str]:
    """Paths of what somebody is about to name, whose process isn't known to be gone."""
    found: set[str] = set()
    for name in store.files.sizes(f"{FOLDER}/{NAMED_SOON}"):
        holder = Holder.read(store.files.read(f"{FOLDER}/{NAMED_SOON}/{name}") or b"")
        found |= set() if holder.is_gone else set(map(str, holder.reads))
    return found


def _wait_for_collector(store: ArtifactStore, path: str) -> None:
    name = path.removeprefix("artifacts/").rpartition("/")[0]
    claimed = claim_name(name)
    deadline = time.monotonic() + REMOVAL_S
    while (holder := _removing(store, claimed)) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_AT_REMOVAL_S)
    if holder:
        raise ArtifactError(
            f"{name} is being removed by {holder}: try again when that has ended. If it was lost with its host, remove "
            f"the file of its claim, {store.files.uri(f'{FOLDER}/{claimed}')}.*"
        )


def _removing(store: ArtifactStore, name: str) -> Holder | None:
    """The collector, if it holds a claim now."""
    claims = store.claims("")
    newest = claims.newest(name)
    data = store.files.read(f"{FOLDER}/{name}.{newest}") if newest else None
    holder = Holder.read(data) if data is not None else None
    return holder if holder and holder.run == COLLECTOR and not holder.is_gone else None
