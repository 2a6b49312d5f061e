"""YAML of a user's: what is not read, and that it is told in one line, in time and in little memory."""

import os
import time

import pytest

from mralign_core.config import load_config
from mralign_core.errors import ConfigError
from mralign_core.yaml_files import MAX_BYTES, parse_yaml, read_yaml

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice"),
        ("a:\n  b: 1\n  b: 1", "line 3, column 3: key 'b' stands twice"),
        ("[", "here is not YAML: line 1"),
        ("a: [1\nb: 2", "here is not YAML: line 2"),
        ("a: b: c", "here is not YAML: line 1"),
        ("\tx: 1", "here is not YAML: line 1"),
        ("&a [*a]", "here refers to itself (line 1)"),
        ("*b", "undefined alias"),
        (BOMB, "here stands for more than 100,000 values"),
        ("[" * 2000 + "]" * 2000, "here is nested deeper than 64 levels"),
        ("{a: " * 100_000, "here is nested deeper than 64 levels"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 2024-99-99", "month must be in 1..12"),
        ("? [a]\n: b", "unhashable key"),
        ("a: \x00", "unacceptable character"),
    ],
)
def test_what_cant_be_read_is_one_line(text, says):
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "here")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10  # the bomb would take for ever, the nesting the interpreter's stack


def test_aliases_and_merge_keys_of_ordinary_size_are_read():
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", "here")["y"] == {"a": 1, "b": 3}
    assert parse_yaml("", "here") is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "is no file: give a YAML file"),
        (lambda path: os.mkfifo(path), "is no file: give a YAML file"),
        (lambda path: path.write_bytes("name: Zoë".encode("latin-1")), "is not UTF-8 at byte 8: save it as UTF-8"),
        (lambda path: path.write_bytes("name: x".encode("utf-16")), "is not UTF-8 at byte 0"),
        (lambda path: path.write_bytes(b"# " + b"x" * MAX_BYTES), "has more than 1024 kB"),
        (lambda path: path.symlink_to(path), "can't be read"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_file_of_text_is_one_line(tmp_path, make, says):
    path = tmp_path / "run.yaml"
    make(path)
    for read in (lambda: read_yaml(path, "config file"), lambda: load_config(path)):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(f"config file {path} {says}".split(":")[0])
        assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfname: x")
    assert read_yaml(tmp_path / "run.yaml", "file") == {"name": "x"}


@pytest.mark.parametrize("value", ["[", "{a: 1", "&a [*a]", "[" * 5000, "a: b: c"])
def test_a_value_of_the_command_line_that_is_no_yaml_is_named(tmp_path, value):
    (tmp_path / "run.yaml").write_text("questions: {train: q.jsonl}")
    with pytest.raises(ConfigError, match=r"--set name: the value '.*") as caught:
        load_config(tmp_path / "run.yaml", {"name": value})
    assert "\n" not in str(caught.value)
