"""``mralign-export.json``: what an export holds, what it was made from, and the digest of each of its files.

It is written last, and it is what ``--from-traces`` reads first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mralign_core.errors import DataError
from mralign_core.exporting.paths import EXPORT_FILE
from mralign_core.exporting.trainer_formats import DataFormat
from mralign_core.storage.artifact import ArtifactRef, FileEntry, Files
from mralign_core.storage.digests import file_sha256

LAYOUT = 1
RUN_FOLDER = "run"
"""Folder of an export with what lay beside the traces in the store."""


class ExportedArtifact(BaseModel):
    """An artifact of the run that the data set was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ref: ArtifactRef
    """Which."""
    code_version: str = ""
    """Version of mralign_core that made it."""
    package_versions: dict[str, str] = {}
    """Versions of Python and the main libraries."""
    model_revision: str = ""
    """Revision of the model involved."""
    seed: int | None = None
    """Seed of the run."""
    fingerprint: dict[str, Any] = {}
    """Values of the config that decided it."""
    table_sha256: str = ""
    """Of the file of its main table."""


class QuestionSource(BaseModel):
    """A question set that traces are of."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Of the set; empty where it is not known."""
    licence: str = ""
    """As the config or the command states it; empty where nobody did."""
    num_traces: int = Field(ge=0)
    """Traces of its questions."""
    num_questions: int = Field(ge=0)
    """Questions that these are of."""


class ExportFile(BaseModel):
    """All that an export says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    layout: int = LAYOUT
    """Version of this layout."""
    format: DataFormat
    """Which rows it has: `parquet` has all there is, the others what a trainer reads."""
    name: str
    """Name of the run's config."""
    run: str = ""
    """The run; empty where artifacts were named by hand."""
    base_model: str
    """The model whose tokens and prompts these are."""
    annotators: dict[str, str] = {}
    """Role → model."""
    instruction: str = ""
    """What stood before the question in the prompt."""
    licence: str = ""
    """Of the data set as a whole; empty where nobody stated one."""
    sources: list[QuestionSource]
    """The question sets."""
    artifacts: dict[str, ExportedArtifact]
    """By name, such as `candidates`."""
    counts: dict[str, Any] = {}
    """Traces by polarity, segments, tokens, rules, labels."""
    row_groups: list[Annotated[int, Field(ge=1)]] = []
    """Rows of each row group of the stored candidates, so that the same file can be written again."""
    files: Files
    """Every other file but the card, by its path in the folder."""

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        (folder / EXPORT_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @property
    def data_files(self) -> list[str]:
        """Those that hold the traces, in their order."""
        return sorted(name for name in self.files if not name.startswith(f"{RUN_FOLDER}/"))


def read_export_file(path: Path, field: str) -> ExportFile:
    """What an export says of itself.

    Args:
        path: its :data:`EXPORT_FILE`.
        field: of the config, that names it, for messages.

    Raises:
        DataError: it is missing, damaged, of another layout, or of a format that only trainers read.
    """
    try:
        found = ExportFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{field}: {path} can't be read ({error.strerror}): name the folder of an export") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{field}: {path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}. Export the run again"
        ) from None
    if found.layout != LAYOUT:
        raise DataError(f"{field}: {path} has layout {found.layout}, and this version reads {LAYOUT}: export it again")
    if found.format != "parquet":
        raise DataError(
            f"{field}: {path.parent} was exported with --format {found.format}, for a trainer, which leaves much out: "
            "export the run with --format parquet"
        )
    return found


def require_intact(path: Path, found: ExportFile, field: str) -> None:
    """Refuse an export whose files are not as they were written; all of them are read.

    Raises:
        DataError: it names the files, and what to do.
    """
    problems = {name: _what_is_wrong(path.parent / name, entry) for name, entry in found.files.items()}
    if any(problems.values()):
        told = ", ".join(f"{name} {why}" for name, why in problems.items() if why)
        raise DataError(
            f"{field}: {path.parent} is not as it was exported: {told}. Copy it again, whole; traces that were changed "
            "on purpose are imported as JSONL (id, question, gold, thinking, answer, polarity)"
        )


def _what_is_wrong(path: Path, entry: FileEntry) -> str:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
        return "has another content"
    return ""
