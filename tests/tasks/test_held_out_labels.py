"""Labels of held-out thinkings: free where annotators are offline, else asked for, quoted before, and paid once."""

import re

import pandas as pd
import pytest
from chat_server import fails

from flows import evaluate as stage
from flows.commands.results import _print_quote, console
from flows.evaluate import evaluate, label_held_out, label_if_possible
from mralign_core.config import RunConfig
from mralign_core.errors import BudgetError, StorageError
from mralign_core.evaluation.held_out_traces import most_held_out_traces, variants_to_label
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.annotate import annotate_shard, quote_annotations, quote_held_out, read_ledger, within_budget
from tasks.engine.graph import NOTHING
from tasks.engine.plan import Plan
from tasks.evaluate import write_report
from tasks.held_out import collect_held_out_annotations, gather_held_out_traces
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label, make_in_shards
from tests.tasks.test_paid_once import CountingServer, asking, with_budget

EACH = 60
"""Dollars a trace costs: three replies of 20."""


@pytest.fixture
def server():
    server = CountingServer()
    yield server
    server.close()


@pytest.fixture
def config(server, tmp_path):
    return RunConfig(
        storage={"root": str(tmp_path / "store")},
        questions={"train": "nq_open", "eval": "nq_open"},
        annotate={**asking(server), "shard_size": 4},
        evaluate={"label_thinking": "aligned"},
    )


def put(config, tmp_path, name, table, rows):
    store, directory = ArtifactStore(config.storage), tmp_path / name
    directory.mkdir()
    file_name = "scores.parquet" if table is SCORES else "questions.parquet"
    write_table(directory, file_name, pd.DataFrame(rows).astype(object), table)
    return store.publish(name.split("-", 1)[0], name, directory, parents=[], fingerprint={}, table=table.name)


def answer(variant, number, thinking, outcome="ok"):
    about = {"variant": variant, "question_id": f"q{number}", "source": "s", "scoring": "exact_match", "stratum": ""}
    matches = {"em_thought": True, "em_answer": number % 2 == 0, "contains_answer": number % 2 == 0}
    tokens = {"num_prompt_tokens": 5, "num_tokens": 9}
    said = {"completion": "", "thinking": thinking, "answer": "Galen", "outcome": outcome}
    return {**about, "draw": 0, **said, **matches, **tokens}


@pytest.fixture
def made(config, tmp_path):
    """Five questions, answered by think-on and MR-ALIGN: alike to all but one, and one thinking that never ends."""
    texts = [f"Let me check number {n}.\n\nIt is Galen." for n in range(5)]
    rows = {
        "on": [answer("on", n, text) for n, text in enumerate(texts)],
        "mr_align": [answer("mr_align", n, text) for n, text in enumerate([*texts[:3], "Wait.\n\nGalen."])],
    }
    rows["mr_align"].append(answer("mr_align", 4, "Hm", "unclosed_thinking"))
    asked = [
        {"question_id": f"q{n}", "question": "Who wrote it?", "answers": ["Galen"], "source": "s", "split": "eval"}
        | {"stratum": "", "scoring": "exact_match", "options": [], "incorrect_answers": []}
        for n in range(5)
    ]
    scores = {variant: put(config, tmp_path, f"scores-{variant}", SCORES, found) for variant, found in rows.items()}
    return {"scores": scores, "evaluation-questions": put(config, tmp_path, "questions-q", QUESTIONS, asked)}


def traces_of(config, made):
    return gather_held_out_traces.run_here(
        config, scores=made["scores"], evaluation_questions=made["evaluation-questions"]
    )


def test_who_is_labelled_is_for_the_config_to_say(config):
    def labelled(asked, **more):
        section = config.evaluate.model_copy(update={"label_thinking": asked})
        return variants_to_label(config.model_copy(update={"evaluate": section, **more}))

    everyone = ("on", *config.train.variants)
    assert labelled("when_free") == labelled("none") == ()
    assert labelled("aligned") == ("on", "mr_align") and labelled("all") == everyone
    offline = config.annotate.model_copy(
        update={role: config.annotate.annotator_a.model_copy(update={"model": f"cue/{name}"}) for role, name in CUES}
    )
    assert labelled("when_free", annotate=offline) == ("on", "mr_align") and labelled("none", annotate=offline) == ()
    nothing_held_out = config.questions.model_copy(update={"eval": ()})
    assert labelled("all", questions=nothing_held_out) == ()


CUES = [("annotator_a", "a"), ("annotator_b", "b"), ("adjudicator", "adjudicator")]


def test_held_out_thinkings_that_end_are_labelled_and_equal_ones_once(config, made, server):
    ref = traces_of(config, made)
    store = ArtifactStore(config.storage)
    traces = store.read_table(ref, "candidates.parquet")
    assert store.manifest(ref).counts == {"on": 5, "mr_align": 4}
    assert traces["trace_id"].tolist()[4:6] == ["on/q4/0", "mr_align/q0/0"]
    segments = [(each["start"], each["end"]) for each in traces["segments"][0]]
    assert [traces["completion"][0][slice(*each)] for each in segments] == ["Let me check number 0.", "It is Galen."]
    assert traces["is_right"].tolist()[:3] == [True, False, True]
    quotes, _ = quote_annotations(config, ref)
    assert [quote.requests for quote in quotes] == [6, 6, 0] and quotes[2].most_requests == 6
    labelled = make_in_shards(annotate_shard, collect_held_out_annotations, config, ref)
    assert len(server.requests) == 3 * 6  # nine thinkings, of which three are equal to others
    rows = store.read_table(labelled, "annotations.parquet")
    assert rows["trace_id"].drop_duplicates().tolist() == traces["trace_id"].tolist()
    quotes, spent_usd = quote_annotations(config, ref)
    assert [quote.requests for quote in quotes] == [0, 0, 0] and spent_usd == 6 * EACH


def test_before_there_are_answers_each_is_taken_for_a_candidate(config, made, tmp_path, server):
    rows = [candidate_row(f"t{n}", [f"Let me check {n}.", "So it is Galen."]) for n in range(4)]
    candidates = publish_candidates(config.storage, rows, tmp_path / "candidates")
    label(config, candidates)  # what is kept of these is no help to other texts
    number = most_held_out_traces(config, 5)
    assert number == 5 * config.evaluate.num_draws * 2
    quotes = quote_held_out(config, candidates, number)
    assert [quote.requests for quote in quotes] == [number, number, 0] and quotes[2].most_requests == number


def test_a_dry_run_says_what_they_will_cost_beside_the_candidates(config, made, tmp_path, server):
    rows = [candidate_row(f"t{n}", [f"Let me check {n}.", "So it is Galen."]) for n in range(4)]
    known = {"candidates": publish_candidates(config.storage, rows, tmp_path / "candidates")}
    known["evaluation-questions"] = made["evaluation-questions"]

    def printed(config, known):
        with console.capture() as shown:
            _print_quote(config, Plan([], known))
        return " ".join(shown.get().split())

    def dollars(text):
        found = re.search(r"([0-9.]+) to ([0-9.]+) dollars to come, 0.00 spent so far", text)
        assert found, text
        return [float(number) for number in found.groups()]

    free = config.model_copy(update={"evaluate": type(config.evaluate)()})
    of_candidates = dollars(printed(free, known))
    # Five questions, answered by two variants: 10 thinkings beside 4 candidates.
    text = printed(config, known)
    assert "(evaluate.label_thinking: aligned), of 10 at most" in text
    assert dollars(text) == pytest.approx([3.5 * each for each in of_candidates], abs=0.02)
    known["held-out-traces"] = traces_of(config, made)
    assert all(a < b < 3.5 * a for a, b in zip(of_candidates, dollars(printed(config, known)), strict=True))
    assert not server.requests


def test_of_no_held_out_thinking_a_dry_run_quotes_nothing(config, made, tmp_path, server):
    scores = [answer("on", 0, "Hm", "unclosed_thinking"), answer("on", 1, "Hm", "unclosed_thinking")]
    refs = {**made["scores"], "on": put(config, tmp_path, "scores-none", SCORES, scores)}
    refs["mr_align"] = put(config, tmp_path, "scores-of", SCORES, [{**row, "variant": "mr_align"} for row in scores])
    ref = traces_of(config, {**made, "scores": refs})
    assert ref.rows == 0 and quote_annotations(config, ref) == ([], 0.0)
    rows = [candidate_row("t0", ["Let me check.", "So it is Galen."])]
    known = {"candidates": publish_candidates(config.storage, rows, tmp_path / "candidates"), **made}
    with console.capture() as shown:
        _print_quote(config, Plan([], {**known, "held-out-traces": ref}))
    assert "0.00 spent so far" in " ".join(shown.get().split())
    labelled = make_in_shards(annotate_shard, collect_held_out_annotations, config, ref)
    assert ArtifactStore(config.storage).read_table(labelled, "annotations.parquet").empty and not server.requests


def test_they_are_paid_from_what_the_candidates_leave(config, made, tmp_path, server):
    rows = [candidate_row("t0", ["Let me check.", "So it is Galen."])]
    candidates = publish_candidates(config.storage, rows, tmp_path / "candidates")
    poor = config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": 3.0 * EACH})})
    label(poor, candidates)
    assert within_budget(poor, candidates).annotate.budget_usd == 2 * EACH
    with pytest.raises(BudgetError, match=r"annotate\.budget_usd"):
        make_in_shards(
            annotate_shard, collect_held_out_annotations, within_budget(poor, candidates), traces_of(poor, made)
        )
    assert 20 * len(server.requests) <= 3 * EACH
    assert label_held_out(config.model_copy(update={"evaluate": type(config.evaluate)()}), made, made["scores"]) == {}


def inputs_of_report(config):
    return [name for each in write_report.artifact.inputs for name in each.names(config, NOTHING)]


@pytest.fixture
def in_threads(monkeypatch):
    """The shards of the stage, one after another, without a server of Prefect's."""

    def run(task, calls, _):
        return [task.run_here(**call) for call in calls]

    monkeypatch.setattr("flows.annotate.run_in_threads", run)
    for name in ("gather_held_out_traces", "collect_held_out_annotations"):
        monkeypatch.setattr(stage, name, _Here(getattr(stage, name)))


class _Here:
    """A task that runs in this process, without Prefect."""

    def __init__(self, task):
        self.work, self.run_here = task.work, task.run_here

    def __call__(self, *args, **named):
        return self.run_here(*args, **named)


def test_a_budget_that_is_used_up_costs_the_report_its_labels_only_and_a_larger_one_asks_for_the_rest(
    config, made, server, in_threads, caplog
):
    shown, found, paid_for = label_if_possible(with_budget(config, 2 * EACH), made, made["scores"])
    assert paid_for and read_ledger(config, paid_for)["cost_usd"].sum() == 20 * len(server.requests), "on the bill"
    assert not found and shown.evaluate.label_thinking == "none"
    assert not {"held-out-traces", "held-out-annotations"} & set(inputs_of_report(shown))
    (line,) = (each.getMessage() for each in caplog.records if each.name == "mralign_core.evaluation")
    assert "label_thinking: aligned" in line and "annotate.budget_usd" in line and "--only evaluate" in line
    assert "\n" not in line
    paid = len(server.requests)
    assert paid
    rich = with_budget(config, 100 * EACH)
    shown, found, paid_for = label_if_possible(rich, made, made["scores"])
    assert shown is rich and not paid_for and set(found) == {"held-out-traces", "held-out-annotations"}
    assert {"held-out-traces", "held-out-annotations"} <= set(inputs_of_report(shown))
    assert len(server.requests) == 3 * 6 and set(server.counts.values()) == {1}  # nothing paid was asked for again


def test_annotators_that_are_out_or_refuse_cost_the_report_its_labels_only(config, made, server, in_threads, caplog):
    for status in (503, 401):
        server.script = lambda *_, status=status: fails(status)
        roles = {role: each.model_copy(update={"max_attempts": 1}) for role, each in config.annotate.endpoints.items()}
        impatient = config.model_copy(update={"annotate": config.annotate.model_copy(update=roles)})
        assert label_if_possible(impatient, made, made["scores"])[1] == {}
    assert caplog.text.count("does not have the labels of held-out thinking") == 2


class Steps:
    """The stage with every step but its own order left out; ``label`` is what labelling does."""

    def __init__(self, made, monkeypatch, label):
        self.order, self.remembered, self.asked = [], {}, {}
        ref = made["evaluation-questions"]
        inputs = dict.fromkeys(("evaluation-questions", "model", "adapter:mr_align"), ref)
        replies = {
            "inputs_of": inputs,
            "score_variants": made["scores"],
            "judge_variants": {},
            "compute_results": ref,
            "traces_to_train_on": {},
            "make_versions": {"version:mr_align": ref},
            "write_report": ref,
            "file_report": None,
            "show_results": None,
        }
        for name, reply in replies.items():
            monkeypatch.setattr(stage, name, self._step(name, reply))
        monkeypatch.setattr(stage, "remember", self._remember)
        monkeypatch.setattr(stage, "_needed", lambda *_: [])
        monkeypatch.setattr(stage, "label_held_out", label)

    def _step(self, name, reply):
        def step(*args, **named):
            self.order.append(name)
            self.asked[name] = args
            return reply

        return step

    def _remember(self, *_, **made):
        self.order.append("remember")
        self.remembered |= made


def raising(error):
    def label(*_):
        raise error

    return label


@pytest.mark.parametrize("error", [BudgetError("0.00 left"), EndpointUnavailableError("out")])
def test_the_stage_ends_with_its_results_and_a_report_where_labels_cannot_be_had(config, made, monkeypatch, error):
    steps = Steps(made, monkeypatch, raising(error))
    assert evaluate.fn(config) == made["evaluation-questions"]
    assert {"results", "version:mr_align", "report", "scores:on"} <= set(steps.remembered)
    assert steps.asked["write_report"][0].evaluate.label_thinking == "none"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), StorageError("no space left")])
def test_an_interrupt_a_bug_or_a_store_that_fails_while_labelling_raises_and_leaves_the_results(
    config, made, monkeypatch, error
):
    steps = Steps(made, monkeypatch, raising(error))
    with pytest.raises(type(error)):
        evaluate.fn(config)
    assert {"results", "version:mr_align"} <= set(steps.remembered) and "write_report" not in steps.order
