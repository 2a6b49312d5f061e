"""A database that another program holds ends no run: the clients of the server wait for it."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from flows.commands import busy, door
from tests.door_server import CHECKOUT, auth_of, wait_until_recognised
from tests.ports import free_port

HASTY = """
import sys
from sqlalchemy import event, pool
def hurry(connection, *_):
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 100")
    cursor.close()
event.listen(pool.Pool, "checkout", hurry)
init = pool.AsyncAdaptedQueuePool.__init__
few = {"pool_size": 2, "max_overflow": 0, "timeout": 0.2}
pool.AsyncAdaptedQueuePool.__init__ = lambda self, *rest, **options: init(self, *rest, **{**options, **few})
from flows.commands.door import main
sys.exit(main(sys.argv[1:]))
"""
"""A server that waits a tenth of a second for its database where Prefect's waits a minute, and has two connections."""


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """The server, and its database."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-c", HASTY, *door.module(port, embedded=True)[1:]]
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env={**env, "PREFECT_HOME": str(home)}, stdout=log, stderr=log
        )
        try:
            yield wait_until_recognised(f"http://127.0.0.1:{port}/api", home, process, home / "log"), home
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def held(database, seconds):
    """Hold the database as another program that writes does."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(seconds, other.execute, ["COMMIT"])
        timer.start()
        yield
        timer.join()


@pytest.mark.server
def test_clients_wait_for_as_long_as_the_database_is_held(hasty):
    server, home = hasty
    settings = {
        PREFECT_API_URL: server.api_url,
        PREFECT_API_AUTH_STRING: server.token,
        PREFECT_CLIENT_MAX_RETRIES: 0,  # whoever counts gives up at once
    }

    def write(number):
        with temporary_settings(settings), get_client(sync_client=True) as client:
            return client.create_flow_from_name(f"flow-{number}")

    started = time.monotonic()
    with held(home / "prefect.db", seconds=5), ThreadPoolExecutor(8) as clients:
        flows = list(clients.map(write, range(8)))
    assert len(set(flows)) == 8
    assert time.monotonic() - started >= 5


def counting(section):
    """Two transactions of a database configuration that each read a number and write it plus one, at the same time.

    Gives the number.
    """

    async def add_one(session, others):
        async with session, section.begin_transaction(session):
            (number,) = (await session.execute(text("SELECT n FROM counter"))).one()
            others.append(number)
            for _ in range(100):  # until the other has read too, if it may
                await asyncio.sleep(0.01 * (len(others) < 2))
            await session.execute(text("UPDATE counter SET n = :n"), {"n": number + 1})

    async def both():
        engine = await section.engine()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE counter (n INTEGER)"))
            await connection.execute(text("INSERT INTO counter VALUES (0)"))
        have_read: list[int] = []
        writers = [add_one(await section.session(engine), have_read) for _ in range(2)]
        results = await asyncio.gather(*writers, return_exceptions=True)
        async with engine.connect() as connection:
            (number,) = (await connection.execute(text("SELECT n FROM counter"))).one()
        return number, results

    return asyncio.run(both())


def test_transactions_that_read_before_they_write_take_turns(tmp_path):
    number, failures = counting(busy.TakesTurns(connection_url=f"sqlite+aiosqlite:///{tmp_path}/turns.db"))
    assert (number, failures) == (2, [None, None])


def test_a_session_inside_a_transaction_may_read(tmp_path):
    """As the one that tells of a paused work queue: it would wait for the transaction, which waits for it."""
    section = busy.TakesTurns(connection_url=f"sqlite+aiosqlite:///{tmp_path}/inside.db")

    async def read_inside():
        engine = await section.engine()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE counter (n INTEGER)"))
        async with await section.session(engine) as outer, section.begin_transaction(outer):
            await outer.execute(text("INSERT INTO counter VALUES (1)"))
            async with await section.session(engine) as inner:
                return (await inner.execute(text("SELECT count(*) FROM counter"))).scalar_one()

    assert asyncio.run(asyncio.wait_for(read_inside(), 30)) == 0


@pytest.mark.server
def test_a_work_queue_can_be_paused(hasty):
    server, _ = hasty
    with httpx.Client(base_url=server.api_url, auth=auth_of(server), timeout=60) as client:
        pool = client.post("/work_pools/", json={"name": "a-pool", "type": "process"}).raise_for_status().json()
        for path in (f"/work_queues/{pool['default_queue_id']}", "/work_pools/a-pool/queues/default"):
            for is_paused in (True, False):
                assert client.patch(path, json={"is_paused": is_paused}).status_code == 204, path


def test_in_prefects_own_order_one_of_two_is_refused_at_once(tmp_path):
    """When this fails, Prefect has mended it, and the door need no longer."""
    prefects = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/own.db")
    number, failures = counting(prefects)
    assert number == 1
    assert "database is locked" in "".join(map(str, failures))


BUILT = """
import sys
from pathlib import Path
from flows.commands import door
door.build(Path(sys.argv[1]), 4200, embedded=True)
from prefect.server.database.dependencies import provide_database_interface
print(type(provide_database_interface().database_config).__name__)
"""


def test_so_do_those_of_the_server_behind_the_door(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", BUILT, str(tmp_path)]
    assert subprocess.check_output(command, cwd=CHECKOUT, env=env, text=True).split()[-1] == busy.TakesTurns.__name__


def run(app, send):
    """One request to an application."""

    async def request():
        await busy.ask_again_when_busy(app)({"type": "http"}, lambda: asyncio.sleep(0, {}), send)

    asyncio.run(request())


def ask(app):
    """What an application replies to one request."""
    sent = []

    async def send(message):
        sent.append(message)

    run(app, send)
    return sent


def replies(status, error=None):
    """An application that replies, and then fails, as Starlette's do."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"why"})
        if error:
            raise error

    return app


def test_what_the_server_can_do_nothing_about_is_asked_again():
    start, body = ask(replies(503))
    assert (start["headers"], body["body"]) == (busy.ASK_AGAIN, b"why")
    start, body = ask(replies(500, NoConnectionLeft()))
    assert start["status"] == 503 and set(busy.ASK_AGAIN) <= set(start["headers"])


@pytest.mark.parametrize("status", [200, 404, 500])
def test_other_replies_stay_as_they_are(status):
    start, body = ask(replies(status))
    assert (start["status"], start["headers"], body["body"]) == (status, [], b"why")


def test_other_failures_stay_failures():
    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(KeyError):
        run(replies(500, KeyError()), send)
    assert [message.get("status") for message in sent] == [500, None]
