"""What one judge, or the vote of all, says of the answers by each criterion: what people are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.errors import ConfigError, DataError
from mralign_core.evaluation.held_out import all_answers, with_gold
from mralign_core.judging.verdicts import CELL, weigh_verdicts, with_verdicts
from mralign_core.method.benchmarks import JUDGED_METRICS

EXACT_MATCH = "exact_match"
"""Names the comparison with gold answers as a judge."""


class JudgedAnswers(NamedTuple):
    """The answers of a run, and what its judges say of them.

    ``answers`` has rows of :data:`~mralign_core.schemas.scores.SCORES`, of all variants; ``judgements`` of each variant
    rows of :data:`~mralign_core.schemas.judgements.JUDGEMENTS`; ``failures`` what has no verdict; ``judges`` the names
    of the judges, in the order of the config.
    """

    answers: pd.DataFrame
    judgements: Sequence[pd.DataFrame] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    judges: Sequence[str] = ()


def answers_to_judge(
    tables: Sequence[pd.DataFrame],
    judgements: Sequence[pd.DataFrame],
    failures: Sequence[Mapping[str, Any]],
    judges: Sequence[str],
) -> JudgedAnswers:
    """All answers of a run that a person can judge, with what its judges say; a long answer is neither right nor wrong.

    Args:
        tables: of each variant, rows of :data:`~mralign_core.schemas.scores.SCORES`.
        judgements: as in :class:`JudgedAnswers`.
        failures: as there.
        judges: as there.

    Raises:
        DataError: there is no answer.
    """
    answers = all_answers(tables)
    if answers is None:
        raise DataError("questions.eval names no set, so there is no answer to judge")
    return JudgedAnswers(answers[answers["scoring"] != "claims"], judgements, failures, judges)


def answers_to_check(of: JudgedAnswers) -> pd.DataFrame:
    """The answers that have a gold answer, or that judges voted on: what people can be asked about, whoever the judge.

    Args:
        of: the answers of a run, and what its judges say of them.
    """
    found = [with_gold(of.answers), *verdicts_to_check(of).values()]
    return pd.concat(found, ignore_index=True)[list(of.answers)].drop_duplicates(["variant", *CELL])


def verdicts_to_check(of: JudgedAnswers, judge: str = "") -> dict[str, pd.DataFrame]:
    """What a judge says of all answers, by criterion.

    Args:
        of: the answers of a run, and what its judges say of them.
        judge: the name of one of its judges, or :data:`EXACT_MATCH`; "" for the vote on the sets that judges judge,
            and exact match on the others.

    Returns:
        Criterion → rows of ``answers`` with ``verdict``, a bool. ``right`` is what matches a gold answer, or is graded
        correct; the others are the :data:`~mralign_core.method.benchmarks.JUDGED_METRICS`. Criteria by
        which it judged nothing are left out.

    Raises:
        ConfigError: nobody is called that.
    """
    if judge not in ("", EXACT_MATCH, *of.judges):
        names = ", ".join([*of.judges, EXACT_MATCH])
        raise ConfigError(f"--judge: {judge!r} is no judge of this config; name one of {names}")
    compared = with_gold(of.answers)
    right = compared.assign(verdict=compared["em_answer"].astype(bool))
    if judge == EXACT_MATCH:
        return _those_with_rows({"right": right})
    asked = [judge] if judge else list(of.judges)
    tables = [rows[rows["judge"].isin(asked)] for rows in of.judgements]
    matched = right.iloc[:0] if judge else right
    if not any(len(rows) for rows in tables):
        return _those_with_rows({"right": matched})
    voted = weigh_verdicts(tables, of.failures, of.answers, asked).verdicts
    grades = voted.loc[voted["kind"] == "grade", ["variant", *CELL, "grade"]]
    graded = of.answers.merge(grades, on=["variant", *CELL], how="inner", validate="one_to_one")
    graded = graded.assign(verdict=graded.pop("grade") == "correct")
    matched = matched[~matched["source"].isin(graded["source"])]
    right = pd.concat([rows for rows in (matched, graded) if len(rows)] or [graded], ignore_index=True)
    truthful = with_verdicts(of.answers, voted)
    return _those_with_rows(
        {"right": right} | {name: truthful.assign(verdict=truthful[name] == 1) for name in JUDGED_METRICS}
    )


def _those_with_rows(found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {name: rows for name, rows in found.items() if len(rows)}
