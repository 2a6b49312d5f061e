"""Excerpts of several traces in one request: what is shown, whose labels they become, what is kept, what it costs."""

import asyncio
import json
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from chat_server import says, steps
from pydantic import ValidationError

from mralign_core.annotation.annotate import Panel, annotate_traces
from mralign_core.annotation.prompts import read_payload
from mralign_core.annotation.quoting import NothingKept, quote_annotation
from mralign_core.config import AnnotateConfig
from mralign_core.intake import model_in_reply
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.llm.request import Received
from tests.kept_replies import MemoryReplyStore
from tests.published_candidates import candidate_row

TEXTS = [f"Thought {number}." for number in range(6)]
UNSURE = {"t1": [1], "t2": [], "t3": [0, 5], "t4": [2]}
PRICE = {"input_usd_per_million": 10_000, "output_usd_per_million": 0}
"""A scripted reply, of a hundred prompt tokens, costs a dollar."""


def said_by(trace_id):
    labels = [{"label": "retrieval", "confidence": 3 if n in UNSURE[trace_id] else 9} for n in range(len(TEXTS))]
    said = [{"thinking_step": [number], "labels": [label]} for number, label in enumerate(labels)]
    text = json.dumps({"steps": said, "overall_confidence": 5})
    return Received("a digest", "another", "local/paid", text, "stop", 0, 0, 0.0, {}, True)


LABELLER = SimpleNamespace(
    model="local/paid", sha256="a digest", reply=lambda row: said_by(row.trace_id), require=lambda *_: None
)


def section_of(server, **settings):
    models = {"annotator_b": "openai/second", "adjudicator": "openai/judge"}
    asked = {role: {"model": name, "api_base": server.url, **PRICE} for role, name in models.items()}
    section = {"annotator_a": "local/paid", **asked, "escalate_context": 1, "escalate_together": 8, **settings}
    return AnnotateConfig.model_validate(section)


def annotate(server, *, names=("t1", "t2", "t3", "t4"), texts=TEXTS, replies=None, concurrency=1, **settings):
    return annotate_traces(
        pd.DataFrame([candidate_row(name, [text.format(name) for text in texts]) for name in names]),
        section_of(server, **settings),
        seed=0,
        label_set=PAPER_LABEL_SET,
        client=LLMClient(replies or MemoryReplyStore(), concurrency=concurrency, first_pause_s=0.01),
        labellers={"annotator_a": LABELLER},
    )


def answers(*, label_of=lambda number: "synthesis", judged="analogy", spoils=lambda payload: False):
    """Labels what a request asks about, by its number; what the judge says is surer."""

    def script(request, _):
        payload = read_payload(request["messages"])
        if spoils(payload):
            return says("I would rather not say.")
        if "disputed" in payload:
            return says(steps(*((step["thinking_step"], {judged: 10}) for step in payload["disputed"])))
        return says(steps(*(([number], {label_of(number): 9, "framing": 8}) for number in payload["asked"])))

    return script


def labels_of(made):
    return {(row.trace_id, row.segment): set(row.labels) for row in made.annotations.itertuples()}


def test_one_request_shows_what_is_near_the_asked_segments_of_several_traces(server):
    server.script = answers(label_of=lambda number: "analogy" if number == 6 + 5 else "synthesis")
    made = annotate(server)
    (request,) = server.requests
    payload = read_payload(request["messages"])
    shown = [[segment["index"] for segment in trace["segments"]] for trace in payload["traces"]]
    assert shown == [[0, 1, 2], [6, 7, 10, 11], [13, 14, 15]] and payload["asked"] == [1, 6, 11, 14]
    assert payload["traces"][1]["segments"][-1]["text"] == TEXTS[5]
    found = labels_of(made)
    assert found["t3", 5] == {"analogy", "framing"} and found["t1", 1] == found["t3", 0] == {"synthesis", "framing"}
    by_rule = made.annotations.groupby("rule")["segment"].agg(list).to_dict()
    assert by_rule.pop("merge") == [1, 0, 5, 2] and set(by_rule) == {"distilled"}
    assert len(made.annotations) == 4 * len(TEXTS)


def test_what_a_request_cost_is_shared_out_by_the_segments_asked(server):
    server.script = answers()
    replies = MemoryReplyStore()
    made = annotate(server, replies=replies)
    paid = made.raw[made.raw["role"] == "annotator_b"].set_index("trace_id")
    assert paid["cost_usd"].round(6).to_dict() == {"t1": 0.25, "t3": 0.5, "t4": 0.25}
    assert {model_in_reply(replies.get(digest)) for digest in paid["request_digest"]} == {"scripted"}
    assert paid["prompt_tokens"].sum() == 100 and paid["completion_tokens"].sum() == 20
    assert made.cost_usd == pytest.approx(1.0)


def test_what_was_said_of_a_trace_is_found_in_other_company(server):
    server.script = answers()
    replies = MemoryReplyStore()
    first = labels_of(annotate(server, replies=replies))
    made = annotate(server, names=("t4", "t3"), replies=replies, escalate_together=2)
    assert len(server.requests) == 1 and made.cost_usd == 0
    assert labels_of(made) == {name: labels for name, labels in first.items() if name[0] in ("t3", "t4")}
    annotate(server, names=("t4",), replies=replies, escalate_together=1)
    assert len(server.requests) == 2, "who wants it said alone gets it said alone"
    annotate(server, names=("t1", "t4"), replies=replies)
    assert len(server.requests) == 2, "and that counts in company too"


def test_a_reply_about_several_that_is_of_no_use_costs_no_other_trace_its_labels(server):
    server.script = answers(spoils=lambda payload: any(len(trace["segments"]) == 4 for trace in payload["traces"]))
    replies = MemoryReplyStore()
    made = annotate(server, replies=replies)
    assert set(made.annotations["trace_id"]) == {"t1", "t2", "t4"}
    assert list(made.failures["trace_id"]) == ["t3"] and set(made.failures["role"]) == {"annotator_b"}
    asked = [len(read_payload(request["messages"])["asked"]) for request in server.requests]
    assert asked[:2] == [4, 4] and sorted(asked[2:]) == [1, 1, 2, 2], "together, its repair, and each alone"
    assert made.cost_usd == pytest.approx(len(asked)), "all that was paid is on the account"
    assert made.raw["cost_usd"].sum() == pytest.approx(len(asked))
    annotate(server, names=("t1", "t2", "t4"), replies=replies)
    assert len(server.requests) == len(asked), "what was said alone is not asked again in company"


def test_groups_of_no_use_end_no_run_while_each_trace_can_be_asked_alone(server, monkeypatch):
    names = [f"t{number}" for number in range(5, 29)]
    monkeypatch.setattr(sys.modules[__name__], "UNSURE", {name: [1, 2] for name in names})
    server.script = answers(spoils=lambda payload: len(payload["traces"]) > 1)
    made = annotate(server, names=names, texts=["{}", *TEXTS[1:]], concurrency=16, escalate_together=4)
    assert made.failures.empty and len(server.requests) == 2 * 12 + 24


def test_equal_draws_are_asked_about_once_and_have_the_same_labels(server, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "UNSURE", {"t1": [1], "t2": [1], "t3": [0]})
    server.script = answers(label_of=lambda number: "synthesis" if number == 1 else "analogy")
    replies = MemoryReplyStore()
    first = annotate(server, names=("t1", "t2", "t3"), replies=replies)
    (request,) = server.requests
    assert len(read_payload(request["messages"])["asked"]) == 2 and first.cost_usd == pytest.approx(1.0)
    labels = labels_of(first)
    assert labels["t1", 1] == labels["t2", 1] == {"synthesis", "framing"}
    assert labels_of(annotate(server, names=("t1", "t2", "t3"), replies=replies)) == labels


class DiesAfter(MemoryReplyStore):
    """Keeps so many replies, and no more."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def put(self, request_digest, record):
        if self.room == 0:
            raise OSError("the store is gone")
        self.room -= 1
        super().put(request_digest, record)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_reply_that_was_not_shared_out_before_a_kill_is_not_paid_for_again(room, server):
    """Nor where one more trace would make other groups."""
    server.script = answers()
    replies = DiesAfter(room)
    with pytest.raises(OSError, match="gone"):
        annotate(server, replies=replies)
    quote = quote_annotation(
        pd.DataFrame([candidate_row(name, TEXTS) for name in UNSURE]),
        section_of(server),
        seed=0,
        label_set=PAPER_LABEL_SET,
        replies=replies,
        labellers={"annotator_a": LABELLER},
    )
    assert sum(each.requests for each in quote) == 0, "and a quote keeps nothing, for which there is no room"
    replies.room = 10
    made = annotate(server, replies=replies)
    assert len(server.requests) == 1 and made.failures.empty and made.cost_usd == 0


def test_other_shards_go_on_while_a_distilled_annotator_is_at_work(server):
    async def ticks_while(work):
        task, ticks = asyncio.ensure_future(work), 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    def slow(row):
        time.sleep(0.1)
        return said_by(row.trace_id)

    server.script = answers()
    for settings in ({}, {"escalate_context": None, "escalate_together": 1}):
        client = LLMClient(MemoryReplyStore(), concurrency=1)
        labellers = {"annotator_a": SimpleNamespace(**vars(LABELLER) | {"reply": slow})}
        panel = Panel(section_of(server, **settings), 0, PAPER_LABEL_SET, client, labellers)
        table = pd.DataFrame([candidate_row(name, TEXTS) for name in UNSURE])
        assert asyncio.run(ticks_while(panel.annotate(table, lambda _: None))) > 10


def test_the_adjudicator_is_asked_together_too_with_the_votes(server):
    server.script = lambda request, turn: (
        says(steps(*(([number], {"synthesis": 6}) for number in read_payload(request["messages"])["asked"])))
        if request["model"] == "second"
        else answers()(request, turn)
    )
    made = annotate(server)
    assert [request["model"] for request in server.requests] == ["second", "judge"]
    payload = read_payload(server.requests[1]["messages"])
    assert [step["thinking_step"] for step in payload["disputed"]] == [[1], [6], [11], [14]]
    assert payload["disputed"][0]["annotator_b"] == [{"label": "synthesis", "confidence": 6}]
    assert labels_of(made)["t3", 5] == {"analogy"} and (made.annotations["rule"] == "adjudicate").sum() == 4


def test_an_offline_adjudicator_is_asked_about_each_trace_as_ever(server):
    server.script = lambda request, _: says(
        steps(*(([number], {"synthesis": 6}) for number in read_payload(request["messages"])["asked"]))
    )
    made = annotate(server, adjudicator="cue/adjudicator")
    assert len(server.requests) == 1 and (made.raw["role"] == "adjudicator").sum() == 3 and made.failures.empty


def test_without_company_each_trace_has_its_own_request(server):
    server.script = answers()
    annotate(server, escalate_together=1, escalate_context=0)
    shown = [read_payload(request["messages"])["traces"] for request in server.requests]
    assert [[len(trace["segments"]) for trace in each] for each in shown] == [[1], [2], [1]]


def test_a_quote_counts_the_requests_that_are_sent(server):
    server.script = answers()

    def quoted(replies, **settings):
        quotes = quote_annotation(
            pd.DataFrame([candidate_row(name, TEXTS) for name in UNSURE]),
            section_of(server, **settings),
            seed=0,
            label_set=PAPER_LABEL_SET,
            replies=replies,
            labellers={"annotator_a": LABELLER},
        )
        return {quote.model: quote for quote in quotes}

    together, alone = quoted(NothingKept()), quoted(NothingKept(), escalate_together=1)
    b, judge = together["openai/second"], together["openai/judge"]
    assert (b.requests, alone["openai/second"].requests) == (1, 3) and (judge.requests, judge.most_requests) == (0, 1)
    assert b.cost_usd < 0.5 * alone["openai/second"].cost_usd
    assert b.completion_tokens == 16 + 4 * 32, "a reply's tokens go by the segments asked about"
    replies = MemoryReplyStore()
    annotate(server, replies=replies)
    assert len(server.requests) == b.requests
    assert sum(quote.most_requests for quote in quoted(replies).values()) == 0, "what is kept is not asked again"


@pytest.mark.parametrize(
    ("settings", "says_"),
    [
        ({"escalate_context": 2}, "escalate_context has no effect when annotate.annotator_a is no local/NAME"),
        ({"annotator_a": "local/paid", "escalate_together": 2}, "escalate_together has no effect without"),
        ({"annotator_a": "local/paid", "escalate": "traces", "escalate_context": 2}, "escalate_context has no effect"),
        ({"annotator_a": "local/paid", "escalate_below": 0, "escalate_context": 2}, "escalate_context has no effect"),
    ],
)
def test_settings_of_excerpts_that_say_nothing_are_refused(settings, says_):
    with pytest.raises(ValidationError, match=says_):
        AnnotateConfig.model_validate(settings)


def test_they_are_in_the_fingerprint_only_where_they_are_set():
    plain, set_ = (AnnotateConfig(annotator_a="local/paid", escalate_context=each) for each in (None, 0))
    assert not any(name in plain.fingerprint() for name in ("escalate_context", "escalate_together"))
    assert set_.fingerprint()["escalate_context"] == 0
