"""What judges say, in tables and sentences: each judge's rates, their agreement, and grades."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.evaluation.metrics import order_variants
from mralign_core.judging.verdicts import Judged, is_baseline
from mralign_core.method.benchmarks import JUDGED_METRICS
from mralign_core.reporting.result_table import ResultCell, ResultTable, Tone
from mralign_core.reporting.run_findings import Difference, points
from mralign_core.reporting.titles import METRIC_TITLES, UNDEFINED, variant_title
from mralign_core.schemas.judgements import GRADES

GRADE_TITLES = {
    **{grade: grade.replace("_", " ") for grade in GRADES},
    "correct_given_attempted": "given attempted",
    "f_score": "F",
}
GRADE_SIGNS = {"correct": 1, "incorrect": -1, "not_attempted": 0, "f_score": 1}
"""Grade, or F → the sign of an improvement; in the share of answers that are not attempted there is none."""
IN_FULL = ("correct", "incorrect")
"""Of these a page of 80 columns has room for the interval too."""
CLAIM_TITLES = {
    "f1_at_k": "F1@K",
    "abstained": "abstained",
    "f1_at_k_of_claiming": "F1@K without",
    "supported_share_of_claiming": "supported without",
}
"""Figure of claims → what a table calls it; "without" those that abstain."""
NO_RESULTS = "its numbers are for trying the path, and no results"
VOTE = "vote"
"""Stands for a judge where the verdict of most is meant."""


class JudgedResults(NamedTuple):
    """The tables of :class:`~mralign_core.judging.verdicts.Judged` that the results keep, and the paired differences in
    grades (:func:`~mralign_core.judging.verdicts.grade_differences`).
    """

    rates: pd.DataFrame
    agreement: pd.DataFrame
    left_out: pd.DataFrame
    differences: pd.DataFrame
    claim_rates: pd.DataFrame


def write_judged(folder: Path, judged: Judged, differences: pd.DataFrame) -> None:
    """Write them beside the results."""
    tables = JudgedResults(judged.rates, judged.agreement, judged.left_out, differences, judged.claim_rates)
    for name, frame in tables._asdict().items():
        frame.to_json(folder / f"judged_{name}.json", orient="records", indent=1, force_ascii=False)


def read_judged(folder: Path) -> JudgedResults | None:
    """Read what :func:`write_judged` wrote; None where no judge was named."""
    paths = [folder / f"judged_{name}.json" for name in JudgedResults._fields]
    if not paths[0].exists():
        return None
    return JudgedResults(*(pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))) for path in paths))


def judged_tables(judged: JudgedResults) -> list[ResultTable]:
    """Grades; where there are several judges, what each says by itself and how far they agree."""
    tables: list[ResultTable] = []
    for source in dict.fromkeys(judged.rates["source"]) if len(judged.rates) else ():
        rows = judged.rates[judged.rates["source"] == source]
        titles = (
            GRADE_TITLES if rows["kind"].iloc[0] == "grade" else {name: METRIC_TITLES[name] for name in JUDGED_METRICS}
        )
        judges = [judge for judge in dict.fromkeys(rows["judge"]) if judge]
        if len(judges) > 1:
            tables.append(_rates(f"{source}, by judge", rows, titles, with_judge=True))
        elif titles is GRADE_TITLES:
            tables.append(_rates(f"{source}, graded by {judges[0]}", rows[rows["judge"] == ""], titles))
        if titles is GRADE_TITLES and len(judged.differences):
            differences = judged.differences[judged.differences["source"] == source]
            tables.append(_differences(f"{source}, grades", differences))
    tables += [_agreement(judged.agreement)] if len(judged.agreement) else []
    return [*tables, *_claim_tables(judged.claim_rates)]


def _claim_tables(rates: pd.DataFrame) -> list[ResultTable]:
    """Of each set and judge, in the order of the config's judges, what its variants claim."""
    tables = []
    for (source, judge), rows in rates.groupby(["source", "judge"], sort=False) if len(rates) else ():
        cells = [
            [
                variant_title(row["variant"]),
                *(points(row[name]) for name in CLAIM_TITLES),
                UNDEFINED if pd.isna(row["num_claims"]) else f"{row['num_claims']:.1f}",
            ]
            for row in _ordered(rows)
        ]
        title = f"{source}, claims by {judge}"
        tables.append(ResultTable(["variant, %", *CLAIM_TITLES.values(), "claims each"], cells, title=title))
    return tables


def _ordered(rows: pd.DataFrame) -> list[dict[str, Any]]:
    order = order_variants(list(rows["variant"].unique()))
    found: list[dict[str, Any]] = rows.sort_values(
        "variant", key=lambda names: names.map(order.index), kind="stable"
    ).to_dict("records")
    return found


def _rates(title: str, rows: pd.DataFrame, titles: dict[str, str], *, with_judge: bool = False) -> ResultTable:
    cells = [
        [
            variant_title(row["variant"]),
            *([row["judge"] or VOTE] if with_judge else []),
            *(points(row[name]) for name in titles),
        ]
        for row in _ordered(rows)
    ]
    judge = ["judge"] if with_judge else []
    return ResultTable(["variant, %", *judge, *titles.values()], cells, text_columns=judge, title=title)


def _differences(title: str, differences: pd.DataFrame) -> ResultTable:
    rows: dict[str, list[str | ResultCell]] = {}
    for values in differences[list(Difference._fields)].itertuples(index=False):
        item = Difference(*values)
        name = f"{variant_title(item.variant)} − {variant_title(item.baseline)}"
        sign = GRADE_SIGNS[item.metric]
        is_decided = bool(sign) and (item.low > 0 or item.high < 0)
        tone: Tone = ("better" if item.difference * sign > 0 else "worse") if is_decided else "open"
        brief = "" if item.metric in IN_FULL else points(item.difference, signed=True)
        rows.setdefault(name, [name]).append(ResultCell(item.text, tone, brief))
    return ResultTable(
        ["difference, points", *(GRADE_TITLES[name] for name in GRADE_SIGNS)], list(rows.values()), title=title
    )


def _agreement(agreement: pd.DataFrame) -> ResultTable:
    cells = [
        [
            f"{row['source']}, {row['verdict']}",
            f"{row['judge_a']}, {row['judge_b']}",
            f"{row['num_answers']:,}",
            points(row["agree"]),
            UNDEFINED if pd.isna(row["kappa"]) else f"{row['kappa']:.2f}".replace("-", "−"),
        ]
        for row in agreement.to_dict("records")
    ]
    columns = ["verdict", "judges", "answers", "agree, %", "κ"]
    return ResultTable(columns, cells, text_columns=["judges"], title="agreement of the judges")


def judged_notes(judged: JudgedResults) -> list[str]:
    """What a reader must know of the judged sets: who judged, what has no answer, and what is left out."""
    notes: list[str] = []
    for source in dict.fromkeys(judged.rates["source"]) if len(judged.rates) else ():
        rows = judged.rates[judged.rates["source"] == source]
        judges = [judge for judge in dict.fromkeys(rows["judge"]) if judge]
        meant = "not attempted" if rows["kind"].iloc[0] == "grade" else "neither truthful nor informative"
        notes += [_note_on_judges(source, judges), _note_on_no_answer(source, rows[rows["judge"] == ""], meant)]
    notes += _notes_on_claims(judged.claim_rates)
    notes += [
        f"{row['source']}: {row['left_out']:,} of {row['num_answers']:,} questions and draws lack a verdict of some "
        "judge on some variant, and are left out of all."
        for row in judged.left_out.to_dict("records")
        if row["left_out"]
    ]
    return [note for note in notes if note]


def baseline_notes(judged: JudgedResults | None) -> list[str]:
    """For the top of a page: which sets only the offline baseline has judged."""
    return [] if judged is None else [note for note in judged_notes(judged) if NO_RESULTS in note]


def _note_on_judges(source: str, judges: Sequence[str]) -> str:
    models = [judge for judge in judges if not is_baseline(judge)]
    if not models:
        return (
            f"{source} is judged by {', '.join(judges)}, an offline baseline that compares wordings and understands "
            f"nothing: {NO_RESULTS}."
        )
    if len(models) == 1:
        return f"{source} is judged by {models[0]}."
    return f"{source} is judged by {', '.join(models)}: what most of them say counts, in a tie what {models[0]} says."


def _notes_on_claims(rates: pd.DataFrame) -> list[str]:
    notes = []
    for source in dict.fromkeys(rates["source"]) if len(rates) else ():
        of_set = rates[rates["source"] == source]
        rows = of_set.drop_duplicates("judge")
        counted = ", ".join(
            f"{row['judge']} (K = {UNDEFINED if pd.isna(row['k']) else format(row['k'], 'g')})"
            for row in rows.to_dict("records")
        )
        first = f" What {rows['judge'].iloc[0]} finds counts." if len(rows) > 1 else ""
        notes.append(
            f"{source}: claims are listed and checked by {counted}; K is the median number of claims of all variants' "
            f"answers that have any.{first} Answers without a claim abstain: they count as 0, and the columns "
            '"without" leave them out.'
        )
        notes.append(_note_on_no_answer(source, of_set[of_set["judge"] == rows["judge"].iloc[0]], "an abstention"))
    return notes


def _note_on_no_answer(source: str, rows: pd.DataFrame, meant: str) -> str:
    without: list[dict[str, Any]] = rows[rows["no_answer"] > 0].to_dict("records")
    if not without:
        return ""
    shares = ", ".join(f"{variant_title(row['variant'])} {points(row['no_answer'])} %" for row in without)
    return f"{source}: where a draw has no answer (it was cut off), it counts as {meant}: {shares}."
