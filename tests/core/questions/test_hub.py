"""The hub's code path, on a folder that is laid out as a data set of the hub; and a hub that is out of reach."""

import socket
import time

import datasets
import pytest
from datasets import Dataset
from huggingface_hub import constants
from question_files import refusal

from mralign_core.errors import DataError
from mralign_core.questions import hub
from mralign_core.questions.hub import load_split, stream_dataset

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/train-*}
---
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with two configurations, as the hub's card names them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "own-set"
    for file, count in {"main/train": 2500, "main/test": 2, "other/train": 1}.items():
        path = root / f"{file}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{file} {n}?", "answer": [str(n)]} for n in range(count)]
        Dataset.from_list(rows).to_parquet(path)
    (root / "README.md").write_text(CARD)
    return str(root)


def test_a_split_of_a_configuration_is_streamed_in_order(repository):
    lines = list(stream_dataset(load_split(repository, "main", "train", "", "questions.train")))
    assert [line.number for line in lines] == list(range(1, 2501))
    assert lines[2000].values == {"question": "main/train 2000?", "answer": ["2000"]}
    assert lines[2000].place == "row 2001"
    assert len(load_split(repository, "other", "train", "", "questions.train")) == 1


@pytest.mark.parametrize(("subset", "split", "says"), [("main", "dev", "dev"), ("third", "train", "third")])
def test_a_split_or_configuration_that_is_not_there(repository, subset, split, says):
    with pytest.raises(DataError, match=rf"questions\.eval: split '{split}' of .*{says}.*Set split, or subset"):
        load_split(repository, subset, split, "", "questions.eval")


@pytest.fixture
def hub_at(monkeypatch):
    """Says where the hub is, as HF_ENDPOINT does at import."""
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.mark.parametrize("section", [{"name": "nq_open"}, {"path": "own/set", "split": "dev"}])
def test_a_hub_that_is_out_of_reach_is_told_at_once_with_what_to_do(hub_at, section):
    hub_at("http://127.0.0.1:9")
    started = time.monotonic()
    message = refusal(**section)
    assert time.monotonic() - started < 15, "the hub's own retries take 23 s"
    assert "the hub can't be reached (ConnectError" in message and "Name a file or folder in path" in message


def test_a_hub_that_never_answers_is_given_up(hub_at, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the hub can't be reached (ReadTimeout" in refusal(name="sciq")


def test_offline_a_set_that_is_not_in_the_cache_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message = refusal(name="sciq")
    assert "split 'test' of 'allenai/sciq' can't be loaded (ConnectionError" in message
    assert "name a file in path" in message
