"""Question files that arrive in a folder, or in a bucket of a real S3 server, from one week to the next."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.config import PocketConfig, QuestionSetConfig, RunConfig
from mralign_core.errors import DataError, StorageError
from mralign_core.intake import new_questions, resolve
from mralign_core.intake.arrivals import Arrivals
from mralign_core.questions.loading import read_question_sets
from mralign_core.storage import ArtifactStore, key_of
from mralign_core.storage.filesystem import StoreFiles
from tasks.prepare import load_questions
from tests.faulty_s3 import FaultyS3
from tests.seaweedfs import BUCKET, S3Server


def lines(*numbers, **fields):
    rows = [{"question": f"Who is number {n}?", "answer": f"name {n}", **fields} for n in numbers]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def incoming(tmp_path, monkeypatch):
    """A folder that files arrive in, beside this process."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def config_of(tmp_path, *, train="incoming/*.jsonl", root="", **storage):
    return RunConfig.model_validate(
        {
            "name": "weekly",
            "storage": {"root": root or str(tmp_path / "store"), **storage},
            "model": {"source": "smollm2"},
            "questions": {"train": train},
            "annotate": {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"},
        }
    )


@pytest.fixture
def week(tmp_path):
    """Resolves a config in a week of its number."""

    def resolved(config, number, cache="cache"):
        store = ArtifactStore(config.storage, cache_folder=tmp_path / "store-cache")
        return resolve(config, store, run=f"week-{number}", cache_folder=tmp_path / cache)

    return resolved


def questions_of(found):
    return read_question_sets(found.config.questions, PocketConfig()).of("train")


def test_what_arrives_before_the_old_files_changes_no_id_of_theirs(incoming, tmp_path, week):
    (incoming / "b.jsonl").write_text(lines(1, 2, 3))
    first = questions_of(week(config_of(tmp_path), 1))
    (incoming / "a.jsonl").write_text(lines(4, 5))
    second = questions_of(week(config_of(tmp_path), 2))
    assert second["question_id"].tolist()[2:] == first["question_id"].tolist()
    assert first["source"].unique().tolist() == ["incoming"]
    news = new_questions(first, second)
    assert news.sets.keys() == {"train incoming"}
    assert [len(part) for part in news.sets["train incoming"][:3]] == [2, 0, 0]
    assert str(news) == "new since no earlier run: train incoming: 2 added (3 as before)"
    # Files of a plain folder are numbered through, as ever: the reason for ids of their own.
    plain = config_of(tmp_path, train={"path": "incoming"})
    assert questions_of(week(plain, 2))["question_id"].tolist() == [f"incoming-train-{n}" for n in range(1, 6)]


@settings(max_examples=25)
@given(
    numbers=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    names=st.lists(st.sampled_from("abcdef"), min_size=8, max_size=8),
)
def test_ids_depend_on_no_file_and_no_order(numbers, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("incoming")
    for number, name in zip(numbers, names, strict=False):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write(lines(number))
    config = config_of(folder, train=str(folder / "*.jsonl"))
    found = resolve(config, ArtifactStore(config.storage), cache_folder=folder / "cache")
    ids = dict(zip(*(questions_of(found)[column] for column in ("question", "question_id")), strict=True))
    assert len(ids) == len(set(ids.values())) == len(set(numbers))
    text = f"Who is number {numbers[0]}?"
    assert ids[text] == f"q{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def test_a_run_reads_what_was_there_when_it_began(incoming, tmp_path, week):
    (incoming / "a.jsonl").write_text(lines(1))
    first = week(config_of(tmp_path), 1)
    (incoming / "b.jsonl").write_text(lines(2))
    (incoming / "a.jsonl").write_text("broken")
    assert len(questions_of(first)) == 1
    assert week(first.config, 1).config == first.config
    assert week(config_of(tmp_path), 1).config == first.config
    with pytest.raises(DataError, match=r"^questions\.train: incoming/\*\.jsonl has 1 problem.*\n  a\.jsonl, line 1"):
        week(config_of(tmp_path), 2)


def test_the_key_follows_contents_and_not_names_of_files(incoming, tmp_path, week):
    def key(number):
        return load_questions.work(week(config_of(tmp_path), number).config).key

    (incoming / "a.jsonl").write_text(lines(1, 2))
    first = key(1)
    (incoming / "a.jsonl").rename(incoming / "renamed.jsonl")
    assert key(2) == first
    (incoming / "z.jsonl").write_text(lines(2))  # delivered again
    assert key(3) == first
    (incoming / "z.jsonl").write_text(lines(3))
    assert key(4) != first


def test_rows_that_arrive_again_are_taken_once_and_counted(incoming, tmp_path, week, caplog):
    (incoming / "1.jsonl").write_text(lines(1, 2))
    (incoming / "2.jsonl").write_text(lines(1, 2, 3))
    with caplog.at_level(logging.INFO, "mralign_core.intake"):
        found = week(config_of(tmp_path), 1)
    assert len(questions_of(found)) == 3
    assert "2 row(s) stand in it more than once, and are taken once" in caplog.text
    assert found.resolution.references[0].note.startswith("2 row(s)")


def test_a_correction_is_a_change_and_another_answer_beside_it_another_question(incoming, tmp_path, week):
    (incoming / "1.jsonl").write_text(lines(1, 2))
    first = questions_of(week(config_of(tmp_path), 1))
    (incoming / "1.jsonl").write_text(lines(1, 2).replace("name 2", "name two"))
    news = new_questions(first, questions_of(week(config_of(tmp_path), 2)))
    assert [len(part) for part in news.sets["train incoming"][:3]] == [0, 1, 0]
    (incoming / "2.jsonl").write_text(lines(2))
    ids = questions_of(week(config_of(tmp_path), 3))["question_id"].tolist()
    assert ids[2] == f"{ids[1]}-2" and len(set(ids)) == 3


def test_ids_of_ones_own_are_kept_and_one_for_two_questions_is_named_with_its_files(incoming, tmp_path, week):
    own = {"path": "incoming/*.jsonl", "id_column": "id", "answer_column": "gold", "stratum_column": "topic"}
    row = {"id": 7, "question": "Who?", "gold": ["a", "b"], "topic": "people", "other": "dropped"}
    (incoming / "1.jsonl").write_text(json.dumps(row))
    found = questions_of(week(config_of(tmp_path, train=own), 1)).iloc[0]
    assert (found["question_id"], list(found["answers"]), found["stratum"]) == ("7", ["a", "b"], "people")
    (incoming / "2.jsonl").write_text(json.dumps(row | {"question": "Who else?"}))
    with pytest.raises(DataError, match=r"2\.jsonl, line 1: field 'id' repeats id '7' of 1\.jsonl, line 1"):
        week(config_of(tmp_path, train=own), 2)


def test_all_formats_arrive_and_what_is_no_question_file_is_passed_over(incoming, tmp_path, week, caplog):
    (incoming / "2026").mkdir()
    (incoming / "2026" / "a.csv").write_text("question,answer\nWho is a?,\"['x', 'y']\"\n")
    (incoming / "2026" / "b.jsonl").write_text(lines(1))
    (incoming / "2026" / "b.jsonl.part").write_text("half")
    (incoming / "2026" / "about.json").write_text('{"what": "a description"}')
    with caplog.at_level(logging.INFO, "mralign_core.intake"):
        found = questions_of(week(config_of(tmp_path, train="incoming/**/*"), 1))
    assert found["answers"].map(list).tolist() == [["x", "y"], ["name 1"]]
    assert "passed over, as no question files: 2026/about.json, 2026/b.jsonl.part" in caplog.text


@pytest.mark.parametrize("pattern", ["incoming/*.csv", "elsewhere/*.jsonl"])
def test_a_pattern_that_nothing_fits_is_an_error(incoming, tmp_path, week, pattern):
    (incoming / "a.jsonl").write_text(lines(1))
    with pytest.raises(DataError, match=r"questions\.train: no question file .* fits .*correct the pattern, or put"):
        week(config_of(tmp_path, train=pattern), 1)


def test_a_damaged_copy_is_made_anew(incoming, tmp_path, week):
    (incoming / "a.jsonl").write_text(lines(1))
    first = week(config_of(tmp_path), 1)
    Path(first.config.questions.train[0].path).write_text(lines(9))
    assert questions_of(week(config_of(tmp_path), 1))["answers"].map(list).tolist() == [["name 1"]]


class Bucket(NamedTuple):
    """A folder of its own in a bucket of a real server."""

    server: S3Server
    prefix: str

    @property
    def endpoint_url(self):
        return self.server.endpoint_url

    @property
    def url(self):
        return f"s3://{BUCKET}/{self.prefix}/incoming"

    def put(self, name, text):
        self.server.client().put_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=text.encode())


@pytest.fixture
def bucket(s3_server, s3_root):
    return Bucket(s3_server, s3_root.rpartition("/")[2])


@pytest.fixture
def fetched(monkeypatch):
    """The files of a bucket that were read."""
    names, read = [], StoreFiles.read

    def noting(self, path):
        names.append(path.rpartition("/")[2])
        return read(self, path)

    monkeypatch.setattr(StoreFiles, "read", noting)
    return names


def test_files_of_a_bucket_are_copied_once_and_recalled_where_it_is_away(bucket, fetched, tmp_path, week, caplog):
    bucket.put("incoming/week-1.jsonl", lines(1, 2))
    bucket.put("elsewhere/other.jsonl", lines(9))
    bucket.put("incoming/notes.txt", "not a question file")
    with FaultyS3(bucket.endpoint_url) as proxy:
        config = config_of(tmp_path, train=bucket.url, endpoint_url=proxy.url, patience_s=1)
        first = week(config, 1)
        assert len(questions_of(first)) == 2
        assert first.resolution.references[0].files.keys() == {"week-1.jsonl"}
        bucket.put("incoming/week-2.jsonl", lines(3))
        second = week(config, 2)
        assert len(questions_of(second)) == 3 and fetched == ["week-1.jsonl", "week-2.jsonl"]
        proxy.outage(60.0)
        with caplog.at_level(logging.WARNING, "mralign_core.intake"):
            third = week(config, 3)
        assert third.config == second.config and [one.field for one in third.recalled] == ["questions.train"]
        assert "out of reach, and taken as it was recorded: questions.train s3://" in caplog.text
        there = week(config, 4, cache="another-machine")
        assert questions_of(there).equals(questions_of(second))
        assert load_questions.work(there.config).key == load_questions.work(second.config).key
        other = config.model_copy(update={"name": "never-resolved"})
        with pytest.raises(StorageError, match=r"^questions\.train\.path s3://"):
            week(other, 4, cache="another-machine")
        assert week(second.config, 9).config == second.config


def test_a_file_of_a_bucket_that_is_replaced_is_taken_in_anew(bucket, tmp_path, week):
    bucket.put("incoming/a.jsonl", lines(1))
    config = config_of(tmp_path, train=bucket.url, endpoint_url=bucket.endpoint_url)
    assert len(questions_of(week(config, 1))) == 1
    bucket.put("incoming/a.jsonl", lines(2, 3))
    assert len(questions_of(week(config, 2))) == 2


def test_a_known_set_in_a_bucket_is_copied_as_it_is(bucket, tmp_path, week):
    bucket.put("incoming/sciq/train.json", json.dumps([{"question": "What?", "correct_answer": "That"}]))
    bucket.put("incoming/topics/a.jsonl", '{"prompt": "Tell of a."}')
    bucket.put("incoming/topics/b.jsonl", '{"prompt": "Tell of b."}')
    train = {"name": "sciq", "path": f"{bucket.url}/sciq/train.json"}
    config = config_of(tmp_path, train=train, endpoint_url=bucket.endpoint_url)
    held_out = QuestionSetConfig(name="longfact", path=f"{bucket.url}/topics")
    config = config.model_copy(update={"questions": config.questions.model_copy(update={"eval": (held_out,)})})
    found = week(config, 1)
    questions = read_question_sets(found.config.questions, PocketConfig()).questions
    assert questions["question_id"].tolist() == ["sciq-train-1", "longfact-eval-1", "longfact-eval-2"]
    assert questions["stratum"].tolist() == ["", "a", "b"]
    by_value = RunConfig.model_validate(found.config.model_dump(mode="json"))
    shutil.rmtree(tmp_path / "cache")
    of_child = week(by_value, 1, cache="another-machine").config
    assert of_child != by_value
    assert read_question_sets(of_child.questions, PocketConfig()).questions.equals(questions)


@pytest.mark.parametrize(
    ("path", "count"), [("/*.jsonl", 1), ("/**/*.jsonl", 2), ("/a.jsonl", 1), ("/deep", 1), ("", 2)]
)
def test_a_pattern_a_prefix_or_one_file_of_a_bucket(bucket, tmp_path, week, path, count):
    bucket.put("incoming/a.jsonl", lines(1))
    bucket.put("incoming/deep/b.jsonl", lines(2))
    config = config_of(tmp_path, train=bucket.url + path, endpoint_url=bucket.endpoint_url)
    assert len(questions_of(week(config, 1))) == count


def test_a_bucket_that_is_not_there_says_which_field_names_it(bucket, tmp_path, week):
    config = config_of(tmp_path, train="s3://no-such-bucket-here/incoming", endpoint_url=bucket.endpoint_url)
    with pytest.raises((DataError, StorageError), match=r"^questions\.train"):
        week(config, 1)
    with pytest.raises(DataError, match=r"name a folder of the bucket, as in s3://bucket/incoming/\*\.jsonl"):
        week(config_of(tmp_path, train=f"s3://{BUCKET}/*.jsonl"), 1)


ODD = ["../../outside/evil.jsonl", "a/../evil.jsonl", "./evil.jsonl", "/evil.jsonl", "a//evil.jsonl", "a\\evil.jsonl"]
"""Names below the prefix that a path of this machine would read as another file than the bucket does."""


@pytest.fixture
def bucket_of(monkeypatch):
    """Has buckets hold files of these names below their prefix: real servers differ in which they let one write."""

    def holding(*names):
        data = b'[{"question": "What?", "correct_answer": "That"}]'
        own = StoreFiles.read, StoreFiles.holds
        monkeypatch.setattr(StoreFiles, "tags", lambda self, folder: dict.fromkeys(names, "tag"))
        monkeypatch.setattr(StoreFiles, "read", lambda self, path: own[0](self, path) if self.is_local else data)
        monkeypatch.setattr(StoreFiles, "holds", lambda self, *args: own[1](self, *args) if self.is_local else True)

    return holding


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("known_set", ["sciq", "support"])
def test_a_key_that_leads_out_of_its_folder_is_named_and_nothing_is_kept(bucket_of, tmp_path, week, known_set, name):
    name = f"{tmp_path}{name}" if name.startswith("/") else name  # what fails here must not write elsewhere
    bucket_of("train.jsonl", name)
    train = {"name": known_set, "path": "s3://bucket/in"}
    with pytest.raises(
        DataError, match=rf"^questions\.train: 1 file.*rename(?s:.*)\n  s3://bucket/in/{re.escape(name)}$"
    ):
        week(config_of(tmp_path, train=train), 1)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".jsonl"]


def test_a_key_that_does_not_fit_the_pattern_may_be_called_anything(bucket_of, tmp_path, week):
    bucket_of("train.jsonl", *ODD[:-1])
    found = week(config_of(tmp_path, train={"name": "sciq", "path": "s3://bucket/in/t*.jsonl"}), 1)
    assert found.resolution.references[0].files.keys() == {"train.jsonl"}


def test_a_local_pattern_that_climbs_back_is_refused(incoming, tmp_path, week):
    (incoming / "deep").mkdir()
    (tmp_path / "outside.jsonl").write_text(lines(1))
    with pytest.raises(DataError, match=r"\n  incoming/deep/\.\./\.\./outside\.jsonl$"):
        week(config_of(tmp_path, train="incoming/*/../../outside.jsonl"), 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"files": {"../../../outside/evil.jsonl": "0" * 64}},
        {"files": {"/evil.jsonl": "0" * 64}},
        {"files": {"a.jsonl": "../../outside"}},
        {"pinned": "../.."},
    ],
)
def test_a_record_that_leads_out_of_the_copies_is_not_recalled(incoming, tmp_path, week, caplog, changed):
    (incoming / "a.jsonl").write_text(lines(1))
    config = config_of(tmp_path)
    first, store = week(config, 1), ArtifactStore(config.storage)
    record = first.resolution.model_dump(mode="json")
    record["references"][0] |= changed
    store.put_json("resolutions/weekly/week-1", record)
    (incoming / "b.jsonl").write_text(lines(2))
    with caplog.at_level(logging.WARNING, "mralign_core.intake"):
        again = week(config, 1)
    assert "not using the record resolutions/weekly/week-1" in caplog.text
    assert len(questions_of(again)) == 2  # looked at anew


def test_a_copy_is_opened_from_the_store_by_a_name_inside_it_alone(incoming, tmp_path):
    config = config_of(tmp_path)
    store = ArtifactStore(config.storage)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(1))
    name = "../a.jsonl"
    key = key_of(contents="0" * 64, name=name)
    store.publish("arrivals", key, folder, parents=[], fingerprint={})
    path = f"/of-another-machine/{'0' * 64}/{name}"
    assert Arrivals(store, config.storage, tmp_path / "cache").restored(path) == Path(path)
