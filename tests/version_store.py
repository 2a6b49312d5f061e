"""Versions in a store of a test's own, made of small files: nothing is trained."""

import json
from typing import Any

from mralign_core.storage import ArtifactStore
from mralign_core.versions.record import CARD_FILE, RECORD_FILE, TRAINED_ON_FILE, QuestionDigest, VersionRecord
from mralign_core.versions.version import read_version

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"source": "pocket", "dtype": "float32"},
    "train": {"beta": 0.1},
    "evaluate": {"num_resamples": 100, "confidence": 0.95},
}
KEYS = {name: name[0] * 64 for name in "abcdef"}
"""Letter → a key of it alone."""


def publish(store, tmp_path, kind, key, files, *parents):
    """An artifact with these files: name → text, or what writes into the folder."""
    folder = tmp_path / "made" / kind / key
    folder.mkdir(parents=True)
    if callable(files):
        files(folder)
    else:
        for name, text in files.items():
            (folder / name).write_text(text)
    return store.publish(kind, key, folder, parents=parents, fingerprint={})


def publish_version(store: ArtifactStore, tmp_path, letter="a", variant="mr_align", parents=(), **record):
    """A version whose key is a letter alone, with an adapter and a model of its own where none are given."""
    key = KEYS[letter]
    given = {ref.stage for ref in parents}
    adapter = () if "adapter" in given else (publish(store, tmp_path, "adapter", key, {"weights": f"of {letter}"}),)
    model = () if "model" in given else (publish(store, tmp_path, "model", key, {"model": f"of {letter}"}),)
    nothing = QuestionDigest.of([])
    fields: dict[str, Any] = {
        "variant": variant,
        "base_model": "pocket",
        "config": CONFIG,
        "made_from": {},
        "scores": [],
        "differences": [],
        "trained_on": nothing,
        "held_out": nothing,
        "left_out": {},
        "cost_usd": 0.0,
    }
    trained_on = record.pop("trained", [])
    files = {
        RECORD_FILE: VersionRecord.model_validate(fields | record).model_dump_json(),
        TRAINED_ON_FILE: json.dumps(trained_on),
        CARD_FILE: "# A card\n",
    }
    publish(store, tmp_path, "version", key, files, *adapter, *model, *parents)
    version = read_version(store, key)
    assert version
    return version
