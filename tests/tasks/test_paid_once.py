"""Nothing is paid for twice: the annotate task over real HTTP, killed, stopped by its budget, run again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from chat_server import ChatServer, fails, label_all, role_of

from mralign_core.config import RunConfig
from mralign_core.errors import BudgetError
from mralign_core.llm import EndpointUnavailableError
from mralign_core.storage import ArtifactStore
from tasks.annotate import annotate_shard, annotation_shards, collect_annotations, read_ledger
from tests.pocket_store import POCKET
from tests.published_candidates import candidate_row, publish_candidates

NUM_TRACES = 24
PRICE = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 100}
"""A reply of the scripted server has 20 tokens: 20 dollars, and may cost 100."""
SCRIPT = """
import json, sys
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.annotate import annotate_shard, annotation_shards
config, candidates = RunConfig.model_validate_json(sys.argv[1]), ArtifactRef.model_validate_json(sys.argv[2])
for start, end in annotation_shards(config, candidates):
    annotate_shard.run_here(config, candidates, start, end)
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


@pytest.fixture
def server():
    server = CountingServer(delay_s=0.05)
    yield server
    server.close()


@pytest.fixture
def config(server, tmp_path):
    models = {"annotator_a": "openai/a", "annotator_b": "openai/b", "adjudicator": "openai/judge"}
    annotate = {role: {"model": model, "api_base": server.url, **PRICE} for role, model in models.items()}
    storage = {"root": str(tmp_path / "store")}
    return RunConfig(storage=storage, questions={"train": "nq_open"}, annotate={**annotate, "shard_size": 8})


@pytest.fixture
def candidates(config, tmp_path):
    texts = [["I recall the date.", f"Wait, let me check number {n}.", "So it is Galen."] for n in range(NUM_TRACES)]
    rows = [candidate_row(f"t{n}", segments) for n, segments in enumerate(texts)]
    return publish_candidates(config.storage, rows, tmp_path / "candidates")


def annotate_all(config, candidates):
    shards = [annotate_shard.run_here(config, candidates, *span) for span in annotation_shards(config, candidates)]
    return collect_annotations.run_here(config, candidates, shards)


def with_budget(config, dollars):
    return config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": dollars})})


@pytest.mark.parametrize("kill_after", [24, 48])
def test_after_a_kill_no_request_whose_reply_had_arrived_is_sent_again(server, config, candidates, kill_after):
    server.delay_s = 0.3
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, config.model_dump_json(), candidates.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(POCKET.parents[2])},
    )
    while len(server.answered) < kill_after:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    time.sleep(0.2)  # what was in flight ends at the server
    arrived = {
        digest for digest, when in server.answered.items() if when < killed - 0.5
    }  # a busy machine takes its time
    assert arrived
    annotate_all(config, candidates)
    assert len(server.counts) == 3 * NUM_TRACES
    assert all(server.counts[digest] == 1 for digest in arrived)
    assert sum(server.counts.values()) <= 3 * NUM_TRACES + config.annotate.concurrency


def test_replies_can_be_parsed_and_consolidated_again_for_free(server, config, candidates):
    annotate_all(config, candidates)
    sent = len(server.requests)
    other = config.annotate.model_copy(update={"confidence_threshold": 4.0})
    again = annotate_all(config.model_copy(update={"annotate": other}), candidates)
    assert len(server.requests) == sent
    labels = ArtifactStore(config.storage).read_table(again, "annotations.parquet")
    assert set(labels["rule"]) == {"merge"}


def test_the_budget_stops_before_the_call_that_could_cross_it_and_a_larger_one_goes_on(server, config, candidates):
    """72 replies at 20 dollars cost 1,440. With 500, the 21st could bring it to 500, the 22nd beyond."""
    poor = with_budget(config, 500)
    for _ in range(2):  # the second run finds the money gone, and spends none
        with pytest.raises(BudgetError, match=r"annotate\.budget_usd"):
            annotate_all(poor, candidates)
        assert len(server.requests) == 21
    annotate_all(with_budget(config, 1540), candidates)
    assert len(server.requests) == 3 * NUM_TRACES and set(server.counts.values()) == {1}


def test_an_outage_and_a_retry_in_one_process_keep_one_account(server, config, candidates):
    answer = server.script
    server.script = lambda request, number: answer(request, number) if number < 20 else fails(503)
    roles = {
        role: endpoint.model_copy(update={"max_attempts": 1}) for role, endpoint in config.annotate.endpoints.items()
    }
    impatient = config.model_copy(update={"annotate": config.annotate.model_copy(update=roles)})
    with pytest.raises(EndpointUnavailableError):
        annotate_all(impatient, candidates)
    server.script = answer
    annotate_all(impatient, candidates)
    ledger = read_ledger(impatient, candidates)
    assert ledger["requests"].sum() == 3 * NUM_TRACES and ledger["cost_usd"].sum() == 72 * 20
    assert len(ledger) == 3 and ledger["set_aside_usd"].sum() == ledger["lost_usd"].sum() == 0


def test_the_ledger_says_which_run_paid_for_what(server, config, candidates):
    annotate_all(config, candidates)
    ledger = read_ledger(config, candidates)
    assert ledger["model"].tolist() == ["openai/a", "openai/b", "openai/judge"]
    assert ledger["requests"].tolist() == [NUM_TRACES] * 3 and ledger["cost_usd"].sum() == 72 * 20
    assert ledger["set_aside_usd"].sum() == 0 and ledger["run"].nunique() == 1


def test_the_store_keeps_each_reply_raw_with_all_that_was_paid(server, config, candidates):
    annotations = annotate_all(config, candidates)
    store = ArtifactStore(config.storage)
    raw = store.read_table(annotations, "raw_annotations.parquet")
    for row in raw.itertuples():
        record = store.get_json(f"replies/{row.request_digest[:2]}/{row.request_digest}")
        assert record["response"]["choices"][0]["message"]["content"] == row.reply
        assert record["prompt_digest"] == row.prompt_digest and record["model"] == row.model
        assert (record["completion_tokens"], record["cost_usd"]) == (20, 20.0) and record["latency_s"] > 0.04


def test_free_requests_are_in_the_ledger_too(server, config, candidates):
    free = {"input_usd_per_million": 0.0, "output_usd_per_million": 0.0}
    roles = {role: endpoint.model_copy(update=free) for role, endpoint in config.annotate.endpoints.items()}
    unpaid = config.model_copy(update={"annotate": config.annotate.model_copy(update=roles)})
    annotate_all(unpaid, candidates)
    ledger = read_ledger(unpaid, candidates)
    assert ledger["requests"].tolist() == [NUM_TRACES] * 3 and ledger["cost_usd"].sum() == 0
