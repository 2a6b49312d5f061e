"""What goes wrong with stores is said within seconds, and retried only when it can pass."""

import http.client
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError
from mralign_core.storage import ArtifactStore, key_of
from tests.seaweedfs import BUCKET, free_ports


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to the S3 server, except that each PUT first takes the next fault of ``faults``."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.target = target.removeprefix("http://")
        self.faults, self.num_puts = [], 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = ""
        if self.command == "PUT":
            self.server.num_puts += 1
            fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            self.answer(int(fault), b"<Error><Code>Fault</Code><Message>made up</Message></Error>")
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=10)
        upstream.request(self.command, self.path, body, dict(self.headers))
        reply = upstream.getresponse()
        content = reply.read()
        upstream.close()
        if fault == "lose the reply":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(reply.status, content, reply.getheaders())

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy(s3_server):
    server = FaultyProxy(s3_server.endpoint_url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def through_proxy(proxy, s3_root, tmp_path, monkeypatch):
    monkeypatch.setattr("mralign_core.storage.filesystem.FIRST_WAIT_S", 0.01)

    def open_store(max_attempts):
        section = StorageConfig(root=s3_root, endpoint_url=proxy.url, max_attempts=max_attempts)
        return ArtifactStore(section, cache_folder=tmp_path / "cache")

    return open_store


def publish(store, directory):
    return store.publish("estimate", key_of(n=1), directory, parents=[], fingerprint={})


@pytest.mark.parametrize("fault", ["503", "500", "429"])
def test_what_can_pass_is_tried_again(through_proxy, proxy, directory, fault):
    proxy.faults = [fault, fault]
    ref = publish(through_proxy(max_attempts=4), directory)
    assert proxy.num_puts == 3 + 2
    assert through_proxy(max_attempts=1).find("estimate", ref.key, full_hash=True) == ref


@pytest.mark.parametrize("status", ["403", "400", "404"])
def test_what_cannot_pass_is_tried_once(through_proxy, proxy, directory, status):
    proxy.faults = [status] * 9
    with pytest.raises(StorageError):
        publish(through_proxy(max_attempts=4), directory)
    assert proxy.num_puts == 1


def test_attempts_are_as_many_as_configured(through_proxy, proxy, directory):
    proxy.faults = ["503"] * 9
    with pytest.raises(StorageError, match=r"Tried 3 time\(s\)"):
        publish(through_proxy(max_attempts=3), directory)
    assert proxy.num_puts == 3


def test_write_whose_reply_was_lost_is_believed_after_reading_back(through_proxy, proxy, directory, caplog):
    proxy.faults = ["lose the reply"] * 3
    ref = publish(through_proxy(max_attempts=1), directory)
    assert not proxy.faults
    assert "was written although" in caplog.text
    assert through_proxy(max_attempts=1).find("estimate", ref.key, full_hash=True) == ref


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


@pytest.mark.parametrize("root", ["gs://bucket/prefix", "s3://", "http://server/folder"])
def test_root_that_is_neither_folder_nor_bucket_is_refused(root):
    with pytest.raises(StorageError, match=r"must be a folder or s3://bucket/prefix"):
        ArtifactStore(StorageConfig(root=root))


def test_missing_bucket_is_named_and_not_created(s3_server, s3_root):
    message, seconds = failure_of(StorageConfig(root="s3://no-such-bucket/x", endpoint_url=s3_server.endpoint_url))
    assert "Create the bucket 'no-such-bucket'" in message
    assert s3_server.endpoint_url in message
    assert seconds < 5
    buckets = [bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]]
    assert BUCKET in buckets
    assert "no-such-bucket" not in buckets


def test_wrong_credentials_are_named(s3_server, s3_root, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message, seconds = failure_of(StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url))
    assert "Check the AWS credentials" in message
    assert seconds < 5


def test_missing_credentials_are_named(s3_server, s3_root, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    message, seconds = failure_of(StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url))
    assert "Set AWS_ACCESS_KEY_ID" in message
    assert seconds < 20


def test_endpoint_that_refuses_is_reported_quickly(s3_root):
    section = StorageConfig(root=s3_root, endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    message, seconds = failure_of(section)
    assert section.endpoint_url in message
    assert "its server is up" in message
    assert seconds < 10


def test_endpoint_that_never_answers_is_not_given_the_full_read_timeout(s3_root, monkeypatch):
    monkeypatch.setattr("mralign_core.storage.store.PROBE_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        section = StorageConfig(root=s3_root, endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        message, seconds = failure_of(section)
    assert "imeout" in message
    assert seconds < 10 < section.read_timeout_s
