"""What people are compared with: one judge, the vote of all, or exact match."""

import numpy as np
import pytest

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError
from mralign_core.evaluation.judge_sheet import read_judge_sheet, write_judge_sheet
from mralign_core.evaluation.people import HALF_WIDTH, corrected_rates, judge_agreement
from mralign_core.judging.criteria import JudgedAnswers, answers_to_check, verdicts_to_check
from mralign_core.reporting.people_findings import people_findings, people_section
from mralign_core.schemas.judgements import JUDGEMENTS
from mralign_core.spreadsheets import read_csv, write_csv
from tests.judging import STONES, question_rows, score_rows

FIRST, SECOND = "openai/first", "openai/second"
NUM = 12
SAID = ["No stone ever floats", "Pumice does", "I have no comment"]
"""What the model says of stones in turn: false, true, nothing."""


def verdict_row(question_id, judge, *, truthful=None, informative=None, grade=None):
    row = {"variant": "on", "question_id": question_id, "draw": 0, "judge": judge, "answered": True, "reason": ""}
    row |= {"kind": "grade" if grade else "truthful", "truthful": truthful, "informative": informative, "grade": grade}
    return row | {
        "request_digest": f"{judge}{question_id}",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "num_requests": 1,
        "cost_usd": 0.0,
    }


@pytest.fixture
def questions():
    """Twelve of TruthfulQA, twelve that are graded, and twelve that are compared alone."""
    rows = question_rows([STONES] * NUM, [(f"Question {n}?", ["Oslo"]) for n in range(2 * NUM)])
    rows.loc[rows.index >= 2 * NUM, "source"] = "nq_open"
    return rows


@pytest.fixture
def run(questions):
    """The first judge is right about every answer; the second calls all of them right. Nobody judges NQ-Open."""
    answers = [[SAID[n % 3]] for n in range(NUM)] + [["It is Oslo" if n % 2 else "Bergen"] for n in range(2 * NUM)]
    rows = [
        row
        for n in range(NUM)
        for row in (
            verdict_row(f"q{n}", FIRST, truthful=n % 3 > 0, informative=n % 3 < 2),
            verdict_row(f"q{n}", SECOND, truthful=True, informative=True),
            verdict_row(f"q{NUM + n}", FIRST, grade="correct" if n % 2 else "not_attempted"),
            verdict_row(f"q{NUM + n}", SECOND, grade="correct"),
        )
    ]
    judgements = JUDGEMENTS.require(JUDGEMENTS.frame(rows))
    return JudgedAnswers(score_rows(questions, answers), [judgements], [], [FIRST, SECOND])


def rates(said):
    return {
        (name, source): rows["verdict"].mean()
        for name, of_criterion in said.items()
        for source, rows in of_criterion.groupby("source")
    }


def test_the_vote_counts_where_judges_judge_and_exact_match_elsewhere(run):
    """In a tie of two the first decides; exact match finds no wording of Oslo."""
    assert rates(verdicts_to_check(run)) == {
        ("right", "simpleqa"): 0.5,
        ("right", "nq_open"): 0,
        ("truthful", "truthfulqa"): pytest.approx(2 / 3),
        ("informative", "truthfulqa"): pytest.approx(2 / 3),
        ("truthful_informative", "truthfulqa"): pytest.approx(1 / 3),
    }


def test_one_judge_or_exact_match_counts_where_it_is_named(run):
    assert rates(verdicts_to_check(run, "exact_match")) == {("right", "simpleqa"): 0, ("right", "nq_open"): 0}
    of_second = rates(verdicts_to_check(run, SECOND))
    assert ("right", "nq_open") not in of_second and set(of_second.values()) == {1}
    assert len(of_second) == 4
    with pytest.raises(ConfigError, match=f"--judge: 'gpt' is no judge .*; name one of {FIRST}, {SECOND}, exact_match"):
        verdicts_to_check(run, "gpt")


def test_a_judge_that_judged_nothing_says_nothing_and_without_judges_all_is_compared(run):
    silent = run._replace(judges=[*run.judges, "openai/third"])
    assert verdicts_to_check(silent, "openai/third") == {}
    alone = JudgedAnswers(run.answers)
    assert rates(verdicts_to_check(alone)) == rates(verdicts_to_check(run, "exact_match"))
    assert set(answers_to_check(alone)["source"]) == {"simpleqa", "nq_open"}
    assert len(answers_to_check(run)) == 3 * NUM, "each once, and those of TruthfulQA too"


@pytest.fixture
def filled(run, questions, tmp_path):
    """A sheet filled in as its instructions say."""
    answers = answers_to_check(run)
    sheet = write_judge_sheet(tmp_path / "s.csv", answers, questions, num_questions=99, rng=np.random.default_rng(0))
    rows = [values for _, values in read_csv(sheet.sheet, ["item"], "--in", "test")]
    for row in rows:
        place = SAID.index(row["answer"]) if row["answer"] in SAID else None
        if place is None:
            row["verdict"] = "right" if "Oslo" in row["answer"] else "wrong"
        else:
            row |= {"truthful": ["no", "yes"][place > 0], "informative": ["no", "yes"][place < 2]}
    write_csv(tmp_path / "filled.csv", list(rows[0]), rows)
    return tmp_path / "filled.csv"


def test_people_who_judge_as_told_agree_with_a_judge_who_does(run, filled):
    """An answer that abstains is truthful and not informative, for people as for judges."""
    people = read_judge_sheet(filled, answers_to_check(run)).verdicts
    shares = {"truthful": 2 / 3, "informative": 2 / 3, "truthful_informative": 1 / 3}
    for judge, kappa in (("", 1), (FIRST, 1), (SECOND, 0)):
        said = verdicts_to_check(run, judge)
        assert list(said)[1:] == list(shares)
        for name, share in shares.items():
            of_criterion = people[people["criterion"] == name]
            assert judge_agreement(said[name], of_criterion, 0.95, np.random.default_rng(0)).kappa == kappa
            (rate,) = corrected_rates(said[name], of_criterion, confidence=0.95, half_width=0.03).to_dict("records")
            assert rate["people_rate"] == rate["corrected"] == pytest.approx(share)


CONFIG = RunConfig.model_validate({"questions": {"train": "nq_open", "eval": "nq_open"}})


def test_a_report_has_what_the_command_prints(run, filled):
    found, section = people_findings(run, CONFIG, filled, HALF_WIDTH), people_section(run, CONFIG, filled)
    assert list(section.tables) == found.tables and section.notes[-1] == found.advice
    assert section.notes[0] == f"{3 * NUM} answers are in the people's sheet, 0 not judged."
    # Half of the answers that the first judge grades name the gold answer, as people see; exact match finds none of
    # the others' either, so people and judge agree on three quarters.
    assert found.tables[0].rows[0][:3] == ["all variants", "24", "75.0"]
    with pytest.raises(ConfigError, match="'gpt' is no judge"):
        people_findings(run, CONFIG, filled, HALF_WIDTH, "gpt")


def test_a_sheet_of_other_answers_corrects_nothing_and_ends_no_run(run, filled, tmp_path):
    changed = run.answers.assign(answer=run.answers["answer"].replace("Bergen", "Trondheim"))
    section = people_section(run._replace(answers=changed), CONFIG, filled)
    told, remedy = section.notes
    assert not section.tables and "evaluate.people_sheet: filled.csv has 12 problem(s)" in told
    assert "is no answer of this run" in told and str(tmp_path) not in told
    assert "mralign judge-sheet --out" in remedy
    (gone,) = people_section(run, CONFIG, tmp_path / "gone.csv").notes[:1]
    assert "evaluate.people_sheet: gone.csv is not a file" in gone
