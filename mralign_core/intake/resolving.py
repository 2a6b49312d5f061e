"""One look, at the start of a run, at everything a config refers to and does not fix itself.

What floats (a data set or model of the hub without a commit, question files by pattern or in a bucket) is pinned in
the config that comes back, which is all that the run sees from then on: its keys hold what the references stood for, so
that new rows are seen, and what arrives meanwhile is not. What is keyed by its contents anyway (local files, a model's
folder, the label set, prompts) is recorded beside it, and so is what is known of a model behind an API
(:mod:`~mralign_core.intake.aliases`). A config in which nothing floats comes back as it is, with the keys that it had.

Where the hub or a bucket is out of reach, what the last run of this config's name recorded takes its place, and the log
says so. Where none has, a hub set or bucket is an error that says what to do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from mralign_core.config import QuestionSetConfig, RunConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.intake.aliases import ask_aliases
from mralign_core.intake.arrivals import Arrivals, OutOfReachError, is_arriving, is_copy_elsewhere
from mralign_core.intake.resolution import SHORT, ConfigReference, Resolution, Resolutions
from mralign_core.label_sets import label_set_of
from mralign_core.models.locate import file_content_digest, folder_digest, local_path
from mralign_core.questions.files import files_of, format_of
from mralign_core.questions.hub import TIMEOUT_S, pin_revision
from mralign_core.questions.known_sets import KNOWN_SETS
from mralign_core.questions.locating import HUB_ID
from mralign_core.storage import ArtifactStore, file_sha256, key_of

logger = logging.getLogger("mralign_core.intake")
COMMIT = re.compile(r"[0-9a-f]{40}")
PROMPT_FOLDERS = ("mralign_core.annotation.prompts", "mralign_core.judging.prompts")
FIXED = "the config itself"
AS_CACHED = "it is what the hub's cache on this machine has"


class Resolved(NamedTuple):
    """A config in which nothing floats, what its references stood for, and those of them that were recalled."""

    config: RunConfig
    resolution: Resolution

    @property
    def recalled(self) -> list[ConfigReference]:
        """What could not be reached, and stands for what an earlier run recorded."""
        return [one for one in self.resolution.references if one.recalled_from]


def resolve(
    config: RunConfig,
    store: ArtifactStore,
    *,
    run: str = "",
    prefers_recorded: bool = False,
    cache_folder: Path | None = None,
) -> Resolved:
    """Pin every floating reference of a config.

    Within a run that has a record, what that says is taken, and nothing is asked for again.

    Args:
        config: as a user wrote it, or as this function returned it.
        store: where resolutions are recorded.
        run: which run this is; nothing is recorded where that is empty, as for a dry run.
        prefers_recorded: take what the last run of this name recorded, and look only for what is not there.
        cache_folder: where arrivals are copied to; ``~/.cache/mralign`` when None.

    Raises:
        DataError: a set's data can't be found; or the hub is out of reach, and no run has recorded which commit it was.
        ConfigError: the same of the model.
        StorageError: the same of a bucket.
    """
    records = Resolutions(store, config.name)
    of_run = records.of(run)
    if of_run and not any(floats(one) for one in (*config.questions.train, *config.questions.eval, config.model)):
        return Resolved(config, of_run)
    last = records.last()
    before = of_run or (last if prefers_recorded else None)
    cache = cache_folder or Path.home() / ".cache" / "mralign"
    look = _Look(config, Arrivals(store, config.storage, cache), before, last, is_run=bool(run))
    resolved, references = look.everything()
    resolution = Resolution(config=config.name, run=run, references=references)
    if run and of_run is None:
        records.keep(resolution)
    found = Resolved(resolved, resolution)
    if found.recalled:
        what = "; ".join(
            f"{one.field} {one.asked} as {one.pinned[:SHORT]}, from {one.recalled_from}" for one in found.recalled
        )
        logger.warning("config %r: out of reach, and taken as it was recorded: %s", config.name, what)
    return found


def floats(section: Any) -> bool:
    """Whether a question set, or the model, may stand for something else tomorrow, or for nothing on this machine."""
    if isinstance(section, QuestionSetConfig):
        is_of_hub = bool(hub_id_of(section)) and not COMMIT.fullmatch(section.revision)
        return is_of_hub or is_arriving(section.path) or is_copy_elsewhere(section.path)
    return section.source == "hub" and local_path(section) is None and not COMMIT.fullmatch(section.revision)


def hub_id_of(one: QuestionSetConfig) -> str:
    """The hub id that a set is read from; empty where it is read from files, is the pocket world's, or is none."""
    if not one.path:
        return KNOWN_SETS[one.name].hub_id if one.name in KNOWN_SETS else ""
    is_id = HUB_ID.fullmatch(one.path) and not format_of(one.path)
    return one.path if is_id and not Path(one.path).exists() else ""


class _Look:
    """At all references of one config.

    Args:
        config: the run config.
        arrivals: takes question files in.
        before: what is taken without looking, where it has an answer.
        last: what is recalled where something is out of reach.
        is_run: whether a run goes by it and is recorded; else only what floats is looked at, and what nobody can tell
            now stays as it was asked for.
    """

    def __init__(
        self,
        config: RunConfig,
        arrivals: Arrivals,
        before: Resolution | None,
        last: Resolution | None,
        *,
        is_run: bool,
    ) -> None:
        self._is_run = is_run
        self._config = config
        self._arrivals = arrivals
        self._before = before
        self._last = last

    def everything(self) -> tuple[RunConfig, list[ConfigReference]]:
        """The config with what was pinned, and all references."""
        config, references = self._config, list[ConfigReference]()
        sets: dict[str, tuple[QuestionSetConfig, ...]] = {}
        for role in ("train", "eval"):
            named = getattr(config.questions, role)
            fields = [f"questions.{role}" + (f".{number}" if len(named) > 1 else "") for number in range(len(named))]
            found = [self._set(one, field) for one, field in zip(named, fields, strict=True)]
            sets[role] = tuple(one for one, _ in found)
            references += [reference for _, reference in found if reference]
        model, of_model = self._model()
        references += [of_model] if of_model else []
        if self._is_run:
            references += [*_contents(config), *ask_aliases(config)]
        if sets == {"train": config.questions.train, "eval": config.questions.eval} and model is config.model:
            return config, references
        questions = config.questions.model_copy(update=sets)
        return config.model_copy(update={"questions": questions, "model": model}), references

    def _set(self, one: QuestionSetConfig, field: str) -> tuple[QuestionSetConfig, ConfigReference | None]:
        if is_arriving(one.path):
            return self._arriving(one, field)
        if is_copy_elsewhere(one.path):
            one = one.model_copy(update={"path": str(self._arrivals.restored(one.path))})
        if hub_id := hub_id_of(one):
            asked = ConfigReference(field=field, kind="hub", asked=f"{hub_id}@{one.revision}")
            pinned = self._pinned(asked, one.revision, lambda: _commit_of_set(hub_id, one.revision, field))
            return one.model_copy(update={"revision": pinned.pinned or one.revision}), pinned
        return one, _local_set(Path(one.path), field) if one.path and self._is_run else None

    def _arriving(self, one: QuestionSetConfig, field: str) -> tuple[QuestionSetConfig, ConfigReference]:
        asked = ConfigReference(field=field, kind="arrivals", asked=one.path)
        told = self._before.answer_to(asked) if self._before else None
        arrived = self._arrivals.recall(one, field, told) if told else None
        if arrived is None:
            known, recalled_from = self._last_known(asked)
            try:
                arrived, recalled_from = self._arrivals.take_in(one, field, known), ""
            except OutOfReachError as error:
                arrived = self._arrivals.recall(one, field, known)
                if arrived is None:
                    raise error.why from None
        else:
            recalled_from = ""
        if self._is_run:
            self._arrivals.publish(arrived, one.path)
        pinned = {"pinned": arrived.sha256, "source": "the bucket" if arrived.tags else "files here"}
        details = {"files": arrived.files, "tags": arrived.tags, "note": arrived.note, "recalled_from": recalled_from}
        fixed = {"path": str(arrived.path), "id_column": arrived.id_column}
        return one.model_copy(update=fixed), asked.model_copy(update={**pinned, **details})

    def _last_known(self, asked: ConfigReference) -> tuple[ConfigReference, str]:
        """What the last run recorded of a reference, and which run had looked; the reference itself where none has."""
        known = self._last.answer_to(asked) if self._last else None
        if not known or not self._last:
            return asked, ""
        return known, known.recalled_from or f"run {self._last.run} of {self._last.at:%Y-%m-%d %H:%M} UTC"

    def _model(self) -> tuple[Any, ConfigReference | None]:
        section = self._config.model
        if section.source != "hub":
            return section, None
        if (local := local_path(section)) is not None:
            if not self._is_run:
                return section, None
            pinned = folder_digest(local) if local.is_dir() else file_content_digest(local)
            contents = ConfigReference(field="model", kind="contents", asked=section.path, pinned=pinned)
            return section, contents.model_copy(update={"source": "files here"})
        asked = ConfigReference(field="model", kind="hub", asked=f"{section.path}@{section.revision}")
        found = self._pinned(asked, section.revision, lambda: _commit_of_model(section.path, section.revision))
        if found.pinned in ("", section.revision):
            return section, found
        return section.model_copy(update={"revision": found.pinned}), found

    def _pinned(self, asked: ConfigReference, revision: str, ask: Callable[[], str]) -> ConfigReference:
        """The commit that a revision of the hub is: itself, as recorded, as the hub says, or as it said last."""
        if COMMIT.fullmatch(revision):
            return asked.model_copy(update={"pinned": revision, "source": FIXED})
        if told := self._before.answer_to(asked) if self._before else None:
            return told.model_copy(update={"field": asked.field})
        try:
            return asked.model_copy(update={"pinned": ask(), "source": _hub()})
        except OutOfReachError as error:
            known, recalled_from = self._last_known(asked)
            if known.pinned:
                return known.model_copy(update={"field": asked.field, "recalled_from": recalled_from})
            if _is_offline():
                return asked.model_copy(update={"note": f"HF_HUB_OFFLINE is set: {AS_CACHED}"})
            if self._is_run:
                raise error.why from None
            logger.warning("%s: the hub can't be reached, so that nobody can tell what %s is", asked.field, asked.asked)
            return asked


def _commit_of_set(hub_id: str, revision: str, field: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if _is_offline():
        raise OutOfReachError(DataError(f"{field}: HF_HUB_OFFLINE is set"))
    try:
        return pin_revision(hub_id, revision, field)
    except DataError as error:
        if isinstance(error.__context__, RepositoryNotFoundError | RevisionNotFoundError):
            raise
        raise OutOfReachError(error) from error


def _commit_of_model(path: str, revision: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if _is_offline():
        raise OutOfReachError(ConfigError("model.path: HF_HUB_OFFLINE is set"))
    try:
        return HfApi().model_info(path, revision=revision or None, timeout=TIMEOUT_S).sha or revision
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"model.path {path!r} is neither a folder nor a model the hub gives, or has no revision {revision!r} "
            f"({type(error).__name__}). Check the spelling, and HF_TOKEN for gated models; or name a local folder"
        ) from None
    except Exception as error:
        raise OutOfReachError(
            ConfigError(
                f"model.path {path!r} is no folder here, and the hub can't be reached ({error!r:.120}), nor has an "
                "earlier run of this config's name recorded its commit. Check the network; name a local folder; or set "
                "HF_HUB_OFFLINE=1 if an earlier run left the model in HF_HOME"
            )
        ) from error


def _local_set(path: Path, field: str) -> ConfigReference | None:
    """The contents of a set's file, or of the files of its folder, as they are keyed; None where they can't be read."""
    if path.is_file():
        return ConfigReference(
            field=field, kind="contents", asked=str(path), pinned=file_sha256(path), source="the file"
        )
    if not path.is_dir():
        return None
    try:
        digests = {file.relative_to(path).as_posix(): file_sha256(file) for file in files_of(path, field)}
    except (DataError, OSError, ValueError):  # the stage says what is wrong with it
        return None
    pinned = key_of(files=digests)
    return ConfigReference(
        field=field, kind="contents", asked=str(path), pinned=pinned, source="its files", files=digests
    )


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _contents(config: RunConfig) -> Iterator[ConfigReference]:
    """What is keyed by its contents: the label set, the prompts, a file of traces."""
    by_name = {"annotate.label_set": config.annotate.label_set or "paper"}
    digests = {"annotate.label_set": key_of(label_set=label_set_of(config).fingerprint())}
    texts = {
        f"{folder}/{file.name}": file.read_text(encoding="utf-8")
        for folder in PROMPT_FOLDERS
        for file in sorted(files(folder).iterdir(), key=lambda file: file.name)
        if file.name.endswith(".md")
    }
    by_name["prompts"] = f"{len(texts)} texts of this version of the program"
    digests["prompts"] = key_of(prompts=texts)
    traces = Path(config.generate.traces_path) if config.generate.source == "traces" else None
    if traces and traces.is_file():
        by_name["generate.traces_path"], digests["generate.traces_path"] = str(traces), file_sha256(traces)
    for field, asked in by_name.items():
        yield ConfigReference(
            field=field, kind="contents", asked=asked, pinned=digests[field], source="contents, as in keys"
        )
