"""A run's kept traces as a data set: what ``mralign export-data`` calls.

They are those of the last run, of a version, or of artifacts that are named.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mralign_core.config import ModelConfig, RunConfig
from mralign_core.config.annotate import LOCAL_PREFIX, ROLES
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.exporting.data_set import ExportedRun, Licences, OnExported, instruction_of, write_data_set
from mralign_core.exporting.export_file import ExportFile
from mralign_core.exporting.new_folder import require_new_or_empty
from mralign_core.exporting.paths import traces_file
from mralign_core.exporting.restoring import earlier_export, imported_export
from mralign_core.exporting.tally import LACKS
from mralign_core.exporting.trainer_formats import ROW_FORMATS, Chat, DataFormat
from mralign_core.models.families import family_of, named_family
from mralign_core.models.locate import ModelLocation, locate_model
from mralign_core.models.names import stored_model_name, told_model_name
from mralign_core.questions.locating import set_name
from mralign_core.questions.opening import stem
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import stream_table
from mralign_core.versions.version import Version, resolve_version
from tasks.engine.last_run import LastRun
from tasks.engine.one_task import Inputs
from tasks.engine.run import file_digests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("mralign_core.exporting")
OPTIONAL = ("annotations", "weights")
"""Artifacts that a run may not have made yet."""


class DataSource(NamedTuple):
    """What is exported, and what is to be said of it."""

    run: ExportedRun
    model: ModelConfig
    missing: Sequence[str]
    """Why there are no labels, or no weights."""


def find_data(config: RunConfig, named: Mapping[str, str], version: str) -> DataSource:
    """What is exported: of the version that is asked for, else of the last run and the artifacts that are named.

    Args:
        config: says which store, and the licences of question sets.
        named: artifacts that the command names (``--input``).
        version: an alias, or a version's name; "" where none is asked for.

    Raises:
        ArtifactError: there are no traces, or no such version.
        ConfigError: more than one thing says what to take.
    """
    if version and named:
        raise ConfigError("export-data: --version names traces, labels and weights already; leave out --input")
    if unknown := sorted(named.keys() - {"candidates", *OPTIONAL}):
        raise ConfigError(f"--input {unknown[0]}=…: export-data reads candidates, annotations and weights")
    store = ArtifactStore(config.storage)
    if version:
        return _of_version(store, config, resolve_version(store, version))
    of, missing = Inputs(config, named), []
    refs: dict[str, ArtifactRef | None] = {"candidates": of("candidates")}
    for name in OPTIONAL:
        try:
            refs[name] = of(name)
        except ArtifactError as error:
            if name in named:
                raise
            refs[name] = None
            missing.append(str(error))
    record = None if named else LastRun(config).record
    return _source(
        store,
        config,
        refs,
        missing=missing,
        model=config.model,
        run=record.run if record else "",
    )


def _of_version(store: ArtifactStore, config: RunConfig, version: Version) -> DataSource:
    refs = {"candidates": version.parent("candidates"), **{name: version.parents.get(name) for name in OPTIONAL}}
    family = version.record.config.get("model", {}).get("family", config.model.family)
    return _source(
        store,
        config,
        refs,
        missing=[f"version {version.name} was made without {name}" for name in OPTIONAL if refs[name] is None],
        model=config.model.model_copy(update={"family": family}),
        run=f"version {version.name}",
        base_model=version.record.base_model,
    )


def _source(
    store: ArtifactStore,
    config: RunConfig,
    refs: Mapping[str, ArtifactRef | None],
    *,
    missing: Sequence[str],
    model: ModelConfig,
    run: str,
    base_model: str = "",
) -> DataSource:
    candidates = refs["candidates"]
    assert candidates is not None
    wrote = next((one for one in store.manifest(candidates).parents if one.stage == "model"), None)
    traces_path, digest = _imported_from(store, config, candidates)
    earlier = earlier_export(traces_path, digest)
    exported = ExportedRun(
        name=config.name,
        run=run,
        candidates=candidates,
        annotations=refs["annotations"],
        weights=refs["weights"] if refs["annotations"] else None,
        model=wrote,
        base_model=base_model
        or (stored_model_name(store.manifest(wrote).fingerprint) if wrote else told_model_name(model)),
        annotators=_annotators(store, refs["annotations"], earlier.annotators, digest),
        traces_set=stem(Path(traces_path)) if traces_path and not imported_export(traces_path) else "",
        set_of_question=earlier.set_of_question,
        licences=earlier.licences if digest else _licences(config),
    )
    return DataSource(exported, model, missing)


def _imported_from(store: ArtifactStore, config: RunConfig, candidates: ArtifactRef) -> tuple[str, str]:
    """The file that traces were imported from, and its digest then; "" where they were sampled.

    Of the files that the config and its last run name it is the one that still has the digest. Where none has, it is
    the one of the run that the traces are of, if that is the last run.
    """
    digest, record = str(store.manifest(candidates).fingerprint.get("traces", "")), LastRun(config).record
    if not digest:
        return "", ""
    named = [path for path in (record.traces_path if record else "", config.generate.traces_path) if path]
    found = [path for path in named if file_digests(traces=traces_file(path)).get("traces") == digest]
    is_last = record is not None and record.agrees_with({"candidates": candidates})
    return (found or (named if is_last else []) or [""])[0], digest


def _licences(config: RunConfig) -> dict[str, str]:
    """The licences of the question sets that were sampled from; their files may be gone by now."""
    return {set_name(one, "questions.train"): one.licence for one in config.questions.train if one.licence}


def _annotators(
    store: ArtifactStore, annotations: ArtifactRef | None, of_export: Mapping[str, str], digest: str
) -> Mapping[str, str]:
    """Role → model, as the labels' own manifest says it; where they came with an export, as that says it.

    Args:
        store: where the labels are.
        annotations: the labels.
        of_export: what the export that the traces came from says.
        digest: of the file of that export.
    """
    decided = store.manifest(annotations).fingerprint if annotations else {}
    if "traces" in decided:
        told = of_export if decided["traces"] == digest else {}
        return told or {"labels": "from an export that is not there any more, or is another one now"}
    models = {role: str(decided[role]["model"]) for role in ROLES if role in decided}
    is_alone = models.get("annotator_a", "").startswith(LOCAL_PREFIX) and not decided.get("escalate_below")
    return {role: model for role, model in models.items() if not is_alone or role == "annotator_a"}


def export_data(
    config: RunConfig,
    source: DataSource,
    directory: Path,
    data_format: DataFormat,
    licences: Licences,
    on_progress: OnExported,
) -> ExportFile:
    """Write the data set to a folder.

    Args:
        config: says which store.
        source: what :func:`find_data` found.
        directory: a new or empty folder.
        data_format: for which reader.
        licences: as the command states them, which count before those of the config.
        on_progress: called with the traces that are written, and all of them.

    Raises:
        ArtifactError: artifacts are damaged, or not of one run.
        ConfigError: the folder holds files, or the format needs a tokenizer that is out of reach.
        DataError: no trace is left, or a licence is stated of a set that no trace is of.
    """
    require_new_or_empty(directory)
    store = ArtifactStore(config.storage)
    tokenizer = _Tokenizer(store, source.run.model)
    needs_end = _has_unknown_end(store, source.run.candidates) and data_format == "parquet"
    chat = _chat(store, source, tokenizer) if ROW_FORMATS[data_format].needs_chat else None
    return write_data_set(
        directory,
        store,
        source.run,
        data_format,
        licences=licences,
        end_token_id=tokenizer.end_token_id() if needs_end else None,
        chat=chat,
        on_progress=on_progress,
    )


def stated_licences(options: Sequence[str]) -> Licences:
    """The licences of ``--licence`` options: ``SET=LICENCE``, or ``LICENCE`` of the data set as a whole.

    Raises:
        ConfigError: one says nothing, is no text, or two speak of one thing.
    """
    whole, of_set = "", {}
    for option in options:
        name, separator, licence = (part.strip() for part in option.rpartition("="))
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in option)  # as bytes that are no UTF-8 come
        is_told_twice = name in of_set if separator else whole
        if not licence or (separator and not name) or is_told_twice or not is_text:
            raise ConfigError(
                f"--licence {option!r}: give LICENCE once, and SET=LICENCE once for each question set, in UTF-8"
            )
        if separator:
            of_set[name] = licence
        else:
            whole = licence
    return Licences(whole, of_set)


def facts_of(export: ExportFile, target: Path, missing: Sequence[str]) -> list[tuple[str, str]]:
    """What is to be said of an export: where it is, how much it is, and all that it lacks."""
    counts = export.counts
    facts = [("data set", str(target)), ("format", export.format)]
    facts += [(name, f"{counts[name]:,}") for name in ("traces", "segments", "completion tokens")]
    facts += [(name, f"{counts[name]:,}") for name in LACKS if counts.get(name)]
    facts += [("no licence stated", each.name or "a set without a name") for each in export.sources if not each.licence]
    return [*facts, *(("left out", why) for why in missing)]


def _has_unknown_end(store: ArtifactStore, candidates: ArtifactRef) -> bool:
    path = store.open_file(candidates, "candidates.parquet")
    batches = stream_table(path, CANDIDATES, ["end_token_id"], 10_000)
    return any(batch.column("end_token_id").null_count for batch in batches)


def _chat(store: ArtifactStore, source: DataSource, tokenizer: _Tokenizer) -> Chat:
    section = source.model
    try:
        family = named_family(section.family) if section.family != "auto" else family_of(section, tokenizer.load())
    except (ArtifactError, ConfigError) as error:
        raise ConfigError(
            f"--format llama-factory writes messages, and needs to know how the model thinks: {error}. Name its family "
            "(--set model.family=…)"
        ) from None
    return Chat(family, instruction_of(store, source.run.candidates))


class _Tokenizer:
    """The base model's tokenizer, which is loaded only where something needs it."""

    def __init__(self, store: ArtifactStore, model: ArtifactRef | None) -> None:
        self._store = store
        self._model = model

    def _location(self) -> ModelLocation:
        if self._model is None:
            raise ArtifactError("the traces were made without an artifact 'model'")
        return locate_model(self._store.open_directory(self._model))

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            ArtifactError: the model's artifact is gone.
            ConfigError: the model is out of reach.
        """
        from mralign_core.models.load import load_tokenizer

        where = self._location()
        return load_tokenizer(where.path, where.revision)

    def end_token_id(self) -> int | None:
        """What ends a turn of the model; None, with a warning, where its tokenizer is out of reach."""
        from mralign_core.generation.control_tokens import turn_end_id
        from mralign_core.models.load import stored_configs

        try:
            where = self._location()
            return turn_end_id(self.load(), *stored_configs(where.path, where.revision))
        except (ArtifactError, ConfigError) as error:
            logger.warning("traces without a drawn end token are exported without one: %s", error)
            return None
