import asyncio
import time
from email.utils import formatdate

import pytest
from chat_server import fails, says

from mralign_core.annotation import (
    EndpointUnavailableError,
    FolderReplyStore,
    MemoryReplyStore,
    background,
    endpoint,
)
from mralign_core.annotation import client as client_module
from mralign_core.annotation.client import LLMClient, Request
from mralign_core.errors import ConfigError, UserError

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


def request_to(server, number=0, model="openai/gpt-4o", **params):
    messages = [*MESSAGES[:1], {"role": "user", "content": f"u{number}"}]
    return Request(model, messages, params, server.url, 0)


def complete(requests, replies=None, **settings):
    """Complete all requests at once; results in order, errors as values."""
    settings = {
        "concurrency": 8,
        "requests_per_minute": 0,
        "timeout_s": 10.0,
        "max_attempts": 4,
        "first_pause_s": 0.01,
    } | settings

    async def run(_):
        client = LLMClient(MemoryReplyStore() if replies is None else replies, **settings)
        return await asyncio.gather(*map(client.complete, requests), return_exceptions=True)

    return background.run(run)


def test_one_request_gives_one_reply_with_its_price_and_is_kept_raw_and_whole(server, tmp_path):
    server.play(says("hello"))
    replies = FolderReplyStore(tmp_path)
    request = request_to(server, temperature=0.5)
    [received] = complete([request], replies)
    assert (received.reply, received.finish_reason, received.cached) == ("hello", "stop", False)
    assert (received.prompt_tokens, received.completion_tokens) == (100, 20)
    assert received.cost_usd == pytest.approx(100 * 2.5e-6 + 20 * 10e-6)
    record = replies.get(request.digest)
    assert record["response"]["choices"][0]["message"]["content"] == "hello"
    assert record["model"] == "openai/gpt-4o" and record["latency_s"] > 0 and len(record["prompt_digest"]) == 64
    assert server.requests[0]["temperature"] == 0.5
    assert server.requests[0]["messages"] == request.messages


def test_a_kept_reply_is_not_asked_for_again_even_by_another_client(server, tmp_path):
    requests = [request_to(server, number) for number in range(5)]
    first = complete(requests, FolderReplyStore(tmp_path))
    again = complete(requests, FolderReplyStore(tmp_path))
    assert len(server.requests) == 5
    assert [received.cached for received in again] == [True] * 5
    assert [received._replace(cached=False) for received in again] == first


def test_equal_requests_at_the_same_time_are_sent_once(server):
    results = complete([request_to(server)] * 6)
    assert len(server.requests) == 1
    assert sum(received.cached for received in results) == 5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_can_pass_is_tried_again_one_request_an_attempt(server, status):
    server.play(fails(status), fails(status), says("hello"))
    [received] = complete([request_to(server)])
    assert received.reply == "hello"
    assert len(server.requests) == 3


def test_a_body_that_is_not_json_is_tried_again(server):
    server.play(says(""), says("hello"))
    server.script = lambda request, number: says("hello") if number else _broken()
    [received] = complete([request_to(server)])
    assert received.reply == "hello" and len(server.requests) == 2


def _broken():
    turn = says("x")
    turn.body = "<html>gateway</html>"
    return turn


def test_a_slow_reply_is_given_up_and_tried_again(server):
    slow = says("late")
    slow.delay_s = 8.0
    server.play(slow, says("hello"))
    started = time.monotonic()
    [received] = complete([request_to(server)], timeout_s=1.0)
    assert received.reply == "hello" and len(server.requests) == 2
    assert time.monotonic() - started < 6


def test_attempts_end_and_nothing_is_kept(server):
    server.play(fails(503))
    replies = MemoryReplyStore()
    [error] = complete([request_to(server)], replies, max_attempts=3)
    assert isinstance(error, EndpointUnavailableError) and "3 attempt" in str(error)
    assert not isinstance(error, UserError)
    assert len(server.requests) == 3 and not replies.records


def test_a_refused_connection_can_pass():
    class Nowhere:
        url = "http://127.0.0.1:9/v1"

    [error] = complete([request_to(Nowhere)], max_attempts=2)
    assert isinstance(error, EndpointUnavailableError)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, as_date):
    value = formatdate(time.time() + 2, usegmt=True) if as_date else "0.6"
    server.play(fails(429, headers={"Retry-After": value}), says("hello"))
    complete([request_to(server)])
    assert server.times[1] - server.times[0] >= 0.6


def test_retry_after_is_honoured_up_to_a_cap(server, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_RETRY_AFTER_S", 0.3)
    server.play(fails(429, headers={"Retry-After": "3600"}), says("hello"))
    complete([request_to(server)])
    assert 0.3 <= server.times[1] - server.times[0] < 2


def test_without_retry_after_pauses_grow(server):
    server.play(fails(429), fails(429), fails(429), says("hello"))
    complete([request_to(server)], first_pause_s=0.1)
    pauses = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert pauses[0] >= 0.1 and pauses[1] >= 0.2 and pauses[2] >= 0.4


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "temperature"), (401, "API key"), (403, "permissions"), (404, "no such model"), (422, "temp")],
)
def test_what_cannot_pass_is_one_request_and_a_user_error_with_a_remedy(server, status, remedy):
    server.play(fails(status, "because of x"))
    [error] = complete([request_to(server)])
    assert isinstance(error, UserError)
    for part in (remedy, "because of x", "openai/gpt-4o", server.url, str(status)):
        assert part in str(error)
    assert len(server.requests) == 1


def test_after_a_fatal_error_no_new_request_is_sent_but_those_under_way_are_kept(server):
    slow = says("paid for")
    slow.delay_s = 0.5
    server.script = lambda request, number: fails(401) if "u0" in str(request) else slow
    replies = MemoryReplyStore()
    results = complete([request_to(server, number) for number in range(10)], replies, concurrency=2)
    assert isinstance(results[0], UserError)
    assert len(server.requests) <= 3
    assert len(replies.records) == len(server.requests) - 1


def test_a_request_refused_for_its_content_is_a_kept_outcome_not_an_error(server):
    turn = fails(400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.")
    server.script = lambda request, number: turn if "u0" in str(request) else says("hello")
    replies = MemoryReplyStore()
    refused, other = complete([request_to(server, 0), request_to(server, 1)], replies)
    assert (refused.reply, refused.finish_reason) == ("", "content_filter")
    assert other.reply == "hello" and len(replies.records) == 2


def test_empty_choices_are_an_empty_reply(server):
    server.play(says("x", choices=[]))
    [received] = complete([request_to(server)])
    assert received.reply == "" and len(server.requests) == 1


def test_no_more_requests_at_once_than_allowed(server):
    turn = says("hello")
    turn.delay_s = 0.15
    server.play(turn)
    complete([request_to(server, number) for number in range(12)], concurrency=3)
    assert server.most_at_once == 3


def test_requests_are_spaced_by_the_limit_a_minute(server):
    complete([request_to(server, number) for number in range(7)], requests_per_minute=600)
    assert server.times[-1] - server.times[0] >= 0.5


def test_digest_depends_on_all_that_can_change_a_reply():
    base = Request("openai/x", MESSAGES, {"temperature": 0.0}, "", 0)
    others = [
        base._replace(model="openai/y"),
        base._replace(messages=MESSAGES[:1]),
        base._replace(params={"temperature": 0.1}),
        base._replace(params={}),
        base._replace(api_base="http://x"),
        base._replace(turn=1),
    ]
    assert len({request.digest for request in [base, *others]}) == 7
    assert base.digest == Request("openai/x", [*MESSAGES], {"temperature": 0.0}, "", 0).digest


def test_missing_key_or_provider_is_found_before_any_request(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        endpoint.check_model("openai/gpt-4o", "")
    endpoint.check_model("openai/gpt-4o", "http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match="provider"):
        endpoint.check_model("nonesuch-9000", "")
    with pytest.raises(ConfigError, match="cue/a, cue/b, cue/adjudicator"):
        endpoint.check_model("cue/c", "")


def test_reply_format_is_asked_for_as_far_as_the_endpoint_can_keep_it():
    schema = {"type": "object"}
    assert endpoint.response_format("openai/gpt-4o", schema)["response_format"]["json_schema"]["schema"] == schema
    assert endpoint.response_format("deepseek/deepseek-chat", schema) == {"response_format": {"type": "json_object"}}
    assert endpoint.response_format("openai/my-own-model", schema) == {}
    assert endpoint.response_format("cue/a", schema) == {}


def test_a_reply_with_half_a_character_can_be_kept_and_shown_again(server, tmp_path):
    server.play(says("half \ud83d"))
    [received] = complete([request_to(server)], FolderReplyStore(tmp_path))
    assert received.reply == "half \\ud83d"
