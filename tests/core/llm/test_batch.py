"""The batch transport against a provider of its own, over real HTTP."""

import asyncio
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from batch_server import BatchServer, Fault
from chat_server import says, steps

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.annotation.prompts import read_payload
from mralign_core.config import AnnotateConfig, EndpointConfig, StorageConfig
from mralign_core.errors import BudgetError, ConfigError, UserError
from mralign_core.label_sets import load_label_set
from mralign_core.llm import background, endpoint
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Request
from mralign_core.llm.store import MemoryRecords
from mralign_core.storage import ArtifactStore, BatchRecords, LedgerRecords, ReplyStore
from tests.kept_replies import MemoryReplyStore

MODEL = "openai/gpt-4o"
QUICK = {"use_batch_api": True, "batch_window_s": 0.3, "batch_poll_s": 0.02, "timeout_s": 10.0, "max_attempts": 3}
PRICED = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 16}
"""A reply of n tokens costs n dollars, and can cost 16."""


@pytest.fixture
def provider(monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = BatchServer()
    yield server
    server.close()


def request_to(server, number=0, model=MODEL, *, params=None, **settings):
    messages: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": f"u{number}"}]
    config = EndpointConfig(model=model, api_base=server.url, **(QUICK | settings))
    return Request(config, messages, params or {"max_tokens": 20})


def requests_to(server, number, **settings):
    return [request_to(server, place, **settings) for place in range(number)]


class Stores:
    """What outlives a client."""

    def __init__(self):
        self.replies, self.batches, self.ledgers = MemoryReplyStore(), MemoryRecords(), MemoryRecords()

    @property
    def under_way(self):
        return {token for token, record in self.batches.records.items() if record["status"] != "ended"}


def complete(requests, stores=None, *, run="run", ceiling_usd=None, concurrency=1, waves=1):
    """Complete all requests at once with a new client; results in order, errors as values."""
    stores = stores or Stores()

    async def work(_):
        ledger = Ledger(stores.ledgers, run, ceiling_usd)
        client = LLMClient(
            stores.replies, concurrency=concurrency, ledger=ledger, batches=stores.batches, first_pause_s=0.01
        )
        for _wave in range(waves):
            results = await asyncio.gather(*map(client.complete, requests), return_exceptions=True)
        return results

    return background.run(work)


def content(body):
    return body["messages"][-1]["content"]


def test_requests_that_come_together_go_as_one_batch_and_each_gets_its_own_reply(provider, caplog):
    provider.answer = lambda body, number: says(f"to {content(body)}").body
    stores = Stores()
    with caplog.at_level(logging.INFO, "mralign_core.llm"):
        results = complete(requests_to(provider, 30), stores)
    assert [result.reply for result in results] == [f"to u{number}" for number in range(30)]
    assert (len(provider.batches), len(provider.uploads), provider.direct) == (1, 1, [])
    assert not stores.under_way and not any(result.cached for result in results)
    text = caplog.text
    assert "batch batch-2 of 30 requests to openai/gpt-4o: submitted" in text
    assert "in_progress, 0 of 30 done" in text and "completed, 30 of 30 done, 0 failed" in text


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("openai/gpt-4o", {"max_tokens": 20, "temperature": 0.5}),
        ("openai/gpt-5", {"max_tokens": 20}),
        ("openai/o3-mini", {"max_tokens": 20}),
        ("openai/my-own", {"max_tokens": 20, "temperature": 0.0}),
        ("hosted_vllm/my-own", {"max_tokens": 20, "response_format": {"type": "json_object"}}),
        ("litellm_proxy/my-own", {"max_tokens": 20, "temperature": 0.5}),
    ],
)
def test_a_line_is_what_a_direct_request_sends_and_its_record_what_a_direct_one_keeps(
    provider, monkeypatch, model, params
):
    monkeypatch.setenv("LITELLM_PROXY_API_KEY", "unused")
    batched = request_to(provider, model=model, params=params, **PRICED)
    direct = batched._replace(endpoint=EndpointConfig(model=model, api_base=provider.url, **PRICED))
    by_batch, by_chat = Stores(), Stores()
    complete([batched], by_batch)
    complete([direct], by_chat)
    assert provider.submitted[0]["body"] == provider.direct[0]
    one, other = (stores.replies.get(batched.digest) for stores in (by_batch, by_chat))
    assert one and other
    other["response"]["model"] = "scripted"  # litellm puts litellm_proxy/ before it
    assert provider.submitted[0]["custom_id"] == batched.digest
    assert one.pop("latency_s") > 0 and other.pop("latency_s") > 0
    assert without_empty(one) == without_empty(other)


def without_empty(value):
    """A JSON value without nulls and what is empty without them: a direct reply is kept with some more of them."""
    if not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [without_empty(part) for part in value]
    kept = {name: without_empty(part) for name, part in value.items()}
    return {name: part for name, part in kept.items() if part not in (None, {})}


def test_azure_has_its_own_address(provider, monkeypatch):
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    monkeypatch.setenv("AZURE_API_KEY", "unused")
    request = request_to(provider, model="azure/gpt-4o")
    azure = request.endpoint.model_copy(update={"api_base": provider.root})
    [result] = complete([request._replace(endpoint=azure)])
    assert result.reply == "hello" and len(provider.batches) == 1


def test_the_price_is_the_batch_price(provider):
    stores = Stores()
    [result] = complete([request_to(provider)], stores)
    assert result.cost_usd == pytest.approx((100 * 2.5e-6 + 20 * 10e-6) / 2)
    usage = stores.ledgers.records["run"][MODEL]
    assert usage["cost_usd"] == result.cost_usd and usage["set_aside_usd"] == 0 and usage["requests"] == 1


def test_a_price_without_a_batch_price_is_the_full_one_and_the_config_s_is_taken_as_it_is():
    def price(model, **settings):
        return endpoint.known_price(EndpointConfig(model=model, use_batch_api=True, **settings))

    assert price("azure/gpt-4o") == endpoint.Price(2.5e-6, 1e-5)
    assert price("openai/gpt-4o") == endpoint.Price(1.25e-6, 5e-6)
    assert price("openai/gpt-4o", input_usd_per_million=2, output_usd_per_million=4) == endpoint.Price(2e-6, 4e-6)


def test_more_requests_than_a_batch_holds_go_as_several(provider):
    results = complete(requests_to(provider, 7, batch_max_requests=3))
    assert all(result.reply == "hello" for result in results)
    assert sorted(batch["request_counts"]["total"] for batch in provider.batches.values()) == [1, 3, 3]


def test_a_kept_reply_is_not_asked_for_again(provider):
    stores = Stores()
    complete(requests_to(provider, 3), stores)
    again = complete(requests_to(provider, 3), stores)
    assert len(provider.submitted) == 3 and all(result.cached for result in again)


def test_endpoints_have_batches_of_their_own(provider):
    mini = request_to(provider, 1, "openai/gpt-4o-mini")
    complete([request_to(provider), mini])
    assert sorted(line["body"]["model"] for line in provider.submitted) == ["gpt-4o", "gpt-4o-mini"]
    assert len(provider.batches) == 2


FAULTS = {
    "500": Fault(500),
    "429": Fault(429, {"Retry-After": "0.3"}),
    "reset": Fault(reset=True),
    "html": Fault(200, body="<html>gateway</html>", headers={"Content-Type": "text/html"}),
    "truncated": Fault(200, body='{"id": "tru'),
    "hang": Fault(hang_s=3.0),
}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *itertools.product(("upload", "create", "retrieve", "download"), ("500", "429", "reset", "hang")),
        *itertools.product(("create", "retrieve"), ("html", "truncated")),
    ],
)
def test_a_call_that_fails_once_is_made_again_and_nothing_is_submitted_twice(provider, call, name):
    fault = FAULTS[name]
    provider.faults[call] = [fault]
    started = time.monotonic()
    results = complete(requests_to(provider, 3, timeout_s=1.0))
    assert [result.reply for result in results] == ["hello"] * 3
    assert len(provider.batches) == 1 and len(provider.submitted) == 3
    assert provider.calls.count(call) >= 2
    if fault.status == 429:
        assert provider.times[call][1] - provider.times[call][0] >= 0.3
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("fault", [Fault(500, after=True), Fault(reset=True, after=True)], ids=["500", "reset"])
def test_a_batch_whose_creation_was_not_confirmed_is_found_and_not_made_again(provider, fault):
    provider.faults["create"] = [fault]
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3
    assert provider.calls.count("create") == 1 and provider.calls.count("list") == 1


def test_an_unconfirmed_batch_is_found_among_many(provider, monkeypatch):
    from mralign_core.llm import batch_endpoint

    monkeypatch.setattr(batch_endpoint, "PAGE_SIZE", 2)
    stores = Stores()
    request = request_to(provider)
    provider.faults["create"] = [Fault(503, after=True)]
    [error] = complete([request_to(provider, max_attempts=1)], stores)
    assert isinstance(error, EndpointUnavailableError)
    complete(requests_to(provider, 6, batch_max_requests=1)[1:])
    provider.end()
    assert complete([request], stores)[0].reply == "hello"
    assert provider.calls.count("create") == 6 and provider.calls.count("list") == 3


def test_an_endpoint_that_stays_out_of_reach_before_a_batch_exists_leaves_nothing_behind(provider):
    provider.faults["upload"] = [Fault(503)] * 9
    stores = Stores()
    results = complete(requests_to(provider, 3, **PRICED), stores)
    assert all(isinstance(result, EndpointUnavailableError) for result in results)
    assert not isinstance(results[0], UserError) and provider.calls == ["upload"] * 3
    assert not stores.under_way and stores.ledgers.records["run"][MODEL]["set_aside_usd"] == 0


def test_a_batch_out_of_reach_stays_on_record_and_the_next_run_waits_for_it(provider):
    provider.faults["retrieve"] = [Fault(503)] * 3
    stores = Stores()
    requests = requests_to(provider, 3, **PRICED)
    results = complete(requests, stores)
    assert all(isinstance(result, EndpointUnavailableError) for result in results)
    assert "on record" in str(results[0]) and len(stores.under_way) == 1
    assert stores.ledgers.records["run"][MODEL]["set_aside_usd"] == 48
    again = complete(requests, stores, run="another run", ceiling_usd=60)
    assert [result.reply for result in again] == ["hello"] * 3
    assert len(provider.submitted) == 3 and not stores.under_way
    assert stores.ledgers.records["run"][MODEL]["set_aside_usd"] == 0
    assert stores.ledgers.records["another run"][MODEL]["cost_usd"] == 60
    assert stores.ledgers.records["another run"][MODEL]["set_aside_usd"] == 0


def test_a_batch_of_an_earlier_run_is_waited_for_even_when_the_config_now_asks_directly(provider):
    provider.faults["retrieve"] = [Fault(503)] * 3
    stores = Stores()
    complete(requests_to(provider, 3), stores)
    provider.end()
    direct = EndpointConfig(model=MODEL, api_base=provider.url)
    again = complete([request._replace(endpoint=direct) for request in requests_to(provider, 4)], stores)
    assert [result.reply for result in again] == ["hello"] * 4
    assert len(provider.submitted) == 3 and [content(body) for body in provider.direct] == ["u3"]


def test_all_replies_of_an_earlier_batch_are_kept_and_paid_even_those_not_asked_for_now(provider):
    provider.faults["retrieve"] = [Fault(503)] * 3
    stores = Stores()
    requests = requests_to(provider, 5, **PRICED)
    complete(requests, stores)
    complete(requests[:1], stores, run="two")
    assert len(stores.replies.records) == 5
    usage = stores.ledgers.records["two"][MODEL]
    assert (usage["requests"], usage["cost_usd"], usage["set_aside_usd"]) == (5, 100, 0)


def test_a_batch_that_was_intended_and_never_made_is_made_by_the_next_run(provider):
    provider.faults["create"] = [Fault(503)] * 3
    stores = Stores()
    requests = requests_to(provider, 3, **PRICED)
    assert isinstance(complete(requests, stores)[0], EndpointUnavailableError)
    assert len(stores.under_way) == 1 and not provider.batches
    again = complete(requests, stores, ceiling_usd=48)
    assert [result.reply for result in again] == ["hello"] * 3
    assert len(provider.submitted) == 3 and not stores.under_way


def test_a_provider_that_cannot_list_batches_is_never_sent_a_batch_that_may_exist(provider):
    provider.can_list = False
    provider.faults["create"] = [Fault(500, after=True)]
    stores = Stores()
    requests = requests_to(provider, 3)
    for _ in range(2):
        results = complete(requests, stores)
        assert all("can't be listed" in str(result) for result in results)
    assert len(provider.batches) == 1 and len(stores.under_way) == 1


def test_what_cannot_pass_is_a_user_error_with_a_remedy(provider):
    provider.faults["create"] = [Fault(401)] * 3
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert all(isinstance(result, UserError) and "API key" in str(result) for result in results)
    assert provider.calls.count("create") == 1 and not stores.under_way


def test_a_batch_that_can_not_be_read_is_not_submitted_again(provider):
    provider.faults["retrieve"] = [Fault(404)] * 2
    stores = Stores()
    for _ in range(2):
        [result] = complete([request_to(provider)], stores)
        [token] = stores.under_way
        assert isinstance(result, UserError) and f"batches/{token}" in str(result)
    assert len(provider.submitted) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_request_that_failed_in_a_way_that_can_pass_goes_into_a_next_batch(provider, status):
    provider.answer = lambda body, number: says("hello").body if number or content(body) != "u1" else (status, "busy")
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3
    assert [content(line["body"]) for line in provider.submitted] == ["u0", "u1", "u2", "u1"]


def test_attempts_end(provider):
    provider.answer = lambda body, number: (500, "broken") if content(body) == "u1" else says("hello").body
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert results[1].failed and "broken" in results[1].problem and results[0].reply == results[2].reply == "hello"
    assert len(provider.submitted) == 5 and len(stores.replies.records) == 3
    again = complete(requests_to(provider, 3), stores)
    assert again[1].failed and len(provider.submitted) == 8


def test_a_request_refused_for_its_content_is_a_kept_outcome(provider):
    flagged = (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.")
    provider.answer = lambda body, number: flagged if content(body) == "u1" else says("hello").body
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert [result.finish_reason for result in results] == ["stop", "content_filter", "stop"]
    assert len(stores.replies.records) == 3 and len(provider.submitted) == 3


@pytest.mark.parametrize("status", [400, 404])
def test_one_request_that_is_refused_while_others_are_answered_is_a_failure_of_its_own(provider, status):
    provider.answer = lambda body, number: (status, "because") if content(body) == "u1" else says("hello").body
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert results[1].failed and "because" in results[1].problem
    assert results[0].reply == results[2].reply == "hello" and len(provider.submitted) == 3


@pytest.mark.parametrize(("status", "remedy"), [(400, "temperature"), (404, "no such model")])
def test_requests_that_are_all_refused_are_a_user_error(provider, status, remedy):
    provider.answer = lambda body, number: (status, "because")
    results = complete(requests_to(provider, 6))
    assert isinstance(results[-1], UserError) and remedy in str(results[-1]) and "because" in str(results[-1])
    assert len(provider.submitted) == 6


def test_a_batch_that_failed_validation_is_a_user_error_with_the_provider_s_words(provider):
    provider.ends = ["failed"]
    provider.problems = [{"code": "model_not_found", "message": "no such model for batches", "line": 1, "param": None}]
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert all(isinstance(result, UserError) for result in results)
    assert "no such model for batches" in str(results[0])
    assert len(provider.batches) == 1 and not stores.under_way and not stores.replies.records


def test_a_failed_batch_with_an_error_file_gives_each_request_its_own_error(provider):
    provider.ends = ["failed"]
    provider.answer = lambda body, number: (400, f"bad {content(body)}")
    results = complete(requests_to(provider, 3))
    assert [f"bad u{number}" in str(result) for number, result in enumerate(results)] == [True] * 3


def test_a_full_queue_at_the_provider_can_pass(provider):
    provider.ends = ["failed", "completed"]
    provider.problems = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}]
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3 and len(provider.batches) == 2


def test_an_expired_batch_keeps_what_it_brought_and_the_rest_is_submitted_again(provider):
    provider.ends = ["expired", "completed"]
    provider.answer = lambda body, number: says("hello").body if number or content(body) in ("u0", "u3") else None
    stores = Stores()
    results = complete(requests_to(provider, 5), stores)
    assert [result.reply for result in results] == ["hello"] * 5
    assert sorted(content(line["body"]) for line in provider.submitted[5:]) == ["u1", "u2", "u4"]


def test_a_cancelled_batch_keeps_what_it_brought_and_stops_the_run(provider):
    provider.ends = ["cancelled", "completed"]
    provider.answer = lambda body, number: says("hello").body if number or content(body) == "u0" else None
    stores = Stores()
    results = complete(requests_to(provider, 3), stores)
    assert results[0].reply == "hello" and len(stores.replies.records) == 1 and len(provider.batches) == 1
    assert all(isinstance(result, UserError) and "cancelled" in str(result) for result in results[1:])
    again = complete(requests_to(provider, 3), stores)
    assert [result.cached for result in again] == [True, False, False] and len(provider.submitted) == 5


def without_last_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("spoil", [without_last_line, lambda text: text[:-30]], ids=["missing line", "truncated"])
def test_an_output_file_that_is_not_whole_is_fetched_again(provider, spoil):
    provider.spoil = lambda text, number: text if number else spoil(text)
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3
    assert len(provider.submitted) == 3 and provider.calls.count("download") == 2


@pytest.mark.parametrize("spoil", [without_last_line, lambda text: text[:-30]], ids=["missing line", "truncated"])
def test_a_request_whose_line_never_comes_is_submitted_again(provider, spoil):
    provider.spoil = lambda text, number: text if number >= 3 else spoil(text)
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3
    assert len(provider.submitted) == 4


def test_the_first_of_two_lines_of_a_request_counts(provider, caplog):
    def doubled(text, number):
        first, *rest = text.splitlines(keepends=True)
        return first + "".join(rest) + first.replace("hello", "again")

    provider.spoil = doubled
    results = complete(requests_to(provider, 3))
    assert [result.reply for result in results] == ["hello"] * 3 and len(provider.submitted) == 3
    assert "several lines" in caplog.text


def test_a_reply_that_is_not_a_chat_completion_is_asked_for_again(provider):
    provider.answer = lambda body, number: says("hello").body if number else {"unexpected": True}
    [result] = complete([request_to(provider)])
    assert result.reply == "hello" and len(provider.submitted) == 2


def test_the_budget_is_set_aside_before_and_what_does_not_fit_waits_for_a_next_batch(provider):
    """A reply costs $4, and may cost $16: of $40 two fit at first, two more with $8 spent, then one up to $24."""
    provider.answer = lambda body, number: says("a", usage={"prompt_tokens": 9, "completion_tokens": 4}).body
    stores = Stores()
    results = complete(requests_to(provider, 12, **PRICED), stores, ceiling_usd=40)
    errors = [result for result in results if isinstance(result, BudgetError)]
    sizes = [batch["request_counts"]["total"] for batch in provider.batches.values()]
    assert sizes == [2, 2, 1, 1, 1]
    assert len(stores.replies.records) == 7 and len(errors) == 5
    usage = stores.ledgers.records["run"][MODEL]
    assert usage["cost_usd"] == 28 and usage["set_aside_usd"] == 0


def test_when_the_client_stops_a_batch_under_way_is_left_to_a_rerun(provider):
    provider.polls = 10_000
    provider.faults["chat"] = [Fault(401)]
    stores = Stores()
    other = request_to(provider)._replace(endpoint=EndpointConfig(model="openai/gpt-4o-mini", api_base=provider.url))
    batched = requests_to(provider, 2)

    async def work(_):
        client = LLMClient(stores.replies, concurrency=1, batches=stores.batches, first_pause_s=0.01)
        waiting = [asyncio.ensure_future(client.complete(request)) for request in batched]
        while not any(record["status"] == "submitted" for record in stores.batches.read().values()):
            await asyncio.sleep(0.01)
        return await asyncio.gather(client.complete(other), *waiting, return_exceptions=True)

    results = background.run(work)
    assert all(isinstance(result, UserError) for result in results)
    provider.end()
    assert [result.reply for result in complete(batched, stores)] == ["hello"] * 2
    assert len(provider.submitted) == 2


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        ("deepseek/deepseek-chat", {}, "azure, hosted_vllm, litellm_proxy, openai"),
        ("anthropic/claude-sonnet-4-5", {}, "no batch API"),
        ("cue/a", {}, "offline"),
    ],
)
def test_an_endpoint_without_a_batch_api_is_found_before_any_request(model, settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        endpoint.check_endpoint(EndpointConfig(model=model, use_batch_api=True, **settings), "annotate.annotator_a")
    assert "annotate.annotator_a" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_poll_s": 3.0},
        {"batch_window_s": 1.0},
        {"batch_max_requests": 10},
        {"use_batch_api": True, "requests_per_minute": 3},
        {"use_batch_api": True, "tokens_per_minute": 3},
    ],
)
def test_a_setting_without_effect_is_an_error(settings):
    with pytest.raises(ValueError, match="has no effect when use_batch_api"):
        EndpointConfig(model=MODEL, **settings)


def candidates(texts):
    """Traces of one segment each."""
    segment = {"start": 0, "token_start": 0, "token_end": 1}
    rows = [
        {
            "trace_id": text,
            "question": "Who wrote it?",
            "answers": ["Galen"],
            "completion": text,
            "segments": [segment | {"end": len(text)}],
        }
        for text in texts
    ]
    return pd.DataFrame(rows)


def test_waves_of_the_shards_under_way_go_as_one_batch_each(provider):
    """Two shards: the annotators' requests are one batch each, then the adjudicator's one, then its repairs."""

    def answer(body, number):
        model = body["model"]
        if model == "judge":
            asked = read_payload(body["messages"])["disputed"][0]["thinking_step"]
            repair = len(body["messages"]) > 2
            return says(steps((asked, {"retrieval": 9})) if repair else "no JSON").body
        return says(steps(([0], {"retrieval" if model == "a" else "evaluation": 5}))).body

    provider.answer = answer
    endpoints = {
        role: EndpointConfig(model=f"openai/{name}", api_base=provider.url, **QUICK | PRICED | {"batch_window_s": 2.0})
        for role, name in zip(("annotator_a", "annotator_b", "adjudicator"), ("a", "b", "judge"), strict=True)
    }
    section = AnnotateConfig(**endpoints, concurrency=1)
    client = LLMClient(MemoryReplyStore(), concurrency=1, first_pause_s=0.01)

    def shard(number):
        rows = candidates([f"shard {number} trace {place}" for place in range(4)])
        return annotate_traces(rows, section, seed=0, label_set=load_label_set(""), client=client)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(shard, range(2)))
    assert [len(result.annotations) for result in results] == [4, 4]
    sizes = [batch["request_counts"]["total"] for batch in provider.batches.values()]
    assert sizes == [8, 8, 8, 8] and provider.submitted[-1]["body"]["model"] == "judge"


def run_to_the_end(folder, url, number):
    """What the killed process does."""
    store = ArtifactStore(StorageConfig(root=str(folder)), Path(folder, "cache"))
    config = EndpointConfig(model=MODEL, api_base=url, **QUICK, **PRICED)
    requests = [
        Request(config, [{"role": "user", "content": f"u{place}"}], {"max_tokens": 20}) for place in range(number)
    ]

    async def work(_):
        ledger = Ledger(LedgerRecords(store, "work"), "run", 16.0 * number)
        client = LLMClient(ReplyStore(store), concurrency=1, ledger=ledger, batches=BatchRecords(store))
        return await asyncio.gather(*map(client.complete, requests))

    return background.run(work)


def start(folder, url, number):
    code = f"import test_batch; test_batch.run_to_the_end({str(folder)!r}, {url!r}, {number})"
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parents[1], here.parents[2])))
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=here.parents[2])


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["create", "retrieve", "download"])
def test_a_killed_process_pays_for_nothing_twice(provider, tmp_path, moment):
    """Killed while it makes the batch, while it polls, while it fetches the replies; the rerun brings all home."""
    provider.answer = lambda body, number: says(content(body), usage={"prompt_tokens": 9, "completion_tokens": 1}).body
    provider.polls = 10_000 if moment == "retrieve" else 2
    if moment in ("create", "download"):
        provider.faults[moment] = [Fault(hang_s=5.0, after=True)]
    process = start(tmp_path, provider.url, 20)
    try:
        wait_until(lambda: provider.calls.count(moment) >= (3 if moment == "retrieve" else 1), process)
        if moment == "create":
            wait_until(lambda: provider.batches, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(provider.submitted) == 20 and not any(Path(tmp_path, "records").glob("replies/*/*.json"))
    if moment == "retrieve":
        provider.end()
    results = run_to_the_end(tmp_path, provider.url, 20)
    assert [result.reply for result in results] == [f"u{number}" for number in range(20)]
    assert len(provider.submitted) == 20 and provider.calls.count("create") == 1
    [account] = [json.loads(path.read_text()) for path in Path(tmp_path, "records/ledgers/work").glob("*.json")]
    assert account[MODEL]["cost_usd"] == 20 and account[MODEL]["set_aside_usd"] == 0


@pytest.mark.parametrize(
    ("answer", "lost_usd"),
    [((500, "broken"), 16), ((400, "no such parameter"), 0), ((429, "busy"), 0), ({"choices": "x", "usage": None}, 16)],
)
def test_a_line_that_tells_of_no_reply_counts_as_billed_unless_it_tells_of_a_plain_refusal(provider, answer, lost_usd):
    """A reply may cost 16 dollars, and does where nothing says what it cost."""
    provider.answer = lambda body, number: answer
    stores = Stores()
    complete(requests_to(provider, 1, max_attempts=1, **PRICED), stores, ceiling_usd=100)
    usage = stores.ledgers.records["run"]["openai/gpt-4o"]
    assert usage["lost_usd"] + usage["cost_usd"] == lost_usd and usage["set_aside_usd"] == 0


def test_a_line_that_the_output_file_lacks_counts_as_billed(provider):
    provider.spoil = lambda text, number: text.partition("\n")[2]
    stores = Stores()
    complete(requests_to(provider, 2, max_attempts=1, **PRICED), stores, ceiling_usd=100)
    usage = stores.ledgers.records["run"]["openai/gpt-4o"]
    assert usage["lost_usd"] == 16 and usage["cost_usd"] == 20 and usage["set_aside_usd"] == 0


def test_requests_that_an_expired_batch_did_not_come_to_cost_nothing(provider):
    provider.answer, provider.ends = lambda body, number: None, ["expired"]
    stores = Stores()
    complete(requests_to(provider, 2, max_attempts=1, **PRICED), stores, ceiling_usd=100)
    usage = stores.ledgers.records["run"]["openai/gpt-4o"]
    assert usage["lost_usd"] == usage["cost_usd"] == usage["set_aside_usd"] == 0
