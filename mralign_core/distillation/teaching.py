"""Labelled traces to learn from: of a run, of a person, or of a file of others.

A file is JSONL (``.jsonl`` or ``.jsonl.gz``), a trace a line::

    {"segments": [{"text": "Wait, no.", "labels": ["backtracking"]}, …], "question": "…", "id": "…"}

``label`` with one label does as well. A segment with an empty list has none; one without the field is shown, and not
learned from. Traces of one ``question`` (of one ``id`` where there is none) are held out together.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mralign_core.distillation.fitting import LabelledTraces
from mralign_core.errors import DataError
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy
from mralign_core.spreadsheets import item_id


def traces_of_annotations(annotations: pd.DataFrame, candidates: pd.DataFrame) -> LabelledTraces:
    """Traces with the labels that a run gave them; those that it left out are not among them.

    What a distilled annotator decided alone is shown, and not learned from: it would learn from itself.

    Args:
        annotations: ``trace_id, segment, labels, rule``.
        candidates: ``trace_id, question_id, completion, segments``.
    """
    labels = {
        trace_id: [None if row.rule == "distilled" else list(row.labels) for row in rows.itertuples()]
        for trace_id, rows in annotations.sort_values("segment").groupby("trace_id", sort=False)
    }
    kept = [row for row in candidates.itertuples(index=False) if row.trace_id in labels]
    return LabelledTraces(
        [_texts(row) for row in kept], [labels[row.trace_id] for row in kept], [str(row.question_id) for row in kept]
    )


def traces_of_person(by_item: Mapping[str, Sequence[str]], candidates: pd.DataFrame) -> LabelledTraces:
    """Traces of which a person rated a segment; segments that were not rated are shown, and not learned from.

    Args:
        by_item: labels of each item of a sheet.
        candidates: ``trace_id, question_id, completion, segments``.
    """
    texts, labels, questions = [], [], []
    for row in candidates.itertuples(index=False):
        of_trace = _texts(row)
        items = [item_id(str(row.trace_id), number, text) for number, text in enumerate(of_trace)]
        if any(item in by_item for item in items):
            texts.append(of_trace)
            labels.append([list(by_item[item]) if item in by_item else None for item in items])
            questions.append(str(row.question_id))
    return LabelledTraces(texts, labels, questions)


def traces_of_file(path: Path, taxonomy: Taxonomy) -> LabelledTraces:
    """Traces of a file of others.

    Raises:
        DataError: a line is no labelled trace, or has a label that is not in the label set; it names the line.
    """
    texts, labels, questions = [], [], []
    for number, line in _lines(path):
        where = f"distil.labels {path.name}, line {number}"
        trace = _read(line, where)
        segments = [
            _segment(each, taxonomy, f"{where}, segment {place}") for place, each in enumerate(trace["segments"])
        ]
        segments = [(text, given) for text, given in segments if text.strip()]
        if segments:
            texts.append([text for text, _ in segments])
            labels.append([given for _, given in segments])
            questions.append(str(trace.get("question") or trace.get("id") or number))
    return LabelledTraces(texts, labels, questions)


def _texts(row: Any) -> list[str]:
    return [row.completion[span["start"] : span["end"]] for span in row.segments]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(
            f"distil.labels {path}: it can't be read ({error}); give JSONL in UTF-8, plain or gzipped"
        ) from None


def _read(line: str, where: str) -> dict[str, Any]:
    try:
        trace = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}): give an object a line") from None
    if not isinstance(trace, dict) or not isinstance(trace.get("segments"), list):
        raise DataError(f'{where} has no list "segments": give {{"segments": [{{"text": …, "labels": […]}}, …]}}')
    return trace


def _segment(segment: Any, taxonomy: Taxonomy, where: str) -> tuple[str, list[str] | None]:
    text = segment.get("text") if isinstance(segment, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where} has no "text": give {{"text": …, "labels": […]}}')
    given = segment.get("labels")
    given = segment.get("label") if given is None else given
    if given is None:
        return text, None
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or len(given) > MAX_LABELS:
        raise DataError(f"{where} has labels {given!r:.80}: give a list of at most {MAX_LABELS}")
    for label in given:
        if label not in taxonomy.labels:
            known = ", ".join(taxonomy.labels)
            raise DataError(
                f"{where} has label {label!r:.60}, which is not in the label set ({known}): map or remove it"
            )
    return text, list(dict.fromkeys(given))
