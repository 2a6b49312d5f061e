"""The same tests of versions on a folder and on a real S3 server."""

import pytest

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
from tests.seaweedfs import s3_root, s3_server  # noqa: F401 (fixtures)
from tests.version_store import publish_version


@pytest.fixture(params=["folder", "s3"])
def section(request, tmp_path):
    """Storage config of an empty store of each kind."""
    if request.param == "folder":
        return StorageConfig(root=str(tmp_path / "store"))
    server = request.getfixturevalue("s3_server")
    return StorageConfig(root=request.getfixturevalue("s3_root"), endpoint_url=server.endpoint_url)


@pytest.fixture
def store(section, tmp_path):
    """A store of each kind."""
    return ArtifactStore(section, cache_folder=tmp_path / "cache")


@pytest.fixture
def folder_store(tmp_path):
    """A store in a folder."""
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def make(tmp_path):
    """Publishes versions: a letter is all of a version's key."""
    return lambda store, letter, **record: publish_version(store, tmp_path, letter, **record)
