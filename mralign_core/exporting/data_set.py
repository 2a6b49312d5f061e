"""Write a run's kept traces as a data set: a folder with data files, a card, and where all of it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.errors import ArtifactError, DataError
from mralign_core.exporting.data_card import DATA_FOLDER, SPLIT_NAME, write_data_card
from mralign_core.exporting.export_file import RUN_FOLDER, ExportedArtifact, ExportFile, QuestionSource
from mralign_core.exporting.new_folder import folder_at_once
from mralign_core.exporting.tally import WITHOUT_END, RowTally
from mralign_core.exporting.trace_rows import ROWS_OF_BATCH, TraceRow, TraceTables, is_labelled, read_trace_rows
from mralign_core.exporting.trainer_formats import ROW_FORMATS, Chat, DataFormat, RowFormat, dataset_name
from mralign_core.models.names import stored_model_name
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.artifact import FileEntry
from mralign_core.storage.digests import directory_entries

ROWS_OF_FILE = 20_000
"""Traces in a data file at most; of 1,000 tokens each they are about 100 MB."""
TABLE_FILES = {
    "candidates": "candidates.parquet",
    "annotations": "annotations.parquet",
    "weights": "weights.parquet",
}
"""Artifact → the file of its main table."""
OnExported = Callable[[int, int], None]


class ExportedRun(NamedTuple):
    """The artifacts of a run that are exported, and what of it is not in them.

    Args:
        name: of the config.
        run: which run; empty where artifacts were named by hand.
        candidates: the traces.
        annotations: their labels; None where there are none yet.
        weights: their segments' weights; None where there are none yet.
        model: the base model; None where it is gone.
        base_model: its name.
        annotators: role → model.
        traces_set: name of the file that traces were imported from, which stands for their question set.
        set_of_question: question_id → its set, of traces that were exported before; empty where the store knows it.
        licences: question set → licence, as the config or an earlier export states them.
    """

    name: str
    run: str
    candidates: ArtifactRef
    annotations: ArtifactRef | None
    weights: ArtifactRef | None
    model: ArtifactRef | None
    base_model: str
    annotators: Mapping[str, str]
    traces_set: str
    set_of_question: Mapping[str, str]
    licences: Mapping[str, str]

    @property
    def artifacts(self) -> dict[str, ArtifactRef]:
        """Those that there are, by name."""
        named = {
            "candidates": self.candidates,
            "annotations": self.annotations,
            "weights": self.weights,
            "model": self.model,
        }
        return {name: ref for name, ref in named.items() if ref}


class Licences(NamedTuple):
    """What is stated of the data set as a whole, and of question sets, before what the run knows of them."""

    whole: str
    of_set: Mapping[str, str]


def write_data_set(
    target: Path,
    store: ArtifactStore,
    run: ExportedRun,
    data_format: DataFormat,
    *,
    licences: Licences,
    end_token_id: int | None = None,
    chat: Chat | None = None,
    on_progress: OnExported = lambda done, total: None,
) -> ExportFile:
    """Write the data set; the folder is there whole or not at all.

    Args:
        target: a new or empty folder.
        store: where the artifacts are.
        run: which.
        data_format: how rows are written.
        licences: as they were stated; of sets that have none the card says so.
        end_token_id: ends completions whose own end is not known; None where no tokenizer says it.
        chat: how questions became prompts; formats of messages need it.
        on_progress: called with the traces that are written, and all of them.

    Returns:
        What the export says of itself.

    Raises:
        ArtifactError: artifacts are damaged, or not of one run.
        ConfigError: the folder holds files, or can't be written.
        DataError: no trace is left, or a licence is stated of a set that no trace is of.
    """
    require_one_run(store, run)
    tables = _tables(store, run, end_token_id)
    row_format, tally = ROW_FORMATS[data_format], RowTally()
    trained_only = row_format.trained_only and run.annotations is not None
    rows = _counted(read_trace_rows(tables), tally, trained_only, run.candidates.rows or 0, on_progress)
    with folder_at_once(target) as folder:
        (folder / DATA_FOLDER).mkdir()
        if not _write_rows(folder, row_format, rows, chat):
            raise DataError("no trace is left to export: none has labels; export the run with --format parquet")
        row_format.write_beside(folder, dataset_name(run.name), DATA_FOLDER)
        if data_format == "parquet":
            _copy_beside(store, run, folder / RUN_FOLDER)
        export = ExportFile(
            format=data_format,
            name=run.name,
            run=run.run,
            base_model=run.base_model,
            annotators=dict(run.annotators),
            instruction=instruction_of(store, run.candidates),
            licence=licences.whole,
            sources=_sources(tally, run.licences, licences.of_set),
            artifacts={name: _described(store, name, ref) for name, ref in run.artifacts.items()},
            counts=_counts(tally, data_format),
            row_groups=_row_groups(tables.candidates),
            files=_with_rows(folder),
        )
        write_data_card(folder, export)
        export.write(folder)
    return export


def require_one_run(store: ArtifactStore, run: ExportedRun) -> None:
    """Refuse labels or weights of other traces.

    Raises:
        ArtifactError: it names the two that do not belong together.
    """
    for name, ref in run.artifacts.items():
        for parent in store.manifest(ref).parents:
            beside = run.artifacts.get(parent.stage)
            if beside and beside.sha256 != parent.sha256:
                raise ArtifactError(
                    f"{name} {ref.key[:12]} was made from {parent.stage} {parent.key[:12]}, not from "
                    f"{beside.key[:12]}: name artifacts of one run (--input), or run the stage that makes {name} again"
                )


def instruction_of(store: ArtifactStore, candidates: ArtifactRef) -> str:
    """What stood before the question in the prompts of traces, sampled or imported."""
    manifest = store.manifest(candidates)
    fingerprints = [manifest.fingerprint]
    fingerprints += [store.manifest(parent).fingerprint for parent in manifest.parents if parent.stage == "generations"]
    return next((str(each["instruction"]) for each in fingerprints if "instruction" in each), "")


def _tables(store: ArtifactStore, run: ExportedRun, end_token_id: int | None) -> TraceTables:
    refs = run.artifacts
    files = {name: store.open_file(refs[name], file) for name, file in TABLE_FILES.items() if name in refs}
    sets = run.set_of_question or _sets_of_questions(store, run.candidates)
    return TraceTables(
        files["candidates"], files.get("annotations"), files.get("weights"), sets, run.traces_set, end_token_id
    )


def _sets_of_questions(store: ArtifactStore, candidates: ArtifactRef) -> Mapping[str, str]:
    """Question → its set, of traces that were sampled; those of a file are of no question set of the config."""
    parents = {parent.stage: parent for parent in store.manifest(candidates).parents}
    if "questions" not in parents or "generations" not in parents:
        return {}
    questions = store.read_columns(parents["questions"], "questions.parquet", QUESTIONS, ["question_id", "source"])
    return dict(zip(questions["question_id"], questions["source"], strict=True))


def _counted(
    rows: Iterator[TraceRow], tally: RowTally, trained_only: bool, total: int, on_progress: OnExported
) -> Iterator[TraceRow]:
    for number, row in enumerate(rows, start=1):
        if trained_only and not is_labelled(row):
            tally.num_left_out += 1
        else:
            tally.add(row)
            yield row
        if number % ROWS_OF_BATCH == 0 or number == total:
            on_progress(number, total)


def _write_rows(folder: Path, row_format: RowFormat, rows: Iterator[TraceRow], chat: Chat | None) -> list[str]:
    """Write the data files, and return their paths in the folder."""
    write = _write_parquet if row_format.suffix == "parquet" else _write_jsonl
    names: list[str] = []
    while (first := next(rows, None)) is not None:
        names.append(f"{DATA_FOLDER}/{SPLIT_NAME}-{len(names):05d}.{row_format.suffix}")
        of_file = chain([first], islice(rows, ROWS_OF_FILE - 1))
        write(folder / names[-1], (row_format.convert(row, chat) for row in of_file), row_format.schema)
    return names


def _write_parquet(path: Path, rows: Iterator[Mapping[str, Any]], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, ROWS_OF_BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _write_jsonl(path: Path, rows: Iterator[Mapping[str, Any]], _: pa.Schema) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        # Escaped: readers that take U+2028 or U+0085 for the end of a line would tear a row apart.
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _copy_beside(store: ArtifactStore, run: ExportedRun, folder: Path) -> None:
    """What lies beside the traces in the store: how they were selected, and rows that were set aside."""
    folder.mkdir()
    for name in store.manifest(run.candidates).files:
        if name != TABLE_FILES["candidates"]:
            shutil.copyfile(store.open_file(run.candidates, name), folder / name)


def _described(store: ArtifactStore, name: str, ref: ArtifactRef) -> ExportedArtifact:
    manifest = store.manifest(ref)
    main = manifest.files.get(TABLE_FILES.get(name, ""))
    return ExportedArtifact(
        ref=ref.model_copy(update={"uri": f"{ref.stage}/{ref.key}"}),  # a path of this machine says nothing elsewhere
        code_version=manifest.code_version,
        package_versions=manifest.package_versions,
        model_revision=manifest.model_revision,
        seed=manifest.seed,
        fingerprint=_without_path(manifest.fingerprint) if name == "model" else manifest.fingerprint,
        table_sha256=main.sha256 if main else "",
    )


def _without_path(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What decided a model, its folder by name only."""
    return {**fingerprint, "path": stored_model_name(fingerprint)} if "path" in fingerprint else dict(fingerprint)


def _sources(tally: RowTally, known: Mapping[str, str], stated: Mapping[str, str]) -> list[QuestionSource]:
    if foreign := sorted(stated.keys() - tally.sets.keys()):
        names = ", ".join(sorted(filter(None, tally.sets))) or "none with a name"
        raise DataError(f"--licence {foreign[0]}=…: no trace is of a question set of that name; there are {names}")
    licences = {**known, **stated}
    return [
        QuestionSource(
            name=name, licence=licences.get(name, ""), num_traces=number, num_questions=len(tally.questions[name])
        )
        for name, number in sorted(tally.sets.items())
    ]


def _counts(tally: RowTally, data_format: DataFormat) -> dict[str, Any]:
    """What the tally counted; an end token is a matter of rows with ids."""
    counts = tally.counts()
    return counts if data_format == "parquet" else {name: counts[name] for name in counts if name != WITHOUT_END}


def _row_groups(candidates: Path) -> list[int]:
    metadata = pq.read_metadata(candidates)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _with_rows(folder: Path) -> dict[str, FileEntry]:
    entries = directory_entries(folder)
    return {name: entry.model_copy(update={"rows": _num_rows(folder / name)}) for name, entry in entries.items()}


def _num_rows(path: Path) -> int | None:
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)
