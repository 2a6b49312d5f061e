"""litellm's exceptions, sorted by what can be done about them.

They say what was wrong as far as litellm could tell. Where there is an exchange, it says what happened on the wire, and
goes before them. Importing this imports litellm, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from litellm.exceptions import ContentPolicyViolationError, ContextWindowExceededError, Timeout
from openai import OpenAIError

from mralign_core.llm.exchange import CUT_OFF, Exchange
from mralign_core.llm.faults import REDIRECTS, AttemptError, Kind

MESSAGE_CHARS = 1000
"""So much of an error's text is shown and kept."""
REFUSALS = (ContentPolicyViolationError, ContextWindowExceededError)
REFUSING_STATUS = (400, 413, 422)
REFUSING_WORDS = re.compile(
    r"content exists risk|content[ _](filter|policy|management)|invalid_prompt|usage polic|flagged"
    r"|context[ _]length|(prompt|input) is too long|longer than the (maximum )?model",
    re.IGNORECASE,
)
"""How providers word that they refuse one request for its content, where litellm takes it for a bad request."""
OVERLOADED = (408, 425, 429, 502, 503, 504, 529)
TURNING_AWAY = (503, 529)
"""With a Retry-After header, an overloaded server says by these that it did not begin: an overload costs no budget."""
MAY_HAVE_RUN = (408, 409, 499)
"""Refusals that can come after the work was done: time-outs and conflicts with an earlier request of the same kind."""


def attempt_error(error: Exception, now: float, exchange: Exchange | None = None) -> AttemptError:
    """What an exception of litellm, and the exchange behind it, mean for a request.

    Raises:
        Exception: the one given, where it is a mistake of this program: nothing was sent, and litellm did not refuse.
    """
    exchange = exchange or _told_by(error)
    status = exchange.status
    message = exchange.redacted(exchange.problem or _in_a_line(error))
    if not exchange.was_sent and _status_of(error) is None and not isinstance(error, TimeoutError):
        raise error
    kind, way = _meaning(error, exchange)
    return AttemptError(
        kind,
        way,
        message,
        status=status,
        may_be_billed=exchange.was_sent and not _is_plain_refusal(exchange),
        retry_after_s=retry_after_s(error, now),
        body=exchange.beginning(),
    )


def _told_by(error: Exception) -> Exchange:
    """The exchange of a reply that came another way, in a batch's file, as far as the error tells."""
    return Exchange(0, was_sent=True, status=_status_of(error))


def _meaning(error: Exception, exchange: Exchange) -> tuple[Kind, str]:
    status = exchange.status
    if not exchange.was_sent:
        is_local = not can_pass(error)  # litellm refused by itself
        return ("fatal", "not sent") if is_local else ("outage", "no connection")
    if isinstance(error, TimeoutError | Timeout) and not exchange.problem:
        return "lost", "no reply in time"
    if status is None:
        return "lost", "the connection was lost"
    if status in REDIRECTS:
        return "refused", f"HTTP {status}, a redirect"
    if status < 400 and exchange.problem == CUT_OFF:
        return "lost", CUT_OFF
    if status < 400:
        return "broken", f"HTTP {status} with a body that is no reply"
    return _meaning_of_status(error, status), f"HTTP {status}"


def _meaning_of_status(error: Exception, status: int) -> Kind:
    if is_refusal(error):
        return "content"
    if status in OVERLOADED:
        return "outage" if can_pass(error) else "fatal"
    if status in (401, 402):
        return "fatal"
    if status in (403, 404):
        return "barred"
    return "broken" if status >= 500 else "refused"


def _is_plain_refusal(exchange: Exchange) -> bool:
    """Whether the other side said that it did not do the work."""
    status = exchange.status
    if status is None or status in MAY_HAVE_RUN:
        return False
    if not 400 <= status < 500 and not (status in TURNING_AWAY and "retry-after" in exchange.headers):
        return False
    parsed = exchange.parsed()
    return not (isinstance(parsed, dict) and {"usage", "choices"} & parsed.keys())


def _status_of(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _in_a_line(error: Exception) -> str:
    text = str(error) or repr(error)
    return " ".join(text[: 4 * MESSAGE_CHARS].split())[:MESSAGE_CHARS]


def can_pass(error: BaseException) -> bool:
    """Whether an error is of a kind that can pass: time-out, lost connection, rate limit, server error."""
    if isinstance(error, AttemptError):
        return error.can_pass
    if isinstance(error, TimeoutError):
        return True
    if not isinstance(error, OpenAIError):
        return False
    status = _status_of(error)
    if status == 429 and "insufficient_quota" in str(error):  # an account without credit is not a rate limit
        return False
    return status is not None and (status in (408, 429) or status >= 500)


def is_refusal(error: BaseException) -> bool:
    """Whether an error is about one request's content, so that another request may well succeed."""
    if isinstance(error, AttemptError):
        return error.kind == "content"
    if isinstance(error, REFUSALS) or _status_of(error) == 413:
        return True
    return _status_of(error) in REFUSING_STATUS and bool(REFUSING_WORDS.search(str(error)))


def retry_after_s(error: BaseException | None, now: float) -> float:
    """Seconds that the endpoint asked to wait (header Retry-After, seconds or a date), 0 if it did not say.

    Args:
        error: what the attempt raised.
        now: seconds since the epoch.
    """
    if isinstance(error, AttemptError):
        return error.retry_after_s
    headers: Mapping[str, Any] = getattr(error, "litellm_response_headers", None) or {}
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
