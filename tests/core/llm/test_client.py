import asyncio
import sys
import threading
import time
from email.utils import formatdate
from itertools import chain, repeat
from typing import Any

import pytest
from chat_server import drips, fails, hangs_up, says

from mralign_core.annotation import cue
from mralign_core.annotation.prompts import ShownTrace, annotate_messages
from mralign_core.config import EndpointConfig, StorageConfig
from mralign_core.errors import BudgetError, ConfigError, UserError
from mralign_core.llm import background, endpoint
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.offline import Message
from mralign_core.llm.request import Request
from mralign_core.llm.store import MemoryRecords
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.storage import ArtifactStore, ReplyStore
from tests.kept_replies import MemoryReplyStore, replies_in

MESSAGES: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


def request_to(server, number=0, model="openai/gpt-4o", *, settings=None, **params):
    messages: list[Message] = [*MESSAGES[:1], {"role": "user", "content": f"u{number}"}]
    limits: dict[str, Any] = {"timeout_s": 10.0, "max_attempts": 4} | (settings or {})
    return Request(EndpointConfig(model=model, api_base=server.url, **limits), messages, params)


def complete(requests, replies=None, *, concurrency=8, ledger=None, first_pause_s=0.01):
    """Complete all requests at once; results in order, errors as values."""
    kept = MemoryReplyStore() if replies is None else replies

    async def run(_):
        client = LLMClient(kept, concurrency=concurrency, ledger=ledger, first_pause_s=first_pause_s)
        return await asyncio.gather(*map(client.complete, requests), return_exceptions=True)

    return background.run(run)


def test_one_request_gives_one_reply_with_its_price_and_is_kept_raw_and_whole(server, tmp_path):
    server.play(says("hello"))
    replies = replies_in(tmp_path)
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
    first = complete(requests, replies_in(tmp_path))
    again = complete(requests, replies_in(tmp_path))
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
    slow.delay_s = 20.0
    server.play(slow, says("hello"))
    started = time.monotonic()
    [received] = complete([request_to(server, settings={"timeout_s": 3.0})])
    assert received.reply == "hello" and len(server.requests) == 2
    assert time.monotonic() - started < 18


def test_attempts_end_and_nothing_is_kept(server):
    server.play(fails(503))
    replies = MemoryReplyStore()
    [error] = complete([request_to(server, settings={"max_attempts": 3})], replies)
    assert isinstance(error, EndpointUnavailableError) and "3 attempt" in str(error)
    assert not isinstance(error, UserError)
    assert len(server.requests) == 3 and not replies.records


def test_a_refused_connection_can_pass():
    class Nowhere:
        url = "http://127.0.0.1:9/v1"

    [error] = complete([request_to(Nowhere, settings={"max_attempts": 2})])
    assert isinstance(error, EndpointUnavailableError)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, as_date):
    def answer(request, number):
        value = formatdate(time.time() + 2, usegmt=True) if as_date else "0.6"
        return says("hello") if number else fails(429, headers={"Retry-After": value})

    server.script = answer
    complete([request_to(server)])
    assert server.times[1] - server.times[0] >= 0.6


def test_retry_after_is_honoured_up_to_a_cap(server):
    server.play(fails(429, headers={"Retry-After": "3600"}), says("hello"))
    complete([request_to(server, settings={"max_retry_after_s": 0.3})])
    assert 0.3 <= server.times[1] - server.times[0] < 60


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
    [error] = complete([request_to(server, settings={"stop_after_failures": 1})])
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
    three = threading.Barrier(3)

    def answer(request, number):
        three.wait(30)  # no reply before three are there
        return says("hello")

    server.script = answer
    complete([request_to(server, number) for number in range(12)], concurrency=3)
    assert server.most_at_once == 3


def test_requests_are_spaced_by_the_limit_a_minute(server):
    complete([request_to(server, number, settings={"requests_per_minute": 120}) for number in range(4)])
    assert server.times[-1] - server.times[0] >= 1.0  # 1.5 s, less what the first takes to be sent


def test_digest_depends_on_all_that_can_change_a_reply():
    plain = EndpointConfig(model="openai/x")
    base = Request(plain, MESSAGES, {"temperature": 0.0})
    others = [
        base._replace(endpoint=EndpointConfig(model="openai/y")),
        base._replace(endpoint=EndpointConfig(model="openai/x", api_base="http://x")),
        base._replace(messages=MESSAGES[:1]),
        base._replace(params={"temperature": 0.1}),
        base._replace(params={}),
        base._replace(turn=1),
    ]
    assert len({request.digest for request in [base, *others]}) == 7
    paced = EndpointConfig(model="openai/x", timeout_s=1, use_batch_api=True)
    assert base.digest == Request(paced, [*MESSAGES], {"temperature": 0.0}).digest


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        ("openai/gpt-4o", {}, "OPENAI_API_KEY"),
        ("nonesuch-9000", {}, "provider"),
        ("cue/c", {}, "cue/a, cue/b, cue/adjudicator"),
        ("openai/my-own", {"api_base": "http://127.0.0.1:1/v1"}, "input_usd_per_million"),
    ],
)
def test_what_cannot_be_asked_or_priced_is_found_before_any_request(monkeypatch, model, settings, says):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert cue.PROVIDER == "cue"
    with pytest.raises(ConfigError, match=says) as caught:
        endpoint.check_endpoint(EndpointConfig(model=model, **settings), "annotate.annotator_a")
    assert "annotate.annotator_a" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("openai/gpt-4o", {"api_base": "http://127.0.0.1:1/v1"}),
        ("openai/my-own", {"api_base": "http://a/v1", "input_usd_per_million": 0, "output_usd_per_million": 0}),
        ("cue/a", {}),
    ],
)
def test_what_can_be_asked_passes_the_check(model, settings):
    endpoint.check_endpoint(EndpointConfig(model=model, **settings), "annotate.annotator_a")


def test_reply_format_is_asked_for_as_far_as_the_endpoint_can_keep_it():
    schema = {"type": "object"}
    assert endpoint.response_format("openai/gpt-4o", schema)["response_format"]["json_schema"]["schema"] == schema
    assert endpoint.response_format("deepseek/deepseek-chat", schema) == {"response_format": {"type": "json_object"}}
    assert endpoint.response_format("openai/my-own-model", schema) == {}
    assert endpoint.request_params(EndpointConfig(model="cue/a"), schema) == {}
    params = endpoint.request_params(EndpointConfig(model="openai/my-own", temperature=0, max_output_tokens=99), schema)
    assert params == {"max_tokens": 99, "temperature": 0}


def test_a_reply_with_half_a_character_can_be_kept_and_shown_again(server, tmp_path):
    server.play(says("half \ud83d"))
    [received] = complete([request_to(server)], replies_in(tmp_path))
    assert received.reply == "half \\ud83d"


def test_a_config_price_goes_before_the_known_one(server):
    prices = {"input_usd_per_million": 1000, "output_usd_per_million": 2000}
    [received] = complete([request_to(server, settings=prices)])
    assert received.cost_usd == pytest.approx(0.1 + 0.04)


@pytest.mark.parametrize("fault", [hangs_up(), hangs_up(after=40), drips(says("late"), seconds=20.0)])
def test_a_reset_a_truncated_body_and_a_slow_drip_are_tried_again(server, fault):
    server.play(fault, says("hello"))
    [received] = complete([request_to(server, settings={"timeout_s": 3.0})])
    assert received.reply == "hello" and len(server.requests) == 2


def test_tokens_a_minute_space_requests_and_estimates_are_corrected(server):
    """A request is taken for its prompt, about 24 tokens; it used 120: at 12,000 a minute 0.6 s."""
    settings = {"tokens_per_minute": 12_000}
    requests = [request_to(server, number, settings=settings) for number in range(5)]
    complete(requests, concurrency=1)
    assert 4 * 0.6 * 0.9 <= server.times[-1] - server.times[0] < 4 * 0.6 * 5


def test_a_limit_of_one_model_does_not_hold_up_another(server):
    slow = [request_to(server, n, settings={"requests_per_minute": 30}) for n in range(3)]
    fast = [request_to(server, n, model="openai/gpt-4o-mini") for n in range(5)]
    complete([*slow, *fast], concurrency=1)
    models = [request["model"] for request in server.requests]
    assert models[:7].count("gpt-4o-mini") == 5 and models[-1] == "gpt-4o"


def test_an_endpoint_that_asks_to_wait_is_left_alone_by_all_requests_to_it(server):
    server.play(fails(429, headers={"Retry-After": "0.7"}), says("hello"))
    complete([request_to(server, number) for number in range(6)], concurrency=1)
    assert server.times[1] - server.times[0] >= 0.65


def test_a_pause_between_attempts_leaves_the_slot_to_others(server):
    turns = chain([fails(500)], repeat(says("hello")))
    server.script = lambda request, number: next(turns) if request["model"] == "gpt-4o" else says("hello")
    complete(
        [request_to(server, 0), request_to(server, 1, model="openai/gpt-4o-mini")], concurrency=1, first_pause_s=0.8
    )
    models = [request["model"] for request in server.requests]
    assert len(models) == 3 and models[2] == "gpt-4o"


PRICED = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 16}


def test_no_call_that_could_cross_the_ceiling_is_sent_and_all_before_it_is_kept(server):
    """A reply costs $1 here, and may cost $16: with $40, 24 replies leave room for one that may cost 16, 25 do not."""
    server.script = lambda request, number: says("a", usage={"prompt_tokens": 9, "completion_tokens": 1})
    ledger, replies = Ledger(ceiling_usd=40), MemoryReplyStore()
    results = complete([request_to(server, n, settings=PRICED) for n in range(60)], replies, ledger=ledger)
    errors = [result for result in results if isinstance(result, BudgetError)]
    assert len(server.requests) == len(replies.records) == 25 and len(errors) == 35
    assert ledger.committed_usd == ledger.usage["openai/gpt-4o"].cost_usd == 25
    assert "annotate.budget_usd" in str(errors[0])


def test_the_ceiling_holds_over_runs_and_what_was_in_flight_at_a_crash_counts_as_spent(server):
    server.script = lambda request, number: says("a", usage={"prompt_tokens": 9, "completion_tokens": 1})
    account = MemoryRecords()
    account.write("killed run", {"openai/gpt-4o": {"requests": 3, "cost_usd": 3.0, "set_aside_usd": 16.0}})
    results = complete([request_to(server, n, settings=PRICED) for n in range(60)], ledger=Ledger(account, "b", 40))
    assert len(server.requests) == 6
    assert sum(isinstance(result, BudgetError) for result in results) == 54
    assert account.records["b"]["openai/gpt-4o"]["cost_usd"] == 6
    assert account.records["b"]["openai/gpt-4o"]["set_aside_usd"] == 0


def test_kept_replies_cost_nothing_again(server):
    replies = MemoryReplyStore()
    requests = [request_to(server, n) for n in range(4)]
    complete(requests, replies)
    ledger = Ledger(ceiling_usd=0)
    assert all(received.cached for received in complete(requests, replies, ledger=ledger))
    assert ledger.usage["openai/gpt-4o"].kept_replies == 4 and ledger.committed_usd == 0


@pytest.mark.parametrize(("status", "lost_usd"), [(429, 0), (503, 32), (500, 32)])
def test_an_attempt_without_a_reply_is_charged_unless_it_was_plainly_refused(server, status, lost_usd):
    server.play(fails(status))
    ledger = Ledger(ceiling_usd=100)
    complete([request_to(server, settings=PRICED | {"max_attempts": 2})], ledger=ledger)
    assert ledger.committed_usd == ledger.usage["openai/gpt-4o"].lost_usd == lost_usd
    assert ledger.usage["openai/gpt-4o"].requests == 0


@pytest.mark.parametrize("content", ["half \ud83d", "\x00\x1b", "naïve 🇨🇭"])
def test_the_artifact_store_keeps_any_reply_whole(server, tmp_path, content):
    replies = ReplyStore(ArtifactStore(StorageConfig(root=str(tmp_path))))
    server.play(says(content, usage={"prompt_tokens": 9, "completion_tokens": 1, "odd": float("nan")}))
    [first] = complete([request_to(server)], replies)
    [again] = complete([request_to(server)], replies)
    assert again == first._replace(cached=True) and len(server.requests) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10}])
def test_a_reply_that_does_not_say_what_it_cost_counts_as_the_most(server, usage):
    server.play(says("a", usage=usage))
    ledger = Ledger(ceiling_usd=40)
    results = complete([request_to(server, n, settings=PRICED) for n in range(9)], ledger=ledger)
    assert len(server.requests) == 2 and ledger.committed_usd == 32
    assert sum(isinstance(result, BudgetError) for result in results) == 7


def test_a_request_that_timed_out_counts_as_billed_and_no_attempt_crosses_the_ceiling(server):
    slow = says("late")
    slow.delay_s = 8.0
    server.play(slow)
    ledger = Ledger(ceiling_usd=40)
    [error] = complete([request_to(server, settings=PRICED | {"timeout_s": 2.0, "max_attempts": 9})], ledger=ledger)
    time.sleep(0.3)  # the server may read what was sent only now
    assert isinstance(error, BudgetError) and len(server.requests) == 2
    assert ledger.usage["openai/gpt-4o"].lost_usd == 32 and ledger.usage["openai/gpt-4o"].set_aside_usd == 0


class BrokenOnce(MemoryRecords):
    """Fails to write the first time."""

    def write(self, run, record):
        if not self.records:
            self.records["other"] = {}
            raise OSError("disk is full")
        super().write(run, record)


def test_a_ledger_that_could_not_be_written_leaves_no_request_waiting(server):
    server.script = lambda request, number: says("a", usage={"prompt_tokens": 9, "completion_tokens": 1})
    ledger = Ledger(BrokenOnce(), ceiling_usd=17)
    results = complete([request_to(server, n, settings=PRICED) for n in range(3)], ledger=ledger)
    assert isinstance(results[0], OSError) and ledger.is_idle
    assert ledger.usage["openai/gpt-4o"].set_aside_usd == 0


@pytest.mark.parametrize(
    "message",
    [
        "Content Exists Risk",
        "The input was flagged",
        "This model's maximum context length is 8192 tokens",
        "invalid_prompt",
    ],
)
def test_one_trace_that_a_provider_refuses_does_not_end_the_run(server, message):
    server.script = lambda request, number: fails(400, message) if "u0" in str(request) else says("hello")
    refused, other = complete([request_to(server, 0), request_to(server, 1)])
    assert refused.finish_reason == "content_filter" and other.reply == "hello"


def test_a_limit_on_output_is_the_users_to_mend_and_no_refusal(server):
    server.play(fails(400, "max_tokens is too large: 8192. This model supports at most 4096 completion tokens"))
    [error] = complete([request_to(server, settings={"stop_after_failures": 1})])
    assert isinstance(error, UserError) and "max_output_tokens" in str(error)


def test_an_account_without_credit_is_not_tried_again(server):
    server.play(fails(429, "You exceeded your current quota (insufficient_quota)"))
    [error] = complete([request_to(server)])
    assert isinstance(error, UserError) and "quota" in str(error) and len(server.requests) == 1


def test_after_a_fatal_error_nobody_waits_for_a_turn(server):
    server.play(fails(401))
    started = time.monotonic()
    results = complete([request_to(server, n, settings={"requests_per_minute": 2}) for n in range(8)])
    assert all(isinstance(result, UserError) for result in results)
    assert len(server.requests) == 1 and time.monotonic() - started < 20, "a turn is half a minute away"


@pytest.mark.parametrize("damage", [{"version": 1}, {"reply": None, "version": None}])
def test_a_record_of_another_version_is_asked_for_again(server, damage, caplog):
    replies, request = MemoryReplyStore(), request_to(server)
    complete([request], replies)
    replies.records[request.digest] |= damage
    [received] = complete([request], replies)
    assert not received.cached and len(server.requests) == 2 and "asking again" in caplog.text


def test_an_offline_model_is_asked_without_what_takes_seconds_to_import(monkeypatch):
    for name in ("silent", "exchange", "batch"):
        monkeypatch.setitem(sys.modules, f"mralign_core.llm.{name}", None)
    where = EndpointConfig(model="cue/a")
    endpoint.check_endpoint(where, "annotate.annotator_a")
    with pytest.raises(ConfigError, match="there is no offline model 'cue/x'"):
        endpoint.check_endpoint(EndpointConfig(model="cue/x"), "annotate.annotator_a")
    messages = annotate_messages(ShownTrace("q", ["a"], ["I recall it."]), max_labels=2, taxonomy=PAPER_TAXONOMY)
    noise = cue.Noise(PAPER_TAXONOMY.labels, 0, 0.0, 0.0)
    [received] = complete([Request(where, messages, {cue.PARAMETER: noise._asdict()})])
    num_words = sum(len(message["content"].split()) for message in messages)
    assert (received.prompt_tokens, received.completion_tokens) == (num_words, len(received.reply.split()))
    with pytest.raises(ImportError):
        endpoint.check_endpoint(EndpointConfig(model="openai/gpt-4o"), "annotate.annotator_a")


def test_offline_replies_are_not_kept_because_their_code_may_change():
    messages = annotate_messages(ShownTrace("q", ["a"], ["I recall it."]), max_labels=2, taxonomy=PAPER_TAXONOMY)
    noise = cue.Noise(PAPER_TAXONOMY.labels, 0, 0.0, 0.0)
    replies = MemoryReplyStore()
    [received] = complete([Request(EndpointConfig(model="cue/a"), messages, {cue.PARAMETER: noise._asdict()})], replies)
    assert "retrieval" in received.reply and not replies.records
