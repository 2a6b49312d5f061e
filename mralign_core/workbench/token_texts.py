"""The tokens of one trace: their texts, weights, and log-probabilities before and after training.

Texts come from the tokenizer of the run's model, where its ``tokenizer.json`` is on this machine: in the artifact, in
the folder that it points to, or in the hub's cache. Nothing is fetched but from the store. Package tokenizers reads it
without PyTorch, in a few milliseconds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from mralign_core.errors import ArtifactError
from mralign_core.method.token_weights import token_weights
from mralign_core.models.locate import POINTER
from mralign_core.storage.store import PATH_PART
from mralign_core.workbench.analyses import LABELS_OF
from mralign_core.workbench.database import Database, TableRow
from mralign_core.workbench.tables import RunTables

TOKENIZER_FILE = "tokenizer.json"
MOST_WAITING = 32
"""Tokens in a row without a text, more than any character has: each that waits is decoded again with the next."""
TOKENS = """
SELECT completion_ids, end_token_id, segments FROM read_parquet($file) WHERE trace_id = $id"""


class NoTokenizerError(ArtifactError):
    """The texts of tokens are not known on this machine."""


def read_tokens(database: Database, tables: RunTables, trace_id: str) -> TableRow:
    """All tokens of a trace's completion, with the end token where log-probabilities have one.

    Returns:
        ``ids``; ``texts``, or None and ``problem``; ``weights``, None without weights; ``before``, and ``after`` by
        variant; ``segments``, the token span of each.

    Raises:
        ArtifactError: the run has no such trace.
    """
    kind, row = _find(database, tables, trace_id)
    before = _logps(database, tables, "reference-logps", trace_id) if tables.has("reference-logps") else None
    after = {name: _logps(database, tables, f"policy-logps:{name}", trace_id) for name in tables.looked_at}
    ids = list(row["completion_ids"])
    num_tokens = len(before or next(iter(after.values()), None) or ids)
    ids += [row["end_token_id"]] * (num_tokens - len(ids))
    spans = [(each["token_start"], each["token_end"]) for each in row["segments"]]
    found = {
        "ids": ids,
        "weights": _weights(database, tables, trace_id, num_tokens, spans) if kind == "candidates" else None,
        "before": before,
        "after": {name: logps for name, logps in after.items() if logps},
        "segments": spans,
    }
    try:
        return found | {"texts": token_texts(tokenizer_of(tables), ids), "problem": ""}
    except NoTokenizerError as error:
        return found | {"texts": None, "problem": str(error)}


def token_texts(tokenizer: Tokenizer, ids: Sequence[int | None]) -> list[str]:
    """The text that each token adds: of a character in several tokens it is with the last one, "" with the others.

    So is the � of bytes that are no character, and a space behind them may be missing.

    Args:
        tokenizer: of the model.
        ids: of tokens; None of an end token that is not known, whose text is "".
    """
    stream, waiting, texts = DecodeStream(skip_special_tokens=False), [], []
    for token in ids:
        if token is None:
            texts.append("")
            continue
        waiting.append(token)
        try:
            text = stream.step(tokenizer, token) or ""
        except Exception:  # it has no errors of its own: broken bytes unmade the character in front of them
            text = None
        if text is None or (not text and len(waiting) == MOST_WAITING):
            text, stream = tokenizer.decode(waiting, skip_special_tokens=False), DecodeStream(skip_special_tokens=False)
            waiting = []
        elif text:
            waiting = []
        texts.append(text)
    return texts


def tokenizer_of(tables: RunTables) -> Tokenizer:
    """The tokenizer of a run's model.

    Raises:
        NoTokenizerError: it is not on this machine.
    """
    return _load(_tokenizer_file(tables))


@functools.lru_cache(maxsize=2)
def _load(file: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(file)
    except Exception as error:  # it has no errors of its own
        raise NoTokenizerError(f"{file} can't be read by package tokenizers ({error})") from None


def _tokenizer_file(tables: RunTables) -> str:
    if not tables.has("model"):
        raise NoTokenizerError(f"{tables.title} notes no model, whose tokenizer would know the tokens' texts")
    if not tables.has_file("model", POINTER):
        if not tables.has_file("model", TOKENIZER_FILE):
            raise NoTokenizerError(f"the run's model has no {TOKENIZER_FILE}, which has the tokens' texts")
        return tables.file("model", TOKENIZER_FILE)
    pointer = json.loads(Path(tables.file("model", POINTER)).read_text(encoding="utf-8"))
    path, revision = str(pointer["path"]), str(pointer["revision"])
    if Path(path).is_absolute():
        if (file := Path(path, TOKENIZER_FILE)).is_file():
            return str(file)
        raise NoTokenizerError(f"{file}, which has the tokens' texts, is not on this machine")
    if not isinstance(cached := _cached(path, revision), str):
        raise NoTokenizerError(
            f"{TOKENIZER_FILE} of {path}{'@' + revision[:12] if revision else ''}, which has the tokens' texts, is not "
            "in the hub's cache of this machine, and the workbench asks nobody for it: `hf download` it there"
        )
    return cached


def _cached(path: str, revision: str) -> object:
    """The tokenizer of a model in the hub's cache; no text where it is not there."""
    # A revision is a file's name in the cache, and a store may be anybody's.
    if not PATH_PART.fullmatch(revision or "main"):
        return None
    try:
        return try_to_load_from_cache(path, TOKENIZER_FILE, revision=revision or None)
    except ValueError:  # the hub has no model of such a name, as a/b/c
        return None


def _find(database: Database, tables: RunTables, trace_id: str) -> tuple[str, TableRow]:
    for kind in LABELS_OF:
        if tables.has(kind) and (row := database.row(TOKENS, {"file": tables.file(kind), "id": trace_id})):
            return kind, row
    raise ArtifactError(f"{tables.title} has no trace {trace_id!r}")


def _logps(database: Database, tables: RunTables, name: str, trace_id: str) -> list[float] | None:
    row = database.row(
        "SELECT logps FROM read_parquet($file) WHERE trace_id = $id", {"file": tables.file(name), "id": trace_id}
    )
    return row["logps"] if row else None


def _weights(
    database: Database, tables: RunTables, trace_id: str, num_tokens: int, spans: Sequence[Any]
) -> list[float] | None:
    """As training spreads them: each segment's on its tokens, 1 on all others; None where the trace has none."""
    if not tables.has("weights"):
        return None
    sql = "SELECT weight FROM read_parquet($file) WHERE trace_id = $id ORDER BY segment"
    rows = database.rows(sql, {"file": tables.file("weights"), "id": trace_id})
    weights = [row["weight"] for row in rows]
    return [float(each) for each in token_weights(num_tokens, spans, weights)] if len(weights) == len(spans) else None
