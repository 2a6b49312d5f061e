"""Reading everything: what is damaged is named, with what to do about it."""

from datetime import UTC, datetime

import pytest

from mralign_core.errors import StorageError
from mralign_core.retention.roots import Pin, pin_artifact
from mralign_core.retention.verify import verify_store
from mralign_core.retraining.history import Retraining, Retrainings
from mralign_core.storage.filesystem import StoreFiles


@pytest.fixture
def filled(shelf):
    shelf.put("adapter/a", [shelf.put("model/m")])
    shelf.put("scores/begun", manifest=False)
    shelf.note_run("r", {})
    shelf.write("records/replies/ab/abc.json", b"{}")
    shelf.alias("champion", 1, "mr_align-" + 64 * "a")
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


def damage_number(shelf):
    return "aliases/champion/00000002.json", shelf.store.files.read("aliases/champion/00000001.json")


def damage_pin(shelf):
    other = shelf.put("scores/begun", manifest=False)
    pin = Pin(artifact=other, at=datetime(2026, 11, 29, tzinfo=UTC))
    return "records/pins/adapter/a/0123456789abcdef.json", pin.model_dump_json().encode()


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
        (lambda shelf: ("aliases/champion/00000001.json", b"\xff\xfe"), "no JSON", "put back"),
        (lambda shelf: ("aliases/champion/00000001.json", b"{}"), "it is no entry of an alias", "put back"),
        (damage_number, "it says that it is entry 1, and its name 2", "put back"),
        (lambda shelf: ("records/pins/adapter/a/0.json", b"{}"), "artifact: Field required", "pin again"),
        (damage_pin, "it pins artifacts/scores/begun", "pin again"),
        (lambda shelf: ("records/runs/nightly/r.json", b'{"artifacts": 1}'), "artifacts: Input", "run again"),
        (lambda shelf: ("records/retrainings/weekly/r.json", b"{}"), "run: Field required", "decided again"),
        (lambda shelf: ("records/resolutions/weekly.json", b"{}"), "config: Field required", "out of reach"),
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


def test_what_people_and_retrainings_wrote_is_whole(filled):
    pin_artifact(filled.store, "adapter/a", "the paper's")
    Retrainings(filled.store, "weekly").add(Retraining(run="r", outcome="held"))
    filled.write("aliases/champion/notes.json", b"{}")  # nobody's
    assert verify_store(filled.store).damaged == []


@pytest.mark.parametrize("of", [lambda name: True, lambda name: name.endswith("manifest.json")])
def test_what_is_removed_while_it_reads_is_not_called_damaged(filled, monkeypatch, of):
    """All of it, or as far as a collection has come: of an artifact the manifest goes first."""
    sizes = StoreFiles.sizes

    def then_removed(self, path):
        found = sizes(self, path)
        if path == "aliases":  # the last that is listed
            for name in filter(of, sizes(self, "artifacts/adapter")):
                self.remove(f"artifacts/adapter/{name}")
            self.remove("records/replies/ab/abc.json")
        return found

    monkeypatch.setattr(StoreFiles, "sizes", then_removed)
    assert verify_store(filled.store).damaged == []
