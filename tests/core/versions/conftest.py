"""The same tests of versions on a folder and on a real S3 server."""

import pytest

from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
from tests.version_store import publish_version


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
