"""The contract of ArtifactStore, on a folder and on a real S3 server."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, DataError
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore, key_of, render_lineage, tree_digest
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.storage.store import MOST_CANDIDATES
from mralign_core.storage.tables import write_table

KEY = key_of(stage="estimate", n=1)
WEIGHTS = "adapter/weights.safetensors"


def publish(store, directory, stage="estimate", key=KEY, parents=(), **more):
    return store.publish(stage, key, directory, parents=list(parents), fingerprint={"prior": 0.1}, **more)


def segment_weights(*weights):
    rows = [(f"t{n}", 0, weight, weight, False, 3.0, None, None) for n, weight in enumerate(weights)]
    return pd.DataFrame(rows, columns=list(SEGMENT_WEIGHTS.columns))


def test_published_artifact_is_found_by_another_store(store, open_store, directory):
    other = open_store()
    assert other.find("estimate", KEY) is None
    ref = publish(store, directory, rows=3, counts={"kept": 3, "too_long": 1}, seed=7, cost_usd=0.5)
    assert other.find("estimate", KEY) == ref
    assert other.find("estimate", KEY, full_hash=True) == ref
    assert other.find("estimate", key_of(n=2)) is None
    assert other.find("reward", KEY) is None
    assert ref.rows == 3
    assert ref.sha256 == tree_digest(directory)
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref


def test_manifest_tells_what_was_made_and_how(store, directory):
    manifest = store.manifest(publish(store, directory, counts={"kept": 3}, seed=7, wall_time_s=1.5, cost_usd=0.5))
    assert manifest.files.keys() == {"report.txt", WEIGHTS}
    assert manifest.files["report.txt"].size == 8
    assert (manifest.counts, manifest.seed, manifest.fingerprint) == ({"kept": 3}, 7, {"prior": 0.1})
    assert (manifest.wall_time_s, manifest.cost_usd) == (1.5, 0.5)
    assert abs(datetime.now(UTC) - manifest.created_at) < timedelta(minutes=1)
    assert {"python", "torch", "pyarrow"} <= manifest.package_versions.keys()


def test_opened_directory_holds_the_same_files(store, directory):
    folder = store.open_directory(publish(store, directory))
    assert tree_digest(folder) == tree_digest(directory)
    assert store.open_directory(store.find("estimate", KEY)) == folder


def test_nested_stage_names_keep_apart(store, directory):
    ref = publish(store, directory, stage="generate/draws")
    assert store.find("generate/draws", KEY) == ref
    assert store.find("generate", KEY) is None
    assert store.resolve(f"generate/draws/{KEY}") == ref


def test_equal_content_has_one_digest_at_any_time_and_key(store, directory):
    first, second = publish(store, directory), publish(store, directory, key=key_of(n=2))
    assert first.sha256 == second.sha256
    assert first.path != second.path


def test_publishing_again_changes_nothing(store, raw, directory):
    ref = publish(store, directory, cost_usd=1.0)
    before = raw.read(f"{ref.path}/manifest.json")
    assert publish(store, directory, cost_usd=2.0) == ref
    assert raw.read(f"{ref.path}/manifest.json") == before


def damage_truncate(raw, folder):
    raw.write(f"{folder}/data/{WEIGHTS}", raw.read(f"{folder}/data/{WEIGHTS}")[:-1])


def damage_remove_file(raw, folder):
    raw.remove(f"{folder}/data/report.txt")


def damage_add_file(raw, folder):
    raw.write(f"{folder}/data/extra.bin", b"not in the manifest")


def damage_garbage_manifest(raw, folder):
    raw.write(f"{folder}/manifest.json", b'{"stage": "esti')


def damage_remove_manifest(raw, folder):
    raw.remove(f"{folder}/manifest.json")


def damage_forge_manifest(raw, folder):
    manifest = json.loads(raw.read(f"{folder}/manifest.json"))
    manifest["files"]["report.txt"]["size"] += 1
    raw.write(f"{folder}/manifest.json", json.dumps(manifest).encode())


def damage_escaping_name(raw, folder):
    manifest = json.loads(raw.read(f"{folder}/manifest.json"))
    manifest["files"]["../../secret"] = manifest["files"].pop("report.txt")
    raw.write(f"{folder}/manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncate, "has 16383 bytes, 16384 were written"),
        (damage_remove_file, "report.txt is missing"),
        (damage_add_file, "extra.bin is not in the manifest"),
        (damage_garbage_manifest, "manifest.json is damaged"),
        (damage_remove_manifest, "has no manifest.json"),
        (damage_forge_manifest, "not the digest of the files"),
        (damage_escaping_name, "is not a plain relative file name"),
    ],
)
def test_damaged_artifact_is_a_miss_and_publishing_repairs_it(store, raw, directory, caplog, damage, reason):
    ref = publish(store, directory)
    damage(raw, ref.path)
    with caplog.at_level(logging.WARNING, logger="mralign_core.storage"):
        assert store.find("estimate", KEY) is None
    assert reason in caplog.text
    with pytest.raises(ArtifactError):
        store.open_directory(ref)
    if damage is not damage_add_file:
        assert publish(store, directory) == ref
        assert store.find("estimate", KEY, full_hash=True) == ref


def test_flipped_bit_is_caught_by_full_hash_and_on_opening(store, raw, directory):
    ref = publish(store, directory)
    content = bytearray(raw.read(f"{ref.path}/data/{WEIGHTS}"))
    content[100] ^= 1
    raw.write(f"{ref.path}/data/{WEIGHTS}", bytes(content))
    assert store.find("estimate", KEY) == ref
    assert store.find("estimate", KEY, full_hash=True) is None
    with pytest.raises(ArtifactError, match=r"weights\.safetensors.*other content"):
        store.open_directory(ref)
    publish(store, directory)
    assert store.find("estimate", KEY, full_hash=True) == ref


def test_gone_artifact_names_what_is_missing(store, raw, directory):
    ref = publish(store, directory)
    raw.remove(f"{ref.path}/manifest.json")
    with pytest.raises(ArtifactError, match=r"estimate.*no manifest\.json"):
        store.manifest(ref)


def test_nothing_or_odd_names_are_not_published(store, directory, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="nothing to publish"):
        publish(store, tmp_path / "empty")
    with pytest.raises(ArtifactError, match="stage"):
        publish(store, directory, stage="../outside")
    with pytest.raises(ArtifactError, match="key"):
        publish(store, directory, key="a/b")


def test_concurrent_writers_of_the_same_content_make_one_artifact(open_store, directory):
    stores = [open_store() for _ in range(4)]
    barrier, refs = threading.Barrier(4), []

    def write(store):
        barrier.wait()
        refs.append(publish(store, directory))

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 4
    assert len(set(refs)) == 1
    assert stores[0].find("estimate", KEY, full_hash=True) == refs[0]


def test_of_two_contents_under_a_key_the_first_published_is_used(store, directory):
    first = publish(store, directory)
    (directory / "report.txt").write_text("another report")
    second = publish(store, directory)
    assert first.sha256 != second.sha256
    assert store.find("estimate", KEY) == first
    assert store.resolve(second.uri) == second


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
from mralign_core.storage import filesystem

store = ArtifactStore(StorageConfig.model_validate_json(sys.argv[1]))
at, seen = int(sys.argv[4]), 0

def die_before(function):
    def wrapped(*args, **kwargs):
        global seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if store._files.is_local:
    filesystem.os.replace = die_before(os.replace)
else:
    store._files._fs._put_file = die_before(store._files._fs._put_file)
    store._files._fs._pipe_file = die_before(store._files._fs._pipe_file)
store.publish("estimate", sys.argv[3], Path(sys.argv[2]), parents=[], fingerprint={})
"""


@pytest.mark.parametrize("killed_at", [2, 3], ids=["between data files", "before the manifest"])
def test_writer_killed_while_publishing_leaves_no_artifact(section, store, directory, killed_at):
    command = [
        sys.executable,
        "-c",
        KILLED_WRITER,
        section.model_dump_json(),
        str(directory),
        KEY,
        str(killed_at),
    ]
    writer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert writer.returncode == -signal.SIGKILL, writer.stderr
    assert store.find("estimate", KEY) is None
    ref = publish(store, directory)
    assert store.find("estimate", KEY, full_hash=True) == ref


def test_moved_store_still_opens_what_its_references_name(directory, tmp_path):
    ref = publish(ArtifactStore(StorageConfig(root=str(tmp_path / "old"))), directory)
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = ArtifactStore(StorageConfig(root=f"file://{tmp_path}/new"))
    assert tree_digest(moved.open_directory(ref)) == ref.sha256
    assert moved.resolve(ref.uri).sha256 == ref.sha256


@pytest.fixture
def family(store, directory):
    """questions → draws → (candidates, scores of both)."""
    refs: dict[str, ArtifactRef] = {}
    for number, (stage, parents) in enumerate(
        {
            "questions": [],
            "generate/draws": ["questions"],
            "candidates": ["generate/draws"],
            "scores": ["candidates", "generate/draws"],
        }.items()
    ):
        (directory / "report.txt").write_text(stage)
        refs[stage] = publish(
            store,
            directory,
            stage,
            f"{number}{KEY}",
            [refs[name] for name in parents],
            rows=number,
            cost_usd=0.25,
        )
    return refs


def test_lineage_follows_parents_and_shows_shared_ones_once(store, family):
    lineage = store.lineage(family["scores"])
    assert [parent.ref for parent in lineage.parents] == [family["candidates"], family["generate/draws"]]
    assert lineage.parents[0].parents[0].parents[0].ref == family["questions"]
    text = render_lineage(lineage)
    assert [re.sub(r"/\w{12}  .*", "", line) for line in text.splitlines()] == [
        "scores",
        "├── candidates",
        "│   └── generate/draws",
        "│       └── questions",
        "└── generate/draws",
    ]
    assert "3 rows" in text.splitlines()[0]
    assert "$0.2500" in text.splitlines()[0]
    assert text.endswith("(parents above)")


def test_lineage_shows_a_missing_parent_as_such(store, raw, family):
    raw.remove(f"{family['questions'].path}/manifest.json")
    leaf = store.lineage(family["generate/draws"]).parents[0]
    assert leaf.manifest is None
    assert "MISSING" in render_lineage(leaf)


def test_resolve_accepts_uri_stage_and_key_prefixes(store, family):
    ref = family["candidates"]
    for text in (
        ref.uri,
        ref.path,
        f"candidates/{ref.key}",
        f"candidates/{ref.key[:4]}",
        ref.key[:9],
        "candidates",
    ):
        assert store.resolve(text) == ref


@pytest.mark.parametrize(
    ("text", "message"),
    [("nothing-like-it", "no artifact fits"), ("", "4 artifacts fit"), ("generate/x", "no artifact fits")],
)
def test_resolve_lists_candidates_when_unsure(store, family, text, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        store.resolve(text)
    assert f"candidates/{family['candidates'].key}" in str(caught.value)


def test_resolve_looks_where_the_text_points_and_lists_nothing_else(store, family, monkeypatch):
    def refuse(_, path):
        raise AssertionError(f"all of {path} was listed")

    ref = family["scores"]
    monkeypatch.setattr(StoreFiles, "sizes", refuse)
    monkeypatch.setattr(ArtifactStore, "_verify", lambda *_, **__: None)  # lists the files of the one that was found
    for text in (ref.key, ref.key[:9], ref.path, f"scores/{ref.key[:4]}"):
        assert [store.lineage(text).ref, len(store.lineage(text).parents)] == [ref, 2]


def test_a_key_is_itself_though_another_begins_so(store, directory):
    short, long = (publish(store, directory, key=key) for key in ("step-1", "step-12"))
    assert [store.resolve("step-1"), store.resolve("step-12")] == [short, long]
    with pytest.raises(ArtifactError, match="2 artifacts fit 'step'"):
        store.resolve("step")


def test_what_was_never_finished_fits_nothing(store, raw, directory):
    whole, other = (publish(store, directory, key=f"{number}{KEY[1:]}") for number in "12")
    raw.remove(f"{other.path}/manifest.json")
    assert store.resolve("estimate") == whole
    with pytest.raises(ArtifactError, match="no artifact fits"):
        store.resolve(other.key)


def test_what_a_file_manager_leaves_in_a_folder_is_passed_over(directory, tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    ref = publish(store, directory)
    for folder in (f"artifacts/estimate/{KEY}", "artifacts/estimate", "artifacts"):
        (tmp_path / "store" / folder / ".DS_Store").touch()
    assert store.resolve(KEY[:6]) == store.resolve("estimate") == ref


def test_of_many_that_fit_some_are_listed(store, directory):
    for number in range(MOST_CANDIDATES + 1):
        publish(store, directory, key=f"a{number:02d}")
    with pytest.raises(ArtifactError, match="more than 10 artifacts fit 'a'") as caught:
        store.resolve("a")
    assert str(caught.value).count("estimate/a") == MOST_CANDIDATES


@pytest.mark.parametrize("text", ["../../etc", "estimate/../estimate", "a//b", "."])
def test_what_is_no_name_fits_nothing(store, family, text):
    with pytest.raises(ArtifactError, match="no artifact fits"):
        store.resolve(text)


def test_resolve_says_that_a_store_is_empty(store):
    with pytest.raises(ArtifactError, match="the store is empty"):
        store.resolve("scores")


def test_table_round_trip_keeps_rows_and_counts_them(store, tmp_path):
    frame = segment_weights(0.5, 1.0, 2.0)
    write_table(tmp_path / "out", "weights.parquet", frame, SEGMENT_WEIGHTS)
    ref = publish(store, tmp_path / "out", table="segment_weights")
    assert (ref.rows, ref.table) == (3, "segment_weights")
    assert store.manifest(ref).files["weights.parquet"].table == "segment_weights"
    read = store.read_table(ref, "weights.parquet")
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    with pytest.raises(ArtifactError, match=r"no file 'scores\.parquet'; it has weights\.parquet"):
        store.read_table(ref, "scores.parquet")


def test_records_are_replaced_and_missing_ones_are_none(store, open_store):
    assert store.get_json("last_run/pocket") is None
    store.put_json("last_run/pocket", {"run": 1, "text": "naïve"})
    store.put_json("last_run/pocket", {"run": 2, "text": "naïve"})
    assert open_store().get_json("last_run/pocket") == {"run": 2, "text": "naïve"}
    with pytest.raises(ValueError, match="plain relative"):
        store.put_json("../outside", {})


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000], ids=["cut", "nested"])
def test_unreadable_record_counts_as_missing(store, raw, caplog, content):
    store.put_json("last", {"run": 1})
    raw.write("records/last.json", content)
    assert store.get_json("last") is None
    assert "last.json" in caplog.text


def test_replies_are_kept_one_by_one(store, open_store):
    replies = ReplyStore(store)
    assert replies.get(key_of(request=1)) is None
    replies.put(key_of(request=1), {"text": "[]", "cost_usd": 0.01})
    assert ReplyStore(open_store()).get(key_of(request=1)) == {"text": "[]", "cost_usd": 0.01}


def test_check_writable_leaves_a_store_as_it_was(store):
    store.check_writable()
    with pytest.raises(ArtifactError, match="the store is empty"):
        store.resolve("x")


def test_parquet_bytes_depend_on_the_rows_alone(tmp_path):
    first = write_table(tmp_path, "a.parquet", segment_weights(0.5, 1.0), SEGMENT_WEIGHTS)
    shuffled_columns = segment_weights(0.5, 1.0)[list(SEGMENT_WEIGHTS.columns)[::-1]]
    second = write_table(tmp_path, "b.parquet", shuffled_columns, SEGMENT_WEIGHTS)
    third = write_table(tmp_path, "c.parquet", segment_weights(0.5, 1.1), SEGMENT_WEIGHTS)
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()


def test_tables_that_break_their_contract_are_refused(tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    with pytest.raises(DataError, match="must be finite"):
        write_table(tmp_path, "bad.parquet", segment_weights(float("inf")), SEGMENT_WEIGHTS)
    good = pq.read_table(write_table(tmp_path / "out", "good.parquet", segment_weights(0.5), SEGMENT_WEIGHTS))
    stamp = good.schema.metadata
    infinite = good.set_column(2, "weight", pa.array([float("inf")])).replace_schema_metadata(stamp)
    variants = {
        "infinite": (infinite, "must be finite"),
        "older": (good.replace_schema_metadata({**stamp, b"mralign.table_version": b"0"}), "version 0"),
        "foreign": (good.replace_schema_metadata(None), "holds table ''"),
        "narrow": (
            good.drop_columns(["clipped"]).replace_schema_metadata(stamp),
            "does not have the columns",
        ),
    }
    for name, (table, _) in variants.items():
        pq.write_table(table, tmp_path / "out" / f"{name}.parquet")
    ref = publish(store, tmp_path / "out")
    assert len(store.read_table(ref, "good.parquet")) == 1
    for name, (_, message) in variants.items():
        with pytest.raises(ArtifactError, match=message):
            store.read_table(ref, f"{name}.parquet")


def test_downloaded_files_are_reused_and_repaired(s3_server, s3_root, directory, tmp_path):
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url)
    store = ArtifactStore(section, cache_folder=tmp_path / "cache")
    folder = store.open_directory(publish(store, directory))
    unchanged = (folder / WEIGHTS).stat().st_mtime_ns
    (folder / "report.txt").write_text("tampered")
    found = store.find("estimate", KEY)
    assert found
    assert tree_digest(store.open_directory(found)) == tree_digest(directory)
    assert (folder / WEIGHTS).stat().st_mtime_ns == unchanged


def test_removed_artifact_leaves_nothing_and_its_neighbours_stay(store, open_store, directory):
    other = publish(store, directory, key=key_of(n=2))
    ref = publish(store, directory)
    store.open_directory(ref)
    assert store.keys("estimate") == sorted([KEY, other.key])
    store.remove("estimate", KEY)
    store.remove("estimate", KEY)  # there is nothing left, and that is fine
    assert open_store().find("estimate", KEY) is None
    assert store.keys("estimate") == [other.key]
    assert open_store().find("estimate", other.key, full_hash=True) == other
    assert publish(store, directory) == ref
    assert open_store().find("estimate", KEY, full_hash=True) == ref


def test_removal_begins_with_the_manifest(store, directory, monkeypatch):
    removed = []
    monkeypatch.setattr(StoreFiles, "remove", lambda self, path: removed.append(path))
    ref = publish(store, directory)
    store.remove("estimate", KEY)
    assert removed[0] == f"{ref.path}/manifest.json"
    assert sorted(removed[1:]) == [f"{ref.path}/data/{WEIGHTS}", f"{ref.path}/data/report.txt"]
