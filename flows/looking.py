"""Commands that only look at something, for who has the UI and no shell: what they print is the run's artifact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prefect import flow

from flows.form import EvaluateForm, ExportForm, LineageForm, PipelineForm, QuestionsForm
from mralign_core.config import RunConfig
from mralign_core.errors import UserError
from mralign_core.storage import ArtifactStore
from mralign_core.versions.naming import named_versions
from tasks.engine.naming import ids_of_runs, name_run
from tasks.publish import show_output, show_picture, show_side_by_side, show_trend

COLUMNS = "120"


class CommandError(UserError):
    """A command of the shell did not do what it was asked; the message is what it said."""


@flow(name="questions", flow_run_name=name_run)
def questions(config: QuestionsForm) -> None:
    """Read the question sets and show what is in them; nothing is run.

    Args:
        config: a preset, and what differs from it.
    """
    show_output("questions", "What is in the question sets", _said(config, ["questions"]))


@flow(name="dry-run", flow_run_name=name_run)
def dry_run(config: PipelineForm, tokens_per_second: float | None = None) -> None:
    """Tell what a run would find in the store and what it would compute: requests, tokens, dollars, hours.

    Args:
        config: a preset, and what differs from it.
        tokens_per_second: of one host, to tell what sampling would take.
    """
    rate = ["--tokens-per-second", str(tokens_per_second)] if tokens_per_second else []
    show_output("dry-run", "What a run would do, and cost", _said(config, ["run", "--dry-run", *rate]))


@flow(name="lineage", flow_run_name=name_run)
def lineage(config: LineageForm, artifact: str = "") -> None:
    """Show what an artifact was made from.

    Args:
        config: a preset, and what differs from it.
        artifact: URI, stage/key, or the beginning of a key; the last run's report when empty.
    """
    show_output("lineage", "What it was made from", _said(config, ["lineage", *filter(None, [artifact])]))


@flow(name="sensitivity", flow_run_name=name_run)
def sensitivity(config: EvaluateForm) -> None:
    """Show how far the weights move with another damping, prior or clip, on the last run's labels.

    Args:
        config: a preset, and what differs from it.
    """
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder, "sensitivity.png")
        said = _said(config, ["sensitivity", "--figure", str(figure)])
        show_output("sensitivity", "Shift in w against this run's settings", said.partition("figure  ")[0])
        show_picture("sensitivity-figure", "Shift in w with other settings", figure.read_bytes())


@flow(name="compare", flow_run_name=name_run)
def compare(config: LineageForm, runs: str = "") -> None:
    """Show versions side by side: scores, parameters that differ; and the trend over retrainings of this config's name.

    Args:
        config: a preset, and what differs from it.
        runs: names of runs, of configs (their last run), of versions or aliases, with blanks between; the newest few
            versions when empty.
    """
    names = runs.split()
    run_ids = {name: ids_of_runs(name) for name in names}
    others = [name for name in names if not run_ids[name]]
    found = named_versions(ArtifactStore(config.storage), others, [run for ids in run_ids.values() for run in ids])
    show_side_by_side(config, found)
    show_trend(config)


@flow(name="export", flow_run_name=name_run)
def export(
    config: ExportForm,
    directory: str,
    version: str = "",
    variant: Literal["", "sft", "kto", "mr_align"] = "",
    merge: bool = False,
) -> None:
    """Write a trained adapter to a folder of the worker's host, its card completed with its results.

    Args:
        config: a preset, and what differs from it.
        directory: a new or empty folder.
        version: an alias, or a version's name or key, or the beginning of one; the config's alias when empty.
        variant: which trained variant; of the last run, unless the alias names one of it.
        merge: write a whole model, the adapter merged into it.
    """
    chosen = [*(["--version", version] if version else []), *(["--variant", variant] if variant else [])]
    arguments = ["export", directory, *chosen, *(["--merge"] if merge else [])]
    show_output("export", "What was written, and how to serve it", _said(config, arguments))


def _said(config: RunConfig, arguments: Sequence[str]) -> str:
    """What the command prints with this config.

    Raises:
        CommandError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "flows.commands.cli", *arguments, "--config", str(file)]
        env = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1"}
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(" ".join((done.stderr.strip() or done.stdout.strip() or "it said nothing").split()[-200:]))
    return done.stdout
