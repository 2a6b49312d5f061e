"""The rows that other trainers' KTO reads, made of ours.

Decisions:

* ``trl`` and ``axolotl`` have prompt and completion as text, just as the model saw and wrote them: a chat template that
  renders messages anew may move or drop the thinking. Neither has the end token, which both trainers add.
* ``llama-factory`` knows messages only, and renders them by a template of its own.
* Only TRL's rows have the segments, since no other trainer has a use for weights.
* A trace without labels is not trained on by us, and not here: of a run that has labels it is left out, and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mralign_core.exporting.trace_rows import EXPORTED_ROWS, TraceRow
from mralign_core.models.families import Family, opened_by_prompt
from mralign_core.models.families.rendering import chat_of

DataFormat = Literal["parquet", "trl", "llama-factory", "axolotl"]
DATASET_INFO = "dataset_info.json"
"""What LLaMA-Factory reads in its ``dataset_dir``."""
TURNS = {"system": "system", "user": "human", "assistant": "gpt"}
"""Role → tag of a turn in ShareGPT's format."""


@dataclass(frozen=True)
class Chat:
    """How a question became a prompt: what ``llama-factory`` needs to say it as messages."""

    family: Family
    instruction: str

    def turns(self, row: TraceRow) -> list[dict[str, str]]:
        """The turns of a trace, in ShareGPT's format; a thinking that the prompt opened begins with its tag."""
        prompt, said = row["prompt"], row["completion"]
        if opened_by_prompt(prompt, self.family):
            said = prompt[prompt.rindex(self.family.think_open.rstrip()) :] + said
        asked = chat_of(row["question"], "on", self.family, self.instruction)
        messages = [*asked, {"role": "assistant", "content": said}]
        return [{"from": TURNS[message["role"]], "value": message["content"]} for message in messages]


@dataclass(frozen=True)
class RowFormat:
    """How rows are written for one reader.

    Args:
        schema: of the rows.
        suffix: of the data files: ``parquet``, or ``jsonl``.
        convert: makes a row of one of :data:`~mralign_core.exporting.trace_rows.EXPORTED_ROWS`.
        trained_only: whether traces without labels are left out.
        needs_chat: whether rows are messages, so that the family has to be known.
        write_beside: writes what else its reader needs, for a folder, a name for the data set, and the folder in it
            that has the data files.
    """

    schema: pa.Schema
    suffix: Literal["parquet", "jsonl"]
    convert: Callable[[TraceRow, Chat | None], Mapping[str, Any]]
    trained_only: bool = True
    needs_chat: bool = False
    write_beside: Callable[[Path, str, str], None] = lambda folder, name, data_folder: None


def _as_it_is(row: TraceRow, _: Chat | None) -> TraceRow:
    return row


def _unpaired(row: TraceRow, _: Chat | None) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt", "completion", "label")}


def _weighted(row: TraceRow, chat: Chat | None) -> dict[str, Any]:
    spans = [{name: segment[name] for name in ("start", "end", "weight")} for segment in row["segments"]]
    return {**_unpaired(row, chat), "segments": spans if row["completion_weights"] else []}


def _sharegpt(row: TraceRow, chat: Chat | None) -> dict[str, Any]:
    assert chat is not None
    return {"conversations": chat.turns(row), "kto_tag": row["label"]}


def dataset_name(config_name: str) -> str:
    """What LLaMA-Factory is to call the data set of a config.

    >>> dataset_name("my-run.2")
    'mralign_my_run_2'
    """
    return "mralign_" + re.sub(r"[^a-z0-9]", "_", config_name.lower())


def _write_dataset_info(folder: Path, name: str, data_folder: str) -> None:
    entry = {
        "file_name": data_folder,  # it reads all files of a folder
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "kto_tag": "kto_tag"},
    }
    text = json.dumps({name: entry}, ensure_ascii=False, indent=2)
    (folder / DATASET_INFO).write_text(text + "\n", encoding="utf-8")


_TEXT = [("prompt", pa.string()), ("completion", pa.string()), ("label", pa.bool_())]
_WEIGHTED_SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("weight", pa.float64())]))
_TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

ROW_FORMATS: dict[DataFormat, RowFormat] = {
    "parquet": RowFormat(EXPORTED_ROWS, "parquet", _as_it_is, trained_only=False),
    "trl": RowFormat(pa.schema([*_TEXT, ("segments", _WEIGHTED_SPANS)]), "parquet", _weighted),
    "llama-factory": RowFormat(
        pa.schema([("conversations", _TURNS), ("kto_tag", pa.bool_())]),
        "jsonl",
        _sharegpt,
        needs_chat=True,
        write_beside=_write_dataset_info,
    ),
    "axolotl": RowFormat(pa.schema(_TEXT), "jsonl", _unpaired),
}
