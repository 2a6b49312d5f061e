"""What servers get wrong: the account, the other requests and the machine are none the worse for it."""

import asyncio
import itertools
import json
import math
import multiprocessing
import random
import tracemalloc

import pytest
from chat_server import ChatServer, Turn, fails, hangs_up, says
from litellm import ModelResponse

from mralign_core.config import EndpointConfig, StorageConfig
from mralign_core.errors import BudgetError, DataError, UserError
from mralign_core.llm import background, endpoint
from mralign_core.llm.asking import Asking
from mralign_core.llm.client import LLMClient
from mralign_core.llm.endpoint_state import Health
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.offline import Message
from mralign_core.llm.request import UNANSWERED, Request, kept_record
from mralign_core.llm.store import MemoryRecords
from mralign_core.llm.tidying import tidied
from mralign_core.serving.ignored_adapters import read_greedy
from mralign_core.storage import ArtifactStore, LedgerRecords, ReplyStore
from tests import llm_faults
from tests.kept_replies import MemoryReplyStore
from tests.llm_faults import BEHAVIOURS, FaultServer

PRICED = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 16}
"""A reply may cost 16 dollars."""


def request_to(server, number=0, *, model="openai/m", params=None, turn=0, **settings):
    free = {"input_usd_per_million": 0, "output_usd_per_million": 0}
    limits = {"timeout_s": 5.0, "max_attempts": 2} | free | settings
    messages: list[Message] = [{"role": "user", "content": f"u{number}"}]
    return Request(EndpointConfig(model=model, api_base=server.url, **limits), messages, params or {}, turn)


def in_one_client(work, replies=None, *, concurrency=16, ledger=None):
    """The result of ``work(client)``."""
    kept = MemoryReplyStore() if replies is None else replies

    async def run(_):
        return await work(LLMClient(kept, concurrency=concurrency, ledger=ledger, first_pause_s=0.01))

    return background.run(run)


def complete(requests, replies=None, **options):
    """Results in order, errors as values."""

    async def work(client):
        return await asyncio.gather(*map(client.complete, requests), return_exceptions=True)

    return in_one_client(work, replies, **options)


def number_of(request):
    return int(request["messages"][-1]["content"][1:])


# --- the account ---


def test_whatever_a_server_does_the_ledger_has_what_it_billed_and_the_ceiling_holds():
    slow = {"silence", "drips-for-ever", "50-mb", "huge-headers", "endless", "gzip-bomb"}
    quick = [name for name in llm_faults.names() if name.partition("/")[0] not in slow]
    assert len(BEHAVIOURS) >= 60
    chosen = [
        *random.Random(20261128).sample(quick, 24),
        "reset-after-work",
        "half-a-body",
        "not-json",
        "usage-of-1e15",
    ]
    rows = list(llm_faults.run_all(chosen, num_traces=3))
    assert [row for row in rows if not row.is_sound] == []


def test_one_bad_reply_in_three_costs_no_trace_that_another_attempt_can_save():
    for name in ("reset-after-work/3", "not-json/3", "500-after-work/3", "gzip-unasked/3", "content-in-parts/3"):
        row = llm_faults.run_one(name, num_traces=4)
        assert (row.stopped, row.labelled + row.failed) == ("", 4) and row.labelled >= 3, row


def test_at_any_moment_the_stored_account_has_what_a_killed_process_may_have_spent(server):
    """What the server has billed when a request comes in, that one included, is on record already."""
    account, billed, on_record = MemoryRecords(), [0.0], []

    def work(request, number):
        billed[0] += 16
        records = account.records.get("run", {"openai/m": {}})["openai/m"]
        on_record.append(sum(records[name] for name in ("cost_usd", "set_aside_usd", "lost_usd")) - billed[0])
        return hangs_up() if number % 2 else fails(500)

    server.script = work
    complete([request_to(server, n, **PRICED) for n in range(4)], ledger=Ledger(account, "run", 1000), concurrency=1)
    assert len(on_record) >= 4 and min(on_record) >= 0


def test_a_cancelled_request_counts_as_billed(server):
    slow = says("late")
    slow.delay_s = 2.0
    server.play(slow)
    ledger = Ledger(ceiling_usd=40)

    async def work(client):
        task = asyncio.create_task(client.complete(request_to(server, **PRICED)))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    in_one_client(work, ledger=ledger)
    assert ledger.committed_usd == ledger.usage["openai/m"].lost_usd == 16


def test_without_a_connection_nothing_is_charged():
    class Nowhere:
        url = "http://127.0.0.1:9/v1"

    ledger = Ledger(ceiling_usd=40)
    [error] = complete([request_to(Nowhere, **PRICED)], ledger=ledger)
    assert isinstance(error, EndpointUnavailableError) and ledger.committed_usd == 0


@pytest.mark.parametrize("value", ["soon", "nan", "-3", "Fri, 31 Dec 9999 23:59:59 -2359", "9" * 400])
def test_an_odd_retry_after_is_no_matter(server, value):
    server.play(fails(429, headers={"Retry-After": value}), says("hello"))
    [received] = complete([request_to(server, max_retry_after_s=0.1)])
    assert received.reply == "hello"


def test_a_prompt_is_bounded_by_its_bytes_and_a_server_that_ignores_the_limit_by_what_it_did():
    one = EndpointConfig(model="openai/m", input_usd_per_million=1e6, output_usd_per_million=1e6, max_output_tokens=16)
    bounds = endpoint.ChatCompletions().bounds_of(Request(one, [{"role": "user", "content": "語" * 100}], {}))
    assert bounds.prompt_tokens >= 300 and bounds.completion_tokens == 16 and bounds.usd == sum(bounds[:2])
    assert endpoint.ChatCompletions().bounds_of(Request(one, [], {}), longest=50).completion_tokens == 50


def spend(root, seed, spent, ceiling_usd):
    """Spend in small amounts from an account that others spend from too, until it is used up."""
    random.seed(seed)
    store = LedgerRecords(ArtifactStore(StorageConfig(root=root)), "work")
    ledger = Ledger(store, f"run{seed}", ceiling_usd)

    async def one():
        while True:
            most = 1.0
            await ledger.set_aside("m", most)
            cost = random.choice([0.2, 1.0])
            with spent.get_lock():
                spent.value += cost
            await asyncio.sleep(0.001)
            record = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": cost}
            await ledger.settle("m", most, record if cost < 1 else None, lost_usd=cost if cost == 1 else 0)

    async def several():
        results = await asyncio.gather(*(one() for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, BudgetError) for result in results), results

    asyncio.run(several())


def test_four_processes_on_one_account_do_not_cross_its_ceiling(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mralign_core.llm.endpoint"])  # imported once for the four
    spent = context.Value("d", 0.0)
    workers = [context.Process(target=spend, args=(str(tmp_path), seed, spent, 40.0)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert 34 <= spent.value <= 40 + 1e-9


@pytest.mark.parametrize(
    "damage",
    [None, [], "x", {"m": None}, {"m": {"cost_usd": "1"}}, {"m": {"cost_usd": float("nan")}}, {"m": {"lost_usd": -1}}],
)
def test_a_damaged_account_is_no_empty_one_where_there_is_a_ceiling(damage, caplog):
    store = MemoryRecords()
    store.records["before"] = damage
    with pytest.raises(DataError, match=r"before.*annotate\.budget_usd"):
        Ledger(store, "now", 10.0)
    assert Ledger(store, "now").committed_usd == 0 and "damaged" in caplog.text


def test_a_torn_file_of_an_account_is_noticed(tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path)))
    LedgerRecords(store, "work").write("before", {})
    [path] = tmp_path.rglob("before.json")
    path.write_text('{"m": {"cost')
    with pytest.raises(DataError, match="before"):
        Ledger(LedgerRecords(store, "work"), "now", 10.0)


# --- one request, or the endpoint ---


@pytest.mark.parametrize(
    ("status", "bad"),
    [*itertools.product([400, 422, 500, 501], [0, 7, 11]), (404, 7), (404, 11)],  # a first 404 is a wrong name
)
def test_one_request_that_is_refused_is_its_own_failure_and_the_others_are_answered(server, status, bad):
    server.script = lambda request, number: fails(status, "too long") if number_of(request) == bad else says("hello")
    results = complete([request_to(server, n) for n in range(12)], concurrency=2)
    assert [n for n, result in enumerate(results) if result.failed] == [bad]
    assert "too long" in results[bad].problem and results[bad].response["status"] == status
    assert all(result.reply == "hello" for n, result in enumerate(results) if n != bad)


def test_many_quick_refusals_do_not_stop_slow_replies(server):
    """Of 16 at once, 9 are refused at once, before any other is answered."""
    slow = says("hello")
    slow.delay_s = 0.6
    server.script = lambda request, number: fails(400) if number_of(request) % 16 in range(1, 10) else slow
    results = complete([request_to(server, n) for n in range(32)])
    assert sum(result.failed for result in results) == 18 and len(server.requests) == 32


@pytest.mark.parametrize("turn", [fails(400, "no such parameter"), Turn("<html>It works!</html>")])
def test_when_the_first_requests_all_fail_in_one_way_the_stage_stops_and_says_which(server, turn):
    server.play(turn)
    results = complete([request_to(server, n) for n in range(100)])
    errors = [result for result in results if isinstance(result, Exception)]
    assert all(isinstance(error, UserError) for error in errors) and len(errors) >= 100 - 16 - 5
    way = "HTTP 400" if turn.status == 400 else "HTTP 200 with a body that is no reply"
    body = "no such parameter" if turn.status == 400 else "It works!"
    for part in (way, body, "openai/m", server.url, "api_base", "stop_after_failures"):
        assert part in str(errors[-1])
    assert len({number_of(request) for request in server.requests}) <= 16 + 5


def test_an_outage_in_the_middle_ends_the_run_and_the_next_one_asks_for_the_rest(server):
    server.script = lambda request, number: says("hello") if number < 20 else hangs_up()
    replies, requests = MemoryReplyStore(), [request_to(server, n, stop_after_failures=2) for n in range(60)]
    results = complete(requests, replies)
    assert any(isinstance(result, EndpointUnavailableError) for result in results)
    server.play(says("hello"))
    again = complete(requests, replies)
    assert [result.reply for result in again] == ["hello"] * 60
    assert sum(result.cached for result in again) == 20


def test_a_failed_request_is_asked_again_by_the_next_run_only_and_good_replies_never(server, tmp_path):
    replies = ReplyStore(ArtifactStore(StorageConfig(root=str(tmp_path))))
    requests = [request_to(server, n) for n in range(4)]
    server.script = lambda request, number: fails(500, "broken") if number_of(request) == 2 else says("hello")

    async def twice(client):
        first = await asyncio.gather(*map(client.complete, requests))
        return first, await asyncio.gather(*map(client.complete, requests))

    first, second = in_one_client(twice, replies)
    assert first[2].failed and second[2] == first[2]._replace(cached=True)
    assert len(server.requests) == 5  # two attempts at one
    failed, well = (kept_record(replies, requests[number].digest) for number in (2, 1))
    assert failed and well
    assert failed["finish_reason"] == UNANSWERED != well["finish_reason"]
    server.play(says("repaired"))
    third = complete(requests, replies)
    assert [result.reply for result in third] == ["hello", "hello", "repaired", "hello"]
    assert len(server.requests) == 6


@pytest.mark.parametrize("answered", [4, 0, 2])
def test_failures_that_stop_nothing_are_not_asked_again_by_the_same_client_wherever_they_come(server, answered):
    """Also as the last of all, though nothing shows then that others are answered after them."""
    requests = [request_to(server, n, max_attempts=1) for n in range(5)]
    broken = set(range(5)) - {answered}
    server.script = lambda request, number: fails(500, "broken") if number_of(request) in broken else says("hello")

    async def reopened(client):
        first = [await client.complete(request) for request in requests]
        client.reopen()
        return first, [await client.complete(request) for request in requests]

    first, second = in_one_client(reopened)
    assert [result.failed for result in first] == [n != answered for n in range(5)]
    assert second == [result._replace(cached=True) for result in first] and len(server.requests) == 5


def test_requests_that_are_hopeless_do_not_stop_the_next_run(server):
    """Eight of twenty are refused in a run that answers the others; alone in the next one, they are refused again."""
    server.script = lambda request, number: fails(400, "too long") if number_of(request) >= 12 else says("hello")
    replies, requests = MemoryReplyStore(), [request_to(server, n) for n in range(20)]
    first = complete(requests, replies, concurrency=1)
    again = complete(requests, replies, concurrency=1)
    assert [result.failed for result in first] == [result.failed for result in again] == [n >= 12 for n in range(20)]


def test_a_kept_reply_of_no_use_is_asked_for_again_once_a_client(server):
    replies, request = MemoryReplyStore(), request_to(server)
    server.play(says("rubbish"))
    complete([request], replies)
    server.play(says("good"))

    async def again(client):
        return [await client.complete(request, ask_again=flag) for flag in (False, True, True, False)]

    results = in_one_client(again, replies)
    assert [(result.reply, result.cached) for result in results] == [
        ("rubbish", True),
        ("good", False),
        ("good", True),
        ("good", True),
    ]
    assert len(server.requests) == 2


def test_a_failure_does_not_take_the_place_of_a_reply(server):
    replies, request = MemoryReplyStore(), request_to(server)
    server.play(says("rubbish"))
    complete([request], replies)
    server.play(fails(400))
    [failed] = in_one_client(lambda client: asyncio.gather(client.complete(request, ask_again=True)), replies)
    assert failed.failed and replies.records[request.digest]["reply"] == "rubbish"


def test_replies_that_can_all_not_be_used_stop_the_stage_and_one_that_can_starts_the_count_anew(server):
    where = request_to(server, stop_after_failures=3).endpoint

    async def work(client):
        for _ in range(2):
            client.report_unreadable(where, "not JSON", "I think that")
        client.report_readable(where)
        for _ in range(11):
            client.report_unreadable(where, "not JSON", "I think that")
        with pytest.raises(UserError, match=r"12 replies in a row.*not JSON.*I think that.*stop_after_failures"):
            client.report_unreadable(where, "not JSON", "I think that")
        with pytest.raises(UserError):
            await client.complete(request_to(server))

    in_one_client(work)
    assert not server.requests


# --- what is read of a reply ---


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}], "hello"),
        (["he", {"type": "output_text", "text": "llo"}], "hello"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "hello"}], "hello"),
        ([{"label": "x"}], '[{"label": "x"}]'),
        ({"a": 1}, '{"a": 1}'),
        (None, ""),
        (7, "7"),
    ],
)
def test_the_text_of_a_message_is_found_in_any_form(server, content, text):
    server.play(says(content))
    [received] = complete([request_to(server)])
    assert received.reply == text and len(server.requests) == 1


@pytest.mark.parametrize(
    "odd", [{"choices": None}, {"choices": []}, {"choices": ["x"]}, {"choices": [{"message": None}]}]
)
def test_a_reply_without_a_message_is_an_empty_one(server, odd):
    server.play(says("x", **odd))
    [received] = complete([request_to(server)])
    assert (received.reply, received.failed) == ("", False) and len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[1]", b"<html>", b'{"error": {"message": "busy"}}', b'{"a":' * 100_000, b"data: {}\n\n"],
)
def test_a_body_that_is_no_reply_is_tried_again_and_then_kept_as_a_failure(server, body):
    server.script = lambda request, number: Turn(body.decode()) if number_of(request) == 1 else says("hello")
    replies = MemoryReplyStore()
    good, bad = complete([request_to(server, 0), request_to(server, 1)], replies, concurrency=1)
    assert good.reply == "hello" and bad.failed and len(server.requests) == 3
    record = replies.records[bad.request_digest]
    json.dumps(record, allow_nan=False).encode()
    assert record["response"]["body"] == body.decode()[:16_384]


def test_what_is_kept_of_an_odd_reply_is_plain_json(server):
    odd = says("half \ud83d", a=float("nan"), b={"c\udfff": ["\ud83d"]})
    odd.body = json.dumps(odd.body).replace('"chat-1"', '"chat-1", "deep": ' + "[" * 900 + "]" * 900)
    server.play(odd)
    replies = MemoryReplyStore()
    [received] = complete([request_to(server)], replies)
    assert received.reply == "half \\ud83d"
    json.dumps(replies.records[received.request_digest], allow_nan=False, ensure_ascii=False).encode()


def test_tokens_that_only_a_total_counts_are_paid(server):
    server.play(says("a", usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 20}))
    [received] = complete([request_to(server, **PRICED)])
    assert received.completion_tokens == 10 and received.cost_usd == 10


ABSURD = [
    {"completion_tokens_details": {"reasoning_tokens": 10**9}},
    {"completion_tokens_details": {"audio_tokens": 10**9, "image_tokens": 10**9, "text_tokens": 10**9}},
    {"prompt_tokens_details": {"cached_tokens": 10**9}},
    {"prompt_tokens_details": {"audio_tokens": 10**9, "image_tokens": 10**9, "text_tokens": 10**9}},
    {"cache_creation_input_tokens": 10**9},
    {"prompt_tokens_details": {"cache_creation_tokens": 10**9, "cache_write_tokens": 10**9}},
    {"prompt_cache_hit_tokens": 10**9},
    {"cache_read_input_tokens": 10**9},
]


@pytest.mark.parametrize("model", ["openai/gpt-4o", "deepseek/deepseek-chat"])
@pytest.mark.parametrize("details", ABSURD)
def test_details_larger_than_their_sum_are_not_paid(server, monkeypatch, details, model):
    """litellm prices the parts of a sum one by one, and where there is no price in the config its price counts."""
    monkeypatch.setenv("OPENAI_API_KEY", "x" * 20)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "x" * 20)
    usual = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    server.script = lambda request, number: says("a", usage=usual | (details if number % 2 else {}))
    own = {"input_usd_per_million": None, "output_usd_per_million": None}
    first, second = complete([request_to(server, n, model=model, **own) for n in (0, 1)], concurrency=1)
    assert 0 < second.cost_usd == first.cost_usd < 0.001


def test_a_cost_that_can_not_be_counts_as_the_most_that_can():
    where = EndpointConfig(model="openai/gpt-4o", max_output_tokens=16)
    bounds = endpoint.ChatCompletions().bounds_of(Request(where, [{"role": "user", "content": "u"}], {}))
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}
    response = ModelResponse(model="gpt-4o", choices=[choice], usage=usage)
    response._hidden_params["response_cost"] = 10_000.0
    reading = endpoint.read_completion(where, response, bounds)
    assert (reading["cost_usd"], reading["prompt_tokens"], reading["completion_tokens"]) == (bounds.usd, 0, 0)


def test_an_overload_that_says_when_to_come_again_costs_no_budget(server):
    for status, lost in ((503, 0), (529, 0), (500, 32)):
        server.play(fails(status, headers={"Retry-After": "0.1"}))
        ledger = Ledger(ceiling_usd=40)
        complete([request_to(server, status, **PRICED)], ledger=ledger)
        assert ledger.committed_usd == lost, status


def test_a_long_reply_is_cut_off_before_it_fills_the_memory():
    server = FaultServer(BEHAVIOURS["50-mb"])
    try:
        complete([request_to(server)])  # what is imported at the first request is no part of it
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        complete([request_to(server, 1, max_attempts=1)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        server.close()
    # The server's own 50 MB are made once, at import, and joined to a head for each request.
    assert peak - before < 50_000_000 + 20_000_000


def test_a_redirect_does_not_take_the_key_along(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    elsewhere = ChatServer()
    try:
        server.play(Turn({}, 307, {"Location": f"{elsewhere.url}/chat/completions"}))
        [received] = complete([request_to(server)])
        assert received.failed and elsewhere.url in received.problem and not elsewhere.requests
    finally:
        elsewhere.close()


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_key_that_a_server_sends_back_is_shown_nowhere(server, monkeypatch, caplog, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    server.play(fails(status, "Incorrect API key provided: Bearer sk-secret-of-the-test"))
    replies = MemoryReplyStore()
    [result] = complete([request_to(server)], replies)
    assert "Bearer sk-secret-of-the-test" in server.headers[0].values()
    assert "[secret]" in str(result) and "of-the-test" not in str(result) + str(replies.records) + caplog.text


def test_a_request_is_sent_once_an_attempt_also_where_litellm_would_send_it_again(server):
    server.play(hangs_up())
    complete([request_to(server, model="hosted_vllm/m", max_attempts=1)])
    assert len(server.requests) == 1


def test_tidying_leaves_what_it_does_not_know():
    assert tidied(b"<html>") == b"<html>" and json.loads(tidied(b'{"id": 3}')) == {"id": 3}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"x": 1}]}]}, [("a", -0.5)]),
        ({"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": float("-inf")}]}, []),
        ({"content": ["a", {"logprob": "low"}]}, []),
        ({"tokens": ["a"], "token_logprobs": [-0.5]}, []),
        ([None], []),
    ],
)
def test_log_probabilities_are_kept_where_each_can_be_read(server, given, kept):
    turn = says("a")
    turn.body["choices"][0]["logprobs"] = given
    server.play(turn)
    [result] = complete([request_to(server)])
    assert result.reply == "a"
    assert [(token, value) for token, value in zip(*read_greedy(result)[1:], strict=True)] == kept


@pytest.mark.parametrize(("sent_s", "latency_s"), [(97.0, 3.0), (math.inf, 90.0)])
def test_the_latency_is_the_servers_and_not_the_wait_for_a_slot_of_our_own(server, monkeypatch, sent_s, latency_s):
    """In a batch nothing is sent for one request alone."""
    asking = Asking(request_to(server, 0), "d", Health(5), None, started_s=10.0, sent_s=sent_s)
    monkeypatch.setattr("mralign_core.llm.asking.time.monotonic", lambda: 100.0)
    assert asking.record({"reply": "hello"})["latency_s"] == latency_s


# --- the form that is asked for ---

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def formatted(server, number=0, **settings):
    made = request_to(server, number, **settings)
    return made._replace(params=endpoint.request_params(made.endpoint, SCHEMA))


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/version", {"version": "0.8.5.post1"}),
        ("/openapi.json", {"components": {"schemas": {"ResponseFormat": {"enum": ["text", "json_schema"]}}}}),
        ("/props", {"default_generation_settings": {}}),
        ("/api/version", {"version": "0.5.4"}),
    ],
)
def test_a_schema_is_sent_to_a_server_that_says_it_knows_such(server, monkeypatch, path, page):
    monkeypatch.setattr("mralign_core.llm.endpoint_state.SCHEMA_PROBE_TIMEOUT_S", 60.0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    server.pages[path] = page
    complete([formatted(server, n) for n in range(3)])
    assert all(sent["response_format"]["json_schema"]["schema"] == SCHEMA for sent in server.requests)
    assert len(server.visits) == 6 and "sk-secret" not in str(server.visits)


@pytest.mark.parametrize("page", [None, {"version": "0.3.0"}, {"version": None}, [], "x"])
def test_no_schema_is_sent_to_a_server_that_does_not_say_so(server, page):
    server.pages |= {"/version": page, "/openapi.json": page, "/props": page}
    [received] = complete([formatted(server)])
    assert "response_format" not in server.requests[0] and received.reply == "hello"


def test_a_kept_reply_is_found_again_whatever_the_server_says_of_itself(server):
    replies = MemoryReplyStore()
    server.pages["/version"] = {"version": "0.9.0"}
    complete([formatted(server)], replies)
    server.pages.clear()
    [received] = complete([formatted(server)], replies)
    assert received.cached and len(server.requests) == 1


@pytest.mark.parametrize("choice", ["json_schema", "json_object", "text"])
def test_a_setting_says_how_replies_are_asked_for(server, choice):
    complete([formatted(server, response_format=choice)])
    sent = server.requests[0].get("response_format", {"type": "text"})
    assert sent["type"] == choice and not server.visits


def test_where_an_offered_schema_is_refused_it_is_left_out(server, monkeypatch):
    monkeypatch.setattr("mralign_core.llm.endpoint_state.SCHEMA_PROBE_TIMEOUT_S", 60.0)
    server.pages["/version"] = {"version": "0.9.0"}
    server.script = lambda request, number: fails(400, "xgrammar") if "response_format" in request else says("hello")
    results = complete([formatted(server, n) for n in range(5)], concurrency=1)
    assert [result.reply for result in results] == ["hello"] * 5
    assert ["response_format" in sent for sent in server.requests] == [True] + [False] * 5
