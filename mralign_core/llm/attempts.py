"""Attempts at one call, after growing pauses, as many as an endpoint's config allows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from mralign_core.config import EndpointConfig

logger = logging.getLogger("mralign_core.llm")


def attempts_at(
    endpoint: EndpointConfig,
    first_pause_s: float,
    *,
    can_pass: Callable[[BaseException], bool],
    asked_pause_s: Callable[[BaseException], float] = lambda _: 0.0,
    what: object = None,
) -> AsyncRetrying:
    """Calls a coroutine function again while its error can pass; what the last attempt raised is raised.

    Args:
        endpoint: says how many attempts, and the longest pause.
        first_pause_s: pause before the second attempt, about doubled before each further one.
        can_pass: whether another attempt may help after an error.
        asked_pause_s: seconds that an error says to wait, up to the longest pause.
        what: what is attempted, for the log; None logs nothing.
    """
    growing = wait_exponential_jitter(initial=first_pause_s, max=endpoint.max_retry_after_s, jitter=first_pause_s)

    def error_of(state: RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        return error

    def pause(state: RetryCallState) -> float:
        return max(growing(state), min(asked_pause_s(error_of(state)), endpoint.max_retry_after_s))

    def log(state: RetryCallState) -> None:
        pause_s = state.next_action.sleep if state.next_action else 0.0
        logger.warning("%s, attempt %d: %r; next in %.1f s", what, state.attempt_number, error_of(state), pause_s)

    return AsyncRetrying(
        retry=retry_if_exception(can_pass),
        stop=stop_after_attempt(endpoint.max_attempts),
        wait=pause,
        before_sleep=log if what is not None else None,
        reraise=True,
    )
