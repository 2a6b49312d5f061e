"""What judges say of the answers of every variant, in shards that share one client, its limits and its budget."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation.failures import FAILURES_FILE, read_failures, write_failures
from mralign_core.annotation.quoting import Quote, spent_usd
from mralign_core.config import RunConfig
from mralign_core.evaluation.variants import variants_to_judge
from mralign_core.judging.criteria import JudgedAnswers, answers_to_judge
from mralign_core.judging.evidence import Evidence, FolderEvidence, SearchEvidence
from mralign_core.judging.judge import (
    JUDGED_COLUMNS,
    count_unjudged,
    judge_answers,
    questions_to_judge,
    unjudged_lines,
)
from mralign_core.judging.quoting import quote_judging
from mralign_core.retrieval.corpus import POCKET_CORPUS
from mralign_core.retrieval.searching import open_retriever
from mralign_core.schemas.claims import CHECKED_CLAIMS, CLAIM_EVIDENCE
from mralign_core.schemas.judgements import JUDGEMENTS
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactRef, ArtifactStore, ReplyStore
from mralign_core.storage.digests import row_digests
from mralign_core.storage.quarantine import write_rows
from tasks.clients import read_account, save_account, shared_client, turn
from tasks.engine.graph import Input, Items, Part, Shards
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, span
from tasks.engine.session import session
from tasks.engine.shards import join, lay_out
from tasks.engine.task import artifact
from tasks.failures import join_failures
from tasks.fields import TRANSPORT, all_but, collection

logger = logging.getLogger("mralign_core.tasks")


EVIDENCE_FIELD = "judge.evidence.corpus"
CLAIMS_FILE, EVIDENCE_FILE = "claims.parquet", "evidence.parquet"
"""Beside the judgements: the claims of long answers, and what each was checked against."""
ANSWER_COLUMNS = ["variant", "question_id", "source", "scoring", "draw", "answer", "em_answer"]
"""Of scores, what a people's sheet is made of."""
TABLES = {"judgements.parquet": JUDGEMENTS, CLAIMS_FILE: CHECKED_CLAIMS, EVIDENCE_FILE: CLAIM_EVIDENCE}


class ToJudge(NamedTuple):
    """The questions with a variant's answers that are judged, which nobody may change, and each as an item of
    shards.
    """

    questions: pd.DataFrame
    items: Items


def _to_judge(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> ToJudge:
    store, scores, questions = ArtifactStore(config.storage), inputs["scores"], inputs["evaluation-questions"]

    def read() -> ToJudge:
        tables = store.read_table(scores, "scores.parquet"), store.read_table(questions, "questions.parquet")
        asked = questions_to_judge(*tables, config.judge)
        return ToJudge(asked, Items(asked["question_id"].tolist(), row_digests(asked, JUDGED_COLUMNS)))

    with session() as shared:  # every shard asks for them
        graded, counts_claims = config.judge.graded, config.judge.evidence.is_named
        key = store.root_uri, scores.sha256, questions.sha256, graded, counts_claims
        found: ToJudge = shared.once("to judge", key, read)
    return found


def _evidence(config: RunConfig, store: ArtifactStore) -> Evidence:
    """What claims are checked against, opened once a run."""
    section = config.judge.evidence

    def open_it() -> Evidence:
        if section.search:
            return SearchEvidence(section.search, section.top_k, ReplyStore(store))
        with progress("indexing the text collection", "indexing-evidence") as report:
            retriever = open_retriever(section.corpus, config.model.pocket, EVIDENCE_FIELD, report)
        return FolderEvidence(retriever, section.top_k)

    with session() as shared:
        found: Evidence = shared.once("evidence", (store.root_uri, section, config.model.pocket), open_it)
    return found


def _collection(config: RunConfig, _: Part) -> dict[str, Any]:
    return {"collection": collection(config, config.judge.evidence.corpus, EVIDENCE_FIELD)}


def _not_searched(corpus: str) -> tuple[str, ...]:
    """Modules that search in collections, or in the pocket world's, where none is named, or another."""
    if not corpus:
        return tuple(f"mralign_core.retrieval.{name}" for name in ("searching", "bm25", "corpus"))
    return () if corpus == POCKET_CORPUS else ("mralign_core.pocket",)


JUDGED: dict[str, Any] = {
    "stage": "evaluate",
    "part": ("variant",),
    "details": _collection,
    "sources": (
        "mralign_core.judging.judge",
        "mralign_core.judging.similarity",
        "mralign_core.annotation.failures",
        "mralign_core.retrieval.searching",  # finds evidence
    ),
    "without": lambda config: (
        *TRANSPORT,
        "mralign_core.annotation.annotate",  # which only waits for several requests
        *_not_searched(config.judge.evidence.corpus),
    ),
    "ask_again": lambda config: config.judge.ask_again,
}
"""What decides verdicts, in a shard and joined."""


@artifact(
    "judgements-shard",
    run_name="judge {variant} {rows}",
    inputs=(Input("scores", own_part="variant", is_keyed=False), Input("evaluation-questions", is_keyed=False)),
    items=lambda config, inputs: _to_judge(config, inputs).items,
    fields=lambda config: all_but(config.judge, "graded"),  # which sets are graded, the items say
    **JUDGED,
)
def judge_shard(making: Making) -> Built:
    """Judge a variant's answers to some questions; every reply is kept before it is read.

    What has a verdict is never asked for again; of a stored shard that lacks some, only those are.
    """
    config, store, variant, rows = making.config, making.store, making.part["variant"], making.work.rows
    asked = _to_judge(config, making.work.inputs).questions.iloc[list(rows)]
    account = judge_ledger_name(making["evaluation-questions"])
    client = shared_client(store, account, config.judge)
    bar = f"judge-{re.sub('[^a-z0-9]', '-', variant)}-{rows[0]}"
    try:
        with turn(store, account, config.judge), progress(f"judging {variant} {span(rows)}", bar) as report:
            evidence = _evidence(config, store) if "claims" in set(asked["kind"]) else None
            result = judge_answers(asked, variant, config.judge, client, report, evidence)
    finally:  # what was asked is on account, also where the budget is used up
        save_account(store, account, config.judge)
    found = (result.judgements, result.claims, result.evidence)
    for (name, table), frame in zip(TABLES.items(), found, strict=True):
        write_rows(making.directory, name, frame, table)
    write_failures(making.directory, result.failures)
    return Built(JUDGEMENTS.name, count_unjudged(result.failures), result.cost_usd)


@artifact(
    "judgements",
    run_name="collect judgements of {variant}",
    parts=lambda config: [{"variant": variant} for variant in variants_to_judge(config)],
    inputs=(Input("scores", own_part="variant"), Input("evaluation-questions")),
    shards=Shards("judgements-shard", lambda config: config.judge.shard_size),
    fields=lambda config: config.judge.fingerprint(),
    **JUDGED,
)
def collect_judgements(making: Making) -> Built:
    """Join the verdicts on all answers of a variant, and the failures."""
    layout = lay_out(making.work, making.store)
    join(making.store, layout, making.directory, TABLES, "question_id")
    failures = join_failures(making, layout, "question_id")
    for line in unjudged_lines(failures):
        logger.warning("%s", line)
    return Built(JUDGEMENTS.name, count_unjudged(failures))


def read_judgements(store: ArtifactStore, judgements: Mapping[str, ArtifactRef]) -> list[pd.DataFrame]:
    """The verdicts on each variant."""
    return [store.read_table(ref, "judgements.parquet") for ref in judgements.values()]


def read_judge_failures(store: ArtifactStore, judgements: Mapping[str, ArtifactRef]) -> list[dict[str, Any]]:
    """What has no verdict, of all variants."""
    return [row for ref in judgements.values() for row in read_failures(store.open_file(ref, FAILURES_FILE))]


def read_judged_answers(
    config: RunConfig, scores: Mapping[str, ArtifactRef], judgements: Mapping[str, ArtifactRef]
) -> JudgedAnswers:
    """The answers that a person can judge, and what the judges say of them: what a people's sheet is of.

    Args:
        config: the run config.
        scores: of each variant.
        judgements: of each variant; none where no judge is named.
    """
    store = ArtifactStore(config.storage)
    tables = [store.read_columns(ref, "scores.parquet", SCORES, ANSWER_COLUMNS) for ref in scores.values()]
    judges = [endpoint.model for endpoint in config.judge.endpoints]
    failures = read_judge_failures(store, judgements)
    return answers_to_judge(tables, read_judgements(store, judgements), failures, judges)


def quote_judgements(
    config: RunConfig, questions: ArtifactRef, scores: Sequence[ArtifactRef]
) -> tuple[list[Quote], float]:
    """What the judges will still be asked and cost, by model, and the dollars that they have cost so far.

    Args:
        config: the run config.
        questions: those that are evaluated on.
        scores: of each variant that has answered.
    """
    store = ArtifactStore(config.storage)
    num_to_come = len(variants_to_judge(config)) - len(scores)
    with progress("counting tokens", "quote-judges") as report:
        quotes = quote_judging(
            store.read_table(questions, "questions.parquet"),
            [store.read_table(ref, "scores.parquet") for ref in scores],
            config.judge,
            num_unanswered=num_to_come * config.evaluate.num_draws,
            replies=ReplyStore(store),
            on_progress=report,
        )
    return quotes, spent_usd(read_judge_ledger(config, questions))


def read_judge_ledger(config: RunConfig, questions: ArtifactRef) -> pd.DataFrame:
    """What each run paid for judging answers to these questions: ``run, model`` and the fields of a ledger's
    ``Usage``.
    """
    return read_account(ArtifactStore(config.storage), judge_ledger_name(questions))


def judge_ledger_name(questions: ArtifactRef) -> str:
    """One account for all judging of answers to these questions, of whatever variant and under whatever settings."""
    return f"judge/{questions.sha256}"
