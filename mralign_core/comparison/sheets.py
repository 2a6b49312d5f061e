"""Blinded sheets for human raters: a CSV out, a filled CSV in.

A rater sees the question and the thinking, segment by segment, and nothing that could sway the judgement: no
polarity, no gold answer (so less than the machine annotators see), no machine label, and traces in shuffled order
under numbers of their own. Items are recognised by their opaque id alone, so text that a spreadsheet changed does no
harm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.comparison.annotation_sets import SET_COLUMNS
from mralign_core.errors import DataError
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.questions.jsonl import refuse
from mralign_core.spreadsheets import item_id, neutralised, read_csv, refuse_to_overwrite, write_csv

SHEET_COLUMNS = ["item", "trace", "segment", "question", "text", "label_1", "label_2", "comment"]
READ_COLUMNS = ("item", "label_1", "label_2")
NO_LABEL = "no label"
"""What a rater writes where no label fits; a label's name can't hold a space."""
SHEETS_FIELD = "compare.sheets"


class WrittenSheet(NamedTuple):
    """A sheet on disk, the instructions beside it, and what is in it."""

    sheet: Path
    instructions: Path
    num_traces: int
    num_items: int


class RatedSheet(NamedTuple):
    """What a rater said.

    ``rows`` has ``SET_COLUMNS``. Confidences are all 1, as people give none, and each segment is a step, as a sheet has
    no column to merge them. ``num_not_rated`` counts items left empty and segments of the sheet's traces whose row is
    gone. Comments are for those who wrote and filled the sheet, and are not read.
    """

    rows: pd.DataFrame
    num_items: int
    num_not_rated: int


def write_sheet(
    path: Path, candidates: pd.DataFrame, taxonomy: Taxonomy, *, num_traces: int, rng: np.random.Generator
) -> WrittenSheet:
    """Write a blinded CSV of randomly chosen traces, and first the instructions, as Markdown, beside it.

    Args:
        path: the CSV to write; the instructions take its name with ``.md``.
        candidates: rows of ``schemas.candidates``.
        taxonomy: the labels to choose from.
        num_traces: how many traces; all when there are fewer.
        rng: chooses and shuffles the traces.

    Raises:
        DataError: the file is there already (it may hold a rater's work), or there is no candidate.
    """
    instructions = path.with_suffix(".md")
    refuse_to_overwrite("--write-sheet", path, instructions)
    if candidates.empty:
        raise DataError("--write-sheet: there is no candidate trace to rate; run stage generate first")
    order = rng.permutation(len(candidates))[:num_traces]
    traces = enumerate(order, start=1)
    rows = [_neutral(row) for number, place in traces for row in sheet_rows(candidates.iloc[place], number)]
    path.parent.mkdir(parents=True, exist_ok=True)
    instructions.write_text(sheet_instructions(taxonomy, path.name), encoding="utf-8")
    write_csv(path, SHEET_COLUMNS, rows)
    return WrittenSheet(path, instructions, len(order), len(rows))


def read_sheet(path: Path, candidates: pd.DataFrame, taxonomy: Taxonomy) -> RatedSheet:
    """Read a filled sheet, in any of the encodings and separators that spreadsheets write.

    Args:
        path: the CSV.
        candidates: the traces it was written from.
        taxonomy: the labels it was written with.

    Raises:
        DataError: the file is not such a sheet, or rows of it are wrong; every one is named with row, column, value and
            the remedy.
    """
    table = read_csv(path, READ_COLUMNS, SHEETS_FIELD, "mralign compare-annotators")
    items = {item_id(trace_id, number, text): (trace_id, number) for trace_id, number, text in _segments(candidates)}
    names = {label.casefold(): label for label in taxonomy.labels}
    problems: list[str] = []
    first_row: dict[str, int] = {}
    rated: dict[tuple[str, int], list[str]] = {}
    for row, values in table:
        item = values["item"]
        if item not in items:
            problems.append(
                f"row {row}, column item: {item!r} is no item of these {len(candidates)} candidate traces; "
                "restore the id, or name the candidates that the sheet was written from"
            )
            continue
        if item in first_row:
            problems.append(f"row {row}, column item: {item!r} is in row {first_row[item]} too; keep one of them")
            continue
        first_row[item] = row
        labels = _labels(row, values, names, problems)
        if labels is not None:
            rated[items[item]] = labels
    refuse(path, SHEETS_FIELD, problems, "correct these rows; everything else was read")
    in_sheet = {items[item][0] for item in first_row}
    num_items = sum(trace_id in in_sheet for trace_id, _ in items.values())
    return RatedSheet(_set_rows(rated), num_items, num_items - len(rated))


def sheet_instructions(taxonomy: Taxonomy, sheet_name: str) -> str:
    """What a rater needs to know, as Markdown: the task and every label's definition."""
    lines = [
        "# Labelling what each thinking segment does",
        "",
        f"`{sheet_name}` has one row a segment, in the order in which a model thought about a question. Read the trace "
        "from its first segment on, and say for each segment what it *does*, not whether it is right.",
        "",
        "- `label_1`: the label that fits best. `label_2`: a second one, only where a segment clearly does two things.",
        f"- Where no label fits, write `{NO_LABEL}` in `label_1`. A row whose labels are empty counts as not rated.",
        "- `comment` is yours. Leave the other columns as they are; rows may be sorted, and saved as CSV in any way.",
        "- Don't look up the answers, and don't talk about the rows with other raters before all are done.",
        "",
    ]
    for macro in dict.fromkeys(taxonomy.macro_of(label) for label in taxonomy.labels):
        lines += [f"## {macro}", "", "| label | a segment with it |", "|---|---|"]
        lines += [
            f"| `{label}` | {taxonomy.definitions[label]} |"
            for label in taxonomy.labels
            if taxonomy.macro_of(label) == macro
        ]
        lines.append("")
    return "\n".join(lines)


def _segments(candidates: pd.DataFrame) -> Iterator[tuple[str, int, str]]:
    for trace in candidates.itertuples(index=False):
        for number, span in enumerate(trace.segments):
            yield str(trace.trace_id), number, trace.completion[span["start"] : span["end"]]


def sheet_rows(trace: Any, number: int) -> Iterator[dict[str, Any]]:
    """What a rater sees of a trace, a row a segment.

    Args:
        trace: a row of ``schemas.candidates``, by the names of its columns.
        number: what the rater knows the trace by.
    """
    for segment, span in enumerate(trace["segments"]):
        text = trace["completion"][span["start"] : span["end"]]
        yield {
            "item": item_id(str(trace["trace_id"]), segment, text),
            "trace": number,
            "segment": segment + 1,
            "question": trace["question"],
            "text": text,
        }


def _neutral(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "question": neutralised(row["question"]), "text": neutralised(row["text"])}


def _labels(row: int, values: Mapping[str, str], names: Mapping[str, str], problems: list[str]) -> list[str] | None:
    """The labels of a row; None where it was not rated, or something is wrong with it."""
    first, second = (values[column].casefold() for column in ("label_1", "label_2"))
    if not first and not second:
        return None
    if second and first in ("", NO_LABEL):
        remedy = "move it to label_1" if not first else f"clear one of the two: {NO_LABEL!r} excludes any label"
        problems.append(f"row {row}, column label_2: {values['label_2']!r} stands without a label_1; {remedy}")
        return None
    if first == NO_LABEL:
        return []
    if first == second:
        problems.append(f"row {row}, column label_2: {values['label_2']!r} is label_1 again; clear it")
        return None
    given = [column for column in ("label_1", "label_2") if values[column]]
    unknown = [column for column in given if values[column].casefold() not in names]
    for column in unknown:
        close = difflib.get_close_matches(values[column].casefold().replace(" ", "_"), names, n=1, cutoff=0.5)
        remedy = f"did you mean {names[close[0]]!r}?" if close else f"use one of {', '.join(names.values())}"
        problems.append(f"row {row}, column {column}: {values[column]!r} is not a label; {remedy}")
    return None if unknown else [names[values[column].casefold()] for column in given]


def _set_rows(rated: Mapping[tuple[str, int], list[str]]) -> pd.DataFrame:
    rows = [
        {
            "trace_id": trace_id,
            "segment": segment,
            "step": segment,
            "labels": labels,
            "confidences": [1.0] * len(labels),
        }
        for (trace_id, segment), labels in sorted(rated.items())
    ]
    return pd.DataFrame(rows, columns=SET_COLUMNS)
