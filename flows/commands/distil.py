"""The command ``mralign distil-annotator``: from labels that a run or a person gave to an annotator that asks none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.commands.options import ConfigOption, InputOption, SetOption
from flows.commands.results import console, in_type

if TYPE_CHECKING:
    from mralign_core.config import RunConfig
    from mralign_core.distillation.fitting import LabelledTraces
    from mralign_core.storage import ArtifactRef

commands = typer.Typer()


@commands.command("distil-annotator")
def distil_annotator(
    name: Annotated[str, typer.Option(help="What a config calls it: `annotate.annotator_a: local/NAME`.")],
    config: ConfigOption = "pocket",
    labels: Annotated[
        str,
        typer.Option(
            help="What it learns from: `run` (the last run's consolidated labels), `human/NAME`, or a JSONL file of "
            "labelled traces."
        ),
    ] = "run",
    encoder: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="A sentence-transformers model (a folder or a hub name) whose vectors it sees beside words. "
            "\\[default: words alone]",
        ),
    ] = "",
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Distil an annotator from labels that were paid for, and show how well it labels traces that it did not see.

    It runs on this machine and asks nobody. What it is not sure of goes on to annotator_b and the adjudicator
    (annotate.escalate_below), and `mralign run --dry-run` says what that costs. docs/distilled-annotator.md says more.
    """
    from flows.commands.cli import overrides_of, pairs_of, read_following
    from mralign_core.distillation.fitting import distil
    from mralign_core.distillation.published import check_name, publish_annotator
    from mralign_core.distillation.scores import escalation_curve, score_annotator
    from mralign_core.label_sets import label_set_of
    from mralign_core.models.sentence_encoder import load_sentence_encoder
    from mralign_core.reporting.distillation_tables import escalation_table, scores_table, summary_line
    from mralign_core.storage import ArtifactStore
    from tasks.engine.progress import progress

    check_name(name)
    settings = read_following(config, overrides_of(set_))
    taxonomy = label_set_of(settings).taxonomy
    traces, parents, source = _teaching(settings, labels, pairs_of(input_, "--input"))
    encoder = str(Path(encoder).resolve()) if encoder and Path(encoder).is_dir() else encoder
    encode = load_sentence_encoder(encoder, "--encoder", "leave it out") if encoder else None
    with progress("fitting on folds", "distil") as report:
        made = distil(traces, taxonomy.labels, encode=encode, encoder=encoder, on_progress=report)
    rated = made.held_out[made.is_rated], made.given[made.is_rated], taxonomy.labels
    scores, numbers = score_annotator(*rated), traces.trace_of_segment[made.is_rated]
    about = {"labels_of": source, "penalty": made.penalty, "held_out": _kept(scores)}
    ref = publish_annotator(ArtifactStore(settings.storage), name, made.annotator, parents=parents, about=about)
    console.print(in_type(scores_table(scores), title=f"On folds of {len(traces.texts):,} traces that it did not see"))
    for what in ("segments", "traces"):
        curve = escalation_curve(*rated, numbers, what)
        console.print(in_type(escalation_table(curve), title=f"If the {what} that it is least sure of go on"))
    for line in (summary_line(scores), f"{ref.stage}/{ref.key}; in a config: annotate.annotator_a: local/{name}"):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _teaching(
    settings: RunConfig, labels: str, inputs: Mapping[str, str]
) -> tuple[LabelledTraces, list[ArtifactRef], str]:
    """Traces to learn from, the artifacts that they are of, and where their labels came from."""
    from mralign_core.config.annotate import HUMAN_PREFIX
    from mralign_core.distillation.teaching import traces_of_annotations, traces_of_file, traces_of_person
    from mralign_core.label_sets import label_set_of
    from mralign_core.rating.human_sets import HUMAN_LABELS_FILE, check_label_set, find_human_labels
    from mralign_core.schemas.annotations import ANNOTATIONS
    from mralign_core.schemas.candidates import CANDIDATES
    from mralign_core.schemas.human_labels import HUMAN_LABELS
    from mralign_core.storage import ArtifactStore
    from tasks.engine.one_task import Inputs

    store = ArtifactStore(settings.storage)
    if labels != "run" and not labels.startswith(HUMAN_PREFIX):
        return traces_of_file(Path(labels), label_set_of(settings).taxonomy), [], Path(labels).name
    of = Inputs(settings, inputs)
    candidates = of("candidates")
    traces = store.read_columns(
        candidates, "candidates.parquet", CANDIDATES, ["trace_id", "question_id", "completion", "segments"]
    )
    if labels == "run":
        annotations = of("annotations")
        columns = ["trace_id", "segment", "labels", "rule"]
        rows = store.read_columns(annotations, "annotations.parquet", ANNOTATIONS, columns)
        return traces_of_annotations(rows, traces), [annotations, candidates], f"{annotations.stage}/{annotations.key}"
    person = find_human_labels(store, labels, "--labels")
    check_label_set(
        store.manifest(person).fingerprint["labels"], label_set_of(settings).taxonomy, f"--labels: {labels}"
    )
    said = store.read_columns(person, HUMAN_LABELS_FILE, HUMAN_LABELS, ["item", "labels"])
    by_item = {str(row.item): tuple(map(str, row.labels)) for row in said.itertuples()}
    return traces_of_person(by_item, traces), [person, candidates], f"{person.stage}/{person.key}"


def _kept(scores: Any) -> dict[str, float]:
    return {name: round(float(getattr(scores, name)), 4) for name in ("macro_f1", "accuracy", "calibration_error")}
