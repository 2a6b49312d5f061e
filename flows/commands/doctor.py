"""The command ``mralign doctor``: what is wrong with the trainings of a run, and what to try."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.options import ConfigOption, SetOption
from flows.commands.results import console

commands = typer.Typer()


@commands.command()
def doctor(
    run: Annotated[
        str,
        typer.Argument(
            help="A config's name, a run's id or its beginning, or an artifact such as `adapter/3f9a`. "
            "\\[default: the last run of the config's name]"
        ),
    ] = "",
    config: ConfigOption = "pocket",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    set_: SetOption = None,
) -> None:
    """Say what is wrong with a training, whichever engine trained, and what to try; exits with 1 if something is.

    It looks at curves, weights, rows, and answers to held-out questions where there are some, and knows: diverged, loss
    flat or rising, KL stuck at 0, one class dominating, weights all near 1 or clipped, λ_r saturating, length drift,
    and reward hacking by length. docs/doctor.md says when it speaks.
    """
    from flows.commands.cli import overrides_of, read_following
    from mralign_core.errors import ArtifactError
    from mralign_core.reporting.titles import variant_title
    from mralign_core.reporting.training_health import HEALTHY, examine
    from mralign_core.storage import ArtifactStore
    from mralign_core.workbench.tables import find_run

    settings = read_following(config, overrides_of(set_))
    store = ArtifactStore(settings.storage)
    tables = find_run(store, run or settings.name)
    health = examine(store, tables.artifacts)
    if not health:
        raise ArtifactError(f"{tables.title} has no adapter: train one, or name another run (mralign runs lists them)")
    if as_json:
        console.print_json(
            json.dumps({variant: [each._asdict() for each in found] for variant, found in health.items()})
        )
    else:
        for variant, found in health.items():
            console.print(f"[bold]{escape(variant_title(variant))}[/bold]", highlight=False)
            lines = [f"{each.name}: {each.says}.\n    Try: {each.to_try}." for each in found] or [HEALTHY]
            for line in lines:
                console.print(escape(f"  {line}"), highlight=False, soft_wrap=True)
    if any(health.values()):
        raise typer.Exit(1)
