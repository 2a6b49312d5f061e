"""An annotator distilled from labels that are there, with what it can do; published under a name, a config finds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mralign_core.config import RunConfig
from mralign_core.config.distil import DistilConfig
from mralign_core.distillation.annotator import ABOUT_FILE, WEIGHTS_FILE, read_annotator, write_annotator
from mralign_core.distillation.fitting import LabelledTraces, distil
from mralign_core.distillation.measuring import MEASURED_FILE, Measured, measure
from mralign_core.distillation.published import publish_annotator
from mralign_core.distillation.teaching import traces_of_annotations, traces_of_file, traces_of_person
from mralign_core.label_sets import label_set_of
from mralign_core.models.context_encoder import holds_language_model, load_context_encoder
from mralign_core.models.sentence_encoder import load_sentence_encoder
from mralign_core.rating.human_sets import HUMAN_LABELS_FILE, check_label_set, find_human_labels
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.human_labels import HUMAN_LABELS
from mralign_core.storage import ArtifactRef, ArtifactStore, tree_digest
from tasks.engine.graph import Input, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, file_digests
from tasks.engine.session import session
from tasks.engine.task import artifact
from tasks.fields import TRANSPORT, labels

LABELS_FIELD = "distil.labels"
CANDIDATE_COLUMNS = ["trace_id", "question_id", "completion", "segments"]


def learns_from(config: RunConfig) -> tuple[str, ...]:
    """The artifacts of a run that it learns from."""
    return {"run": ("candidates", "annotations"), "person": ("candidates",), "file": ()}[config.distil.teacher]


def _is_read(name: str) -> Callable[[RunConfig, Part], bool]:
    return lambda config, _: name in learns_from(config)


def _person(config: RunConfig) -> list[ArtifactRef]:
    """What a person published, the same throughout a run, where that is what it learns from."""
    if config.distil.teacher != "person":
        return []
    store, model = ArtifactStore(config.storage), config.distil.labels
    with session() as shared:
        found: ArtifactRef = shared.once(
            "teacher", (store.root_uri, model), lambda: find_human_labels(store, model, LABELS_FIELD)
        )
    return [found]


def _encoder(section: DistilConfig) -> str:
    """A folder by its whole path: who names the annotator later may be elsewhere."""
    folder = Path(section.encoder)
    return str(folder.resolve()) if section.encoder and folder.is_dir() else section.encoder


def _contents(config: RunConfig, _: Part) -> dict[str, Any]:
    """Of a person, a file and an encoder's folder, the contents count."""
    section = config.distil
    folder = Path(section.encoder)
    return {
        "person": [each.sha256 for each in _person(config)],
        **(file_digests(file=section.labels) if section.teacher == "file" else {}),
        **({"encoder_sha256": tree_digest(folder)} if section.encoder and folder.is_dir() else {}),
    }


@artifact(
    "distillation",
    stage="distil_annotator",
    inputs=(Input("annotations", when=_is_read("annotations")), Input("candidates", when=_is_read("candidates"))),
    fields=lambda config: {"teacher": config.distil.teacher, "encoder": _encoder(config.distil), **labels(config)},
    details=_contents,
    sources=(
        "mralign_core.distillation.measuring",
        "mralign_core.distillation.teaching",
        "mralign_core.models.context_encoder",
        "mralign_core.models.sentence_encoder",
        "mralign_core.schemas.candidates",
        "mralign_core.schemas.human_labels",
    ),
    without=lambda _: TRANSPORT,
    named_by=_person,
)
def distil_labels(making: Making) -> Built:
    """Fit an annotator, and measure it on folds that the chain which labels them had not seen."""
    section, known = making.config.distil, label_set_of(making.config).taxonomy.labels
    traces, encoder = _teaching(making), _encoder(section)
    reads_traces = holds_language_model(encoder)
    load = load_context_encoder if reads_traces else load_sentence_encoder
    encode = load(encoder, "distil.encoder", "leave it out") if encoder else None
    with progress("fitting on folds", "distil-annotator") as report:
        made = distil(traces, known, encode=encode, encoder=encoder, reads_traces=reads_traces, on_progress=report)
    measured = measure(made, traces, known)
    write_annotator(made.annotator, making.directory)
    (making.directory / MEASURED_FILE).write_text(measured.model_dump_json(indent=1), encoding="utf-8")
    return Built(counts={"traces": measured.traces, "segments": measured.scores.segments, **measured.in_short})


def _teaching(making: Making) -> LabelledTraces:
    """The traces to learn from."""
    config, store = making.config, making.store
    taxonomy = label_set_of(config).taxonomy
    if config.distil.teacher == "file":
        return traces_of_file(Path(config.distil.labels), taxonomy)
    traces = store.read_columns(making["candidates"], "candidates.parquet", CANDIDATES, CANDIDATE_COLUMNS)
    if config.distil.teacher == "run":
        columns = ["trace_id", "segment", "labels", "rule"]
        rows = store.read_columns(making["annotations"], "annotations.parquet", ANNOTATIONS, columns)
        return traces_of_annotations(rows, traces)
    (person,) = _person(config)
    rated_with = store.manifest(person).fingerprint["labels"]
    check_label_set(rated_with, taxonomy, f"{LABELS_FIELD}: {config.distil.labels}")
    said = store.read_columns(person, HUMAN_LABELS_FILE, HUMAN_LABELS, ["item", "labels"])
    return traces_of_person({str(row.item): tuple(map(str, row.labels)) for row in said.itertuples()}, traces)


def publish_distilled(config: RunConfig, distillation: ArtifactRef) -> ArtifactRef:
    """Make it what ``local/NAME`` stands for, NAME being ``distil.name``; also where that was so before.

    Returns:
        The annotator's own artifact, whose key is the name and the digest of its content.
    """
    store, measured = ArtifactStore(config.storage), read_measured(config, distillation)
    annotator = read_annotator(store.open_file(distillation, WEIGHTS_FILE), store.open_file(distillation, ABOUT_FILE))
    about = {"labels_of": teacher_of(config, distillation), "penalty": measured.penalty, "held_out": measured.in_short}
    parents = store.manifest(distillation).parents
    return publish_annotator(store, config.distil.name, annotator, parents=parents, about=about)


def teacher_of(config: RunConfig, distillation: ArtifactRef) -> str:
    """The artifact whose labels it learned, or the file's name."""
    parents = ArtifactStore(config.storage).manifest(distillation).parents
    artifacts = (f"{each.stage}/{each.key}" for each in parents if each.stage != "candidates")
    return next(artifacts, Path(config.distil.labels).name)


def read_measured(config: RunConfig, distillation: ArtifactRef) -> Measured:
    """What it can do."""
    return Measured.model_validate(ArtifactStore(config.storage).read_json(distillation, MEASURED_FILE))
