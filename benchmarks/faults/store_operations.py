"""Eight kinds of operation on a store, run by the interpreter of the installation under attack; prints JSON.

``python store_operations.py ROOT ENDPOINT at-once|one-by-one NUM SEED``: ``at-once`` starts one of each kind together,
``one-by-one`` makes ``NUM``, of kinds drawn from the seed. Each result is checked against what was written.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactRef, ArtifactStore

KINDS = ("write record", "read record", "list records", "publish", "find", "read file", "resolve", "start probe")


class Operations:
    """A store with something in it, and operations whose results are known."""

    def __init__(self, root: str, endpoint: str) -> None:
        self.section = StorageConfig(root=root, endpoint_url=endpoint)
        self.store = ArtifactStore(self.section)
        self.data = random.Random(0).randbytes(300_000)
        self.ref = self.publish("first")
        self.store.put_json("records/known", {"value": 1})

    def publish(self, key: str) -> ArtifactRef:
        """Publish the data under a key."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "data.bin").write_bytes(self.data)
            return self.store.publish("estimate", key, Path(folder), parents=[], fingerprint={})

    def run(self, kind: str, number: int) -> bool:
        """Make one operation; true if its result is the right one."""
        if kind == "write record":
            self.store.put_json(f"records/{number}", {"value": number})
            return self.store.get_json(f"records/{number}") == {"value": number}
        if kind == "read record":
            return self.store.get_json("records/known") == {"value": 1}
        if kind == "list records":
            return self.store.list_json("records")["known"] == {"value": 1}
        if kind == "publish":
            return self.publish(f"k{number}").sha256 == self.ref.sha256
        if kind == "find":
            return self.store.find("estimate", "first") == self.ref
        if kind == "read file":
            with tempfile.TemporaryDirectory() as folder:  # another cache: the bytes must come from the store
                store = ArtifactStore(self.section, cache_folder=Path(folder))
                return store.open_file(self.ref, "data.bin").read_bytes() == self.data
        if kind == "resolve":
            return self.store.resolve("estimate/first") == self.ref
        ArtifactStore(self.section).check_writable()
        return True


def tried(operations: Operations, kind: str, number: int) -> dict[str, object]:
    """What became of one operation."""
    started = time.monotonic()
    try:
        problem = "" if operations.run(kind, number) else "another result than was written"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:200]
    return {"kind": kind, "problem": problem, "seconds": time.monotonic() - started}


def main() -> None:
    """Wait for a line on standard input, so that the attack can begin, then operate."""
    root, endpoint, how, num, seed = sys.argv[1:]
    operations = Operations(root, endpoint)
    print("ready", flush=True)
    sys.stdin.readline()
    rng = random.Random(int(seed))
    results: list[dict[str, object]] = []
    if how == "at-once":
        threads = [
            threading.Thread(target=lambda kind=kind, number=number: results.append(tried(operations, kind, number)))
            for number, kind in enumerate(KINDS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        results = [tried(operations, rng.choice(KINDS), number) for number in range(int(num))]
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
