"""Nothing is paid for twice: the annotate task over real HTTP, killed, stopped by its budget, run again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from chat_server import ChatServer, fails, label_all, role_of, says

from mralign_core.annotation.failures import FAILURES_FILE, left_out_lines, read_failures
from mralign_core.config import RunConfig
from mralign_core.errors import BudgetError, UserError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.storage import ArtifactStore
from tasks.annotate import collect_annotations, quote_annotations, read_ledger
from tasks.engine.graph import artifact_of
from tasks.engine.plan import look_up
from tests.pocket_store import POCKET
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

NUM_TRACES = 24
PRICE = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 100}
"""A reply of the scripted server has 20 tokens: 20 dollars, and may cost 100."""
SCRIPT = """
import json, sys
from mralign_core.annotation.failures import FAILURES_FILE, left_out_lines, read_failures
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tests.stages import label
label(RunConfig.model_validate_json(sys.argv[1]), ArtifactRef.model_validate_json(sys.argv[2]))
"""


class CountingServer(ChatServer):
    """Knows when it had answered each request, by what was asked."""

    def __init__(self, delay_s=0.0):
        super().__init__()
        self.delay_s, self.answered, self.lock = delay_s, {}, threading.Lock()
        self.script = self.answer

    def answer(self, request, number):
        # The two annotators differ, so that the adjudicator is asked too.
        turn = label_all(request, "framing" if role_of(request) == "a" else "retrieval", confidence=5)
        time.sleep(self.delay_s)
        with self.lock:
            self.answered.setdefault(_asked(request), time.monotonic())
        return turn

    @property
    def counts(self):
        asked = [_asked(request) for request in self.requests]
        return {digest: asked.count(digest) for digest in asked}


def _asked(request):
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def asking(server):
    """Section ``annotate`` with three models of a server, each at :data:`PRICE`."""
    models = {"annotator_a": "openai/a", "annotator_b": "openai/b", "adjudicator": "openai/judge"}
    return {role: {"model": model, "api_base": server.url, **PRICE} for role, model in models.items()}


@pytest.fixture
def server():
    server = CountingServer(delay_s=0.05)
    yield server
    server.close()


@pytest.fixture
def config(server, tmp_path):
    storage = {"root": str(tmp_path / "store")}
    return RunConfig(storage=storage, questions={"train": "nq_open"}, annotate={**asking(server), "shard_size": 8})


@pytest.fixture
def candidates(config, tmp_path):
    texts = [["I recall the date.", f"Wait, let me check number {n}.", "So it is Galen."] for n in range(NUM_TRACES)]
    rows = [candidate_row(f"t{n}", segments) for n, segments in enumerate(texts)]
    return publish_candidates(config.storage, rows, tmp_path / "candidates")


def with_budget(config, dollars):
    return config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": dollars})})


def test_after_a_kill_no_request_whose_reply_had_arrived_is_sent_again(server, config, candidates):
    server.delay_s = 0.6
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, config.model_dump_json(), candidates.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(POCKET.parents[2])},
    )
    while len(server.answered) < 40:  # in the middle of the second shard
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    time.sleep(1.0)  # what was in flight ends at the server
    # A busy machine takes its time to write down what it was sent.
    arrived = {digest for digest, when in server.answered.items() if when < killed - 1.0}
    assert arrived
    server.delay_s = 0.05
    label(config, candidates)
    assert len(server.counts) == 3 * NUM_TRACES
    assert all(server.counts[digest] == 1 for digest in arrived)
    assert sum(server.counts.values()) <= 3 * NUM_TRACES + config.annotate.concurrency


def test_replies_can_be_parsed_and_consolidated_again_for_free(server, config, candidates):
    label(config, candidates)
    sent = len(server.requests)
    other = config.annotate.model_copy(update={"confidence_threshold": 4.0})
    again = label(config.model_copy(update={"annotate": other}), candidates)
    assert len(server.requests) == sent
    labels = ArtifactStore(config.storage).read_table(again, "annotations.parquet")
    assert set(labels["rule"]) == {"merge"}


def test_the_budget_stops_before_the_call_that_could_cross_it_and_a_larger_one_goes_on(server, config, candidates):
    """72 replies at 20 dollars cost 1,440. With 500, the 21st could bring it to 500, the 22nd beyond."""
    poor = with_budget(config, 500)
    for _ in range(2):  # the second run finds the money gone, and spends none
        with pytest.raises(BudgetError, match=r"annotate\.budget_usd"):
            label(poor, candidates)
        assert len(server.requests) == 21
    label(with_budget(config, 1540), candidates)
    assert len(server.requests) == 3 * NUM_TRACES and set(server.counts.values()) == {1}


def test_an_outage_and_a_retry_in_one_process_keep_one_account(server, config, candidates):
    answer = server.script
    server.script = lambda request, number: answer(request, number) if number < 20 else fails(503)
    roles = {
        role: endpoint.model_copy(update={"max_attempts": 1}) for role, endpoint in config.annotate.endpoints.items()
    }
    impatient = config.model_copy(update={"annotate": config.annotate.model_copy(update=roles)})
    with pytest.raises(EndpointUnavailableError):
        label(impatient, candidates)
    server.script = answer
    label(impatient, candidates)
    ledger = read_ledger(impatient, candidates)
    assert ledger["requests"].sum() == 3 * NUM_TRACES and ledger["cost_usd"].sum() == 72 * 20
    assert len(ledger) == 3 and ledger["set_aside_usd"].sum() == 0
    assert ledger["lost_usd"].sum() > 0  # a 503 may have been billed


def test_the_ledger_says_which_run_paid_for_what(server, config, candidates):
    label(config, candidates)
    ledger = read_ledger(config, candidates)
    assert ledger["model"].tolist() == ["openai/a", "openai/b", "openai/judge"]
    assert ledger["requests"].tolist() == [NUM_TRACES] * 3 and ledger["cost_usd"].sum() == 72 * 20
    assert ledger["set_aside_usd"].sum() == 0 and ledger["run"].nunique() == 1


def test_the_store_keeps_each_reply_raw_with_all_that_was_paid(server, config, candidates):
    annotations = label(config, candidates)
    store = ArtifactStore(config.storage)
    raw = store.read_table(annotations, "raw_annotations.parquet")
    for row in raw.itertuples():
        record = store.get_json(f"replies/{row.request_digest[:2]}/{row.request_digest}")
        assert record
        assert record["response"]["choices"][0]["message"]["content"] == row.reply
        assert record["prompt_digest"] == row.prompt_digest and record["model"] == row.model
        assert (record["completion_tokens"], record["cost_usd"]) == (20, 20.0) and record["latency_s"] > 0.04


def test_free_requests_are_in_the_ledger_too(server, config, candidates):
    free = {"input_usd_per_million": 0.0, "output_usd_per_million": 0.0}
    roles = {role: endpoint.model_copy(update=free) for role, endpoint in config.annotate.endpoints.items()}
    unpaid = config.model_copy(update={"annotate": config.annotate.model_copy(update=roles)})
    label(unpaid, candidates)
    ledger = read_ledger(unpaid, candidates)
    assert ledger["requests"].tolist() == [NUM_TRACES] * 3 and ledger["cost_usd"].sum() == 0


def breaks(server, *traces, turn):
    """From now on, the server gives this turn for these traces, and right answers for the others."""
    good = CountingServer.answer

    def answer(request, number):
        is_broken = any(f"number {trace}." in request["messages"][1]["content"] for trace in traces)
        return turn if is_broken else good(server, request, number)

    server.script = answer


def asked_of(server, since=0):
    """The traces that the requests from the so-maniest on were about, and how many there were."""
    contents = [request["messages"][1]["content"] for request in server.requests[since:]]
    numbers = [int(content.partition("number ")[2].partition(".")[0]) for content in contents]
    return sorted(set(numbers)), len(numbers)


def counts_of(config, ref):
    counts = ArtifactStore(config.storage).manifest(ref).counts
    return counts["left_out"], counts["to_ask_again"]


def test_what_could_not_be_read_is_asked_again_by_the_next_run_and_nothing_else(server, config, candidates, next_run):
    breaks(server, 3, 17, turn=says("Sure! I'll label the segments now."))
    first = label(config, candidates)
    assert counts_of(config, first) == (2, 2)
    sent = len(server.requests)
    assert sent == 3 * (NUM_TRACES - 2) + 2 * 2 * 2  # two turns of two annotators for each of the two
    again = label(config, candidates)  # in the same run, such as after a retry of a task
    assert again == first and len(server.requests) == sent
    next_run()
    server.script = server.answer
    repaired = label(config, candidates)
    assert asked_of(server, sent) == ([3, 17], 6)
    assert counts_of(config, repaired) == (0, 0) and repaired.sha256 != first.sha256
    next_run()
    assert label(config, candidates) == repaired and len(server.requests) == sent + 6
    assert collect_annotations.work(config, candidates).find(ArtifactStore(config.storage)) == repaired
    labels = ArtifactStore(config.storage).read_table(repaired, "annotations.parquet")
    assert labels["trace_id"].nunique() == NUM_TRACES


def test_a_server_that_stays_broken_costs_its_requests_again_and_changes_no_digest(
    server, config, candidates, next_run
):
    breaks(server, 3, turn=says("one moment"))
    first = label(config, candidates)
    sent = len(server.requests)
    next_run()
    breaks(server, 3, turn=says("one more moment"))
    assert label(config, candidates) == first  # the labels are the same, and so is all that follows from them
    assert asked_of(server, sent) == ([3], 4)


def test_a_run_with_some_left_out_can_be_repeated_however_many_fail_again(server, config, candidates, next_run):
    """The repeat asks only what failed before, so its failures say nothing of the endpoint."""
    broken = range(10, NUM_TRACES)  # more in a row than stop a stage that has had no good reply
    breaks(server, *broken, turn=says("one moment"))
    patient = with_patience(config, 1000)
    first = label(patient, candidates)
    assert counts_of(config, first) == (len(broken), len(broken))
    sent = len(server.requests)
    next_run()
    assert label(with_patience(config, 5), candidates) == first
    assert asked_of(server, sent) == ([*broken], 4 * len(broken))


def with_patience(config, limit):
    """The config with another limit of failures in a row."""
    roles = ("annotator_a", "annotator_b", "adjudicator")
    patient = {role: getattr(config.annotate, role).model_copy(update={"stop_after_failures": limit}) for role in roles}
    return config.model_copy(update={"annotate": config.annotate.model_copy(update=patient)})


def test_failed_requests_are_asked_again_and_others_are_labelled(server, config, candidates, next_run):
    # Broken from the sixth trace on: an endpoint that answers nothing at first is out of order as a whole.
    breaks(server, 9, turn=fails(400, "The decoder prompt (length 17772) is odd"))
    first = label(config, candidates)
    assert counts_of(config, first) == (1, 1)
    sent = len(server.requests)
    next_run()
    server.script = server.answer
    assert counts_of(config, label(config, candidates)) == (0, 0)
    assert asked_of(server, sent) == ([9], 3)


def test_refusals_are_finished_unless_they_are_asked_for(server, config, candidates, next_run):
    breaks(server, 3, turn=fails(400, "content_filter: flagged"))
    first = label(config, candidates)
    assert counts_of(config, first) == (1, 0)
    sent = len(server.requests)
    next_run()
    server.script = server.answer
    assert label(config, candidates) == first and len(server.requests) == sent
    next_run()
    willing = with_policy(config, "failed")
    assert counts_of(willing, label(willing, candidates)) == (0, 0)
    assert asked_of(server, sent) == ([3], 3)


def test_a_trace_that_is_refused_in_the_end_is_not_asked_again_for_ever(server, config, candidates, next_run):
    breaks(server, 3, turn=says("one moment"))
    assert counts_of(config, label(config, candidates)) == (1, 1)
    next_run()
    breaks(server, 3, turn=fails(400, "content_filter: flagged"))
    refused = label(config, candidates)
    assert counts_of(config, refused) == (1, 0)
    assert collect_annotations.work(config, candidates).is_finished(ArtifactStore(config.storage))
    sent = len(server.requests)
    next_run()
    assert label(config, candidates) == refused and len(server.requests) == sent


def test_nothing_is_asked_again_where_that_is_the_policy(server, config, candidates, next_run):
    breaks(server, 3, turn=says("?"))
    first = label(config, candidates)
    sent = len(server.requests)
    next_run()
    server.script = server.answer
    assert label(with_policy(config, "never"), candidates) == first and len(server.requests) == sent


def with_policy(config, policy):
    return config.model_copy(update={"annotate": config.annotate.model_copy(update={"ask_again": policy})})


def test_a_server_that_answers_nothing_of_use_stops_the_stage_and_is_asked_again(server, config, candidates, next_run):
    server.script = lambda request, number: says("I am a teapot.")
    with pytest.raises(UserError, match="I am a teapot"):
        label(config, candidates)
    sent = len(server.requests)
    assert sent < 3 * NUM_TRACES
    next_run()
    server.script = server.answer
    assert counts_of(config, label(config, candidates)) == (0, 0)
    assert len(server.requests) - sent <= 3 * NUM_TRACES


def test_a_failure_says_its_kind_and_how_the_reply_began(server, config, candidates):
    breaks(server, 3, turn=says("half \ud83d a \x00 character"))
    annotations = label(config, candidates)
    store = ArtifactStore(config.storage)
    failures = read_failures(store.open_file(annotations, FAILURES_FILE))
    assert [failure["kind"] for failure in failures] == ["not_json"] * 2
    (line,) = left_out_lines(failures)
    assert line.startswith("1 trace(s) left out, not_json: annotator_a on t3") and "half" in line
    raw = store.read_table(annotations, "raw_annotations.parquet")
    assert raw.loc[raw["trace_id"] == "t3", "reply"].str.contains("character").all()


def test_a_long_reply_is_not_sent_back_whole(server, config, candidates):
    breaks(server, 3, turn=says("x" * 1_000_000))
    label(config, candidates)
    assert max(len(json.dumps(request)) for request in server.requests) < 20_000


def test_a_dry_run_says_what_is_asked_again(server, config, candidates):
    breaks(server, 3, turn=says("?"))
    label(config, candidates)
    quotes, _ = quote_annotations(config, candidates)
    again = {quote.model: (quote.requests, quote.again) for quote in quotes}
    assert again == {"openai/a": (1, 1), "openai/b": (1, 1), "openai/judge": (0, 0)}
    store, annotations = ArtifactStore(config.storage), artifact_of("annotations")
    planned = list(look_up(annotations, config, {}, store, {"candidates": candidates}))
    states = Counter(each.status for each in planned)
    assert states == {"cached": 2, "1 trace(s) to ask again": 2} and planned[-1].num_to_ask == 1
