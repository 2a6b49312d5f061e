"""What sources came to is kept between processes, and is never wrong for it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mralign_core.storage import digests
from mralign_core.storage.source_cache import Known, SourceCache, file_of_sources

MODULE = "mralign_core.method.transitions"
ASK = f"""
import sys
from mralign_core.storage import digests
from mralign_core.storage.source_cache import SourceCache
from pathlib import Path
digests._CACHE = SourceCache(Path(sys.argv[1]))
parse, parsed = digests._parse, []
digests._parse = lambda source: parsed.append(source) or parse(source)
print(digests.source_digest({MODULE!r}), len(parsed))
"""


def ask(path):
    told = subprocess.check_output([sys.executable, "-c", ASK, str(path)], text=True)
    digest, num_parsed = told.split()
    return digest, int(num_parsed)


def test_another_process_reads_no_source_again_and_comes_to_the_same(tmp_path):
    first, second = (ask(tmp_path / "__pycache__" / "sources.json") for _ in range(2))
    assert first == (digests.source_digest(MODULE), len(digests.module_closure(MODULE)))
    assert second == (first[0], 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sources.json"


def test_what_is_kept_is_there_for_the_next(path):
    cache = SourceCache(path)
    cache.put("a", Known("0", "1", ["b"]))
    assert SourceCache(path).get("a") is None
    cache.keep()
    assert SourceCache(path).get("a") == Known("0", "1", ["b"])
    assert [file.name for file in path.parent.iterdir()] == ["sources.json"]


DAMAGED = ["", "{", "[1]", "\x00", '{"a": ', '{"a": "ab"}', '{"a": ["0", "1", [2]]}', '{"a": ["1", ["b"]]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_none(path, content):
    path.write_text(content)
    cache = SourceCache(path)
    assert cache.get("a") is None
    cache.put("a", Known("0", "1", []))
    cache.keep()
    assert SourceCache(path).get("a") == Known("0", "1", [])


def test_where_nothing_can_be_written_this_process_knows_it_still(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = SourceCache(tmp_path / "file" / "sources.json")
    cache.put("a", Known("0", "1", []))
    cache.keep()
    assert cache.get("a") == Known("0", "1", [])


def test_threads_that_keep_at_once_leave_a_whole_file(path):
    def put(number):
        cache = SourceCache(path.with_name(f"{number % 2}.json"))
        cache.put(str(number), Known("0", str(number), []))
        cache.keep()
        return cache.get(str(number))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(put, range(40))) == [Known("0", str(number), []) for number in range(40)]
    assert all(isinstance(SourceCache(path.with_name(f"{n}.json"))._all(), dict) for n in range(2))


def test_what_another_form_kept_is_not_read(tmp_path):
    files = [file_of_sources(tmp_path, form) for form in (1, 2)]
    assert len(set(files)) == 2 and {file.parent for file in files} == {tmp_path / "__pycache__"}


def test_who_changes_how_sources_are_read_raises_the_form():
    """What a former way came to, kept under the same number, would be a wrong cache key for good."""
    assert (digests.FORM, digests.function_digest(digests._read_source.__wrapped__)[:16]) == (2, "c4856a1245e59165")
