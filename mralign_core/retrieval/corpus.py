"""A user's text collection, cut into pieces, and the pocket world's.

A collection is a file or a folder (hidden files and other formats in it are left out) of

* ``.txt`` and ``.md``: a file is a document, named by its path in the folder;
* ``.jsonl``: a line is a document, an object with ``text`` (or ``contents``), if it likes an ``id`` (or ``_id``) and a
  ``title``, which every piece of the document begins with;

each also ``.gz``. The split: a document is cut at the ends of sentences and lines into pieces of at most
:data:`PIECE_WORDS` words, as many sentences in each as fit; a longer sentence is cut before the word that is too
many. Pieces do not overlap, and blanks and line ends in them become single blanks.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mralign_core.config import PocketConfig
from mralign_core.errors import DataError
from mralign_core.pocket.grammar import statement
from mralign_core.pocket.world import build_world
from mralign_core.questions.jsonl import Line, refuse, stream_jsonl
from mralign_core.questions.opening import lines_of, why_not_a_file, without_gz
from mralign_core.retrieval import Piece
from mralign_core.storage import file_sha256, key_of

logger = logging.getLogger("mralign_core.retrieval")

CORPUS_FIELD = "evaluate.retrieval.corpus"
POCKET_CORPUS = "pocket"
"""The facts of the pocket world, a sentence each."""
PIECE_WORDS = 100
"""Words of a piece; the passages of Wikipedia that open-domain question answering is used to have as many."""
FORMATS = (".txt", ".md", ".jsonl")
WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W\u2e80-\u9fff\uac00-\ud7af]+")
"""A run of letters and digits; where no blanks part words, in Chinese, Japanese and Korean, each character."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")


def pocket_pieces(section: PocketConfig) -> Iterator[Piece]:
    """The facts of the pocket world.

    >>> next(pocket_pieces(PocketConfig()))[1].split(" is ")[0]
    'The birthplace of Quetel'
    """
    for fact in build_world(section.world_seed, section.overwrite_prob).facts.values():
        yield Piece(f"{fact.subject}.{fact.relation}", "".join(statement(fact)))


def read_pieces(path: str | Path, field: str = CORPUS_FIELD) -> Iterator[Piece]:
    """The pieces of a collection, file by file in the order of their names; ``field`` of the config names it.

    Raises:
        DataError: names the file, the line and the remedy: it can't be read, is no UTF-8 text, or holds a line that is
            no document; or there is no text at all.
    """
    root, is_empty = Path(path), True
    for file in corpus_files(root, field):
        name = file.relative_to(root).as_posix() if file != root else file.name
        for document_id, title, text in _documents(file, name, field):
            for piece in split_text(text):
                yield Piece(document_id, f"{title}: {piece}" if title else piece)
                is_empty = False
    if is_empty:
        raise DataError(f"{field}: {path} holds no text to search in")


def corpus_digest(path: str | Path, field: str = CORPUS_FIELD) -> str:
    """A digest of the names and contents of a collection's files, wherever they are."""
    root = Path(path)
    files = [(file.relative_to(root).as_posix() if file != root else "", file) for file in corpus_files(root, field)]
    return key_of(files=[(name or file.suffix, _sha256(file, field, *_state(file, field))) for name, file in files])


def corpus_files(path: Path, field: str = CORPUS_FIELD) -> list[Path]:
    """The files of a collection, in the order of their names.

    Raises:
        DataError: it is not there, or has none of a format that can be read.
    """
    formats = f"{', '.join(FORMATS)}, each also .gz"
    if what := why_not_a_file(path):
        raise DataError(f"{field}: {path} is {what}")
    if path.is_file():
        if not _can_be_read(path.name):
            raise DataError(f"{field}: {path} is of no known format; give a file that ends in {formats}, or a folder")
        return [path]
    if not path.is_dir():
        raise DataError(f"{field}: {path} is not there; name a file or folder of texts ({formats}), or {POCKET_CORPUS}")
    visible = sorted(_visible(path, field))
    files = [file for file in visible if _can_be_read(file.name)]
    if not files:
        raise DataError(f"{field}: folder {path} holds no file that ends in {formats} (hidden ones don't count)")
    if others := len(visible) - len(files):
        logger.info("%s: %d file(s) of other formats in %s are left out", field, others, path)
    return files


def split_text(text: str) -> list[str]:
    r"""The pieces of a document.

    >>> split_text("Galen was born in Orsk.\nHe works for Bito.")
    ['Galen was born in Orsk. He works for Bito.']
    >>> [len(WORD.findall(piece)) for piece in split_text("One two three four. " * 60)]
    [100, 100, 40]
    """
    pieces: list[str] = []
    room = 0
    for sentence in _sentences(text):
        num_words = len(WORD.findall(sentence))
        if num_words > room:
            pieces.append(sentence)
            room = PIECE_WORDS - num_words
        else:
            pieces[-1] += f" {sentence}"
            room -= num_words
    return pieces


def words_of(text: str) -> list[str]:
    """The words that a search goes by: without case, all of them.

    >>> words_of("Who wrote C++ in 1985?"), words_of("東京 is")
    (['who', 'wrote', 'c', 'in', '1985'], ['東', '京', 'is'])
    """
    return WORD.findall(text.casefold())


def _sentences(text: str) -> Iterator[str]:
    """The sentences with a word in them, none of more than :data:`PIECE_WORDS` words."""
    for part in SENTENCE_END.split(text):
        sentence, start = " ".join(part.split()), 0
        num_words = 0
        for word in WORD.finditer(sentence):
            if num_words == PIECE_WORDS:
                yield sentence[start : word.start()].strip()
                start, num_words = word.start(), 0
            num_words += 1
        if num_words:
            yield sentence[start:].strip()


def _documents(file: Path, name: str, field: str) -> Iterator[tuple[str, str, str]]:
    """Id, title and text of each document of a file."""
    if Path(without_gz(file.name)).suffix.lower() != ".jsonl":
        yield name, "", "".join(line for _, line in lines_of(file, field))
        return
    problems: list[str] = []
    for line in stream_jsonl(file, field, problems):
        text, title = (_first(line.values, names, "") for names in (("text", "contents"), ("title",)))
        if isinstance(text, str) and WORD.search(text) and isinstance(title, str):
            yield _id_of(line, name), " ".join(title.split()), text
        else:
            problems.append(f"{line.place}: no document: it has {', '.join(map(repr, line.values)) or 'no field'}")
    refuse(file, field, problems, 'a document is an object with its text in \'text\', such as {"text": "…"}')


def _id_of(line: Line, name: str) -> str:
    given = _first(line.values, ("id", "_id"), "")
    return str(given) if isinstance(given, str | int) and str(given).strip() else f"{name}:{line.number}"


def _first(values: dict[str, Any], names: Sequence[str], default: Any) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), default)


def _can_be_read(name: str) -> bool:
    return Path(without_gz(name)).suffix.lower() in FORMATS


def _visible(folder: Path, field: str) -> Iterator[Path]:
    """The files below a folder, links to files too; hidden files and folders are left out."""

    def cannot_list(error: OSError) -> None:
        raise DataError(f"{field}: folder {error.filename} can't be listed ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _state(file: Path, field: str) -> tuple[int, int]:
    if what := why_not_a_file(file):
        raise DataError(f"{field}: {file} is {what}")
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=100_000)
def _sha256(file: Path, field: str, _size: int, _changed: int) -> str:
    """The digest of a file that has not changed since: a key is asked for many times in a run."""
    try:
        return file_sha256(file)
    except OSError as error:
        raise DataError(f"{field}: {file} can't be read ({error.strerror})") from None
