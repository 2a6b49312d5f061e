"""Waiting for a store that does not answer: which failures can pass, how long to wait, and what is said meanwhile.

Patience is counted in seconds from an operation's first failure, not in attempts: what a store needs to come back, a
restart or a deploy, takes time however often it is asked. All threads of the process that wait for one store speak
with one voice: a line once a wait is more than a hiccup, one now and then, one when the store is back.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 (its own exit must be registered before ours, which then comes first)
import errno
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import ClientError as HttpError
from aiohttp import InvalidURL
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

logger = logging.getLogger("mralign_core.storage")
Result = TypeVar("Result")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
GROWTH = 1.6
TELL_AFTER_S = 1.0
"""A shorter wait is a hiccup, and not worth a line."""
TELL_EVERY_S = 30.0
LOOK_EVERY_S = 0.25
"""How soon a waiting thread notices that the process is to end, or that Prefect cancels its task."""


class IncompleteError(OSError):
    """What arrived is not what the store holds: fewer bytes, or other ones."""


FAILURES = (OSError, BotoCoreError, ClientError, HttpError, ResponseParserError)
"""What a file system or botocore raises when an operation fails."""
PASSING = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,  # a name server that is down looks like a host that does not exist
    IncompleteError,
    BotoConnectionError,
    HTTPClientError,
    HttpError,
    IncompleteReadError,
    ResponseParserError,
    CredentialRetrievalError,  # whoever renews the credentials does not answer
    MetadataRetrievalError,
)
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529}
PASSING_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",  # the end of an upload in parts, whose reply was lost: to be sent anew
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
"""Codes of S3 that a repetition can cure. Not among them: expired credentials and a wrong clock, which only their owner
can set right."""
_OF_FILES = ("EAGAIN", "EBUSY", "EINTR", "EIO", "EREMOTEIO", "ESTALE")
_OF_NETWORKS = ("ETIMEDOUT", "ENOTCONN", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH")
# A system may lack some.
PASSING_ERRNOS = {getattr(errno, name) for name in (*_OF_FILES, *_OF_NETWORKS) if hasattr(errno, name)}
"""What a network folder says while its server is away. A full disk is not among them: nobody frees it by waiting."""
LASTING_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "HTTP_REQUEST")

_jitter = random.Random()  # not the global generator: a store that hiccups must not change what a seed gives
_ending = threading.Event()
# Threads of a pool are joined when the interpreter ends, and must not wait out their patience then.
threading._register_atexit(_ending.set)  # type: ignore[attr-defined]


def is_stopping() -> bool:
    """Whether the process is about to end."""
    return _ending.is_set()


def can_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed later: after time-outs, broken connections and bodies, 5xx and SlowDown."""
    if reply := error_reply(error):
        status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status in PASSING_STATUS or reply.get("Error", {}).get("Code", "") in PASSING_CODES
    if isinstance(error, InvalidURL) or _is_lasting_tls(error):
        return False
    return isinstance(error, PASSING) or (isinstance(error, OSError) and error.errno in PASSING_ERRNOS)


def error_reply(error: BaseException | None) -> dict[str, Any]:
    """The S3 error reply behind an exception that s3fs may have translated; empty when there is none."""
    while error is not None:
        if isinstance(error, ClientError):
            return dict(error.response)
        error = error.__cause__
    return {}


def _is_lasting_tls(error: BaseException | None) -> bool:
    """Whether no secure connection can be made: a certificate nobody trusts, a server that does not speak TLS."""
    inner = getattr(error, "kwargs", {}).get("error", error)
    is_tls = isinstance(error, ssl.SSLError) or "ssl" in f"{type(error).__name__} {type(inner).__name__}".lower()
    return isinstance(inner, ssl.SSLCertVerificationError) or (
        (is_tls or "certificate" in type(inner).__name__.lower()) and any(code in str(inner) for code in LASTING_TLS)
    )


class Patience:
    """Runs operations of one store again while their failure can pass.

    Args:
        store: what the store is called in the log.
        seconds: how long an operation is tried again, from its first failure on.
        is_quiet: say nothing meanwhile.
    """

    def __init__(self, store: str, seconds: float, *, is_quiet: bool = False) -> None:
        self._seconds = seconds
        self._is_quiet = is_quiet
        self._silence = _silences.setdefault(store, _Silence(store))

    def run(self, what: str, operation: Callable[[], Result]) -> Result:
        """The result of an operation; when patience is over, what it last raised.

        Args:
            what: what the operation does, for the log.
            operation: may be run many times.
        """
        first_failure, wait_s = None, FIRST_WAIT_S
        while True:
            try:
                result = operation()
            except FAILURES as error:
                if not can_pass(error):
                    self._silence.end()  # that there is no such file is an answer
                    raise
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                waited_s = now - first_failure
                if waited_s >= self._seconds:
                    raise
                if not self._is_quiet:
                    self._silence.tell(what, error, waited_s, self._seconds)
                if not _sleep(min(wait_s * _jitter.uniform(0.5, 1.0), self._seconds - waited_s)):
                    raise
                wait_s = min(GROWTH * wait_s, LONGEST_WAIT_S)
            else:
                self._silence.end()
                return result


class _Silence:
    """What is said about one store while it does not answer."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._began = self._told = 0.0
        """When the wait that was told of began, and when it was last told of; 0 when nothing is to be told."""
        self._answered = -TELL_AFTER_S

    def tell(self, what: str, error: Exception, waited_s: float, patience_s: float) -> None:
        now = time.monotonic()
        # What fails while others get through is a straggler of an outage that is over, unless it goes on for long.
        has_answered = now - self._answered < TELL_AFTER_S and waited_s < TELL_EVERY_S
        if waited_s < TELL_AFTER_S or has_answered:
            return
        with self._lock:
            if self._told and now - self._told < TELL_EVERY_S:
                return
            self._began, self._told = self._began or now - waited_s, now
        logger.warning(
            "%s does not answer: can't %s (%s: %s). Waiting for it: %.0f s of at most %.0f s (storage.patience_s)",
            *(self._store, what, type(error).__name__, error, waited_s, patience_s),
        )

    def end(self) -> None:
        self._answered = time.monotonic()
        if not self._told:
            return
        with self._lock:
            waited_s = time.monotonic() - self._began
            was_told, self._began, self._told = self._told, 0.0, 0.0
        if was_told:
            logger.warning("%s answers again after %.0f s", self._store, waited_s)


_silences: dict[str, _Silence] = {}


def _sleep(seconds: float) -> bool:
    """Wait, in short naps, since only between them a thread is interrupted; False when the process is to end."""
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        if _ending.wait(min(left_s, LOOK_EVERY_S)):
            return False
    return not _ending.is_set()
