from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kept_replies import MemoryReplyStore, replies_in

RECORD = {"reply": "naïve \ud83d \x00", "cost_usd": 0.25, "response": {"choices": [None]}}


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return MemoryReplyStore() if request.param == "memory" else replies_in(tmp_path / "new")


def test_a_record_comes_back_as_it_was_put(store):
    assert store.get("ab12") is None
    store.put("ab12", RECORD)
    assert store.get("ab12") == RECORD
    assert store.get("ab13") is None


def test_folder_survives_the_process_and_ignores_half_written_files(tmp_path):
    replies_in(tmp_path).put("ab12", RECORD)
    (tmp_path / "records" / "replies" / "ab" / "tmp123.part").write_text('{"reply": "ha')
    assert replies_in(tmp_path).get("ab12") == RECORD


def test_many_threads_may_put_the_same_record(store):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.put("ab12", RECORD), range(50)))
    assert store.get("ab12") == RECORD
