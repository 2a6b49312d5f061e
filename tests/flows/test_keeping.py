"""Three-way merge of what was deployed last, what is on the server, and what is to be deployed."""

import pytest

from deployments.bootstrap import _keep
from deployments.keeping import ABSENT, Record, kept_line, merge


@pytest.mark.parametrize(
    ("last", "current", "new", "value", "kept"),
    [
        (1, 1, 2, 2, ()),  # a new default arrives
        (1, 5, 1, 5, ("",)),  # the user's stays
        (1, 5, 2, 5, ("",)),  # also against a new default
        (1, 2, 2, 2, ()),  # the user's, which is the default now
        (None, True, None, True, ("",)),
        ({"a": 1, "b": 1}, {"a": 5, "b": 1}, {"a": 2, "b": 2}, {"a": 5, "b": 2}, ("a",)),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, {"a": {"b": [1], "c": 3}}, {"a": {"b": [2], "c": 3}}, ("a.b",)),
        ({"a": 1, "old": 1}, {"a": 1, "old": 1}, {"a": 1}, {"a": 1}, ()),  # a field that is gone
        ({"a": 1}, {"a": 1, "mine": 1}, {"a": 2}, {"a": 2, "mine": 1}, ("mine",)),
        ({"a": 1, "b": 1}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1}, ("b",)),  # the user removed it
        (ABSENT, {"a": 5}, {"a": 1, "new": 2}, {"a": 5, "new": 2}, ("a",)),  # nothing is known of the last time
        ({"a": {"b": 1}}, {"a": "text"}, {"a": {"b": 2}}, {"a": "text"}, ("a",)),
    ],
)
def test_a_change_of_the_users_stays_and_a_new_default_arrives(last, current, new, value, kept):
    assert merge(last, current, new) == (value, kept)


def test_the_line_names_fields_as_the_config_does_and_not_too_many():
    names = tuple(f"config.train.f{n}" for n in range(20))
    line = kept_line("weekly-retrain", "parameters", names)
    assert line.startswith("kept your parameters of weekly-retrain: train.f0, train.f1, ")
    assert line.endswith("train.f11 and 8 more")
    assert kept_line("train", "concurrency_limit", ("",)) == "kept your concurrency limit of train"


class TestRecord:
    def test_it_is_read_again(self, tmp_path):
        Record(tmp_path / "home").note({"id": {"a": 1}})
        assert Record(tmp_path / "home").last == {"id": {"a": 1}}

    def test_what_was_there_before_an_attempt_that_was_cut_off_is_still_the_users(self, tmp_path):
        Record(tmp_path).begin({"id": {"a": "the user's"}})
        again = Record(tmp_path)
        again.begin({"id": {"a": "the new default"}, "other": {}})
        assert again.unfinished == {"id": {"a": "the user's"}, "other": {}}
        again.end()
        assert Record(tmp_path).unfinished == {}


@pytest.mark.parametrize(
    ("last", "pool", "queue", "expected"),
    [
        ("a800", None, None, ("a800", "default")),  # the pool was deleted, to be made of another kind
        ("a800", None, "urgent", ("a800", "default")),  # with its queue, whose name stays
        (None, None, None, ("a800", "default")),  # a former bootstrap took that for the user's
        ("a800", "a800", "urgent", ("a800", "urgent")),
        ("a800", "cpu", "background", ("cpu", "background")),
    ],
)
def test_a_deployment_whose_pool_was_deleted_goes_to_the_new_one(tmp_path, capsys, last, pool, queue, expected):
    record = Record(tmp_path)
    record.note({"id": {"work_pool_name": last, "work_queue_name": last and "default"}})
    current = {"work_pool_name": pool, "work_queue_name": queue}
    wanted = _keep(record, "id", "train", current, {"work_pool_name": "a800", "work_queue_name": "default"})
    assert wanted == {"work_pool_name": expected[0], "work_queue_name": expected[1]}
    assert ("kept your work queue name of train" in capsys.readouterr().out) == (expected[1] != "default")
