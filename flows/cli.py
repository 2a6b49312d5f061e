"""The command ``mralign``: run the pipeline or a stage, debug one task, ask what an artifact was made from."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from flows.server import ServerAddress, use_server, wait_for_records
from mralign_core.config import RunConfig, load_config
from mralign_core.errors import ConfigError, UserError

CONFIGS = Path(__file__).resolve().parent.parent / "deployments" / "configs"
console = Console()
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", help=__doc__)

Stage = StrEnum("Stage", ["prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate"])

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="A name in deployments/configs, or a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one field, e.g. `--set generate.num_draws=5`; may be repeated."),
]


@app.command()
def run(
    config: ConfigOption = "pocket",
    only: Annotated[Stage | None, typer.Option(help="Run one stage on the last run's inputs.")] = None,
    set_: SetOption = None,
    from_traces: Annotated[
        Path | None, typer.Option(help="Start at annotate, from a JSONL file of existing reasoning traces.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is cached and what would be computed.")] = False,
) -> None:
    """Run the pipeline, or one stage of it."""
    overrides = _overrides(set_)
    if from_traces:
        overrides |= {"generate.source": "traces", "generate.traces_path": str(from_traces.resolve())}
    settings = read_config(config, overrides)
    if dry_run:
        _print_plan(settings)
        return
    _check_store(settings)
    if only in (None, Stage.prepare):
        _check_files(settings)
    with use_server() as server:
        from flows import pipeline as pipeline_module

        _log_user_errors_briefly()
        chosen = pipeline_module.pipeline if only is None else _stage_flow(only)
        state = chosen(settings, return_state=True)
        wait_for_records(state)
        if state.is_completed():
            _print_results(settings, server, finished_pipeline=only in (None, Stage.evaluate))
            return
        _fail(state.result(raise_on_failure=False))


@app.command()
def task(
    stage: Annotated[Stage, typer.Argument(help="The stage whose task to run.")],
    config: ConfigOption = "pocket",
    shard: Annotated[int, typer.Option(min=0, help="Which shard (generate, annotate).")] = 0,
    variant: Annotated[str, typer.Option(help="Which variant (train, evaluate).")] = "mr_align",
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="Use this artifact, e.g. `--input candidates=candidates/3f9a`; may be repeated."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Run one task in this process, with no server, on the last run's inputs: for a debugger.

    The result is published like any other, so a later run finds it cached.
    """
    from flows.one_task import run_one

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = read_config(config, _overrides(set_))
    _check_store(settings)
    ref = run_one(settings, str(stage), shard=shard, variant=variant, named=_pairs(input_, "--input"))
    console.print_json(ref.model_dump_json())


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
    from tasks.runs import last_run

    settings = read_config(config, _overrides(set_))
    store = ArtifactStore(settings.storage)
    console.print(render_lineage(store.lineage(artifact or last_run(settings, "report"))), soft_wrap=True)


def read_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Load a config by its name in ``deployments/configs`` or by its path.

    Raises:
        ConfigError: there is no such config, or it is not valid.
    """
    named = CONFIGS / f"{name_or_path}.yaml"
    if named.exists():
        return load_config(named, overrides)
    if not Path(name_or_path).exists():
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"no config {name_or_path!r}: give a YAML file or one of {names}")
    return load_config(name_or_path, overrides)


def main() -> None:
    """Console script: errors that a user can act on are one message, not a traceback."""
    logging.getLogger("mralign_core").setLevel(logging.INFO)
    try:
        app()
    except UserError as error:
        _fail(error)


def _stage_flow(stage: Stage) -> Callable[..., Any]:
    from importlib import import_module

    return getattr(import_module(f"flows.{stage}"), str(stage))  # type: ignore[no-any-return]


def _log_user_errors_briefly() -> None:
    """Keep Prefect from logging a traceback, at every level of the run, for an error that is the user's to mend."""

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UserError):
            record.exc_info = None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_traceback)


def _check_store(config: RunConfig) -> None:
    from mralign_core.storage import ArtifactStore

    ArtifactStore(config.storage).check_writable()


def _check_files(config: RunConfig) -> None:
    """Read the user's files before a server is started, which takes half a minute on a busy machine."""
    from mralign_core.questions import read_jsonl, read_question_sets

    if config.questions.source == "file":
        read_question_sets(config.questions, needs_train=config.generate.source == "sample")
    if config.generate.source == "traces":
        read_jsonl(config.generate.traces_path, "generate.traces_path")


def _overrides(items: list[str] | None) -> dict[str, Any]:
    return dict(_pairs(items, "--set"))


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ConfigError(f"{option} takes name=value, got {item!r}")
        pairs[name] = value
    return pairs


def _print_plan(config: RunConfig) -> None:
    from tasks.planning import plan

    table = Table("stage", "artifact", "status", "key", title=f"config {config.name!r}: nothing is run")
    for planned in plan(config):
        key = planned.found.key[:12] if planned.found else ""
        table.add_row(planned.stage, planned.name, planned.status, key, style="dim" if planned.found else "")
    console.print(table)


def _print_results(config: RunConfig, server: ServerAddress, *, finished_pipeline: bool) -> None:
    from tasks.runs import last_run

    if not finished_pipeline:
        console.print("done")
        return
    from mralign_core.storage import ArtifactStore

    store = ArtifactStore(config.storage)
    folder = store.open_directory(last_run(config, "report"))
    _print_summary(folder)
    rows: dict[str, object] = {"report": folder / "report.html", "artifacts": store.root_uri}
    for variant in config.train.variants:
        rows[f"adapter {variant}"] = store.open_directory(last_run(config, f"adapter:{variant}"))
    rows["this run in the UI"] = server.ui_hint
    for name, where in rows.items():
        # A path is for copying: it is never cut or wrapped, however narrow the terminal.
        console.print(f"[bold]{name:<20}[/bold]{where}", soft_wrap=True, highlight=False)


def _print_summary(folder: Path) -> None:
    import pandas as pd

    from mralign_core.evaluation.findings import summary_table

    if not (folder / "summary.json").exists():
        console.print("nothing was evaluated: questions.eval_path is empty")
        return
    summary, differences = (
        pd.DataFrame(json.loads((folder / f"{n}.json").read_text())) for n in ("summary", "differences")
    )
    console.print(summary_table(summary, differences))


def _fail(error: object) -> NoReturn:
    if isinstance(error, UserError):
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/bold red]: {error}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    if isinstance(error, BaseException):
        raise error
    sys.exit(f"the run did not complete: {error}")


if __name__ == "__main__":
    main()
