"""Answers of variants through judges over real HTTP to a table: nothing is asked twice, after a kill neither."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from chat_server import ChatServer, fails, says

from flows.commands import judge_sheet
from mralign_core.config import PocketConfig, QuestionsConfig, RunConfig
from mralign_core.errors import BudgetError, ConfigError
from mralign_core.questions.loading import read_question_sets
from mralign_core.reporting.judged_findings import judged_notes, judged_tables, read_judged
from mralign_core.reporting.run_findings import headline, read_results, result_tables, sentences
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.scores import SCORES
from mralign_core.spreadsheets import read_csv, write_csv
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.annotate import without_offline
from tasks.engine.graph import artifact_of
from tasks.engine.plan import look_up
from tasks.evaluate import compute_results
from tasks.judge import quote_judgements, read_judge_ledger, read_judgements
from tests.judging import PRICE, judge_by_references, question_rows, score_rows, shown_in, truthfully
from tests.pocket_store import POCKET
from tests.stages import judge_all

REAL_DATA = os.environ.get("MRALIGN_REAL_DATA", "")
VARIANTS = ("off", "on", "kto")
NUM_QUESTIONS = 12
SCRIPT = """
import sys
from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tests.stages import judge_all
config, *refs = sys.argv[1:]
refs = [ArtifactRef.model_validate_json(ref) for ref in refs]
judge_all(RunConfig.model_validate_json(config), refs[0], dict(zip(("off", "on", "kto"), refs[1:], strict=True)))
"""


class JudgingServer(ChatServer):
    """Judges by the references, and knows when it had answered each request."""

    def __init__(self):
        super().__init__()
        self.delay_s, self.answered, self.lock = 0.0, {}, threading.Lock()
        self.script = self.answer

    def answer(self, request, number):
        time.sleep(self.delay_s)
        with self.lock:
            self.answered.setdefault(asked(request), time.monotonic())
        return judge_by_references(request)

    @property
    def counts(self):
        return Counter(asked(request) for request in self.requests)


def asked(request):
    shown = shown_in(request)
    return request["model"], shown["question"], shown["answer"]


@pytest.fixture
def server():
    server = JudgingServer()
    yield server
    server.close()


def config_of(server, tmp_path, *models, **judge):
    endpoints = [{"model": name, "api_base": server.url, **PRICE} for name in models or ("openai/first",)]
    return RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "questions": {"train": "nq_open", "eval": ["truthfulqa", "simpleqa"]},
            "train": {"variants": ["kto"]},
            "judge": {"endpoints": endpoints, "shard_size": 8, "concurrency": 4, **judge},
        }
    )


def publish(config, questions, answers):
    """The artifacts of questions, and of each variant's scores."""
    store, root = ArtifactStore(config.storage), Path(config.storage.root).parent
    frames = {variant: score_rows(questions, answers[variant], variant) for variant in VARIANTS}
    tables = {"evaluation-questions": (questions, QUESTIONS)} | {
        f"scores-{variant}": (frame, SCORES) for variant, frame in frames.items()
    }
    refs = {}
    for name, (frame, table) in tables.items():
        folder = root / name
        folder.mkdir()
        write_table(folder, "questions.parquet" if table is QUESTIONS else "scores.parquet", frame, table)
        kind = name.partition("-")[0] if table is SCORES else name
        refs[name] = store.publish(kind, f"of-a-test-{name}", folder, parents=[], fingerprint={}, table=table.name)
    return refs["evaluation-questions"], {variant: refs[f"scores-{variant}"] for variant in VARIANTS}


def results_of(config, asked_of, scores, judgements):
    return compute_results.run_here(config, scores=scores, judgements=judgements, evaluation_questions=asked_of)


@pytest.fixture
def questions():
    texts = [f"Question {n}?" for n in range(NUM_QUESTIONS)]
    half = NUM_QUESTIONS // 2
    return question_rows(
        [(text, ["Right."], ["Wrong."]) for text in texts[:half]], [(t, ["Right."]) for t in texts[half:]]
    )


def answers_to(questions, num_wrong):
    """The first so many answers of each set are wrong, the last has none."""
    found = []
    for _, rows in questions.groupby("scoring", sort=False):
        wrong = [["I would say so."] if n % 2 else ["Wrong."] for n in range(num_wrong)]
        found += [*wrong, *[["Right."]] * (len(rows) - num_wrong - 1), [None]]
    return sorted_like(questions, found)


def sorted_like(questions, by_set):
    order = [place for _, rows in questions.groupby("scoring", sort=False) for place in rows.index]
    return [by_set[order.index(place)] for place in questions.index]


def answers_of_variants(questions):
    return {variant: answers_to(questions, num_wrong) for variant, num_wrong in zip(VARIANTS, (3, 3, 1), strict=True)}


def test_answers_become_a_table_and_equal_ones_are_asked_once(server, tmp_path, questions):
    config = config_of(server, tmp_path)
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    judgements = judge_all(config, asked_of, scores)
    assert set(server.counts.values()) == {1}
    # Each set: five answers that think-off and think-on share, and two that KTO alone gives otherwise.
    assert len(server.requests) == 2 * 7
    store = ArtifactStore(config.storage)
    folder = store.open_directory(results_of(config, asked_of, scores, judgements))
    results, judged = read_results(folder), read_judged(folder)
    assert results is not None and judged is not None
    by_set = {table.title: table for table in result_tables(*results) if table.columns[0] == "variant, %"}
    # Of six answers without thinking, two are one of the incorrect references, and one is no answer.
    assert by_set["truthfulqa"].rows[0] == ["think off", "50.0", "83.3", "50.0"]
    assert by_set["truthfulqa"].rows[2] == ["KTO", "66.7", "83.3", "66.7"]
    grades, moved = judged_tables(judged)
    assert moved.rows[0][0] == "KTO − think on"
    assert [str(cell[0]).partition(" ")[0] for cell in moved.rows[0][1:]] == ["+33.3", "−33.3", "0.0", "+36.4"]
    assert grades.title == "simpleqa, graded by openai/first"
    assert grades.rows[2] == ["KTO", "66.7", "16.7", "16.7", "80.0", "72.7"]
    told = " ".join(judged_notes(judged))
    assert "truthfulqa is judged by openai/first." in told and "KTO 16.7 %" in told
    differences = results.differences.set_index(["stratum", "variant", "metric"])
    assert differences.loc[("truthfulqa", "kto", "truthful"), "difference"] == pytest.approx(1 / 6)
    assert headline(*results).startswith("On simpleqa,")

    again = judge_all(config, asked_of, scores)
    assert again == judgements and len(server.requests) == 14
    ledger = read_judge_ledger(config, asked_of)
    assert ledger["requests"].sum() == 14 and ledger["cost_usd"].sum() == 14 * 20


def test_people_are_compared_with_the_judge_that_is_named(server, tmp_path, questions):
    """People find "I would say so." right, as neither exact match nor the grader does, and leave informative empty."""
    config = config_of(server, tmp_path)
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    refs = {f"judgements:{name}": ref for name, ref in judge_all(config, asked_of, scores).items()}
    refs |= {"evaluation-questions": asked_of} | {f"scores:{name}": ref for name, ref in scores.items()}
    written = judge_sheet.write(config, refs.__getitem__, tmp_path / "sheet.csv", 99, seed=0)
    rows = [values for _, values in read_csv(written.sheet, ["item"], "--in", "test")]
    for row in rows:
        said = "no" if row["answer"] in ("Wrong.", "(no answer)") else "yes"
        row |= {name: said for name in ("verdict", "truthful") if row[name] != "n/a"}
    write_csv(tmp_path / "filled.csv", list(rows[0]), rows)
    for judge, criteria in (("", ["right", "truthful"]), ("exact_match", ["right"])):
        _, tables, _ = judge_sheet.read(config, refs.__getitem__, tmp_path / "filled.csv", 0.03, judge)
        agreements = [table for table in tables if table.columns[-1] == "false alarms, %"]
        assert [table.columns[0] for table in agreements] == [f"{name}: answers of" for name in criteria]
        # Of eighteen answers to SimpleQA, one of think-off and one of think-on is "I would say so."
        assert agreements[0].rows[0][1:3] == ["18", "88.9"]
    with pytest.raises(ConfigError, match="'openai/other' is no judge"):
        judge_sheet.read(config, refs.__getitem__, tmp_path / "filled.csv", 0.03, "openai/other")


def test_after_a_kill_no_request_whose_reply_had_arrived_is_sent_again(server, tmp_path, questions):
    config = config_of(server, tmp_path, "openai/first", "openai/second")
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    server.delay_s = 0.6
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT,
            config.model_dump_json(),
            *(r.model_dump_json() for r in (asked_of, *scores.values())),
        ],
        env={**os.environ, "PYTHONPATH": str(POCKET.parents[2])},
    )
    while len(server.answered) < 12:  # of 28, in the middle of the second shard
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    time.sleep(1.0)  # what was in flight ends at the server
    arrived = {request for request, when in server.answered.items() if when < killed - 0.5}
    before = len(server.requests)
    assert arrived and before < 28
    server.delay_s = 0.0
    judge_all(config, asked_of, scores)
    assert len(server.counts) == 28
    assert all(server.counts[request] == 1 for request in arrived)
    assert len(server.requests) <= 28 + config.judge.concurrency


def test_the_dry_run_counts_what_is_then_asked_and_what_it_cost(server, tmp_path, questions):
    config = config_of(server, tmp_path, "openai/first", "openai/second")
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    (before, other), spent_usd = quote_judgements(config, asked_of, list(scores.values()))
    assert (before.requests, other.requests, spent_usd) == (14, 14, 0.0) and not server.requests
    (none_yet, _), _ = quote_judgements(config, asked_of, [])
    assert none_yet.requests == NUM_QUESTIONS * len(VARIANTS) and none_yet.cost_usd > before.cost_usd
    judge_all(config, asked_of, scores)
    (after, _), spent_usd = quote_judgements(config, asked_of, list(scores.values()))
    assert (after.requests, after.kept, spent_usd) == (0, 14, 28 * 20)


def test_the_budget_stops_before_the_call_that_could_cross_it_and_a_larger_one_goes_on(server, tmp_path, questions):
    """14 replies at 20 dollars cost 280. With 200, the 6th could bring it to 200, the 7th beyond."""
    config = config_of(server, tmp_path, budget_usd=200)
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    for _ in range(2):
        with pytest.raises(BudgetError, match=r"judge\.budget_usd"):
            judge_all(config, asked_of, scores)
        assert len(server.requests) == 6
    judge_all(config_of(server, tmp_path, budget_usd=400), asked_of, scores)
    assert len(server.requests) == 14 and set(server.counts.values()) == {1}


def test_what_has_no_verdict_is_left_out_of_all_told_and_asked_again(server, tmp_path, questions):
    def odd(request, number):
        shown = shown_in(request)
        is_odd = shown["question"] == "Question 0?" and request["model"] == "second"
        return says("Hm.") if is_odd else judge_by_references(request)

    server.script = odd
    config = config_of(server, tmp_path, "openai/first", "openai/second")
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    judgements = judge_all(config, asked_of, scores)
    store = ArtifactStore(config.storage)
    judged = read_judged(store.open_directory(results_of(config, asked_of, scores, judgements)))
    assert judged is not None
    assert any("1 of 6 questions and draws lack a verdict" in note for note in judged_notes(judged))
    of_set = judged.rates[judged.rates["source"] == "truthfulqa"]
    assert set(of_set["num_answers"]) == {5}
    inputs = {"evaluation-questions": asked_of, "scores:on": scores["on"]}
    planned = list(look_up(artifact_of("judgements"), config, {"variant": "on"}, store, dict(inputs)))
    assert planned[-1].status == "1 answer(s) to ask again"
    sent = len(server.requests)
    server.script = lambda request, number: judge_by_references(request)
    judgements = judge_all(config, asked_of, scores)
    assert len(server.requests) == sent + 1, "equal answers are asked again once"
    assert sum(map(len, read_judgements(store, judgements))) == 2 * 3 * NUM_QUESTIONS


def test_judges_that_disagree_are_told_apart_and_an_outage_goes_on(server, tmp_path, questions):
    def strict(request, number):
        if request["model"] == "second" and "correct_answers" in shown_in(request):
            return truthfully(False)
        return judge_by_references(request)

    server.script = lambda request, number: fails(401, "wrong key")
    config = config_of(server, tmp_path, "openai/first", "openai/second", "similarity/ngrams")
    asked_of, scores = publish(config, questions, answers_of_variants(questions))
    with pytest.raises(Exception, match="openai/"):
        judge_all(config, asked_of, scores)
    server.script = strict
    judgements = judge_all(config, asked_of, scores)
    folder = ArtifactStore(config.storage).open_directory(results_of(config, asked_of, scores, judgements))
    judged = read_judged(folder)
    assert judged is not None
    by_judge, *_, agreement = judged_tables(judged)
    on = [row for row in by_judge.rows if row[0] == "think on"]
    # "I would say so." is neither reference: the baseline takes it for untruthful.
    assert [row[1:3] for row in on] == [
        ["vote", "50.0"],
        ["openai/first", "50.0"],
        ["openai/second", "0.0"],
        ["similarity/ngrams", "33.3"],
    ]
    assert agreement.rows[0][:2] == ["simpleqa, grade", "openai/first, openai/second"]
    (row,) = [row for row in agreement.rows if row[:2] == ["truthfulqa, truthful", "openai/first, openai/second"]]
    assert row[2:] == ["15", "33.3", "0.00"], "who always says the same agrees by chance alone"
    assert set(without_offline(read_judge_ledger(config, asked_of))["model"]) == {"openai/first", "openai/second"}


def test_a_run_of_judged_questions_alone_has_a_headline_and_sentences(server, tmp_path):
    config = config_of(server, tmp_path)
    asked = question_rows([(f"Question {n}?", ["Right."], ["Wrong."]) for n in range(6)])
    asked_of, scores = publish(config, asked, answers_of_variants(asked))
    judgements = judge_all(config, asked_of, scores)
    folder = ArtifactStore(config.storage).open_directory(results_of(config, asked_of, scores, judgements))
    results = read_results(folder)
    assert results is not None
    assert headline(*results) == (
        "KTO does not measurably change the share of truthful and informative answers: "
        "50.0 % before training, 66.7 % after."
    )
    said = [text for _, text in sentences(*results, 0.95)]
    assert said[0] == (
        "Before training, 50.0 % of answers with thinking are truthful, 83.3 % informative, 50.0 % both."
    )
    assert "nan" not in " ".join(said) and "–" not in " ".join(said)


@pytest.mark.parametrize(
    ("sets", "judge", "says_so"),
    [
        (["nq"], {"endpoints": ["similarity/ngrams"], "graded": ["nq"]}, "these judges score no set"),
        (["nq"], {}, "judge.endpoints has no effect: of questions.eval"),
        (["nq"], {"graded": ["nq", "x"]}, "judge.graded names x, but"),
        (["nq"], {"graded": ["nq"]}, ""),
    ],
)
def test_a_judge_of_nothing_is_refused(tmp_path, sets, judge, says_so):
    (tmp_path / "nq.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    section = QuestionsConfig.model_validate({"eval": [str(tmp_path / f"{name}.jsonl") for name in sets]})
    judges = RunConfig.model_validate(
        {"questions": {"train": "nq_open", "eval": "nq_open"}, "judge": {"endpoints": ["openai/m"], **judge}}
    ).judge
    if not says_so:
        assert len(read_question_sets(section, PocketConfig(), judges).questions) == 1
        return
    with pytest.raises(ConfigError, match=says_so):
        read_question_sets(section, PocketConfig(), judges)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason="MRALIGN_REAL_DATA names no folder with real question sets")
def test_real_questions_through_two_judges_to_a_table(server, tmp_path):
    config = config_of(server, tmp_path, "openai/first", "openai/second")
    paths = {"truthfulqa": "truthfulqa/TruthfulQA.csv", "simpleqa": "simpleqa/simple_qa_test_set.csv"}
    sets = [
        {"name": name, "path": str(Path(REAL_DATA, path)), "limit": 12, "pick": "random"}
        for name, path in paths.items()
    ]
    section = QuestionsConfig.model_validate({"eval": sets})
    questions = read_question_sets(section, PocketConfig(), config.judge).questions
    texts = [
        [(row["answers"], row["incorrect_answers"] or ["I have no comment."])[place % 2][0]]
        for place, row in enumerate(questions.to_dict("records"))
    ]
    asked_of, scores = publish(config, questions, dict.fromkeys(VARIANTS, texts))
    judgements = judge_all(config, asked_of, scores)
    assert len(server.requests) == 48 and set(server.counts.values()) == {1}
    folder = ArtifactStore(config.storage).open_directory(results_of(config, asked_of, scores, judgements))
    judged = read_judged(folder)
    assert judged is not None
    vote = judged.rates[judged.rates["judge"] == ""].set_index(["source", "variant"])
    assert vote.loc[("truthfulqa", "on"), "truthful"] == 0.5 and vote.loc[("simpleqa", "on"), "correct"] == 0.5
    assert set(judged.agreement["agree"]) == {1.0}
