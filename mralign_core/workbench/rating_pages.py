"""Rating over HTTP: what the workbench's pages of rounds ask for, and the only requests that write.

As all that the workbench answers, these stand behind a door that asks for the token in a header, which no page of
another site can send, and refuses other origins. What writes takes POST and JSON only, so that no form can.

A rating is in the store before the reply that says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mralign_core.config.annotate import HUMAN_PREFIX
from mralign_core.errors import ArtifactError, ConfigError, StorageError, UserError
from mralign_core.evaluation.judge_sheet import ABOUT_RIGHT, ABOUT_TRUTHFUL
from mralign_core.rating.human_sets import publish_ratings
from mralign_core.rating.rated_before import begin_round, find_round
from mralign_core.rating.records import (
    LABEL_COLUMNS,
    Choice,
    RatedKind,
    RatingConflictError,
    RatingError,
    Round,
    Said,
    check_rater,
    is_done,
    latest,
    records_in,
    verdict_words,
)
from mralign_core.rating.results import num_gone_through, read_round_results
from mralign_core.rating.sheets_of import write_rated_sheet
from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from mralign_core.storage import ArtifactStore
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.tables import RunTables

MOST_BYTES_POSTED = 64_000
"""Of what is posted."""
STATUS_OF_PROBLEM = {
    RatingConflictError: HTTPStatus.CONFLICT,
    RatingError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ArtifactError: HTTPStatus.NOT_FOUND,
    StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
}
NO_STORE = {"cache-control": "no-store"}
Asked = Callable[[Request], tuple[RunTables, dict[str, str]]]
"""The run that an address names, and the rest of its query."""


class Begin(BaseModel):
    """A round to begin."""

    model_config = ConfigDict(extra="forbid")

    kind: RatedKind = "labels"
    choice: Choice = Choice()
    rater: str


class Size(BaseModel):
    """A round that might be begun."""

    model_config = ConfigDict(extra="forbid")

    kind: RatedKind = "labels"
    choice: Choice = Choice()
    rater: str = ""


class Sent(BaseModel):
    """A rating as a page sends it."""

    model_config = ConfigDict(extra="forbid")

    round: str
    rater: str
    rating: Said


class Publish(BaseModel):
    """A rater whose labels are to be an annotator's."""

    model_config = ConfigDict(extra="forbid")

    round: str
    rater: str


def rating_routes(asked: Asked) -> list[Route]:
    """What the application answers about rating.

    Args:
        asked: reads the run and the rest of an address' query.
    """
    reading = {"rounds": _rounds, "round": _round, "results": _results}
    posted = {"begin": _begin, "rating": _rate, "publish": _publish, "size": _size}
    return [
        *(Route(f"{VIEW_API_PREFIX}rate/{name}", _get(asked, answer)) for name, answer in reading.items()),
        *(
            Route(f"{VIEW_API_PREFIX}rate/{name}", _post(asked, answer), methods=["POST"])
            for name, answer in posted.items()
        ),
        Route(f"{VIEW_API_PREFIX}rate/sheet.csv", _sheet(asked)),
    ]


def _get(asked: Asked, answer: Callable[[RunTables, dict[str, str]], Any]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        return _answered(lambda: JSONResponse(answer(*asked(request)), headers=NO_STORE))

    return endpoint


def _post(asked: Asked, answer: Callable[[RunTables, Any], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _problem("this takes application/json", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES_POSTED:
                return _problem(f"this takes {MOST_BYTES_POSTED:,} bytes at most", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

        def answered() -> Response:
            return JSONResponse(answer(asked(request)[0], json.loads(body)), headers=NO_STORE)

        return await run_in_threadpool(_answered, answered)

    return endpoint


def _answered(answer: Callable[[], Response]) -> Response:
    try:
        return answer()
    except ValidationError as error:
        first = error.errors()[0]
        return _problem(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", HTTPStatus.UNPROCESSABLE_ENTITY)
    except UserError as error:
        status = next((status for kind, status in STATUS_OF_PROBLEM.items() if isinstance(error, kind)), None)
        return _problem(str(error), status or HTTPStatus.BAD_REQUEST)
    except (ValueError, RecursionError) as error:
        return _problem(f"this is no JSON: {error}", HTTPStatus.BAD_REQUEST)


def _problem(text: str, status: HTTPStatus) -> Response:
    return JSONResponse({"problem": text}, int(status), headers=NO_STORE)


def _one_of(query: dict[str, str], *names: str) -> list[str]:
    if set(query) != set(names):
        raise ConfigError(f"this takes {', '.join(names)}, and got {', '.join(query) or 'nothing'}")
    return [query[name] for name in names]


def _rounds(tables: RunTables, query: dict[str, str]) -> list[dict[str, Any]]:
    """All rounds of the store, the newest first, with how far each rater is."""
    _one_of(query)
    records = records_in(tables.store.section)
    return [
        {
            "name": name,
            "kind": of.kind,
            "run": of.run,
            "at": f"{of.at:%Y-%m-%d %H:%M}",
            "choice": of.choice.model_dump(),
            "items": len(of.items),
            "of": _num_of(of),
            "raters": {
                rater: {"done": num_gone_through(ratings), "finished": is_done(of, ratings)}
                for rater in records.raters(name)
                if (ratings := records.ratings(name, rater))
            },
        }
        for name, of in sorted(records.rounds().items(), key=lambda each: each[1].at, reverse=True)
    ]


def _round(tables: RunTables, query: dict[str, str]) -> dict[str, Any]:
    """What a rater sees of a round, and has said of it; nothing that could sway the judgement."""
    name, rater = _one_of(query, "round", "rater")
    records = records_in(tables.store.section)
    of, ratings = records.round(name), records.ratings(name, check_rater(rater))
    return {
        "name": name,
        "kind": of.kind,
        "of": _num_of(of),
        "items": [{"item": each.item, "cells": each.cells, "asked": each.asked} for each in of.items],
        "choices": _choices(of),
        "about": _about(of),
        "ratings": [each.model_dump(include={"n", "item", "state", "said", "note", "undoes"}) for each in ratings],
        "finished": is_done(of, ratings),
    }


def _choices(of: Round) -> list[dict[str, Any]]:
    """What a rater may choose from: groups of values, each with what it says and stands in."""
    if of.label_set:
        names = of.label_set
        told = zip(names.labels, names.macro_strategies, names.definitions, strict=True)
        return [
            {"columns": LABEL_COLUMNS, "value": label, "group": macro, "tells": text} for label, macro, text in told
        ]
    asked = dict.fromkeys(column for shown in of.items for column in shown.asked)
    return [
        {"columns": [column], "value": word, "group": column, "tells": ""}
        for column in asked
        for word in verdict_words(column)
    ]


def _about(of: Round) -> str:
    """What raters are told beside the choices."""
    if of.kind == "labels":
        return "Say what each segment does, not whether it is right. A second label only where it does two."
    asked = {column for shown in of.items for column in shown.asked}
    return (ABOUT_RIGHT if "verdict" in asked else "") + (ABOUT_TRUTHFUL if "truthful" in asked else "")


def _results(tables: RunTables, query: dict[str, str]) -> dict[str, Any]:
    name, rater = _one_of(query, "round", "rater")
    return read_round_results(shared_database(), tables.store, name, check_rater(rater))


def _begin(tables: RunTables, sent: Any) -> dict[str, Any]:
    asked = Begin.model_validate(sent)
    begun = begin_round(shared_database(), tables, asked.kind, asked.choice, asked.rater)
    return {"round": begun.of.name, "left_out": begun.num_left_out}


def _size(tables: RunTables, sent: Any) -> dict[str, Any]:
    """How much there is to rate in the round that would be begun; nothing is kept."""
    asked = Size.model_validate(sent)
    found = find_round(shared_database(), tables, asked.kind, asked.choice, asked.rater)
    size = {"items": len(found.of.items), "of": _num_of(found.of)}
    return {**size, "left_out": found.num_left_out, "is_begun": found.is_begun}


def _num_of(of: Round) -> int:
    """How many traces or questions the items of a round are of."""
    return len({shown.about for shown in of.items})


def _rate(tables: RunTables, sent: Any) -> dict[str, Any]:
    one = Sent.model_validate(sent)
    records = records_in(tables.store.section)
    kept, ratings = records.keep(one.round, one.rater, one.rating)
    finished = is_done(records.round(one.round), ratings)
    return {"n": kept.n, "item": kept.item, "done": num_gone_through(ratings), "finished": finished}


def _publish(tables: RunTables, sent: Any) -> dict[str, Any]:
    one = Publish.model_validate(sent)
    of = records_in(tables.store.section).round(one.round)
    if of.label_set is None:
        raise ConfigError(f"round {one.round} is of verdicts: only labels make an annotator")
    ref = publish_ratings(tables.store, check_rater(one.rater), of.label_set.taxonomy)
    return {"name": f"{HUMAN_PREFIX}{one.rater}", "artifact": f"{ref.stage}/{ref.key}", "segments": ref.rows}


def _sheet(asked: Asked) -> Callable[[Request], Response]:
    """A rater's ratings as the CSV sheet, filled in."""

    def answer(request: Request) -> Response:
        tables, query = asked(request)
        name, rater = _one_of(query, "round", "rater")
        content = rated_sheet(tables.store, name, rater)
        headers = {"content-disposition": f'attachment; filename="{name}-{rater}.csv"', **NO_STORE}
        return Response(content, media_type="text/csv", headers=headers)

    return lambda request: _answered(lambda: answer(request))


def rated_sheet(store: ArtifactStore, name: str, rater: str) -> bytes:
    """The CSV that is made of a rater's ratings.

    Raises:
        ArtifactError: there is no such round, or the rater said nothing in it.
    """
    records = records_in(store.section)
    of, ratings = records.round(name), records.ratings(name, check_rater(rater))
    if not latest(ratings):
        raise ArtifactError(f"{rater} said nothing in round {name}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sheet.csv")
        write_rated_sheet(path, of, ratings)
        return path.read_bytes()
