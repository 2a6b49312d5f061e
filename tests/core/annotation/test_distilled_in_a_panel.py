"""A distilled annotator in a panel: what goes on to whom, what is asked, what that costs, and how it is told."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from chat_server import says, steps
from pydantic import ValidationError

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.annotation.prompts import read_payload
from mralign_core.annotation.quoting import NothingKept, quote_annotation
from mralign_core.comparison.annotation_sets import panel_sets
from mralign_core.config import AnnotateConfig
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.llm.request import Received
from mralign_core.method.hidden_chain import NOT_ASKED
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage.tables import write_table
from tests.kept_replies import MemoryReplyStore
from tests.published_candidates import candidate_row

TEXTS = ["I recall the date.", "Wait, let me check.", "So it is Galen."]
FREE = {"input_usd_per_million": 0, "output_usd_per_million": 0}


def surely(*votes):
    """A labeller that gives each segment a label and a confidence."""
    said = [
        {"thinking_step": [number], "labels": [{"label": label, "confidence": confidence}]}
        for number, (label, confidence) in enumerate(votes)
    ]
    text = json.dumps({"steps": said, "overall_confidence": 5})
    received = Received("a digest", "another", "local/paid", text, "stop", 0, 0, 0.0, {}, True)
    return SimpleNamespace(model="local/paid", sha256="a digest", reply=lambda _: received, require=lambda *_: None)


MIXED = (("retrieval", 9.5), ("evaluation", 4.0), ("synthesis", 9.0))


def annotate(votes, *, texts=TEXTS, **settings):
    section = AnnotateConfig.model_validate(
        {"annotator_a": "local/paid", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator", **settings}
    )
    return annotate_traces(
        pd.DataFrame([candidate_row("t1", texts)]),
        section,
        seed=0,
        label_set=PAPER_LABEL_SET,
        client=LLMClient(MemoryReplyStore(), concurrency=1, first_pause_s=0.01),
        labellers={"annotator_a": surely(*votes)},
    )


def of_server(server, **settings):
    models = {"annotator_b": "openai/second", "adjudicator": "openai/judge"}
    return {role: {"model": name, "api_base": server.url, **FREE} for role, name in models.items()} | settings


def test_only_what_it_is_not_sure_of_goes_on(server):
    server.script = lambda request, _: (
        says(steps(((1,), {"self_verification": 9, "backtracking": 8})))
        if request["model"] == "second"
        else says(steps(((1,), {"self_verification": 10})))
    )
    made = annotate(MIXED, **of_server(server))
    rows = made.annotations
    assert list(rows["rule"]) == ["distilled", "merge", "distilled"]
    assert [list(labels) for labels in rows["labels"]] == [
        ["retrieval"],
        ["backtracking", "self_verification"],
        ["synthesis"],
    ]
    assert [list(labels) for labels in rows["labels_b"]] == [[], ["self_verification", "backtracking"], []]
    assert list(rows.loc[0, "confidences"]) == [9.5] and list(rows["step"]) == [0, 1, 2]
    (request,) = server.requests
    payload = read_payload(request["messages"])
    assert payload["asked"] == [1] and [each["text"] for each in payload["segments"]] == TEXTS
    assert "`asked`" in request["messages"][0]["content"]


def test_the_adjudicator_settles_what_two_leave_open_and_nothing_else(server):
    server.script = lambda request, _: (
        says(steps(((1,), {"self_verification": 6})))
        if request["model"] == "second"
        else says(steps(((1,), {"backtracking": 9})))
    )
    made = annotate(MIXED, **of_server(server))
    assert list(made.annotations["rule"]) == ["distilled", "adjudicate", "distilled"]
    assert [each["model"] for each in server.requests] == ["second", "judge"]
    (disputed,) = read_payload(server.requests[1]["messages"])["disputed"]
    assert disputed["thinking_step"] == [1] and disputed["annotator_a"] == [{"label": "evaluation", "confidence": 4.0}]


def test_a_reply_about_other_segments_is_sent_back_and_nothing_is_guessed(server):
    server.script = lambda request, _: says(steps(((0,), {"retrieval": 9}), ((1,), {"backtracking": 9})))
    made = annotate(MIXED, **of_server(server))
    assert made.annotations.empty and len(server.requests) == 2
    assert list(made.failures["role"]) == ["annotator_b"] and set(made.raw["role"]) == {"annotator_a", "annotator_b"}


def test_a_trace_that_is_sure_throughout_asks_nobody(server):
    sure = (("retrieval", 8.0), ("self_verification", 8.0), ("synthesis", 9.9))
    made = annotate(sure, **of_server(server))
    assert set(made.annotations["rule"]) == {"distilled"} and not server.requests and made.cost_usd == 0
    assert set(made.raw["role"]) == {"annotator_a"}


def test_a_trace_of_too_many_segments_is_left_out_and_listed():
    num = 20_000
    made = annotate((("retrieval", 9),) * num, texts=["I recall it."] * num)
    assert made.annotations.empty and list(made.failures["role"]) == ["annotator_a"]


def test_nobody_is_asked_below_nothing():
    made = annotate((("retrieval", 0.1),) * 3, escalate_below=0, annotator_b="openai/gpt-4o")
    assert set(made.annotations["rule"]) == {"distilled"}, "and no key of a provider is needed"


@pytest.mark.parametrize(("confidence", "goes_on"), [(7.0, True), (9.9, False)])
def test_whole_traces_go_on_by_their_mean(server, confidence, goes_on):
    server.script = lambda request, _: says(
        steps(*(((number,), {"retrieval": 9}) for number in range(3)))
        if request["model"] == "second"
        else steps(((1,), {"retrieval": 9}))
    )
    made = annotate(
        (("retrieval", confidence), ("evaluation", 5.5), ("synthesis", 9)), escalate="traces", **of_server(server)
    )
    assert len(server.requests) == 2 * goes_on and ("distilled" in set(made.annotations["rule"])) is not goes_on
    if goes_on:
        assert "asked" not in read_payload(server.requests[0]["messages"]), "a whole trace is asked about as ever"
        assert "each segment the label of its main move" in server.requests[0]["messages"][0]["content"]
        assert "by itself" in server.requests[0]["messages"][0]["content"]


def test_an_offline_annotator_labels_the_asked_segments():
    made = annotate(MIXED, cue_drop_prob=0, cue_flip_prob=0)
    assert list(made.annotations["rule"])[::2] == ["distilled", "distilled"]
    assert [bool(len(labels)) for labels in made.annotations["labels_b"]] == [False, True, False]


def test_what_was_not_asked_is_no_vote_and_no_dispute(tmp_path):
    made = annotate(MIXED, cue_drop_prob=0, cue_flip_prob=0)
    candidates = pd.DataFrame([candidate_row("t1", TEXTS)])
    files = (
        write_table(tmp_path, "candidates.parquet", candidates, CANDIDATES),
        write_table(tmp_path, "annotations.parquet", made.annotations, ANNOTATIONS),
    )
    (batch,) = read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, with_votes=True)
    assert batch.votes is not None
    assert [vote[0] == NOT_ASKED for vote in batch.votes[:, 1].tolist()] == [True, False, True]
    b = next(each for each in panel_sets("run", made.annotations, candidates) if each.name == "run B")
    assert list(b.rows["segment"]) == [1]


def test_a_quote_counts_what_goes_on(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none: nothing is asked")

    def quote(**settings):
        section = {"annotator_a": "local/paid", "annotator_b": "openai/gpt-4o", "adjudicator": "openai/gpt-4o-mini"}
        quotes = quote_annotation(
            pd.DataFrame([candidate_row("t1", TEXTS)]),
            AnnotateConfig.model_validate({**section, **settings}),
            seed=0,
            label_set=PAPER_LABEL_SET,
            replies=NothingKept(),
            labellers={"annotator_a": surely(*MIXED)},
        )
        return {each.model: each for each in quotes}

    some, everything, nothing = quote(), quote(escalate_below=9.9), quote(escalate_below=3)
    assert some["openai/gpt-4o"].requests == everything["openai/gpt-4o"].requests == 1
    replies = [each["openai/gpt-4o"].completion_tokens for each in (some, everything)]
    assert replies[1] - replies[0] == 2 * 32, "a segment less is so many tokens of a reply less"
    assert some["openai/gpt-4o-mini"].most_requests == 1
    assert some["openai/gpt-4o-mini"].most_cost_usd < everything["openai/gpt-4o-mini"].most_cost_usd
    assert sum(each.most_cost_usd for each in nothing.values()) == 0


@pytest.mark.parametrize(
    ("settings", "says_"),
    [
        ({"annotator_b": "local/paid"}, "annotator_b: local/paid is a distilled annotator, which decides first"),
        ({"adjudicator": "local/paid"}, "adjudicator: local/paid is a distilled annotator"),
        ({"annotator_a": "local/Paid!"}, "names nobody: write local/NAME"),
        ({"annotator_a": {"model": "local/paid", "temperature": 1}}, "nothing but the name has an effect"),
        ({"escalate_below": 5}, "escalate_below has no effect when annotate.annotator_a is no local/NAME"),
        ({"annotator_a": "local/paid", "may_merge": False}, "may_merge has no effect"),
        ({"annotator_a": "local/paid", "escalate_below": 0, "escalate": "traces"}, "escalate has no effect"),
        ({"annotator_a": "local/paid", "annotator_b": "human/anna"}, "human/anna labelled whole traces"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, says_):
    with pytest.raises(ValidationError, match=says_):
        AnnotateConfig.model_validate(settings)
