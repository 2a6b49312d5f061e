"""Traces of an export, back in a store: the same candidates to the last byte, and their labels.

Decisions:

* Traces are taken as they are. Neither are they tokenised, segmented or judged again, nor numbered anew: a draw stays
  the draw that it was. That needs the tokenizer that wrote them, which is told by decoding every trace.
* The run's own bounds hold all the same, and traces of questions that are evaluated on are refused or dropped. Where
  nothing is dropped, the candidates are those of the exported run, with the yield of its selection: the same digest.
* Labels are taken where ``annotate.source`` says so. A trace that has none was left out by its annotators, and is
  again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.config import GenerateConfig
from mralign_core.errors import DataError
from mralign_core.exporting.export_file import RUN_FOLDER, ExportFile, read_export_file, require_intact
from mralign_core.exporting.paths import EXPORT_FILE, export_file_in
from mralign_core.exporting.trace_rows import EXPORTED_ROWS, ROWS_OF_BATCH, TraceRow, stored_labels, stored_trace
from mralign_core.generation.control_tokens import decode_tokens
from mralign_core.generation.funnel import FUNNEL_COLUMNS, Funnel, require_both_polarities
from mralign_core.method.selection import LengthBounds, length_problem
from mralign_core.questions.overlap import question_key, question_keys, refuse_overlap
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage.digests import file_sha256
from mralign_core.storage.quarantine import FILE_NAME as QUARANTINE_FILE
from mralign_core.storage.tables import TableWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("mralign_core.exporting")
TRACES_FIELD = "generate.traces_path"
CANDIDATES_FILE, FUNNEL_FILE = "candidates.parquet", "funnel.json"
BESIDE_CANDIDATES = (FUNNEL_FILE, QUARANTINE_FILE)
"""Files of an artifact of candidates that come back with them."""
ROWS_AT_A_TIME = 1_000
"""Rows of a row group where it can't be that of the exported run."""
STEPS_OF_EXPORT = ("traces of the export", "of questions to align on", "of allowed length here")
RESTORE_REMEDY = "What can help: an export of more traces; wider generate.min_segments and its like."
NOT_IN_EXPORT = "not labelled in the export"


class EarlierExport(NamedTuple):
    """What an export knows that its traces don't hold: sets of questions, licences of these, and who annotated."""

    set_of_question: Mapping[str, str]
    licences: Mapping[str, str]
    annotators: Mapping[str, str]


NOTHING_KNOWN = EarlierExport({}, {}, {})


def check_export(path: str | Path) -> ExportFile:
    """Read what an export says of itself, and see that all of it is there as it was written.

    Raises:
        DataError: it is not; the message names the file and the remedy.
    """
    file = export_file_in(path) or Path(path)
    found = read_export_file(file, TRACES_FIELD)
    require_intact(file, found, TRACES_FIELD)
    return found


def restore_candidates(
    path: str | Path,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    section: GenerateConfig,
    held_out: pd.DataFrame,
    on_overlap: str,
) -> dict[str, int]:
    """Write the candidates of an export, and the yield of their selection, into a folder.

    Args:
        path: of the export.
        directory: of the artifact.
        tokenizer: of the model to align, which has to be the one that wrote the traces.
        section: bounds of length.
        held_out: the questions that are evaluated on, rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        on_overlap: ``drop`` leaves traces of such questions out, ``refuse`` refuses them.

    Returns:
        Traces by polarity.

    Raises:
        DataError: the export is not as it was written, is of another tokenizer, or has a question that is evaluated on.
        NoCandidatesError: no trace is left, or none of one polarity.
    """
    export = check_export(path)
    folder = (export_file_in(path) or Path(path)).parent
    evaluated = set(itertools.chain.from_iterable(question_keys(held_out))) if len(held_out) else set()
    if on_overlap != "drop":
        _refuse_evaluated(folder, export, held_out, evaluated)
    funnel, polarities = Funnel(STEPS_OF_EXPORT), Counter[str]()
    traces = _kept(map(stored_trace, _rows(folder, export)), funnel, section, evaluated, polarities)
    _write_candidates(directory, _of_tokenizer(traces, tokenizer, folder), export.row_groups)
    _require_all_read(folder, export, funnel)
    require_both_polarities(polarities, funnel, RESTORE_REMEDY)
    for name in BESIDE_CANDIDATES:
        if f"{RUN_FOLDER}/{name}" in export.files:
            shutil.copyfile(folder / RUN_FOLDER / name, directory / name)
    if any(dropped for _, _, dropped, _ in funnel.rows):
        _add_to_funnel(directory / FUNNEL_FILE, funnel)
    return dict(polarities.most_common())


def restore_labels(path: str | Path, trace_ids: Sequence[str]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The labels of some traces of an export, and a failure for each trace that has none.

    Reads the row groups that the traces are in and no others, so that many shards read an export once in all.

    Args:
        path: of an export that :func:`check_export` has looked through.
        trace_ids: of traces that are in it.

    Returns:
        Rows of :data:`~mralign_core.schemas.annotations.ANNOTATIONS` in the order of the traces; and of failures.

    Raises:
        DataError: the export lacks one of the traces, or can't be read.
    """
    file = export_file_in(path) or Path(path)
    rows = _rows_of(file.parent, read_export_file(file, TRACES_FIELD), set(trace_ids))
    found = {row["trace_id"]: stored_labels(row) for row in rows}
    if missing := set(trace_ids) - found.keys():
        raise DataError(f"{TRACES_FIELD}: {file.parent} has no trace {min(missing)!r}, whose labels are to be its own")
    failures = [_not_labelled(trace_id) for trace_id in trace_ids if not found[trace_id]]
    return ANNOTATIONS.frame(label for trace_id in trace_ids for label in found[trace_id]), failures


def _not_labelled(trace_id: str) -> dict[str, Any]:
    """A failure as annotators have them; asking again would be of no use."""
    told = {"role": "annotator_a", "kind": NOT_IN_EXPORT, "problem": "the export has no labels of this trace"}
    return {"trace_id": trace_id, **told, "reply": "", "is_final": True}


def require_labels(path: str | Path, labels: Collection[str], field: str) -> None:
    """Refuse an export without labels, or with labels of another label set.

    Args:
        path: of the export.
        labels: those of the run's label set.
        field: of the config, that has labels taken from it.

    Raises:
        DataError: it says which label, and what to do.
    """
    export = read_export_file(export_file_in(path) or Path(path), TRACES_FIELD)
    if "annotations" not in export.artifacts:
        raise DataError(f"{field} 'traces': {path} has no labels: leave it out, and have annotators label the traces")
    foreign = sorted(set(export.counts.get("labels", {})) - set(labels))
    if foreign:
        raise DataError(
            f"{field} 'traces': {path} has labels of another label set, such as {foreign[0]!r}: set annotate.label_set "
            "to that set, or have annotators label the traces"
        )


def imported_export(path: str | Path) -> Path | None:
    """The file of the export that traces were imported from, also where it is gone; None where it was none."""
    path = Path(path)
    is_folder = not path.suffix and not path.is_file()  # of a folder that is gone the name alone can tell
    return export_file_in(path) or (path / EXPORT_FILE if is_folder else None)


def earlier_export(path: str | Path, sha256: str) -> EarlierExport:
    """What is known of traces that were imported from an export.

    Args:
        path: where the export was; empty where that is not known.
        sha256: of its file when the traces were imported.

    Returns:
        Nothing where it was no export, and, with a warning, where what is there now is not what was imported.
    """
    file = imported_export(path) if str(path) else None
    if file is None:
        return NOTHING_KNOWN
    try:
        if file_sha256(file) != sha256:
            raise DataError(f"{TRACES_FIELD}: {file} is another export than the one that the traces came from")
        export = check_export(file)
    except (OSError, DataError) as error:
        logger.warning("question sets, licences and annotators of the imported export are not known: %s", error)
        return NOTHING_KNOWN
    rows = _rows(file.parent, export, ["question_id", "question_set"])
    licences = {source.name: source.licence for source in export.sources if source.licence}
    sets = {row["question_id"]: row["question_set"] for row in rows}
    return EarlierExport(sets, licences, export.annotators)


def _rows(folder: Path, export: ExportFile, columns: Sequence[str] = ()) -> Iterator[TraceRow]:
    for name in export.data_files:
        with _opened(folder / name) as file:
            for batch in file.iter_batches(ROWS_OF_BATCH, columns=list(columns) or None):
                yield from batch.to_pylist()


def _rows_of(folder: Path, export: ExportFile, trace_ids: AbstractSet[str]) -> Iterator[TraceRow]:
    """Id and segments of some traces."""
    for name in export.data_files:
        with _opened(folder / name) as file:
            for group in range(file.num_row_groups):
                if not trace_ids.isdisjoint(file.read_row_group(group, ["trace_id"])["trace_id"].to_pylist()):
                    rows = file.read_row_group(group, ["trace_id", "segments"]).to_pylist()
                    yield from (row for row in rows if row["trace_id"] in trace_ids)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(EXPORTED_ROWS, check_metadata=False):
                raise DataError(f"{TRACES_FIELD}: {path} lacks columns of an export: export it again")
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{TRACES_FIELD}: {path} can't be read ({error}): copy the export again") from None


def _refuse_evaluated(folder: Path, export: ExportFile, held_out: pd.DataFrame, evaluated: Collection[str]) -> None:
    """Refuse questions that are evaluated on, by the message of all imports."""
    ids = set(held_out["question_id"]) if evaluated else set()
    suspects = {
        row["question_id"]: {**row, "source": row["question_set"] or folder.name, "options": []}
        for row in (_rows(folder, export, ["question_id", "question", "question_set"]) if evaluated else ())
        if row["question_id"] in ids or question_key(row["question"]) in evaluated
    }
    if suspects:
        refuse_overlap(pd.DataFrame(suspects.values()), held_out)


def _kept(
    traces: Iterable[dict[str, Any]],
    funnel: Funnel,
    section: GenerateConfig,
    evaluated: Collection[str],
    polarities: Counter[str],
) -> Iterator[dict[str, Any]]:
    bounds = LengthBounds(
        section.min_segments, section.max_segments, section.min_reasoning_tokens, section.max_reasoning_tokens
    )
    for trace in traces:
        read = funnel.keep(STEPS_OF_EXPORT[0], [trace], [""])
        is_evaluated = bool(evaluated) and question_key(trace["question"]) in evaluated
        asked = funnel.keep(STEPS_OF_EXPORT[1], read, ["evaluated on too" if is_evaluated else ""])
        problems = [length_problem(len(row["segments"]), row["reasoning_tokens"], bounds) for row in asked]
        kept = funnel.keep(STEPS_OF_EXPORT[2], asked, problems)
        polarities.update(row["polarity"] for row in kept)
        yield from kept


def _of_tokenizer(
    traces: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Iterator[dict[str, Any]]:
    """The traces, each of which must be what its tokens decode to."""
    for trace in traces:
        for name in ("prompt", "completion"):
            ids = trace[f"{name}_ids"]
            if max(ids, default=0) >= len(tokenizer) or decode_tokens(tokenizer, ids) != trace[name]:
                raise DataError(
                    f"{TRACES_FIELD}: {folder}: the tokens of the {name} of trace {trace['trace_id']!r} are not those "
                    "of the model's tokenizer, so these traces are another model's: set model.path to the model that "
                    "wrote them, or give the traces as JSONL (id, question, gold, thinking, answer, polarity), to be "
                    "tokenised anew"
                )
        yield trace


def _write_candidates(directory: Path, traces: Iterator[dict[str, Any]], row_groups: Sequence[int]) -> None:
    """Write the traces in the row groups that they had, so that the file has the same bytes."""
    sizes = itertools.chain(row_groups, itertools.repeat(ROWS_AT_A_TIME))
    with TableWriter(directory / CANDIDATES_FILE, CANDIDATES) as table:
        for size in sizes:
            group = list(itertools.islice(traces, size))
            if not group:
                break
            table.add_group(CANDIDATES.frame(group))


def _require_all_read(folder: Path, export: ExportFile, funnel: Funnel) -> None:
    """Refuse an export that says of its files that they have more rows, or fewer, than were read."""
    told = sum(export.files[name].rows or 0 for name in export.data_files)
    read = next(kept for step, kept, _, _ in funnel.rows if step == STEPS_OF_EXPORT[0])
    if read != told:
        raise DataError(
            f"{TRACES_FIELD}: {folder}: {EXPORT_FILE} says that its data files have {told:,} traces, and {read:,} were "
            "read: export the run again"
        )


def _add_to_funnel(path: Path, funnel: Funnel) -> None:
    """Let the yield of this run's bounds follow that of the selection."""
    before = pd.read_json(path, orient="records", dtype=False) if path.exists() else None
    frames = [each for each in (before, funnel.frame()) if each is not None]
    pd.concat(frames, ignore_index=True)[FUNNEL_COLUMNS].to_json(path, orient="records", indent=1)
