"""What a rater has rated already: left out of a new round, or, to see how alike one rates twice, all that it is of.

Decisions:

* A trace has been rated where each of its segments has, in whatever rounds of the same labels; an item goes by its text
  too, so that a trace that was made anew is rated anew. A question has been rated where all answers of one draw have.
  What was skipped, or taken back, has not.
* Who asks for a round that they have begun and not finished goes on with it.
* What was said before is what was said before the rater's first rating in the new round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mralign_core.comparison.sheets import sheet_rows
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.evaluation.judge_sheet import answer_item
from mralign_core.judging.criteria import answers_to_check
from mralign_core.rating.choosing import TRACES, make_round, read_answers, round_artifacts
from mralign_core.rating.records import (
    Choice,
    LabelNames,
    RatedKind,
    Rating,
    RatingRecords,
    Round,
    check_rater,
    is_done,
    latest,
    records_in,
)
from mralign_core.workbench.database import Database
from mralign_core.workbench.tables import RunTables


class Begun(NamedTuple):
    """A round to rate, and how many traces or questions were left out of it, since the rater had rated them."""

    of: Round
    num_left_out: int = 0
    is_begun: bool = False
    """Whether the rater has said something in it, and is not done."""


def begin_round(database: Database, tables: RunTables, kind: RatedKind, choice: Choice, rater: str) -> Begun:
    """Begin a round without what its rater has rated, or go on with one that the same choice began.

    Args:
        database: asks the run's tables.
        tables: those of the run.
        kind: labels of segments, or verdicts on answers.
        choice: which, and how many.
        rater: who will rate.

    Raises:
        ArtifactError: the run has nothing of that kind, or not what the choice goes by, or all of it is rated.
        ConfigError: answers can't be chosen so, or nothing is there to rate again.
    """
    found = find_round(database, tables, kind, choice, check_rater(rater))
    records_in(tables.store.section).begin(found.of)
    return found


def find_round(database: Database, tables: RunTables, kind: RatedKind, choice: Choice, rater: str = "") -> Begun:
    """The round that :func:`begin_round` would begin or go on with; nothing is kept.

    Args:
        database: asks the run's tables.
        tables: those of the run.
        kind: labels of segments, or verdicts on answers.
        choice: which, and how many.
        rater: who would rate; empty while that is not known, as who has rated nothing.

    Raises:
        ArtifactError: as :func:`begin_round`.
        ConfigError: as :func:`begin_round`.
    """
    records = records_in(tables.store.section)
    if rater and (unfinished := _unfinished(records, tables, kind, choice, check_rater(rater))):
        return Begun(unfinished, is_begun=True)
    label_set = LabelNames.of(tables.taxonomy) if kind == "labels" else None
    rated = items_rated(records, rater, kind, label_set) if rater else {}
    done = _rated_whole(database, tables, kind, rated)
    if choice.again and not done:
        raise ConfigError(
            f"{rater or 'who has no name'} has rated nothing of {tables.title} to rate again: leave that out, and rate "
            "some first"
        )
    try:
        made = make_round(database, tables, kind, choice, done)
    except ArtifactError as error:
        if not done or choice.again:
            raise
        raise ArtifactError(
            f"{error}. Left out are {len(done):,} that {rater} has rated in other rounds, whose results the page of "
            "rounds has; to see how alike one rates twice, rate them again (--again)"
        ) from error
    return Begun(made, 0 if choice.again else len(done))


def items_rated(
    records: RatingRecords, rater: str, kind: RatedKind, label_set: LabelNames | None = None
) -> dict[str, str]:
    """Item → the trace or question that it is of, for all that a rater has rated in rounds of a kind and label set."""
    found: dict[str, str] = {}
    for name, of in records.rounds().items():
        if _asks_the_same(of, kind, label_set):
            rated = {item for item, rating in latest(records.ratings(name, rater)).items() if rating.state == "rated"}
            found |= {shown.item: shown.about for shown in of.items if shown.item in rated}
    return found


def said_before(records: RatingRecords, name: str, rater: str) -> list[Rating]:
    """What a rater said of a round's items in other rounds, before rating any of them in this one, in order."""
    of, own = records.round(name), records.ratings(name, rater)
    items = {shown.item for shown in of.items}
    found = [
        rating
        for other, its_round in records.rounds().items()
        if other != name and _asks_the_same(its_round, of.kind, of.label_set)
        for rating in records.ratings(other, rater)
        if rating.item in items and own and rating.at < own[0].at
    ]
    return sorted(found, key=lambda rating: rating.at)


def _asks_the_same(of: Round, kind: RatedKind, label_set: LabelNames | None) -> bool:
    return of.kind == kind and (of.label_set is None or label_set is None or of.label_set.labels == label_set.labels)


def _unfinished(records: RatingRecords, tables: RunTables, kind: RatedKind, choice: Choice, rater: str) -> Round | None:
    artifacts = round_artifacts(tables, kind)
    for name, of in records.rounds().items():
        if (of.kind, of.choice, of.artifacts) == (kind, choice, artifacts):
            ratings = records.ratings(name, rater)
            if ratings and not is_done(of, ratings):
                return of
    return None


def _rated_whole(database: Database, tables: RunTables, kind: RatedKind, rated: Mapping[str, str]) -> dict[str, int]:
    """The traces, or the questions, that were rated whole, each with the draw that was rated; 0 of a trace."""
    about = sorted(set(rated.values()))
    if not about or not round_artifacts(tables, kind):
        return {}
    if kind == "labels":
        rows = database.rows(TRACES, {"candidates": tables.file("candidates"), "ids": about})
        items = {str(row["trace_id"]): [each["item"] for each in sheet_rows(row, 1)] for row in rows}
        return {name: 0 for name, own in items.items() if _all_in(own, rated)}
    answers = answers_to_check(read_answers(tables.store, round_artifacts(tables, kind)))
    answers = answers[answers["question_id"].isin(about)]
    items_of = answers.assign(item=[answer_item(row) for row in answers.itertuples()])
    return {
        str(question): int(draw)
        for (question, draw), own in items_of.groupby(["question_id", "draw"])["item"]
        if _all_in(list(own), rated)
    }


def _all_in(items: Sequence[str], rated: Mapping[str, str]) -> bool:
    return bool(items) and all(item in rated for item in items)
