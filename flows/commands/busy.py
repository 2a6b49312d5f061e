"""A server whose database is busy: its clients wait, and no run ends for that.

SQLite lets one program write at a time. Prefect's server waits a minute for its turn, and then says 503; or 500, where
all its connections wait. Prefect's client asks five times again after the one, and never after the other: the run that
asked fails, though nothing is wrong with it. It asks again for as long as it takes where the reply says that the server
is under maintenance, so such replies say it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import TimeoutError as NoConnectionLeft

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]]

ASK_AGAIN = [(b"prefect-maintenance", b"true"), (b"retry-after", b"1")]
"""Headers after which Prefect's client asks again, and does not count how often."""
BUSY = b'{"exception_message":"the database is busy"}'


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
