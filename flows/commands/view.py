"""The command ``mralign view``: the workbench on a run of a store, behind the door that ``make serve`` has too."""

from __future__ import annotations

import os
import secrets
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.door import App, Door, Receive, Scope, Send, listening, server_behind
from flows.commands.options import ConfigOption, SetOption
from flows.commands.results import console
from flows.commands.secret import HOST, SERVE_HOME, installation_secret, recognise, token_of
from mralign_core.config import RunConfig
from mralign_core.errors import UserError

commands = typer.Typer()
PORT = 4280


class PortTakenError(UserError):
    """Something else listens on the port of the workbench."""


@commands.command()
def view(
    config: ConfigOption = "pocket",
    run: Annotated[
        str,
        typer.Option(
            help="A run's id, its beginning, or an artifact such as `report/3f9a`, of the config's store. "
            "\\[default: the last run of the config's name]"
        ),
    ] = "",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen on this machine; 0 for any.")] = PORT,
    set_: SetOption = None,
) -> None:
    """Look into a run in a browser: traces, labels, weights, draws and answers. Prints the link; Ctrl-C stops it.

    docs/workbench.md says what is there. `make serve` has it too, as a link on the page of each run.
    """
    from mralign_core.reporting.store_addresses import view_address  # imports the libraries of the store

    settings = read_settings(config, set_)
    address = view_address(settings.storage, run or settings.name)
    _refuse_unknown(settings, run or settings.name)
    open_workbench(port, address)


def open_workbench(port: int, address: str) -> None:
    """Print the link to the workbench, and serve it until a signal ends it, unless it is served already.

    Args:
        port: where to listen; 0 for any.
        address: where it begins.

    Raises:
        PortTakenError: something else listens there.
    """
    home = Path(os.environ.get("PREFECT_HOME") or SERVE_HOME).resolve()
    if port and (own := recognise(f"http://{HOST}:{port}/api", [home])):
        _print_link(f"{own.api_url.removesuffix('/api')}{address}#{own.token}", "already there; nothing was started")
        return
    serve_workbench(home, port, address)


def serve_workbench(home: Path, port: int, address: str) -> None:
    """Serve the workbench until a signal ends it.

    Args:
        home: ``PREFECT_HOME``, where the secret of the installation is.
        port: where to listen; 0 for any.
        address: where it begins.

    Raises:
        PortTakenError: something else listens there.
    """
    secret, start = installation_secret(home), secrets.token_hex(16)
    try:
        with listening(port) as listener:
            port = listener.getsockname()[1]
            door = Door(leads_to(address), port, secret, start)
            _print_link(f"http://{HOST}:{port}{address}#{token_of(secret, start)}", "Ctrl-C stops it")
            server = server_behind(door, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
            server.run(sockets=[listener])
    except OSError as error:
        raise PortTakenError(
            f"port {port} of {HOST} can't be listened on ({error.strerror}): stop what does, or name another, --port 0 "
            "for any"
        ) from error


def leads_to(address: str) -> App:
    """What answers beside the workbench: its beginning, and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_root = scope["type"] == "http" and scope["path"] == "/"
        status = HTTPStatus.TEMPORARY_REDIRECT if is_root else HTTPStatus.NOT_FOUND
        headers = [(b"location", address.encode("ascii"))] if is_root else []
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": int(status), "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    return app


def _refuse_unknown(settings: RunConfig, run: str) -> None:
    """Say here, and not in the browser, that there is no such run."""
    from mralign_core.storage import ArtifactStore
    from mralign_core.workbench.tables import find_run

    found = find_run(ArtifactStore(settings.storage), run)
    console.print(f"{escape(found.title)}, in {escape(found.store.root_uri)}", highlight=False, soft_wrap=True)


def _print_link(link: str, note: str) -> None:
    console.print(f"open {escape(link)}  ({note})", highlight=False, soft_wrap=True)


def read_settings(config: str, set_: list[str] | None) -> RunConfig:
    """The config of a command line."""
    from flows.commands.cli import overrides_of, read_following

    return read_following(config, overrides_of(set_))
