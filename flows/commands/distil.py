"""The command ``mralign distil-annotator``: from labels that a run or a person gave to an annotator that asks none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.commands.ending import run_flow
from flows.commands.options import ConfigOption, InputOption, SetOption
from flows.commands.results import console, in_type
from flows.commands.server import use_server

if TYPE_CHECKING:
    from mralign_core.config import RunConfig
    from mralign_core.storage import ArtifactRef

commands = typer.Typer()


@commands.command("distil-annotator")
def distil_annotator(
    name: Annotated[
        str,
        typer.Option(help="What a config calls it: `annotate.annotator_a: local/NAME`. \\[default: `distil.name`]"),
    ] = "",
    config: ConfigOption = "pocket",
    labels: Annotated[
        str,
        typer.Option(
            help="What it learns from: `run` (the last run's consolidated labels), `human/NAME`, or a JSONL file of "
            "labelled traces. \\[default: `distil.labels`, which is `run`]"
        ),
    ] = "",
    encoder: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="What gives vectors that it sees beside words: a folder with a causal language model, which reads "
            "whole traces, or a sentence-transformers model (a folder or a hub name). "
            "\\[default: `distil.encoder`, words alone]",
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
    from mralign_core.distillation.published import check_name
    from mralign_core.storage import ArtifactStore
    from tasks.distil_annotator import learns_from
    from tasks.engine.one_task import Inputs

    if name:
        check_name(name)
    given = {"distil.name": name, "distil.labels": labels, "distil.encoder": encoder}
    options = {field: json.dumps(value, ensure_ascii=False) for field, value in given.items() if value}
    settings = read_following(config, {**overrides_of(set_), **options})
    of = Inputs(settings, pairs_of(input_, "--input"))
    inputs = {each: of(each) for each in learns_from(settings)}
    ArtifactStore(settings.storage).check_writable()
    with use_server():
        from flows.distil_annotator import distil_annotator as flow

        _print(settings, inputs, run_flow(flow, settings, **inputs).result())


def _print(settings: RunConfig, inputs: dict[str, ArtifactRef], annotator: ArtifactRef) -> None:
    """What it can do, by label and if some of its labels go on, and what a config calls it."""
    from mralign_core.reporting.distillation_tables import escalation_table, scores_table, summary_line
    from tasks.distil_annotator import distil_labels, read_measured

    measured = read_measured(settings, distil_labels.work(settings, **inputs).produce().ref)
    title = f"On folds of {measured.traces:,} traces that it did not see"
    console.print(in_type(scores_table(measured.scores), title=title))
    for what, curve in (("segments", measured.if_segments_go_on), ("traces", measured.if_traces_go_on)):
        console.print(in_type(escalation_table(curve), title=f"If the {what} that it is least sure of go on"))
    in_config = f"{annotator.stage}/{annotator.key}; in a config: annotate.annotator_a: local/{settings.distil.name}"
    for line in (summary_line(measured.scores), in_config):
        console.print(escape(line), highlight=False, soft_wrap=True)
