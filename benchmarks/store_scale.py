"""What `mralign lineage KEY` costs in a store of many artifacts, beside a listing of the whole store.

Fills a folder, and a bucket of a SeaweedFS server that it starts, with artifacts of five stages, each made from one of
the stage before. Then it looks up the lineage of a full key, of the first twelve characters of one and of ``stage/``
and six characters, and lists everything once, which is what a look-up did before. The first request to a bucket, which
loads botocore's tables in a quarter of a second whatever is asked, is made before.

Run ``python -m benchmarks.store_scale`` from the repository; ``--artifacts 1000`` is quick.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.artifact import FileEntry, Manifest, content_digest
from mralign_core.storage.filesystem import REQUESTS_AT_ONCE, StoreFiles

STAGES = ("questions", "generations-shard", "annotations-shard", "adapter", "scores-shard")
DATA = b"{}"
ROUNDS = 5


def main() -> None:
    """Fill, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artifacts", type=int, nargs="+", default=[10_000, 100_000], help="a row each")
    parser.add_argument("--stores", nargs="+", choices=("folder", "s3"), default=["folder", "s3"])
    options = parser.parse_args()
    print(f"{'store':>7} {'artifacts':>10} {'look-up':>24} {'ms':>9} {'whole listing, ms':>18} {'ratio':>8}")
    for kind in options.stores:
        for num_artifacts in options.artifacts:
            with tempfile.TemporaryDirectory(prefix="store-scale-") as folder:
                (_measure_in_folder if kind == "folder" else _measure_in_bucket)(Path(folder), num_artifacts)


def _measure_in_folder(folder: Path, num_artifacts: int) -> None:
    _measure("folder", StorageConfig(root=str(folder / "store")), num_artifacts)


def _measure_in_bucket(folder: Path, num_artifacts: int) -> None:
    from tests.seaweedfs import BUCKET, running_server

    with running_server(folder) as server:
        os.environ.update(server.environment())
        section = StorageConfig(root=f"s3://{BUCKET}/store", endpoint_url=server.endpoint_url)
        _measure("s3", section, num_artifacts)


def _measure(kind: str, section: StorageConfig, num_artifacts: int) -> None:
    last = _fill(StoreFiles(section), num_artifacts)
    store = ArtifactStore(section)
    whole_ms = _milliseconds(lambda: store.files.sizes("artifacts"), rounds=1)
    looked_up = {
        "full key": last.key,
        "12 characters of a key": last.key[:12],
        "stage/6 characters": f"{last.stage}/{last.key[:6]}",
    }
    for name, text in looked_up.items():

        def look_up(text: str = text) -> None:
            found = store.lineage(text)
            assert found.ref.key == last.key, f"{text} is {found.ref.path}"

        spent_ms = _milliseconds(look_up, ROUNDS)
        row = f"{kind:>7} {num_artifacts:>10,} {name:>24} {spent_ms:>9.1f} {whole_ms:>18,.0f}"
        print(f"{row} {whole_ms / spent_ms:>7,.0f}×", flush=True)


def _fill(files: StoreFiles, num_artifacts: int) -> ArtifactRef:
    """Write artifacts of one small file; returns one of the last stage."""
    made: list[ArtifactRef] = []

    def write(manifest: Manifest) -> None:
        files.write(f"{manifest.path}/data/part.json", DATA, durable=False)
        files.write(f"{manifest.path}/manifest.json", manifest.to_bytes(), durable=False)

    with ThreadPoolExecutor(1 if files.is_local else REQUESTS_AT_ONCE) as writers:
        for _ in writers.map(write, _manifests(num_artifacts, made)):
            pass
    return made[len(made) - len(made) // (2 * len(STAGES))]


def _manifests(num_artifacts: int, made: list[ArtifactRef]) -> Iterator[Manifest]:
    content = {"part.json": FileEntry(sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA))}
    num_of_stage = num_artifacts // len(STAGES)
    for stage in STAGES:
        before = made[-num_of_stage:] if made else []
        for number in range(num_of_stage):
            manifest = Manifest(
                stage=stage,
                key=hashlib.sha256(f"{stage} {number}".encode()).hexdigest(),
                sha256=content_digest(content),
                files=content,
                parents=before[number : number + 1],
                created_at=datetime.now(UTC),
            )
            made.append(manifest.ref(f"store/{manifest.path}"))
            yield manifest


def _milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The median over some calls."""
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        spent.append(1_000 * (time.perf_counter() - started))
    return statistics.median(spent)


if __name__ == "__main__":
    main()
