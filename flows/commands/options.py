"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="A name in deployments/configs, or a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one field, e.g. `--set generate.num_draws=5`; may be repeated."),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", help="Use this artifact, e.g. `--input candidates=candidates/3f9a`; may be repeated."),
]
