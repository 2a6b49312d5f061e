import doctest
import gzip
import json

import pytest

from mralign_core.errors import DataError
from mralign_core.retrieval import bm25, corpus
from mralign_core.retrieval.corpus import PIECE_WORDS, WORD, corpus_digest, read_pieces, split_text


def test_doctests():
    for module in (corpus, bm25):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


@pytest.fixture
def folder(tmp_path):
    """Every format that is read, one below another folder, beside what is not read."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("Galen was born in Orsk.\n\nHe works for Bito.")
    (tmp_path / "sub" / "a.md").write_text("# Bito\nA company in Wisk.")
    rows = [{"id": "7", "title": " Wisk ", "text": "A city."}, {"contents": "A river."}, {"_id": 3, "text": "Tea."}]
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (tmp_path / ".hidden.txt").write_text("not read")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF\0")
    return tmp_path


def test_a_folder_is_read_file_by_file_and_a_title_begins_each_piece(folder):
    assert [tuple(piece) for piece in read_pieces(folder)] == [
        ("b.txt", "Galen was born in Orsk. He works for Bito."),
        ("7", "Wisk: A city."),
        ("c.jsonl.gz:2", "A river."),
        ("3", "Tea."),
        ("sub/a.md", "# Bito A company in Wisk."),
    ]


def test_a_digest_is_of_names_and_contents_and_of_no_place(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved")
    for file in corpus.corpus_files(folder):
        (moved / file.relative_to(folder)).parent.mkdir(exist_ok=True)
        (moved / file.relative_to(folder)).write_bytes(file.read_bytes())
    before = corpus_digest(folder)
    assert corpus_digest(moved) == before
    (folder / "notes.pdf").write_bytes(b"another")
    assert corpus_digest(folder) == before
    (moved / "b.txt").write_text("Another text, of another length.")
    assert corpus_digest(moved) != before
    assert corpus_digest(folder / "b.txt") != corpus_digest(moved / "b.txt")


def test_pieces_end_with_sentences_and_none_is_too_long():
    sentence = "word " * 40 + "end."
    assert [len(WORD.findall(piece)) for piece in split_text(" ".join([sentence] * 5))] == [82, 82, 41]
    assert [len(WORD.findall(piece)) for piece in split_text("word " * 250)] == [100, 100, 50]
    assert [len(piece) for piece in split_text("東" * 130 + "。" + "京" * 60)] == [100, 92]
    assert split_text(" \n … \n") == []
    assert len(split_text("word" + " " * 1_000_000 + "\n" * 1_000_000 + "word. " * 300_000)) == 3001  # in linear time
    text = "One, two; three.  Four\tfive!\nSix"
    assert split_text(text) == [" ".join(text.split())]
    assert all(len(WORD.findall(piece)) <= PIECE_WORDS for piece in split_text("a.b c? " * 500))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n  \n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.txt", b"one\ncaf\xe9", r"a.txt is not UTF-8 text \(line 2, byte 0xe9\); save it as UTF-8"),
        ("a.md", b"one\n\0\0two", "line 2 holds a NUL byte"),
        ("a.txt", b"%PDF-1.7", "is a PDF"),
        ("a.jsonl", b'{"text": "a"}\n{"title": "b"}', r"1 problem.*\n  line 2: no document: it has 'title'"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n{"text": 3}', r"2 problem.*\n.*line 2: not an object.*\n.*line 3: no doc"),
        ("a.jsonl", b'{"text": "...", "id": 1}', "line 1: no document"),
        ("a.jsonl.gz", b'{"text": "a"}', "no gzip file"),
        ("a.csv", b"text\na", r"holds no file that ends in \.txt, \.md, \.jsonl"),
    ],
)
def test_a_bad_file_is_one_error_with_its_line_and_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(read_pieces(tmp_path))
    assert str(error.value).startswith("evaluate.retrieval.corpus: ")


def test_what_is_not_there_or_no_text_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not there; name a file or folder of texts"):
        corpus_digest(tmp_path / "none")
    (tmp_path / "a.csv").write_text("text")
    with pytest.raises(DataError, match="of no known format"):
        list(read_pieces(tmp_path / "a.csv"))
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"a link to .*gone, which is not there"):
        corpus_digest(tmp_path)
