"""One request on its way to a reply: what is known of it, and whose fault it is when none comes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mralign_core.llm.endpoint_state import Failure, Health
from mralign_core.llm.faults import AttemptError
from mralign_core.llm.request import UNANSWERED, Request, prompt_digest, reply_record

if TYPE_CHECKING:
    from mralign_core.llm.exchange import Exchange


@dataclass(eq=False)
class Asking:
    """One request on its way to a reply.

    Args:
        request: what is asked.
        digest: of the request.
        health: of its endpoint.
        kept: the record of an earlier client, of a failure or a reply that is of no use.

    ``number`` is its place among the endpoint's requests; ``error`` is what ends the run, once a fault does; ``sent_s``
    is when it was first sent, on the monotonic clock; ``exchange`` tells of the last attempt, if one was sent.
    """

    request: Request
    digest: str
    health: Health
    kept: dict[str, Any] | None
    number: int = 0
    num_attempts: int = 0
    error: Exception | None = None
    started_s: float = field(default_factory=time.monotonic)
    sent_s: float = math.inf
    exchange: Exchange | None = None

    @property
    def has_failed_before(self) -> bool:
        """Whether it failed in an earlier run too, by itself: then another failure says nothing of the endpoint."""
        response = self.kept["response"] if self.kept and self.kept["finish_reason"] == UNANSWERED else None
        return isinstance(response, dict) and bool(response.get("others_answered"))

    def is_its_own(self, fault: AttemptError) -> bool:
        """Whether a fault is of this request alone, and not of its endpoint, as far as can be told from others."""
        if fault.kind in ("broken", "refused"):
            return True
        if fault.kind in ("lost", "barred") and (self.health.has_answered or self.has_failed_before):
            return True
        has_answered_since = self.health.has_answered_since(self.sent_s)
        return fault.kind == "outage" and (has_answered_since or (self.has_failed_before and fault.status is not None))

    def record(self, reading: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a reply that was read."""
        # Not from when it was asked for: a request can wait long for one of our own slots.
        latency_s = time.monotonic() - (self.sent_s if math.isfinite(self.sent_s) else self.started_s)
        return reply_record(self.request.endpoint.model, self.digest, prompt_digest(self.request), reading, latency_s)

    def record_of(self, fault: AttemptError) -> dict[str, Any]:
        """What is kept of a request that got no reply, by its own fault or the other side's."""
        if fault.kind == "content":
            return self.record({"finish_reason": "content_filter", "response": str(fault)})
        response = {
            "problem": f"no reply in {self.num_attempts} attempt(s), {fault.way}: {fault}",
            "status": fault.status,
            "body": fault.body,
            "others_answered": self.health.has_answered or self.has_failed_before,
        }
        return self.record({"finish_reason": UNANSWERED, "response": response})

    def failure(self, fault: AttemptError) -> Failure:
        """What the endpoint's health notes of a fault that ended it."""
        may_be_outage = fault.kind in ("outage", "lost") or (fault.status or 0) >= 500
        return Failure(fault.way, fault.body or str(fault), self.digest, fault.status, may_be_outage)
