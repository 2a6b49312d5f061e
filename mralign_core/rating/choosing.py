"""What a round is of: traces by disagreement, by pull on the weights or at random, and answers at random.

Decisions:

* Disagreement is the share of a trace's segments to which the two annotators gave different labels.
* Pull is how far the weights of a trace are from telling nothing, over its tokens: Σ |log w| × tokens over its
  segments, and of forms that allow a sign Σ |w − neutral| × tokens. It is how much its labels move the loss.
* Answers are chosen at random only: the corrected rates rest on a random sample of questions.
* Traces stand in shuffled order, so that their place tells nothing of why they were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from mralign_core.annotation.failures import FAILURES_FILE, read_failures
from mralign_core.comparison.sheets import SHEET_COLUMNS, sheet_rows
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.evaluation.judge_sheet import answers_to_show, sheet_columns
from mralign_core.judging.criteria import JudgedAnswers, answers_to_check, answers_to_judge
from mralign_core.rating.records import LABEL_COLUMNS, Choice, LabelNames, RatedKind, Round, Shown
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.workbench.database import Database
from mralign_core.workbench.lists import DIFFERS
from mralign_core.workbench.overview import weight_scale
from mralign_core.workbench.tables import RunTables

ANSWER_COLUMNS_SHOWN = ["variant", "question_id", "source", "scoring", "draw", "answer", "em_answer"]
NEEDS = {"random": ("candidates",), "disagreement": ("annotations",), "pull": ("weights",)}
"""How traces are chosen → what that goes by."""
DISAGREEMENT = f"""
SELECT trace_id, avg(CAST({DIFFERS} AS INTEGER)) AS rank FROM read_parquet($annotations) GROUP BY trace_id"""
PULL = """
WITH spans AS (
  SELECT trace_id, unnest(segments) AS span, generate_subscripts(segments, 1) - 1 AS segment
  FROM read_parquet($candidates))
SELECT trace_id, sum({distance} * (span.token_end - span.token_start)) AS rank
FROM read_parquet($weights) JOIN spans USING (trace_id, segment) GROUP BY trace_id"""
NOTHING_DONE: Mapping[str, int] = MappingProxyType({})
RANKED = "SELECT trace_id, coalesce(rank, 0.0)::DOUBLE AS rank FROM ({}) ORDER BY trace_id"
RANDOM = "SELECT trace_id, 0.0 AS rank FROM read_parquet($candidates)"
TRACES = """
SELECT trace_id, question, completion, segments FROM read_parquet($candidates)
WHERE trace_id IN (SELECT unnest($ids))"""


def make_round(
    database: Database, tables: RunTables, kind: RatedKind, choice: Choice, done: Mapping[str, int] = NOTHING_DONE
) -> Round:
    """What is to be rated of a run.

    Args:
        database: asks the run's tables.
        tables: those of the run.
        kind: labels of segments, or verdicts on answers.
        choice: which, and how many.
        done: traces, or questions each with a draw, that are left out; with ``choice.again`` the only ones.

    Raises:
        ArtifactError: the run has nothing of that kind, or not what the choice goes by.
        ConfigError: answers can't be chosen so.
    """
    make = partial(_label_round, database) if kind == "labels" else _verdict_round
    made = make(tables, choice, done)
    if not made.items:  # a round is kept for good
        what, stage = ("segment", "generate") if kind == "labels" else ("answer that can be judged", "evaluate")
        raise ArtifactError(
            f"{tables.title} has no {what} to rate (chosen by {choice.by}): name a run with some, or run stage {stage} "
            "with more questions"
        )
    return made


def choose_traces_to_rate(
    database: Database, tables: RunTables, choice: Choice, done: Mapping[str, int] = NOTHING_DONE
) -> list[str]:
    """Ids of traces, in the order in which they are rated; ``done`` is as for :func:`make_round`.

    Raises:
        ArtifactError: the run has no traces, or not what the choice goes by.
    """
    missing = [name for name in ("candidates", *NEEDS[choice.by]) if not tables.has(name)]
    if missing:
        raise ArtifactError(f"{tables.title} has no {missing[0]}, by which traces are chosen; run that stage first")
    rng = np.random.default_rng(choice.seed)
    files = {name: tables.file(name) for name in ("candidates", *NEEDS[choice.by])}
    found = database.columns(RANKED.format(_ranking(tables, choice)), files)
    may_come = np.isin(found["trace_id"].astype(str), list(done)) == choice.again
    ids, ranks = (found[name][may_come] for name in ("trace_id", "rank"))
    chosen = np.lexsort((rng.permutation(len(ids)), -ranks))[: choice.num]
    return [str(ids[place]) for place in rng.permutation(chosen)]


def _ranking(tables: RunTables, choice: Choice) -> str:
    if choice.by != "pull":
        return {"random": RANDOM, "disagreement": DISAGREEMENT}[choice.by]
    scale = weight_scale(tables)
    return PULL.format(distance="abs(ln(weight))" if scale["is_log"] else f"abs(weight - {float(scale['neutral'])})")


def _label_round(database: Database, tables: RunTables, choice: Choice, done: Mapping[str, int]) -> Round:
    ids = choose_traces_to_rate(database, tables, choice, done)
    files = {"candidates": tables.file("candidates"), "ids": ids}
    traces = {row["trace_id"]: row for row in database.rows(TRACES, files)}
    items = [
        Shown(item=row.pop("item"), about=name, cells=row, asked=LABEL_COLUMNS)
        for number, name in enumerate(ids, start=1)
        for row in sheet_rows(traces[name], number)
    ]
    return Round(
        kind="labels",
        choice=choice,
        run=tables.title,
        artifacts=round_artifacts(tables, "labels"),
        label_set=LabelNames.of(tables.taxonomy),
        columns=tuple(SHEET_COLUMNS),
        items=tuple(items),
    )


def _verdict_round(tables: RunTables, choice: Choice, done: Mapping[str, int]) -> Round:
    if choice.by != "random":
        raise ConfigError(
            f"answers are not chosen by {choice.by}: rates are corrected by a random sample of questions; choose random"
        )
    if not tables.variants:
        raise ArtifactError(f"{tables.title} has no answers to judge; run stage evaluate first")
    artifacts = round_artifacts(tables, "verdicts")
    answers = answers_to_check(read_answers(tables.store, artifacts))
    draws = answers["question_id"].map(dict(done))
    answers = answers[answers["draw"] == draws if choice.again else draws.isna()]
    questions = tables.store.read_table(tables.artifacts["evaluation-questions"], "questions.parquet")
    rng = np.random.default_rng(choice.seed)
    shown = answers_to_show(answers, questions, num_questions=choice.num, rng=rng)
    columns = sheet_columns(answers)
    cells = [name for name in columns if name in ("question", "reference_answers", "incorrect_answers", "answer")]
    items = [
        Shown(
            item=row["item"],
            about=row["question_id"],
            cells={name: row[name] for name in cells},
            asked=row["asked"],
        )
        for row in shown
    ]
    return Round(
        kind="verdicts",
        choice=choice,
        run=tables.title,
        artifacts=artifacts,
        columns=tuple(columns),
        items=tuple(items),
    )


def round_artifacts(tables: RunTables, kind: RatedKind) -> dict[str, ArtifactRef]:
    """What a round of a run is made from, and what raters are compared with."""
    if kind == "labels":
        return _refs(tables, ["candidates", "annotations"])
    kinds = ("scores", "judgements")
    return _refs(tables, [f"{each}:{name}" for each in kinds for name in tables.variants])


def read_answers(store: ArtifactStore, artifacts: dict[str, ArtifactRef]) -> JudgedAnswers:
    """The answers of a run, and what its judges say of them.

    Args:
        store: where they are.
        artifacts: by the run's names; others than scores and judgements are passed over.
    """
    scores = _of_kind(artifacts, "scores")
    judged = _of_kind(artifacts, "judgements")
    tables = [store.read_columns(ref, "scores.parquet", SCORES, ANSWER_COLUMNS_SHOWN) for ref in scores]
    judgements = [store.read_table(ref, "judgements.parquet") for ref in judged]
    judges = list(dict.fromkeys(str(name) for table in judgements for name in table["judge"]))
    failures = [row for ref in judged for row in read_failures(store.open_file(ref, FAILURES_FILE))]
    return answers_to_judge(tables, judgements, failures, judges)


def _of_kind(artifacts: dict[str, ArtifactRef], kind: str) -> list[ArtifactRef]:
    return [ref for name, ref in artifacts.items() if name.partition(":")[0] == kind]


def _refs(tables: RunTables, names: Sequence[str]) -> dict[str, ArtifactRef]:
    return {name: tables.artifacts[name] for name in names if tables.has(name)}
