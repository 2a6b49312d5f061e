"""Runs that ask one endpoint keep to its limit together: turns on a real Prefect server, requests over real HTTP."""

import threading
import time
from contextvars import copy_context
from itertools import groupby

import httpx
import pytest
from chat_server import ChatServer, label_all
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate

from mralign_core.config import EndpointConfig, load_config
from tasks import endpoint_turns
from tasks.endpoint_turns import Turns, limit_name
from tests.pocket_store import POCKET
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

pytestmark = pytest.mark.server


@pytest.fixture
def quick(monkeypatch):
    """No second is waited where the server need not."""
    monkeypatch.setattr(endpoint_turns, "AGAIN_S", 0.1)


def endpoint(number):
    """One of its own for each test: the server is shared."""
    return EndpointConfig(model="openai/some-model", api_base=f"http://annotator-{number}:8000/v1")


def set_limit(of, limit, **fields):
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit_name(of), limit=limit, **fields))


def taken(of):
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit_name(of)).active_slots


def slowly(request, _):
    time.sleep(0.05)
    return label_all(request, "framing", confidence=9)


def in_flow(work):
    """What a function returns inside a flow run."""

    @flow(name="asks")
    def asks():
        work()

    asks()


def test_two_runs_together_stay_under_the_limit(prefect_api, quick):
    shared, most, now, lock = endpoint(1), [], [0], threading.Lock()
    set_limit(shared, 4)

    def run_shards():
        turns = Turns([shared], 3)  # two of these are more than 4
        for _ in range(3):
            with turns.shard():
                with lock:
                    now[0] += turns.places
                    most.append(now[0])
                time.sleep(0.2)
                with lock:
                    now[0] -= turns.places

    def both():
        runs = [threading.Thread(target=copy_context().run, args=(run_shards,)) for _ in range(2)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(60)

    in_flow(both)
    assert len(most) == 6 and max(most) == 3
    assert taken(shared) == 0


def test_shards_of_one_run_share_its_turn_until_that_is_over(prefect_api, quick, monkeypatch):
    shared = endpoint(2)
    set_limit(shared, 8)

    def work():
        turns, order, second_in = Turns([shared], 8), [], threading.Event()

        def later(name):
            with turns.shard():
                order.append(name)
                second_in.set()

        with turns.shard():
            assert taken(shared) == 8
            with turns.shard():  # the places are the run's
                assert taken(shared) == 8
            monkeypatch.setattr(turns, "_until", 0.0)
            thread = threading.Thread(target=copy_context().run, args=(later, "second"))
            thread.start()
            assert not second_in.wait(0.5)
            order.append("first ended")
        thread.join(30)
        assert order == ["first ended", "second"]

    in_flow(work)
    assert taken(shared) == 0


def test_a_limit_that_is_lowered_under_what_a_run_was_begun_with_is_told(prefect_api, quick, caplog):
    shared = endpoint(3)
    set_limit(shared, 8)

    def work():
        turns = Turns([shared], 8)
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit(limit_name(shared), GlobalConcurrencyLimitUpdate(limit=2))
        with turns.shard():
            assert taken(shared) == 2

    in_flow(work)
    assert "a limit was lowered to 2, but this run goes on with 8" in caplog.text


def test_runs_whose_shards_follow_one_another_take_turns(prefect_api, quick, monkeypatch):
    monkeypatch.setattr(endpoint_turns, "AGAIN_S", 0.5)
    monkeypatch.setattr(endpoint_turns, "TURN_S", 0.6)  # two shards, and their requests to the server
    shared, lock = endpoint(6), threading.Lock()
    order: list[str] = []
    set_limit(shared, 4)

    def run_shards(name):
        turns, until = Turns([shared], 4), time.monotonic() + 60
        while order.count(name) < 8 and time.monotonic() < until:
            with turns.shard():  # with no other under way, so that places are given back after each
                with lock:
                    order.append(name)
                time.sleep(0.3)

    def both():
        runs = [threading.Thread(target=copy_context().run, args=(run_shards, name)) for name in "ab"]
        for run in runs:
            run.start()
        for run in runs:
            run.join(90)

    in_flow(both)
    assert order.count("a") == order.count("b") == 8
    both_ask = order[: min(max(place for place, name in enumerate(order) if name == each) for each in "ab") + 1]
    stretches = [len(list(members)) for _, members in groupby(both_ask)]
    assert max(stretches) <= 4, order
    assert taken(shared) == 0


def test_a_turn_that_is_taken_up_again_ends_when_it_would_have(prefect_api, quick, monkeypatch):
    monkeypatch.setattr(endpoint_turns, "AGAIN_S", 1.0)
    shared = endpoint(7)
    set_limit(shared, 4)

    def work():
        turns = Turns([shared], 4)
        with turns.shard():
            until = turns._until
        with turns.shard():
            assert turns._until == until
        turns._until = began = time.monotonic() - 1
        with turns.shard():
            assert time.monotonic() - began > 1 + 2  # a run that looks once a second has looked
            assert turns._until > until

    in_flow(work)


def test_a_limit_of_0_is_a_pause_that_is_told_and_waited_for(prefect_api, quick, caplog):
    shared, ended = endpoint(8), threading.Event()
    set_limit(shared, 0)

    def raise_to(limit):
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit(limit_name(shared), GlobalConcurrencyLimitUpdate(limit=limit))

    def ask():
        turns = Turns([shared], 8)
        assert turns.places == 3
        with turns.shard():
            assert taken(shared) == 3
        raise_to(0)
        threading.Timer(0.5, copy_context().run, (raise_to, 3)).start()
        with turns.shard():
            ended.set()

    def work():
        run = threading.Thread(target=copy_context().run, args=(ask,))
        run.start()
        time.sleep(0.5)
        assert not ended.is_set() and run.is_alive()
        raise_to(3)
        run.join(30)

    in_flow(work)
    assert ended.is_set()
    assert caplog.text.count("paused: the limit of 'endpoint annotator-8:8000' is 0. Raise it to go on") == 2


def test_a_server_that_is_out_for_a_moment_is_asked_again_and_one_that_stays_out_is_told(
    prefect_api, quick, monkeypatch, caplog
):
    asked = []

    def ask(_):
        asked.append(1)
        if len(asked) < 3:
            raise httpx.ConnectError("refused")
        return "places"

    assert endpoint_turns._patiently(ask) == "places"
    assert caplog.text.count("can't be asked for places") == 1
    monkeypatch.setattr(endpoint_turns, "PATIENCE_S", 0.2)
    with pytest.raises(httpx.ReadTimeout) as told:
        endpoint_turns._patiently(_out)
    assert "run again to go on" in told.value.__notes__[0]


def _out(_):
    raise httpx.ReadTimeout("no reply")


def test_without_a_limit_or_a_server_or_with_one_that_is_off_nothing_is_taken(prefect_api, quick):
    off = endpoint(4)
    set_limit(off, 1, active=False)

    def work():
        for each in (off, endpoint(5)):
            turns = Turns([each], 16)
            assert turns.places == 16
            with turns.shard(), turns.shard():
                pass

    in_flow(work)
    assert Turns([off], 16).places == 16
    assert taken(off) == 0


def test_a_stage_sends_no_more_requests_at_once_than_the_limit(prefect_api, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "some-key")
    server = ChatServer()
    server.script = slowly
    asked = {"model": "openai/some-model", "api_base": server.url, "input_usd_per_million": 0}
    asked |= {"output_usd_per_million": 0}
    roles = {f"annotate.{role}": asked for role in ("annotator_a", "annotator_b", "adjudicator")}
    size = {"annotate.concurrency": 8, "annotate.shard_size": 6}
    config = load_config(POCKET, {**roles, **size, "storage.root": str(tmp_path)})
    rows = [candidate_row(f"t{number}", ["a step"], question=f"Question {number}?") for number in range(12)]
    traces = publish_candidates(config.storage, rows, tmp_path / "candidates")
    set_limit(config.annotate.annotator_a, 2)
    in_flow(lambda: label(config, traces))
    server.close()
    assert len(server.requests) >= 12 and server.most_at_once == 2
