"""What a dry run says before anything is spent, against what a run then does."""

import pytest
from chat_server import label_all, role_of, says, steps

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.annotation.quoting import quote_annotation
from mralign_core.config import AnnotateConfig
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.llm.ledger import Ledger
from tests.kept_replies import MemoryReplyStore

TRACE = ["I recall the date.", "Wait, let me check.", "So it is Galen."]
PRICES = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}


@pytest.fixture
def section(server):
    names = {"annotator_a": "openai/first", "annotator_b": "openai/second", "adjudicator": "openai/judge"}
    return AnnotateConfig(**{role: {"model": name, "api_base": server.url, **PRICES} for role, name in names.items()})


def quote(candidates, section, replies):
    quotes = quote_annotation(candidates, section, seed=0, label_set=PAPER_LABEL_SET, replies=replies)
    return {quoted.model: quoted for quoted in quotes}


def annotate(candidates, section, replies, ledger=None):
    client = LLMClient(replies, concurrency=4, ledger=ledger)
    return annotate_traces(candidates, section, seed=0, label_set=PAPER_LABEL_SET, client=client)


def test_nothing_is_sent_and_adjudication_is_a_range(server, section, candidates_of):
    quotes = quote(candidates_of(TRACE, TRACE[:2]), section, MemoryReplyStore())
    assert not server.requests
    assert [quotes[f"openai/{name}"].requests for name in ("first", "second", "judge")] == [2, 2, 0]
    assert [quotes[f"openai/{name}"].most_requests for name in ("first", "second", "judge")] == [2, 2, 2]
    first = quotes["openai/first"]
    assert first.cost_usd == pytest.approx(first.prompt_tokens * 1e-6 + first.completion_tokens * 10e-6)
    assert first.most_cost_usd == first.cost_usd > 0 and quotes["openai/judge"].cost_usd == 0


def test_the_prompt_is_counted_as_a_provider_counts_it_within_a_tenth(server, section, candidates_of):
    import litellm

    quotes = quote(candidates_of(TRACE), section, MemoryReplyStore())
    server.script = lambda request, number: label_all(request)
    annotate(candidates_of(TRACE), section, MemoryReplyStore())
    counted = litellm.token_counter(model="gpt-4o", messages=server.requests[0]["messages"])
    assert counted <= quotes["openai/first"].prompt_tokens <= 1.1 * counted


def test_when_both_annotators_have_replied_the_adjudications_are_certain(server, section, candidates_of):
    def differ_on_the_first_trace(request, number):
        if role_of(request) == "judge":
            return says("{}", finish_reason="stop")
        label = "framing" if role_of(request) == "first" and len(_segments(request)) == 3 else "retrieval"
        return label_all(request, label, confidence=5)

    server.script = differ_on_the_first_trace
    candidates, replies = candidates_of(TRACE, TRACE[:2]), MemoryReplyStore()
    annotate(candidates, section, replies)
    judged = [digest for digest, record in replies.records.items() if record["model"] == "openai/judge"]
    for digest in judged:
        del replies.records[digest]
    quotes = quote(candidates, section, replies)
    assert quotes["openai/first"].kept == 2 and quotes["openai/first"].most_requests == 0
    assert (quotes["openai/judge"].requests, quotes["openai/judge"].most_requests) == (1, 1)


def test_after_a_run_nothing_is_left_to_ask(server, section, candidates_of):
    server.script = lambda request, number: label_all(request)
    candidates, replies = candidates_of(TRACE, TRACE[:2]), MemoryReplyStore()
    annotate(candidates, section, replies)
    assert all(quoted.most_requests == 0 for quoted in quote(candidates, section, replies).values())


def test_a_part_is_scaled_to_the_whole(section, candidates_of):
    part, seen = candidates_of(*[[f"{text} {n}" for text in TRACE] for n in range(5)]), []
    quotes = quote_annotation(
        part,
        section,
        seed=0,
        label_set=PAPER_LABEL_SET,
        replies=MemoryReplyStore(),
        num_traces=400,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (5, 5)
    assert quotes[0].requests == 400


def test_equal_traces_are_quoted_once(section, candidates_of):
    quotes = quote(candidates_of(TRACE, TRACE, TRACE[:2]), section, MemoryReplyStore())
    assert (quotes["openai/first"].requests, quotes["openai/judge"].most_requests) == (2, 2)


def test_a_run_under_the_quoted_price_stays_inside_the_budget(server, section, candidates_of):
    """The quote of a run without repairs covers it when replies are no longer than foreseen."""
    reply = lambda request: steps(*[((i,), {"retrieval": 9}) for i in range(len(_segments(request)))])  # noqa: E731
    server.script = lambda request, number: says(reply(request), usage={"prompt_tokens": 400, "completion_tokens": 60})
    candidates = candidates_of(TRACE, TRACE[:2])
    quotes = quote(candidates, section, MemoryReplyStore())
    ledger = Ledger()
    annotate(candidates, section, MemoryReplyStore(), ledger)
    assert ledger.committed_usd <= sum(quoted.most_cost_usd for quoted in quotes.values())


def _segments(request):
    from mralign_core.annotation.prompts import read_payload

    return read_payload(request["messages"])["segments"]
