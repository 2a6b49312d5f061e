"""What can pass with a store is waited for, for seconds and not attempts; what can't pass is said at once."""

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, StorageError, StoreUnavailableError
from mralign_core.storage import ArtifactStore, filesystem, key_of, patience, tree_digest
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.storage.tables import read_table
from tests.faulty_s3 import PASSING, FaultyS3
from tests.ports import free_port
from tests.seaweedfs import BUCKET

ROOT = Path(__file__).resolve().parents[3]
KEY = key_of(n=1)
SHORT_OUTAGE_S = 1.5
FAULTS = [kind for kind in PASSING if kind != "slow"] + ["503", "429", "502", "408"]


@pytest.fixture
def proxy(s3_server):
    with FaultyS3(s3_server.endpoint_url, hang_s=30.0) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(proxy, s3_root, tmp_path):
    def open_store(patience_s=60.0, **fields):
        section = StorageConfig(root=s3_root, endpoint_url=proxy.url, patience_s=patience_s, **fields)
        return ArtifactStore(section, cache_folder=tmp_path / "cache")

    return open_store


@pytest.fixture
def behind(s3_server, s3_root, tmp_path):
    """The same store, not through the proxy."""
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url)
    return ArtifactStore(section, cache_folder=tmp_path / "cache behind")


def publish(store, directory, key=KEY):
    return store.publish("estimate", key, directory, parents=[], fingerprint={})


def read(store, behind, directory):
    behind.put_json("a/b", {"x": 1})
    yield
    assert store.get_json("a/b") == {"x": 1}


def write(store, behind, directory):
    yield
    store.put_json("a/b", {"x": 1})
    assert behind.get_json("a/b") == {"x": 1}


def list_keys(store, behind, directory):
    publish(behind, directory)
    yield
    assert store.keys("estimate") == [KEY]


def delete(store, behind, directory):
    publish(behind, directory)
    yield
    store.remove("estimate", KEY)
    assert behind.keys("estimate") == []


def upload(store, behind, directory):
    yield
    ref = publish(store, directory)
    assert behind.find("estimate", KEY, full_hash=True) == ref


def download(store, behind, directory):
    ref = publish(behind, directory)
    yield
    assert tree_digest(store.open_directory(ref)) == ref.sha256


def digest(store, behind, directory):
    ref = publish(behind, directory)
    yield
    assert store.find("estimate", KEY, full_hash=True) == ref


def probe(store, behind, directory):
    yield
    store.check_writable()


OPERATIONS = [read, write, list_keys, delete, upload, download, digest, probe]
"""Each prepares, stops for what is to go wrong, and goes on through it."""


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_outlives_an_outage(through_proxy, proxy, behind, directory, operation):
    store = through_proxy()
    work = operation(store, behind, directory)
    next(work)
    started = time.monotonic()
    proxy.outage(SHORT_OUTAGE_S)
    with pytest.raises(StopIteration):
        next(work)
    assert time.monotonic() - started >= SHORT_OUTAGE_S


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_outlives_every_kind_of_fault(through_proxy, proxy, behind, directory, operation, monkeypatch):
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.05)
    work = operation(through_proxy(), behind, directory)
    next(work)
    proxy.script("*", *FAULTS)
    with pytest.raises(StopIteration):
        next(work)
    # What has no body to lose may end before the last of them.
    assert proxy.scripted("*") == [] or operation in (write, delete)


def test_body_that_never_comes_ends_with_its_time_out_and_is_asked_for_again(through_proxy, proxy, behind, directory):
    work = read(through_proxy(read_timeout_s=0.5), behind, directory)
    next(work)
    proxy.script("GET", "hang")
    with pytest.raises(StopIteration):
        next(work)


@pytest.mark.parametrize("status", ["403", "400", "404", "501"])
def test_what_cannot_pass_is_tried_once(through_proxy, proxy, directory, status):
    proxy.script("PUT", *[status] * 9)
    with pytest.raises(StorageError) as caught:
        publish(through_proxy(), directory)
    assert proxy.num_requests["PUT"] == 1
    assert not isinstance(caught.value, StoreUnavailableError)


def test_patience_is_counted_in_seconds_and_its_end_is_an_error_of_its_own(through_proxy, proxy, directory):
    store = through_proxy(patience_s=1.0)
    store.keys("estimate")  # the connection is made
    proxy.outage(60)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"for 1 s \(storage\.patience_s\).*run again to go on"):
        publish(store, directory)
    assert 1.0 <= time.monotonic() - started < 20.0, "an outage of a minute"


def test_a_long_attempt_that_fails_is_tried_again_whatever_the_patience(through_proxy, proxy, behind, directory):
    store = through_proxy(patience_s=0.3, read_timeout_s=5.0)
    work = read(store, behind, directory)
    next(work)
    proxy.script("GET", "hang")
    with pytest.raises(StopIteration):
        next(work)


def test_write_whose_reply_was_lost_is_believed_after_reading_back(through_proxy, proxy, behind, directory, caplog):
    proxy.script("PUT", *["lose"] * 3)
    ref = publish(through_proxy(patience_s=0), directory)
    assert not proxy.scripted("PUT")
    assert "was written although" in caplog.text
    assert behind.find("estimate", ref.key, full_hash=True) == ref


@pytest.mark.parametrize("operation", [read, download, digest], ids=lambda operation: operation.__name__)
def test_body_shorter_than_its_index_says_is_no_damage(through_proxy, proxy, behind, directory, operation):
    work = operation(through_proxy(), behind, directory)
    next(work)
    proxy.script("GET", *["shorten"] * 4)
    with pytest.raises(StopIteration):
        next(work)
    assert not proxy.scripted("GET")


def test_a_large_file_goes_both_ways_in_parts_and_only_lost_parts_again(
    through_proxy, proxy, directory, tmp_path, monkeypatch
):
    monkeypatch.setattr(filesystem, "PART_BYTES", 1 << 20)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *args, **kwargs: 5 << 20)
    rng = random.Random(0)
    (directory / "large.bin").write_bytes(rng.randbytes((12 << 20) + 7))
    proxy.script("PUT", "", "", "500", "reset", "refuse")
    ref = publish(through_proxy(), directory)
    assert proxy.num_requests["POST"] == 2, "one upload in parts, begun and completed"
    before = proxy.num_requests["GET"]
    faults = ["truncate", "shorten", "reset", "500"]
    proxy.script("GET", "", "", *faults)
    assert tree_digest(through_proxy().open_directory(ref)) == ref.sha256
    assert proxy.num_requests["GET"] - before <= 3 + 2 + 13 + len(faults)
    assert not proxy.scripted("GET") and not proxy.scripted("PUT")


def test_the_end_of_an_upload_in_parts_whose_reply_is_lost(through_proxy, proxy, behind, directory, monkeypatch):
    monkeypatch.setattr(filesystem, "PART_BYTES", 1 << 20)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *args, **kwargs: 5 << 20)
    (directory / "large.bin").write_bytes(random.Random(0).randbytes(11 << 20))
    proxy.script("POST", "", "lose")
    ref = publish(through_proxy(), directory)
    assert not proxy.scripted("POST")
    assert behind.find("estimate", KEY, full_hash=True) == ref


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("400:ExpiredToken", "renew them"),
        ("403:RequestTimeTooSkewed", "clock is wrong"),
        ("403:AccessDenied", "Check the"),
    ],
)
def test_what_only_the_user_can_set_right_is_said_at_once_with_its_remedy(through_proxy, proxy, fault, remedy):
    proxy.script("*", fault)
    with pytest.raises(StorageError, match=remedy) as caught:
        through_proxy().keys("estimate")
    assert not isinstance(caught.value, StoreUnavailableError)


def test_a_host_that_cannot_be_resolved_may_come_back(s3_root):
    section = StorageConfig(root=s3_root, endpoint_url="http://no-such-host.invalid:80", patience_s=0.5)
    with pytest.raises(StoreUnavailableError):
        ArtifactStore(section).keys("estimate")


def test_a_server_that_does_not_speak_tls_never_will(s3_root, s3_server):
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url.replace("http:", "https:"))
    with pytest.raises(StorageError) as caught:
        ArtifactStore(section).keys("estimate")
    assert not isinstance(caught.value, StoreUnavailableError)


def test_what_is_damaged_in_the_store_is_damaged_at_once(through_proxy, proxy, behind, directory, s3_server, s3_root):
    ref = publish(behind, directory)
    prefix = s3_root.removeprefix(f"s3://{BUCKET}/")
    name = f"{prefix}/{ref.path}/data/report.txt"
    s3_server.client().put_object(Bucket=BUCKET, Key=name, Body=b"a rep0rt")
    s3_server.client().put_object(Bucket=BUCKET, Key=f"{prefix}/records/cut.json", Body=b'{"x": ')
    started = time.monotonic()
    store = through_proxy()
    assert store.find("estimate", KEY, full_hash=True) is None
    with pytest.raises(ArtifactError, match="other content"):
        store.open_directory(ref)
    assert store.get_json("cut") is None
    assert time.monotonic() - started < 40


def test_a_listing_without_a_body_is_not_an_empty_store(through_proxy, proxy, behind, directory):
    ref = publish(behind, directory)
    proxy.script("GET", *["empty"] * 3)
    assert through_proxy().find("estimate", KEY) == ref


def told_of(root, caplog):
    """What is logged of a store: threads that other tests left may still wait for theirs."""
    records = [record for record in caplog.records if record.name == "mralign_core.storage"]
    return [message for record in records if root in (message := record.getMessage())]


def wait_until_told(root, caplog):
    """Until somebody waits, however long a busy machine takes to begin with it."""
    deadline = time.monotonic() + 50
    while not any("does not answer" in message for message in told_of(root, caplog)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_waiting_is_told_in_few_lines(through_proxy, proxy, behind, s3_root, caplog):
    store = through_proxy()
    behind.put_json("a/b", {"x": 1})
    store.get_json("a/b")  # the client is made, which takes a busy machine seconds of the outage
    proxy.outage(60.0)
    time.sleep(0.2)  # until then, a connection that is open may still be served
    threads = [threading.Thread(target=store.get_json, args=["a/b"]) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until_told(s3_root, caplog)
    proxy.over()
    for thread in threads:
        thread.join()
    told = told_of(s3_root, caplog)
    assert len(told) == 2, told
    assert "does not answer" in told[0] and "of at most 60 s (storage.patience_s)" in told[0]
    assert "answers again after" in told[1]


def test_a_missing_file_is_an_answer_too(through_proxy, proxy, s3_root, caplog, monkeypatch):
    monkeypatch.setattr(patience, "TELL_AFTER_S", 0.2)
    store = through_proxy()
    store.get_json("none")  # the client is made
    caplog.clear()
    proxy.outage(60.0)
    time.sleep(0.2)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(store.get_json, "none")
        wait_until_told(s3_root, caplog)
        proxy.over()
        assert asked.result() is None
    assert "answers again after" in told_of(s3_root, caplog)[-1]


def test_hiccups_are_not_told(through_proxy, proxy, s3_root, caplog):
    proxy.script("*", *["500", ""] * 8)
    for number in range(8):
        through_proxy().put_json(f"a/{number}", {})
    assert not told_of(s3_root, caplog)


WAITING = """
import sys, logging
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
store = ArtifactStore(StorageConfig(root="s3://bucket/p", endpoint_url=sys.argv[1], patience_s=300))
print("waiting", flush=True)
{}
"""
IN_MAIN = 'store.get_json("a")'
IN_THREAD = """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
pool.submit(store.get_json, "a")
import signal; signal.pause()
"""


@pytest.mark.parametrize("where", [IN_MAIN, IN_THREAD], ids=["main thread", "thread of a pool"])
@pytest.mark.parametrize("how", ["refuses", "never answers"])
def test_interrupted_while_waiting_it_ends(where, how):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if how == "never answers" else free_port()
        command = [sys.executable, "-c", WAITING.format(where), f"http://127.0.0.1:{port}"]
        credentials = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **credentials}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout and process.stdout.readline() == b"waiting\n"
        time.sleep(1.5)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert time.monotonic() - started < 20


def test_waits_of_all_threads_end_with_the_interpreter(monkeypatch, s3_root):
    monkeypatch.setattr(patience, "_ending", threading.Event())
    section = StorageConfig(root=s3_root, endpoint_url=f"http://127.0.0.1:{free_port()}")
    store = ArtifactStore(section)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(store.get_json, "a") for _ in range(3)]
        time.sleep(1.5)
        assert not any(one.done() for one in waiting)
        patience._ending.set()
        started = time.monotonic()
        for one in waiting:
            with pytest.raises(StoreUnavailableError):
                one.result(timeout=10)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT])
def test_a_network_folder_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch, number):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    store.put_json("a", {"x": 1})
    failures = [OSError(number, os.strerror(number)) for _ in range(3)]
    stream = StoreFiles._read_through

    def fail_first(*args):
        if failures:
            raise failures.pop()
        return stream(*args)

    monkeypatch.setattr(StoreFiles, "_read_through", fail_first)
    assert store.get_json("a") == {"x": 1}


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch, directory):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store"), patience_s=0.5))
    publish(store, directory)
    scandir = os.scandir

    def stale(path):
        if "artifacts" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return scandir(path)

    monkeypatch.setattr("os.scandir", stale)
    with pytest.raises(StoreUnavailableError, match="Stale file handle"):
        store.keys("estimate")
    with pytest.raises(StoreUnavailableError):
        store.find("estimate", KEY)


def test_a_table_that_cannot_be_read_now_is_not_a_damaged_one(tmp_path, monkeypatch):
    def away(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", away)
    with pytest.raises(StoreUnavailableError, match="Input/output error"):
        read_table(tmp_path / "x.parquet")


def test_a_full_disk_is_said_at_once(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mralign_core.storage.filesystem._flush", full)
    started = time.monotonic()
    with pytest.raises(StorageError, match="Free some space there") as caught:
        ArtifactStore(StorageConfig(root=str(tmp_path / "store"))).put_json("a", {})
    assert not isinstance(caught.value, StoreUnavailableError)
    assert time.monotonic() - started < 10


def failure_of(section):
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        ArtifactStore(section).check_writable()
    return str(caught.value), time.monotonic() - started


def test_unwritable_folder_is_named_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    message, _ = failure_of(StorageConfig(root=str(tmp_path / "file" / "store")))
    assert str(tmp_path / "file" / "store") in message
    assert "Not a directory" in message
    assert "folder you can write to" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_folder_is_named_with_a_remedy(tmp_path):
    (tmp_path / "store").mkdir(mode=0o500)
    message, _ = failure_of(StorageConfig(root=str(tmp_path / "store")))
    assert "Permission denied" in message


def test_missing_bucket_is_named_and_not_created(s3_server, s3_root):
    message, seconds = failure_of(StorageConfig(root="s3://no-such-bucket/x", endpoint_url=s3_server.endpoint_url))
    assert "Create the bucket 'no-such-bucket'" in message
    assert s3_server.endpoint_url in message
    assert seconds < 20
    buckets = [bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]]
    assert BUCKET in buckets
    assert "no-such-bucket" not in buckets


def test_wrong_credentials_are_named(s3_server, s3_root, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message, seconds = failure_of(StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url))
    assert "Check the AWS credentials" in message
    assert seconds < 20


def test_missing_credentials_are_named(s3_server, s3_root, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    message, seconds = failure_of(StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url))
    assert "Set AWS_ACCESS_KEY_ID" in message
    assert seconds < 20


def test_endpoint_that_refuses_is_reported_when_patience_is_over(s3_root):
    section = StorageConfig(root=s3_root, endpoint_url=f"http://127.0.0.1:{free_port()}", patience_s=1)
    message, seconds = failure_of(section)
    assert section.endpoint_url in message
    assert "its server is up" in message
    assert 1 <= seconds < 40


def test_endpoint_that_never_answers_is_not_given_the_full_read_timeout(s3_root, monkeypatch):
    monkeypatch.setattr("mralign_core.storage.store.PROBE_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        section = StorageConfig(root=s3_root, endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}", patience_s=0)
        message, seconds = failure_of(section)
    assert "imeout" in message
    assert seconds < 40 < section.read_timeout_s
