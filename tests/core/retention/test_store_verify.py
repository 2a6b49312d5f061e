"""Reading everything: what is damaged is named, with what to do about it."""

import pytest

from mralign_core.errors import StorageError
from mralign_core.retention.verify import verify_store
from mralign_core.storage.filesystem import StoreFiles


@pytest.fixture
def filled(shelf):
    shelf.put("adapter/a", [shelf.put("model/m")])
    shelf.put("scores/begun", manifest=False)
    shelf.note_run("r", {})
    shelf.write("records/replies/ab/abc.json", b"{}")
    shelf.write("aliases/champion/00000000.json", b"{}")
    return shelf


def test_a_whole_store_is_read_and_found_whole(filled):
    reported = []
    found = verify_store(filled.store, lambda *done: reported.append(done))
    assert (found.num_artifacts, found.num_records, found.num_unfinished, found.damaged) == (2, 4, 1, [])
    assert reported[-1] == (found.num_bytes, found.num_bytes)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def damage_data(shelf):
    path = next(name for name in shelf.files if name.startswith("artifacts/adapter") and "data" in name)
    data = bytearray(shelf.store.files.read(path))
    data[3] ^= 1  # of the same size, so that only its digest tells
    return path, bytes(data)


def damage_manifest(shelf):
    return next(name for name in shelf.files if "adapter/a" in name and name.endswith("manifest.json")), b"{}"


@pytest.mark.parametrize(
    ("of", "problem", "remedy"),
    [
        (damage_data, "part.json has other content than was written", "run again what makes adapter/a"),
        (
            lambda shelf: (next(n for n in shelf.files if "adapter/a" in n and "manif" in n), b"{}"),
            "is damaged",
            "remove",
        ),
        (lambda shelf: ("records/replies/ab/abc.json", b'{"text'), "abc.json: it is no JSON", "paid for, again"),
        (lambda shelf: ("records/runs/nightly.json", b"[]"), "no JSON object", "run again"),
        (lambda shelf: ("aliases/champion/00000000.json", b"\xff\xfe"), "no JSON", "put back"),
    ],
)
def test_what_is_damaged_is_named_with_its_remedy(filled, of, problem, remedy):
    path, data = of(filled)
    filled.write(path, data)
    (damage,) = verify_store(filled.store).damaged
    assert problem in damage.problem and remedy in damage.remedy
    assert path.startswith(damage.path)


def test_a_store_that_is_away_is_not_taken_for_a_damaged_one(filled, monkeypatch):
    def away(*_):
        raise StorageError("away")

    monkeypatch.setattr(StoreFiles, "read_as", away)
    with pytest.raises(StorageError, match="away"):
        verify_store(filled.store)
