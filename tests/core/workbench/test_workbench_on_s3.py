"""The workbench on a run in a bucket, over HTTP: the same answers as from a folder."""

from pathlib import Path

import pytest

from mralign_core.config import StorageConfig
from tests.simulated_run import Size, publish_run


@pytest.fixture
def bucket(s3_root, s3_server, tmp_path, monkeypatch):
    """A simulated run in a bucket, and nothing of it on this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    section = StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url)
    publish_run(section, Size(40))
    return {"store": section.root, "endpoint": section.endpoint_url}


def test_a_run_in_a_bucket_is_asked_like_one_in_a_folder(get, bucket, tmp_path):
    for path, asked in (
        ("traces", {"text": "code000007", "sort": "weight"}),
        ("traces", {"pattern": "<start> → * → … → <stop>", "disputed": "any"}),
        ("answers", {"variant": "mr_align", "against": "kto", "flip": "any"}),
        ("trace", {"id": "trace-000007"}),
    ):
        assert get(path, **asked, **bucket).json() == get(path, **asked).json()
    fetched = [file.stat().st_size for file in Path(tmp_path, ".cache").rglob("candidates.parquet")]
    assert len(fetched) == len(set(fetched)) == 2  # traces and held-out thinkings, by all of these once
