"""The same store tests run on a folder and on a real S3 server; ``raw`` goes behind the store's back."""

from pathlib import Path

import pytest

from mralign_core.storage import ArtifactStore


class FolderFiles:
    """Direct access to a local store's files."""

    def __init__(self, root):
        self.root = Path(root)

    def read(self, path):
        return (self.root / path).read_bytes()

    def write(self, path, data):
        (self.root / path).write_bytes(data)

    def remove(self, path):
        (self.root / path).unlink()


class BucketFiles:
    """Direct access to an S3 store's objects."""

    def __init__(self, root, client):
        self.bucket, _, self.prefix = root.removeprefix("s3://").partition("/")
        self.client = client

    def read(self, path):
        return self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}")["Body"].read()

    def write(self, path, data):
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=data)

    def remove(self, path):
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}")


@pytest.fixture
def raw(request, section):
    """The files behind the store of ``section``."""
    if section.endpoint_url:
        return BucketFiles(section.root, request.getfixturevalue("s3_server").client())
    return FolderFiles(section.root)


@pytest.fixture
def open_store(section, tmp_path):
    """Makes stores on ``section``, as separate processes would."""
    return lambda: ArtifactStore(section, cache_folder=tmp_path / "cache")


@pytest.fixture
def store(open_store):
    """A store on ``section``."""
    return open_store()


@pytest.fixture
def directory(tmp_path):
    """A folder with two files, one of them in a sub-folder."""
    folder = tmp_path / "made"
    (folder / "adapter").mkdir(parents=True)
    (folder / "report.txt").write_text("a report")
    (folder / "adapter" / "weights.safetensors").write_bytes(bytes(range(256)) * 64)
    return folder
