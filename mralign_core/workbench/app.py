"""The workbench over HTTP: pages that are the same for everybody, and what their scripts ask for as JSON.

It keeps nobody out: it stands behind a door that does (``flows/commands/door.py``), which asks for the token of the
server where a path begins with :data:`~mralign_core.reporting.server_paths.VIEW_API_PREFIX`. Texts of models go out as
JSON only, and come into a page as text.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, ConfigError, StorageError, UserError
from mralign_core.reporting.server_paths import VIEW_API_PREFIX, VIEW_PREFIX
from mralign_core.reporting.store_addresses import storage_in
from mralign_core.storage import ArtifactStore
from mralign_core.workbench.analyses import under_way
from mralign_core.workbench.cases import read_question, read_trace
from mralign_core.workbench.database import Database, QueryError, TableRow, shared_database
from mralign_core.workbench.filters import read_filter
from mralign_core.workbench.interruption import Asker, AskerLeftError, asked_by
from mralign_core.workbench.lists import LISTINGS, read_page, stream_all
from mralign_core.workbench.overview import (
    count_held_out_moves,
    count_judged_flips,
    count_moves,
    describe_run,
    summarize_run,
)
from mralign_core.workbench.rating_pages import rating_routes
from mralign_core.workbench.tables import RunTables, find_run
from mralign_core.workbench.token_texts import read_tokens

STATIC = Path(__file__).with_name("static")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ABOUT_RUN = ("store", "endpoint", "run")
"""Names of an address' query that say which run; the others say what of it."""
REFRESH_S = 10.0
TOLD_AGAIN_S = 0.2
STATUS = {
    ArtifactError: HTTPStatus.NOT_FOUND,
    StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
    QueryError: HTTPStatus.INTERNAL_SERVER_ERROR,
    AskerLeftError: HTTPStatus.SERVICE_UNAVAILABLE,  # nobody reads it
}
"""Of what is wrong but for what was asked."""
Lookup = Callable[[Database, RunTables, dict[str, str]], Any]


def make_app() -> Starlette:
    """The application, all of whose paths begin with ``/mralign/view/``."""
    answers: dict[str, Lookup] = {
        "run": lambda database, tables, _: describe_run(database, tables),
        "summary": lambda database, tables, _: summarize_run(database, tables),
        "judged-flips": lambda database, tables, _: count_judged_flips(database, tables),
        "moves": lambda database, tables, _: count_moves(database, tables),
        "held-out-moves": lambda database, tables, query: count_held_out_moves(
            database, tables, _one(query, "variant") if query else ""
        ),
        "under-way": lambda _, tables, __: [{"rows": work.rows, "done": work.done} for work in under_way(tables)],
        "trace": lambda database, tables, query: read_trace(database, tables, _one(query, "id")),
        "tokens": lambda database, tables, query: read_tokens(database, tables, _one(query, "id")),
        "question": lambda database, tables, query: read_question(database, tables, _one(query, "id")),
        **{name: _listed(name) for name in LISTINGS},
    }
    return Starlette(
        routes=[
            *(Route(f"{VIEW_API_PREFIX}{name}", _json(answer)) for name, answer in answers.items()),
            *(Route(f"{VIEW_API_PREFIX}{name}.jsonl", _export(name)) for name in LISTINGS),
            *rating_routes(_asked),
            Mount(f"{VIEW_PREFIX}static", StaticFiles(directory=STATIC)),
            Route(f"{VIEW_PREFIX}{{page:path}}", _page),
        ]
    )


def _page(_: Request) -> Response:
    """The one page; which view it shows, its script reads from the address."""
    return FileResponse(
        STATIC / "index.html", headers={"content-security-policy": PAGE_POLICY, "cache-control": "no-store"}
    )


def _json(answer: Lookup) -> Callable[[Request], Awaitable[Response]]:
    def find(request: Request) -> Response:
        found = answer(shared_database(), *_asked(request))
        return JSONResponse(found, headers={"cache-control": "no-store"})

    return _endpoint(find)


def _endpoint(find: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint, whose work is done in a thread of its own, and ended there when the browser goes away."""

    def work(request: Request, asker: Asker) -> Response:
        with asked_by(asker):
            try:
                return find(request)
            except UserError as error:
                return _refused(error)

    async def endpoint(request: Request) -> Response:
        asker = Asker()
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request, asker)
            reply = await run_in_threadpool(work, request, asker)
            group.cancel_scope.cancel()
        return reply

    return endpoint


async def _watch(request: Request, asker: Asker) -> None:
    """Tell when the browser has gone: it went on, was closed, or asks anew. Told until the work for it has ended."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    while True:
        asker.leave()
        await anyio.sleep(TOLD_AGAIN_S)  # DuckDB forgets an interrupt that comes before its query is under way


def _listed(name: str) -> Lookup:
    listing = LISTINGS[name]

    def answer(database: Database, tables: RunTables, query: dict[str, str]) -> dict[str, Any]:
        return read_page(database, tables, listing, read_filter(listing.filter, query))._asdict()

    return answer


def _export(name: str) -> Callable[[Request], Awaitable[Response]]:
    """All rows of a list, a JSON object a line, as they are found."""
    listing = LISTINGS[name]

    def find(request: Request) -> Response:
        tables, query = _asked(request)
        rows = stream_all(shared_database(), tables, listing, read_filter(listing.filter, query))
        first = next(rows, None)  # what is wrong with the query is told before the first line
        headers = {"content-disposition": f'attachment; filename="{name}.jsonl"', "cache-control": "no-store"}
        return StreamingResponse(_lines(first, rows), media_type="application/jsonl", headers=headers)

    return _endpoint(find)


def _lines(first: TableRow | None, rows: Iterator[TableRow]) -> Iterator[str]:
    if first is not None:
        yield json.dumps(first) + "\n"  # ASCII: half a character in a reply has no UTF-8
        yield from (json.dumps(row) + "\n" for row in rows)


def _asked(request: Request) -> tuple[RunTables, dict[str, str]]:
    """The run that an address names, and the rest of its query.

    Raises:
        UserError: there is no such run.
    """
    query = parse_qs(request.url.query)
    rest = {name: values[-1] for name, values in query.items() if name not in ABOUT_RUN}
    return _find(storage_in(query), query.get("run", [""])[-1], int(time.monotonic() / REFRESH_S)), rest


@functools.lru_cache(maxsize=32)
def _find(storage: StorageConfig, run: str, _: int) -> RunTables:
    """The tables of a run, looked for anew after a while: one that is at work makes more of them."""
    return find_run(ArtifactStore(storage), run)


def _one(query: dict[str, str], name: str) -> str:
    if set(query) != {name}:
        raise ConfigError(f"this takes {name}=…, and got {', '.join(query) or 'nothing'}")
    return query[name]


def _refused(error: UserError) -> Response:
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
    return JSONResponse({"problem": str(error)}, status)
