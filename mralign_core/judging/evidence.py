"""Passages that a claim is checked against: from one's own text collection, or from a search over HTTP.

The protocol of the search: a POST with the JSON ``{"query": …, "top_k": …}``, answered by ``{"results": [{"text": …,
"title": …, "url": …}, …]}``, the best first; ``title`` and ``url`` may be missing. The key that environment variable
:data:`KEY_VARIABLE` holds is sent as ``Authorization: Bearer …``. What was found is kept as replies of models are, by
the address, the query and ``top_k``, so that nothing is searched for twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import httpx

from mralign_core.errors import UserError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.store import KeepsReplies
from mralign_core.llm.tidying import as_utf8
from mralign_core.redaction import redacted
from mralign_core.retrieval import Retriever, Snippet

KEY_VARIABLE = "MRALIGN_SEARCH_API_KEY"
MAX_PASSAGE = 2000
"""Of a passage that a search gives, in characters, that is kept and shown."""
SEARCHES_AT_ONCE = 8
NUM_ATTEMPTS = 5
PROTOCOL = (
    'it must answer {"query": …, "top_k": …} with {"results": [{"text": …, "title": …, "url": …}]} (docs/judges.md)'
)


class Evidence(Protocol):
    """Anything that finds passages for a claim. Called from one event loop."""

    async def find(self, claim: str) -> Sequence[Snippet]:
        """The best passages, the best first."""
        ...


class FolderEvidence:
    """Passages of one's own text collection, by BM25."""

    def __init__(self, retriever: Retriever, top_k: int) -> None:
        self._retriever, self._top_k = retriever, top_k
        self._found: dict[str, Sequence[Snippet]] = {}

    async def find(self, claim: str) -> Sequence[Snippet]:
        """The pieces that share most with it; none that has no word of it."""
        if claim not in self._found:
            self._found[claim] = (await asyncio.to_thread(self._retriever.search, [claim], self._top_k))[0]
        return self._found[claim]


class SearchEvidence:
    """Passages that a search over HTTP finds.

    Args:
        url: what is posted to.
        top_k: most passages.
        replies: where results are kept.
        first_pause_s: seconds before the second attempt; it doubles.
    """

    def __init__(self, url: str, top_k: int, replies: KeepsReplies, first_pause_s: float = 1.0) -> None:
        self._url, self._top_k, self._replies, self._first_pause_s = url, top_k, replies, first_pause_s
        self._slots = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._http = httpx.AsyncClient(timeout=60.0)

    async def find(self, claim: str) -> Sequence[Snippet]:
        """What the search finds, or found before.

        Raises:
            UserError: it refuses the request, or does not keep to the protocol.
            EndpointUnavailableError: it stayed out of reach for :data:`NUM_ATTEMPTS`.
        """
        named = json.dumps(["search", self._url, claim, self._top_k])
        digest = hashlib.sha256(named.encode()).hexdigest()
        async with self._under_way.setdefault(digest, asyncio.Lock()):
            record = await asyncio.to_thread(self._replies.get, digest)
            if record is None:
                results = await self._search(claim)
                record = {"search": self._url, "query": claim, "top_k": self._top_k, "results": results}
                await asyncio.to_thread(self._replies.put, digest, record)
        return [Snippet(document_id, text, 0.0) for document_id, text in record["results"]]

    async def _search(self, claim: str) -> list[list[str]]:
        """Address and text of each result."""
        key = os.environ.get(KEY_VARIABLE, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        problem = ""
        for attempt in range(NUM_ATTEMPTS):
            await asyncio.sleep(self._first_pause_s * 2 ** (attempt - 1) if attempt else 0)
            try:
                async with self._slots:
                    body = {"query": claim, "top_k": self._top_k}
                    response = await self._http.post(self._url, json=body, headers=headers)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == httpx.codes.OK:
                return [_passage(result) for result in _results(response)[: self._top_k]]
            problem = f"status {response.status_code}: {response.text[:200]}"
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise UserError(f"judge.evidence.search: the search refused a claim ({problem}); {PROTOCOL}")
        raise EndpointUnavailableError(
            f"judge.evidence.search: no answer in {NUM_ATTEMPTS} attempts, last {problem}. What was found is kept: "
            "start the search and run again"
        )


def _results(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        results = response.json()["results"]
        is_right = all(isinstance(each["text"], str) for each in results)
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise UserError(f"judge.evidence.search: can't read {response.text[:200]!r}; {PROTOCOL}")
    return [each for each in results if each["text"].strip()]


def _passage(result: dict[str, Any]) -> list[str]:
    title, text = " ".join(str(result.get("title") or "").split()), " ".join(result["text"].split())
    shown = (f"{title}: {text}" if title else text)[:MAX_PASSAGE]
    return [as_utf8(str(redacted(part))) for part in (str(result.get("url") or ""), shown)]
