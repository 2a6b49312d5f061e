"""An attempt that brought no reply, and what a user is told when such attempts end a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mralign_core.config import EndpointConfig
from mralign_core.errors import UserError
from mralign_core.llm.endpoint_state import HealthVerdict
from mralign_core.redaction import redact

if TYPE_CHECKING:
    from mralign_core.llm.request import Reach

BEGINNING_CHARS = 200
"""So much of a reply is shown in an error."""
STATUS_REMEDIES = {
    401: "set the provider's API key in the environment",
    403: "the API key may not use this model: check its permissions",
    402: "the account has no credit left: top it up, and run again to go on",
    404: "no such model at this endpoint: check its name and api_base",
    429: "the account's quota is used up: raise it, and run again to go on",
}
REQUEST_REMEDY = "check the model's name, temperature, max_output_tokens and api_base"
REDIRECTS = (301, 302, 303, 307, 308)
REDIRECT_REMEDY = "put the address that it leads to into api_base, if it is one to be trusted with the API key"

Kind = Literal["outage", "lost", "broken", "refused", "content", "barred", "fatal"]
"""``outage``: out of reach, or too busy. ``lost``: no reply came. ``broken``: what came is no reply. ``refused``: this
request, by its form. ``content``: this request, by its content. ``barred``: this model, or this request. ``fatal``: any
request."""


class EndpointUnavailableError(ConnectionError):
    """An endpoint stayed out of reach for all attempts; the same call, made later, goes on from here."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


@contextlib.contextmanager
def with_last_words(reach: Reach | None) -> Iterator[None]:
    """Within it, an error that a server is out of reach says how it ended, where that is known.

    Args:
        reach: where the server is; None where it is none of ours.

    Raises:
        EndpointUnavailableError: that error.
    """
    try:
        yield
    except EndpointUnavailableError as error:
        if words := reach.last_words() if reach else "":
            raise EndpointUnavailableError(f"{error}; {words}") from error
        raise


class AttemptError(Exception):
    """An attempt that brought no reply.

    Args:
        kind: what can be done about it.
        way: short, and the same for what fails in the same way.
        message: what was wrong, in a line.
        status: HTTP status, None where no reply began.
        may_be_billed: whether the work may have been done nevertheless.
        retry_after_s: seconds that the endpoint asked to wait.
        body: how the reply began.
    """

    def __init__(
        self,
        kind: Kind,
        way: str,
        message: str,
        *,
        status: int | None = None,
        may_be_billed: bool = False,
        retry_after_s: float = 0.0,
        body: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.way, self.status, self.body = kind, way, status, body
        self.may_be_billed, self.retry_after_s = may_be_billed, retry_after_s

    @property
    def can_pass(self) -> bool:
        """Whether another attempt may help."""
        return self.kind in ("outage", "lost", "broken")


def user_error(error: Exception, status: int | None, endpoint: EndpointConfig) -> UserError:
    """The error of a request that repeating can't help, with what to do about it."""
    return UserError(f"{_name(endpoint)} refused the request (status {status}): {error}; {_remedy(status)}")


def unavailable_error(error: Exception, endpoint: EndpointConfig) -> EndpointUnavailableError:
    """The error of an endpoint that gave no reply to a request, as far as can be told to any."""
    return EndpointUnavailableError(
        f"model {endpoint.model!r} gave no reply in {endpoint.max_attempts} attempt(s) ({error!r}); "
        "replies so far are kept, run again to go on"
    )


def failing_error(endpoint: EndpointConfig, verdict: HealthVerdict) -> Exception:
    """The error of requests in a row that all failed."""
    failure = verdict.failure
    text = (
        f"{verdict.num_failures} requests in a row to {_name(endpoint)} failed: {failure.way}. What came back begins "
        f"with {failure.beginning[:BEGINNING_CHARS]!r}"
    )
    if failure.can_pass:
        return EndpointUnavailableError(f"{text}; replies so far are kept, run again to go on")
    return UserError(f"{text}; {_remedy(failure.status)}. {_GO_ON}")


def unreadable_error(endpoint: EndpointConfig, verdict: HealthVerdict) -> UserError:
    """The error of replies in a row that could not be used."""
    return UserError(
        f"{verdict.num_failures} replies in a row of {_name(endpoint)} could not be used: {verdict.failure.way}. The "
        f"last begins with {verdict.failure.beginning[:BEGINNING_CHARS]!r}. Try another model, a response_format that "
        f"this one keeps to, or a larger max_output_tokens where replies are cut off. {_GO_ON}"
    )


_GO_ON = "What was paid for is kept; to go on nevertheless, raise stop_after_failures of the model"


def _name(endpoint: EndpointConfig) -> str:
    return f"model {endpoint.model!r}" + (f" at {endpoint.api_base}" if endpoint.api_base else "")


def _remedy(status: int | None) -> str:
    return REDIRECT_REMEDY if status in REDIRECTS else STATUS_REMEDIES.get(status or 0, REQUEST_REMEDY)
