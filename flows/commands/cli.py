"""The command ``mralign``: run the pipeline or a stage, debug one task, ask what an artifact was made from."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands.distil import commands as distil_commands
from flows.commands.doctor import commands as doctor_commands
from flows.commands.ending import last_words, run_flow
from flows.commands.options import ConfigOption, InputOption, SetOption
from flows.commands.rate import commands as rate_commands
from flows.commands.results import (
    console,
    in_type,
    print_ablation,
    print_agreement,
    print_generation,
    print_label_set,
    print_left_out,
    print_plan,
    print_questions,
    print_results,
)
from flows.commands.server import EMBEDDED, ui_link, use_server
from flows.commands.store_commands import commands as store_commands
from flows.commands.view import commands as view_commands
from mralign_core.config import RunConfig, Variant, load_config
from mralign_core.config.presets import PRESETS, preset_names
from mralign_core.errors import ConfigError, UserError
from mralign_core.exporting.paths import is_export, traces_file
from mralign_core.processes.stopping import EndingOnSignals
from mralign_core.redaction import redact_logs

if TYPE_CHECKING:
    from mralign_core.exporting.trainer_formats import DataFormat
    from mralign_core.storage import ArtifactRef

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", help=__doc__)
app.add_typer(store_commands)
app.add_typer(view_commands)
app.add_typer(rate_commands)
app.add_typer(doctor_commands)
app.add_typer(distil_commands)

Stage = StrEnum("Stage", ["prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate"])


def _path(text: str) -> Path:
    """A path of the command line; shells leave ``~`` as it is behind a ``=``."""
    return Path(text).expanduser()


def _target(text: str) -> Path:
    """Where a file is to be written.

    Raises:
        typer.BadParameter: nothing can be written there.
    """
    path = _path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise typer.BadParameter(f"{text}: name a file in a folder that exists")
    return path


AskAgainOption = StrEnum("AskAgainOption", ["auto", "failed", "never"])

DataFormatOption = StrEnum(
    "DataFormatOption",
    {"parquet": "parquet", "trl": "trl", "llama_factory": "llama-factory", "axolotl": "axolotl"},
)

AliasOption = Annotated[str, typer.Option("--alias", help="Which alias; without it, the config's `retrain.alias`.")]


@app.command()
def run(
    config: ConfigOption = "pocket",
    only: Annotated[Stage | None, typer.Option(help="Run one stage on the last run's inputs.")] = None,
    set_: SetOption = None,
    from_traces: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
            metavar="PATH",
            help="Start at annotate, from a JSONL file of existing reasoning traces, or a folder of `export-data`.",
        ),
    ] = None,
    ask_again: Annotated[
        AskAgainOption | None,
        typer.Option(
            help="Of the traces, and the draws of a server, that failed: ask again, refused traces too, or none."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is cached and what would be computed.")] = False,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1, help="With --dry-run: tokens a second of one host, to tell what sampling would take."),
    ] = None,
) -> None:
    """Run the pipeline, or one stage of it."""
    overrides = overrides_of(set_)
    if from_traces:
        overrides |= _from_traces(traces_file(from_traces.absolute()))
    settings = read_config(config, overrides) if only in (None, Stage.prepare) else read_following(config, overrides)
    if ask_again:
        settings = asking_again(settings, str(ask_again))
    _check_training(settings)
    if dry_run:
        _check_traces(settings)
        print_plan(settings, tokens_per_second)
        return
    _check_store(settings)
    _check_label_set(settings)
    if only in (None, Stage.prepare):
        _check_files(settings)
    with use_server() as server:
        from flows import pipeline as pipeline_module

        chosen = pipeline_module.pipeline if only is None else _stage_flow(only)
        state = run_flow(chosen, settings)
        if state.is_completed():
            run_id = str(state.state_details.flow_run_id)
            if only == Stage.generate:
                print_generation(settings, run_id)
            if only in (None, Stage.annotate):
                print_left_out(settings, run_id)
            print_results(settings, server, run=run_id, finished_pipeline=only in (None, Stage.evaluate))
            return
        _fail(state.result(raise_on_failure=False))


@app.command()
def ui() -> None:
    """Print the link that opens the UI of `make serve` in a browser: it holds what lets you in."""
    console.print(ui_link(), soft_wrap=True, highlight=False, markup=False)


@app.command()
def questions(config: ConfigOption = "pocket", set_: SetOption = None) -> None:
    """Read the question sets of a config and show what is in them, and which questions stand in two; nothing is run."""
    print_questions(read_config(config, overrides_of(set_)))


@app.command()
def task(
    stage: Annotated[str, typer.Argument(help="A stage of the pipeline, whose main task is run, or an artifact.")],
    config: ConfigOption = "pocket",
    shard: Annotated[
        int, typer.Option(min=0, help="Which shard, of those that a run would use (generate, annotate, evaluate).")
    ] = 0,
    variant: Annotated[str, typer.Option(help="Which variant (train, evaluate).")] = "mr_align",
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Run one task in this process, with no server, on the last run's inputs: for a debugger.

    The result is published like any other, so a later run finds it cached.
    """
    from tasks.engine.one_task import run_one

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = read_following(config, overrides_of(set_))
    if stage in (Stage.train, "adapter", "reference-logps"):
        _check_training(settings)
    _check_store(settings)
    ref = run_one(settings, stage, shard=shard, variant=variant, named=pairs_of(input_, "--input"))
    console.print_json(ref.model_dump_json())


@app.command("compare-annotators")
def compare_annotators(
    config: ConfigOption = "pocket",
    sheet: Annotated[
        list[Path] | None,
        typer.Option(
            parser=_path,
            metavar="PATH",
            help="A filled sheet of a human rater, besides compare.sheets; may be repeated.",
        ),
    ] = None,
    write_sheet: Annotated[
        Path | None,
        typer.Option(
            parser=_target, metavar="PATH", help="Write a blinded sheet (CSV, with instructions beside it) and stop."
        ),
    ] = None,
    traces: Annotated[int, typer.Option(min=1, help="Traces in the sheet.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses and shuffles the sheet's traces.")] = 0,
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Compare the run's annotators with other panels (compare.panels) and with people.

    Works on the last run's candidates and annotations. It prints agreement and κ of every two annotation sets, and what
    exchanging them does to P and to the weights. With `--write-sheet` it writes a sheet for a human rater instead.
    """
    overrides = overrides_of(set_)
    settings = read_following(config, overrides)
    if sheet:
        sheets = [*settings.compare.sheets, *(str(path.resolve()) for path in sheet)]
        settings = read_following(config, {**overrides, "compare.sheets": sheets})
    from tasks.engine.one_task import Inputs

    of = Inputs(settings, pairs_of(input_, "--input"))
    if write_sheet:
        _write_sheet(settings, of("candidates"), write_sheet, traces, seed)
        return
    inputs = {name: of(name) for name in ("candidates", "annotations")}
    _check_store(settings)
    with use_server() as server:
        from flows.compare_annotators import compare_annotators as flow

        state = run_flow(flow, settings, **inputs)
        if not state.is_completed():
            _fail(state.result(raise_on_failure=False))
        print_agreement(settings, state.result(), server)


@app.command("judge-sheet")
def judge_sheet(
    config: ConfigOption = "pocket",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_target, metavar="PATH", help="Write a blinded sheet (CSV, with instructions beside it) and stop."
        ),
    ] = None,
    in_: Annotated[Path | None, typer.Option("--in", parser=_path, metavar="PATH", help="Read a filled sheet.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="With --out: questions in the sheet, all variants' answers.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="With --out: seed that chooses and shuffles.")] = 0,
    half_width: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="With --in: advise on intervals of ± this share.")
    ] = 0.03,
    judge: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="With --in: compare people with this judge, a model of judge.endpoints or exact_match. "
            "\\[default: the judges' vote where they judge a set, else exact match]",
        ),
    ] = "",
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Have people judge a sample of the last run's answers, and correct the judge's rates by it.

    The judge is the vote of the judges on the sets that they judge, and exact match on the others; `--judge` names
    another. `--out` writes the sheet; `--in` prints, for right, truthful and informative by themselves, Cohen's κ of
    people and judge, each variant's share corrected by the people's sample, and how many more to judge.
    docs/deciding.md says how.
    """
    from flows.commands.judge_sheet import read, write
    from tasks.engine.one_task import Inputs

    if (out is None) == (in_ is None):
        raise ConfigError("judge-sheet: give --out PATH to write a sheet, or --in PATH to read one")
    if out and judge:
        raise ConfigError("judge-sheet: --judge goes with --in; the sheet is the same whoever the judge")
    settings = read_following(config, overrides_of(set_))
    of = Inputs(settings, pairs_of(input_, "--input"))
    if out:
        written = write(settings, of, out, sample, seed)
        console.print(f"{written.num_items} answers to {written.num_questions} questions:", highlight=False)
        for name, path in (("sheet", written.sheet), ("instructions", written.instructions)):
            console.print(f"[bold]{name:<20}[/bold]{path}", soft_wrap=True, highlight=False)
        console.print("read it back with --in, with the same config and run", highlight=False)
    elif in_:
        from mralign_core.reporting.people_findings import THE_JUDGE, variants_left_out

        sheet, tables, advice = read(settings, of, in_, half_width, judge)
        console.print(f"{sheet.num_items} answers in the sheet, {sheet.num_not_judged} not judged", highlight=False)
        for line in variants_left_out(sheet):
            console.print(escape(line), highlight=False, soft_wrap=True)
        console.print(f"people are compared with {escape(judge or THE_JUDGE)}", highlight=False)
        for table in tables:
            console.print(in_type(table))
        console.print(escape(advice), highlight=False, soft_wrap=True)


@app.command()
def sensitivity(
    config: ConfigOption = "pocket",
    figure: Annotated[
        Path, typer.Option(parser=_target, metavar="PATH", help="Where to write the figure (PNG).")
    ] = Path("sensitivity.png"),
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Show how far the weights move with another damping, prior or clip, on the last run's labels; needs no server."""
    from mralign_core.estimation.diagnostics import OF_LABEL_SETS
    from mralign_core.reporting.diagnostic_figures import sensitivity_curves
    from mralign_core.reporting.diagnostic_findings import sensitivity_table
    from mralign_core.reporting.result_table import ResultTable
    from mralign_core.reporting.style import to_png
    from tasks.engine.one_task import Inputs
    from tasks.estimate import names_of_traces, sensitivity_of

    settings = read_following(config, overrides_of(set_))
    of = Inputs(settings, pairs_of(input_, "--input"))
    found = sensitivity_of(settings, *map(of, names_of_traces(settings)))
    title = f"config {settings.name!r}: shift in w against this run's settings"
    console.print(in_type(ResultTable.from_frame(sensitivity_table(found)), title=title))
    if settings.estimate.estimator == "hidden":
        console.print(OF_LABEL_SETS)
    figure.write_bytes(to_png(sensitivity_curves(found)))
    console.print(f"[bold]{'figure':<20}[/bold]{figure.resolve()}", soft_wrap=True, highlight=False)


@app.command("induce-taxonomy")
def induce_taxonomy(
    config: ConfigOption = "pocket",
    output: Annotated[
        Path | None, typer.Option(parser=_target, metavar="PATH", help="Copy the label set to this file too.")
    ] = None,
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Induce a label set from the last run's traces, to use in place of the paper's 15 labels (section `induce`)."""
    from tasks.engine.one_task import Inputs

    settings = read_following(config, overrides_of(set_))
    candidates = Inputs(settings, pairs_of(input_, "--input"))("candidates")
    _check_store(settings)
    with use_server() as server:
        from flows.induce_taxonomy import induce_taxonomy as flow

        state = run_flow(flow, settings, candidates)
        if not state.is_completed():
            _fail(state.result(raise_on_failure=False))
        print_label_set(settings, state.result(), output, server)


@app.command()
def ablate(
    config: ConfigOption = "pocket",
    worlds: Annotated[int | None, typer.Option(min=1, help="Pocket worlds; in place of ablate.num_worlds.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Alignment seeds in each world; in place of ablate.num_seeds.")
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Arms to train, e.g. `kto,mr_align,placebo_within`; in place of ablate.arms.")
    ] = "",
    set_: SetOption = None,
) -> None:
    """Train several arms, over worlds and seeds, and print their paired differences with intervals.

    Think-off and think-on are scored besides. Finished parts are found in the store: run it again to go on, or with
    more worlds to add to them. Arms have the run's traces and model but where they say so. docs/ablations.md says what
    each arm is.
    """
    given = {"num_worlds": worlds, "num_seeds": seeds, "arms": _names(arms)}
    overrides = {f"ablate.{name}": value for name, value in given.items() if value is not None}
    settings = read_following(config, {**overrides_of(set_), **overrides})
    from mralign_core.ablation.grid import arms_of

    arms_of(settings)
    _check_store(settings)
    _check_label_set(settings)
    _check_training(settings)
    _check_files(settings)
    with use_server() as server:
        from flows.ablate import ablate as flow

        state = run_flow(flow, settings)
        if not state.is_completed():
            _fail(state.result(raise_on_failure=False))
        print_ablation(settings, state.result(), server)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(parser=_path, metavar="DIRECTORY", help="A new or empty folder.")],
    config: ConfigOption = "pocket",
    version: Annotated[
        str, typer.Option("--version", help="An alias, or a version's name or key, or the beginning of one.")
    ] = "",
    variant: Annotated[
        Variant | None, typer.Option(help="Which trained variant; of the last run, unless the alias names one of it.")
    ] = None,
    alias: AliasOption = "",
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole model, the adapter merged into it.")] = False,
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Write a trained adapter to a folder, its card completed with its results.

    It is that of the version that the config's `retrain.alias` names, or `--alias`; where the config's names none, that
    of the last run (mr_align unless `--variant` says another). The first line says which it was, and by which alias.

    vLLM serves it with `vllm serve MODEL --enable-lora --max-lora-rank 32 --lora-modules mr_align=DIRECTORY`, and what
    `--merge` writes with `vllm serve DIRECTORY`. Merging rounds the update to the model's precision; docs/training.md
    says what that costs.
    """
    from flows.commands.export import choose
    from flows.commands.export import export as write
    from tasks.engine.one_task import Inputs

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    settings, named = read_following(config, overrides_of(set_)), pairs_of(input_, "--input")
    chosen = choose(settings, version, variant, named, alias)
    target = directory.resolve()
    found = write(settings, Inputs(settings, named), chosen, target, merge=merge)
    rows = {"version": chosen.why, "merged model" if merge else "adapter": target}
    rows |= {"results": found.results, "serve it": found.serve}
    for name, text in (rows | ({"precision": found.rounding} if merge else {})).items():
        console.print(f"[bold]{name:<20}[/bold]{escape(str(text))}", soft_wrap=True, highlight=False)


@app.command("export-data")
def export_data(
    directory: Annotated[Path, typer.Argument(parser=_path, metavar="DIRECTORY", help="A new or empty folder.")],
    config: ConfigOption = "pocket",
    format_: Annotated[
        DataFormatOption,
        typer.Option("--format", help="`parquet` has everything; the others what that trainer's KTO reads."),
    ] = DataFormatOption.parquet,
    version: Annotated[
        str, typer.Option("--version", help="The data behind a version: an alias, a name, or the beginning of a key.")
    ] = "",
    licence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SET=]LICENCE",
            help="Licence of a question set (as `questions.train` states it), or of the whole; may be repeated.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it too, to a private data set.")
    ] = "",
    input_: InputOption = None,
    set_: SetOption = None,
) -> None:
    """Write the last run's kept traces, with labels and weights, as a data set: Parquet, card and provenance.

    `load_dataset("DIRECTORY")` reads it, and so does `mralign run --from-traces DIRECTORY`, without loss. Nothing
    leaves this machine without `--push-to-hub`. docs/exporting-data.md says what each column and format is.
    """
    from flows.commands.export_data import export_data as write
    from flows.commands.export_data import facts_of, find_data, stated_licences
    from tasks.engine.progress import progress

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    settings, named = read_following(config, overrides_of(set_)), pairs_of(input_, "--input")
    licences = stated_licences(licence or [])
    source, target = find_data(settings, named, version), directory.resolve()
    data_format = cast("DataFormat", str(format_))
    with progress("exporting traces", "export-data") as report:
        export = write(settings, source, target, data_format, licences, report)
    for name, text in facts_of(export, target, source.missing):
        console.print(f"[bold]{name:<20}[/bold] {escape(text)}", soft_wrap=True, highlight=False)
    if push_to_hub:
        from mralign_core.exporting.hub import push_data_set

        pushed = push_data_set(target, push_to_hub)
        console.print(f"[bold]{'pushed':<20}[/bold]{escape(pushed)}", soft_wrap=True, highlight=False)


@app.command()
def versions(
    config: ConfigOption = "pocket",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Print every move of every alias too.")] = False,
    sync: Annotated[
        bool, typer.Option("--sync", help="Instead, tell `retrain.registry` what it lacks of versions and aliases.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """List the versions in a config's store, the newest first: every trained adapter that was evaluated.

    An alias such as `champion` names one of them; `promote` and `rollback` move it. Commands go by the config's
    `retrain.alias`, which is told below the list. docs/retraining.md says more.
    """
    from flows.commands.versions import print_versions, sync_registry

    settings = read_following(config, overrides_of(set_))
    if sync:
        sync_registry(settings)
    else:
        print_versions(settings, as_json=json_, with_history=history)


VersionArgument = Annotated[str, typer.Argument(help="An alias, or a version's name or key, or the beginning of one.")]
WhyOption = Annotated[str, typer.Option("--why", help="A reason, for the history.")]


@app.command()
def show(version: VersionArgument = "", config: ConfigOption = "pocket", set_: SetOption = None) -> None:
    """Show all about one version: scores, what it was made from, what it cost, and which aliases named it.

    Without a name it is the version that the config's `retrain.alias` names.
    """
    from flows.commands.versions import print_version

    print_version(read_following(config, overrides_of(set_)), version)


@app.command()
def diff(
    before: VersionArgument, after: VersionArgument, config: ConfigOption = "pocket", set_: SetOption = None
) -> None:
    """Show what sets two versions apart: config, data, labels, weights, scores, and the answers that flipped."""
    from flows.commands.versions import print_differences

    print_differences(read_following(config, overrides_of(set_)), before, after)


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Versions, aliases, or names of configs (their last run). \\[default: the newest six]"),
    ] = None,
    config: ConfigOption = "pocket",
    set_: SetOption = None,
) -> None:
    """Show versions side by side, newest first: scores, what each moved against think-on, parameters that differ.

    Deployment `tool-compare` shows the same in the UI, with the trend of retrainings. `mralign diff` says more of two.
    """
    from flows.commands.versions import print_side_by_side

    print_side_by_side(read_following(config, overrides_of(set_)), names or [])


@app.command()
def promote(
    version: VersionArgument,
    alias: AliasOption = "",
    why: WhyOption = "",
    config: ConfigOption = "pocket",
    set_: SetOption = None,
) -> None:
    """Have an alias name a version, once all its files were read and are as written."""
    from flows.commands.versions import promote as move

    move(read_following(config, overrides_of(set_)), version, alias, why)


@app.command()
def rollback(
    alias: AliasOption = "", why: WhyOption = "", config: ConfigOption = "pocket", set_: SetOption = None
) -> None:
    """Have an alias name the version that it named before; again, the one before that."""
    from flows.commands.versions import rollback as move_back

    move_back(read_following(config, overrides_of(set_)), alias, why)


@app.command()
def retrain(config: ConfigOption = "pocket", set_: SetOption = None) -> None:
    """Run the pipeline on what is new, and promote its model if it is shown to be better than the champion.

    Section `retrain` of the config says what must be shown. Deployment `weekly-retrain` does the same on a schedule.
    """
    from mralign_core.retraining.checks import check_retraining

    settings = read_config(config, overrides_of(set_))
    check_retraining(settings)
    _check_training(settings)
    _check_store(settings)
    _check_label_set(settings)
    _check_files(settings)
    with use_server() as server:
        from flows.commands.asking import ask_at_terminal
        from flows.weekly_retrain import asks_here, weekly_retrain

        if settings.retrain.mode == "ask" and server is EMBEDDED:
            asks_here.set(ask_at_terminal)
            console.print("before a promotion you are asked here: an embedded server has no page", highlight=False)
        elif settings.retrain.mode == "ask":
            console.print("a promotion waits for the form on its run's page (Resume)", highlight=False)
        state = run_flow(weekly_retrain, settings)
        if not state.is_completed():
            _fail(state.result(raise_on_failure=False))
        console.print(escape(state.result()), highlight=False, soft_wrap=True)


@app.command()
def lineage(
    artifact: Annotated[
        str, typer.Argument(help="URI, stage/key, or the beginning of a key; the last run's report by default.")
    ] = "",
    config: ConfigOption = "pocket",
    set_: SetOption = None,
) -> None:
    """Show what an artifact was made from."""
    from mralign_core.storage import ArtifactStore, render_lineage
    from tasks.engine.last_run import last_run

    settings = read_following(config, overrides_of(set_))
    store = ArtifactStore(settings.storage)
    console.print(render_lineage(store.lineage(artifact or last_run(settings, "report"))), soft_wrap=True)


@app.command()
def graph() -> None:
    """Print what is made from what, as a Mermaid flowchart (dashed: under some configs only); needs no config."""
    from tasks.engine.graph import mermaid

    console.print(mermaid(), highlight=False, markup=False, soft_wrap=True)


def read_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Load a config by its name in ``deployments/configs`` or by its path.

    Raises:
        ConfigError: there is no such config, or it is not valid.
    """
    named = PRESETS / f"{name_or_path}.yaml"
    if named.exists():
        return load_config(named, overrides)
    if not Path(name_or_path).expanduser().exists():
        names = ", ".join(preset_names())
        raise ConfigError(f"no config {name_or_path!r}: give a YAML file or one of {names}")
    return load_config(name_or_path, overrides)


def asking_again(settings: RunConfig, policy: str) -> RunConfig:
    """The config with another choice of what is asked again, for draws too where a server samples."""
    changed: dict[str, Any] = {"annotate": settings.annotate.model_copy(update={"ask_again": policy})}
    if settings.generate.sampler == "endpoint":  # a draw that was refused is an answer: there is no "failed" for them
        of_draws = "never" if policy == "never" else "auto"
        changed["generate"] = settings.generate.model_copy(update={"ask_again": of_draws})
    return settings.model_copy(update=changed)


def read_following(name_or_path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Load the config of a command that follows a run: if that started from a file of traces, so does this.

    Raises:
        ConfigError: as :func:`read_config`.
    """
    from tasks.engine.last_run import last_traces

    given = dict(overrides or {})
    try:
        settings = read_config(name_or_path, given)
    except ConfigError as error:
        try:
            probe = read_config(name_or_path, {**given, **_from_traces("unknown")})
        except ConfigError:
            raise error from None
        if not last_traces(probe):
            raise
    else:
        probe = settings
        if settings.generate.source == "traces" or "generate.source" in given or not last_traces(settings):
            return settings
    traces = last_traces(probe)
    logging.getLogger("mralign_core.cli").info(
        "the last run of %r started from the traces in %s, and this goes on from it", probe.name, traces
    )
    return read_config(name_or_path, {**given, **_from_traces(traces)})


def _from_traces(path: str) -> dict[str, str]:
    """Overrides that start a run from a file; strings are read as YAML, and a path may look like something else."""
    return {"generate.source": "traces", "generate.traces_path": json.dumps(path, ensure_ascii=False)}


def main() -> None:
    """Console script: errors that a user can act on are one message, not a traceback; signals end it in seconds."""
    with EndingOnSignals(last_words):
        logging.getLogger("mralign_core").setLevel(logging.INFO)
        redact_logs()
        try:
            app()
        except UserError as error:
            _fail(error)


def _stage_flow(stage: Stage) -> Callable[..., Any]:
    from importlib import import_module

    return getattr(import_module(f"flows.{stage}"), str(stage))


def _check_store(config: RunConfig) -> None:
    from mralign_core.storage import ArtifactStore

    ArtifactStore(config.storage).check_writable()


def _check_files(config: RunConfig) -> None:
    """Read the user's files before a server is started, which takes half a minute on a busy machine."""
    from mralign_core.intake import resolve
    from mralign_core.questions.loading import read_question_sets
    from mralign_core.storage import ArtifactStore

    found = resolve(config, ArtifactStore(config.storage))
    if not (found.recalled and _were_read(found.config)):
        read_question_sets(found.config.questions, config.model.pocket, config.judge)
    _check_traces(config)


def _were_read(config: RunConfig) -> bool:
    """Whether the questions are in the store: what can't be reached now is not read again."""
    from tasks.engine.plan import is_made

    return is_made(config, "evaluation-questions")


def _check_traces(config: RunConfig) -> None:
    """Refuse a file of traces, or warn of it, before anything is paid for."""
    if config.generate.source == "traces" and is_export(config.generate.traces_path):
        from mralign_core.exporting.restoring import check_export, require_labels
        from mralign_core.label_sets import label_set_of

        check_export(config.generate.traces_path)
        if config.annotate.source == "traces":
            labels = label_set_of(config).taxonomy.labels
            require_labels(config.generate.traces_path, labels, "annotate.source")
    elif config.annotate.source == "traces":
        raise ConfigError(
            f"annotate.source 'traces': {config.generate.traces_path} is no export, and has no labels: remove it, or "
            "name the folder of `mralign export-data`"
        )
    elif config.generate.source == "traces":
        from mralign_core.generation.importing import check_traces
        from mralign_core.models.families import named_family

        family = None if config.model.family == "auto" else named_family(config.model.family)
        check_traces(config.generate.traces_path, config.generate, config.match.rules, family)


def _check_training(config: RunConfig) -> None:
    """Refuse, before hours of other work, curves that need a package and launch files that can't be followed.

    What a worker of the pool trains, it checks itself: its host has packages and files of its own.
    """
    if config.train.where != "inline":
        return
    # Both import PyTorch, which takes seconds: only where there is something to refuse.
    if config.train.report_to == "wandb":
        from mralign_core.training.curves import check_curves

        check_curves(config.train)
    if config.train.accelerate_config:
        from mralign_core.processes.launch import read_accelerate_config

        read_accelerate_config(config.train.accelerate_config)


def _check_label_set(config: RunConfig) -> None:
    from mralign_core.label_sets import label_set_of

    label_set_of(config)


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def overrides_of(items: list[str] | None) -> dict[str, Any]:
    """What ``--set`` options override, by field.

    Raises:
        ConfigError: one is not ``name=value``.
    """
    return dict(pairs_of(items, "--set"))


def pairs_of(items: list[str] | None, option: str) -> dict[str, str]:
    """What an option that may be repeated says, by name.

    Raises:
        ConfigError: one is not ``name=value``.
    """
    pairs = {}
    for item in items or []:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ConfigError(f"{option} takes name=value, got {item!r}")
        pairs[name] = value
    return pairs


def _write_sheet(config: RunConfig, candidates: ArtifactRef, path: Path, num_traces: int, seed: int) -> None:
    import numpy as np

    from mralign_core.comparison.sheets import write_sheet
    from mralign_core.label_sets import label_set_of
    from mralign_core.storage import ArtifactStore

    rows = ArtifactStore(config.storage).read_table(candidates, "candidates.parquet")
    taxonomy = label_set_of(config).taxonomy
    written = write_sheet(path, rows, taxonomy, num_traces=num_traces, rng=np.random.default_rng(seed))
    console.print(f"{written.num_items} segments of {written.num_traces} traces (of {len(rows)}):", highlight=False)
    console.print(f"[bold]{'sheet':<20}[/bold]{written.sheet}", soft_wrap=True, highlight=False)
    console.print(f"[bold]{'instructions':<20}[/bold]{written.instructions}", soft_wrap=True, highlight=False)
    console.print("read it back with --sheet, on the same candidates", highlight=False)


def _fail(error: object) -> NoReturn:
    from mralign_core.llm.faults import EndpointUnavailableError

    if isinstance(error, UserError | EndpointUnavailableError):
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/bold red]: {error}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    if isinstance(error, BaseException):
        raise error
    sys.exit(f"the run did not complete: {error}")


if __name__ == "__main__":
    main()
