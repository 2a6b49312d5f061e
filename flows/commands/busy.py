"""A server whose database is busy: its requests take turns, its clients wait, and no run ends for that.

SQLite lets one transaction write at a time, and one that has read before it writes must find what it read unchanged:
where another has written meanwhile, the write fails at once. Most of Prefect's transactions do read first, and most of
its requests are such, so a run that reports from two threads met a refused request every few seconds. Here every
transaction asks for its turn as it begins.

Prefect's server waits a minute for its turn, and then says 503; or 500, where all its connections wait. Prefect's
client asks five times again after the one, and never after the other: the run that asked fails, though nothing is wrong
with it. It asks again for as long as it takes where the reply says that the server is under maintenance, so such
replies say it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import get_current_settings
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]]

ASK_AGAIN = [(b"prefect-maintenance", b"true"), (b"retry-after", b"1")]
"""Headers after which Prefect's client asks again, and does not count how often."""
BUSY = b'{"exception_message":"the database is busy"}'


class TakesTurns(AioSqliteConfiguration):
    """Prefect's SQLite, whose transactions are the only ones to write from their beginning on."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction]:
        """Begin one, as soon as no other may write.

        Args:
            session: which has none open.
            with_for_update: as if it were true.
        """
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # begins it: SQLAlchemy would at its first statement
            # Of this transaction alone: a session that only reads, opened inside it, would wait for its end.
            token = SQLITE_BEGIN_MODE.set("DEFERRED")
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(token)


def write_in_turns() -> None:
    """Have the transactions of this process's server take turns, where its database is SQLite."""
    url = get_current_settings().server.database.connection_url
    if url and url.get_secret_value().startswith("sqlite"):
        MODELS_DEPENDENCIES["database_config"] = TakesTurns(connection_url=url.get_secret_value())


def ask_again_when_busy(app: App) -> App:
    """Prefect's application, which tells its clients to ask again when its database is busy.

    Args:
        app: Prefect's.
    """

    async def patient(scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        reply = _Reply(send)
        try:
            await app(scope, receive, reply.send)
        except NoConnectionLeft:
            if not reply.held:
                raise
            await _say_busy(send)
            return
        except Exception:
            await reply.let_go()
            raise
        await reply.let_go()

    return patient


class _Reply:
    """Sends a reply on, but holds one with status 500 back until it is known what went wrong."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.held: list[Message] = []

    async def send(self, message: Message) -> None:
        if self.held or message.get("status") == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.held.append(message)
            return
        if message.get("status") == HTTPStatus.SERVICE_UNAVAILABLE:
            message["headers"] = [*message.get("headers", []), *ASK_AGAIN]
        await self._send(message)

    async def let_go(self) -> None:
        for message in self.held:
            await self._send(message)


async def _say_busy(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BUSY)).encode()), *ASK_AGAIN]
    await send({"type": "http.response.start", "status": int(HTTPStatus.SERVICE_UNAVAILABLE), "headers": headers})
    await send({"type": "http.response.body", "body": BUSY})
