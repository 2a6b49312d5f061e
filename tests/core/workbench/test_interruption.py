"""A search that nobody waits for any more ends, whether it is under way or has not begun."""

import threading
import time
from typing import Any

import anyio
import pytest

from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from mralign_core.workbench import app as workbench
from mralign_core.workbench import database as tables_of_duckdb
from mralign_core.workbench.database import Database
from mralign_core.workbench.interruption import Asker, AskerLeftError, asked_by, stop_if_left
from tests.asgi_server import in_a_loop_of_its_own

ENDLESS = "SELECT count(*) AS n FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = $seven"


def test_a_query_under_way_ends_when_its_asker_leaves():
    asker, database = Asker(), Database()
    threading.Timer(0.3, asker.leave).start()
    with asked_by(asker), pytest.raises(AskerLeftError, match="nobody waits"):
        database.rows(ENDLESS, {"seven": 6})
    assert database.rows("SELECT 1 AS one", {}) == [{"one": 1}]  # that of others go on


def test_what_has_not_begun_does_not_begin():
    asker = Asker()
    stop_if_left()
    asker.leave()
    with asked_by(asker):
        with pytest.raises(AskerLeftError):
            Database().rows("SELECT 1 AS one", {})
        with pytest.raises(AskerLeftError):
            stop_if_left()
    stop_if_left()


def ask_and_leave(storage, after_s):
    """Ask for moves, as a browser that goes away after so many seconds."""
    app = workbench.make_app()

    async def ask():
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": f"{VIEW_API_PREFIX}moves",
            "headers": [],
            "root_path": "",
        }
        scope |= {"query_string": f"store={storage.root}".encode(), "http_version": "1.1", "scheme": "http"}
        said = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            if (message := next(said, None)) is None:
                await anyio.sleep(after_s)
                return {"type": "http.disconnect"}
            return message

        async def send(message):
            pass

        with anyio.fail_after(60):
            await app(scope, receive, send)

    in_a_loop_of_its_own(ask)


@pytest.fixture
def ended(monkeypatch):
    """Whether the search of a request for moves, which is endless, was ended."""
    ended = threading.Event()

    def search(database, tables):
        try:
            return database.rows(ENDLESS, {"seven": 6})
        except AskerLeftError:
            ended.set()
            raise

    monkeypatch.setattr(workbench, "count_moves", search)
    return ended


def test_a_request_whose_browser_goes_away_leaves_no_search_behind(ended, storage):
    started = time.monotonic()
    ask_and_leave(storage, after_s=0.5)
    assert ended.is_set() and time.monotonic() - started < 50


def test_a_search_is_ended_though_duckdb_forgot_the_first_interrupt(ended, storage, monkeypatch):
    execute, rescues = tables_of_duckdb._execute, []

    def late(cursor, sql, values):
        if sql == ENDLESS:
            time.sleep(0.6)  # the browser goes away before the query is under way
            rescues.append(threading.Timer(3, cursor.interrupt))  # it would be endless
            rescues[0].start()
        return execute(cursor, sql, values)

    monkeypatch.setattr(tables_of_duckdb, "_execute", late)
    ask_and_leave(storage, after_s=0.2)
    assert ended.is_set() and rescues[0].is_alive()
    rescues[0].cancel()
