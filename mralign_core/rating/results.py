"""What comes of a round: κ between raters and with the pipeline, corrected rates, and where raters differ.

Nobody sees any of it before having gone through all items, and of no rater who has not: until then it would tell what
others said. Agreement and rates are of what a rater said before first looking at the results, which is noted; who
changes a rating afterwards, or rates what was skipped, corrects the annotation set and no κ.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mralign_core.comparison.annotation_sets import SET_COLUMNS, AnnotationSet, join, panel_sets
from mralign_core.errors import ArtifactError, DataError
from mralign_core.estimation.bootstrap import MIN_QUESTIONS_FOR_INTERVAL
from mralign_core.evaluation.judge_sheet import read_judge_sheet
from mralign_core.evaluation.people import ANSWER_KEY, HALF_WIDTH
from mralign_core.judging.criteria import answers_to_check, verdicts_to_check
from mralign_core.method.agreement import Labels, agreement, agreement_intervals, macro_sets
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.rating.choosing import read_answers
from mralign_core.rating.rated_before import said_before
from mralign_core.rating.records import LABEL_COLUMNS, Rating, Round, Shown, is_done, labels_said, latest, records_in
from mralign_core.rating.sheets_of import write_rated_sheet
from mralign_core.reporting.people_findings import THE_JUDGE, people_tables, variants_left_out
from mralign_core.reporting.result_table import ResultTable
from mralign_core.storage import ArtifactStore
from mralign_core.workbench.database import Database, as_json

TOO_FEW_QUESTIONS = f"Intervals resample answers by question; fewer than {MIN_QUESTIONS_FOR_INTERVAL} are too few."
BEFORE = "{} before"
"""What a rater is called as of an earlier round."""
RATED_TWICE = (
    "All of this was rated before by who rates it again: the first rows are of how alike one person rates twice."
)
KAPPA_RESAMPLES = 1_000
CONFIDENCE = 0.95
LABELS_OF_TRACES = """
SELECT trace_id, segment, step, labels, confidences, rule, labels_a, confidences_a, labels_b, confidences_b
FROM read_parquet($annotations) WHERE list_contains($ids, trace_id)"""
PIPELINE_NAMES = {"pipeline A": "annotator A", "pipeline B": "annotator B", "pipeline pipeline": "the pipeline"}


def read_round_results(database: Database, store: ArtifactStore, name: str, rater: str) -> dict[str, Any]:
    """What a rater who has gone through a round may see of it; from then on, the rater is not blind.

    Args:
        database: asks tables of artifacts.
        store: where round and artifacts are.
        name: of the round.
        rater: who asks.

    Raises:
        ArtifactError: there is no such round, or the rater has items to go.
    """
    records = records_in(store.section)
    of = records.round(name)
    all_ratings = {each: records.ratings(name, each) for each in records.raters(name)}
    finished = {each: ratings for each, ratings in all_ratings.items() if is_done(of, ratings)}
    if rater not in finished:
        left = len(of.items) - num_gone_through(all_ratings.get(rater, []))
        raise ArtifactError(
            f"{rater} has {left} of {len(of.items)} items to go: results are shown when all are rated or skipped, so "
            "that they sway nobody"
        )
    records.note_results_seen(name, rater)
    before = {each: said_before(records, name, each) for each in (finished if of.choice.again else ())}
    if of.kind == "labels":
        found = _label_results(database, store, of, finished, before, rater)
    else:
        found = _verdicts(store, of, finished, before)
    return {
        "round": name,
        "kind": of.kind,
        "choice": of.choice.model_dump(),
        "finished": list(finished),
        "rating": [each for each in all_ratings if each not in finished],
        "differences": _differences(of, finished),
        **found,
    }


def num_gone_through(ratings: Sequence[Rating]) -> int:
    """How many items were rated or passed over."""
    return sum(each.state != "cleared" for each in latest(ratings).values())


def label_set_rows(of: Round, ratings: Sequence[Rating], *, blind_only: bool) -> pd.DataFrame:
    """A rater's labels as rows of an annotation set; what was passed over has none.

    Args:
        of: the round.
        ratings: of one rater, in order.
        blind_only: as they were before the rater saw any results.
    """
    said = latest(ratings, blind_only=blind_only)
    rated = [(shown, said[shown.item]) for shown in of.items if shown.item in said]
    rows = [_set_row(shown, rating) for shown, rating in rated if rating.state == "rated"]
    return pd.DataFrame(rows, columns=SET_COLUMNS).sort_values(["trace_id", "segment"], ignore_index=True)


def _rated_set(name: str, of: Round, ratings: Sequence[Rating]) -> AnnotationSet:
    return AnnotationSet(name, label_set_rows(of, ratings, blind_only=True))


def _set_row(shown: Shown, rating: Rating) -> dict[str, Any]:
    labels = labels_said(rating.said)
    values = (shown.about, shown.segment, shown.segment, labels, [1.0] * len(labels))
    return dict(zip(SET_COLUMNS, values, strict=True))


def _label_results(
    database: Database,
    store: ArtifactStore,
    of: Round,
    finished: Mapping[str, Sequence[Rating]],
    before: Mapping[str, Sequence[Rating]],
    rater: str,
) -> dict[str, Any]:
    sets = [_rated_set(rater, of, ratings) for rater, ratings in finished.items()]
    earlier = [_rated_set(BEFORE.format(rater), of, ratings) for rater, ratings in before.items()]
    notes = [
        *([RATED_TWICE] if of.choice.again else []),
        "Annotators A and B are the two models that label traces; the pipeline is what was made of their labels, "
        "which the weights are of. κ is of the same label sets; entailed, also where one holds the other; macro, of "
        f"the macro-strategies. Intervals resample segments by trace; fewer than {MIN_QUESTIONS_FOR_INTERVAL} traces "
        "are too few for one.",
    ]
    if of.choice.by != "random":
        notes.append(
            f"These traces were chosen by {of.choice.by}: their κ says nothing of the others. For that, rate a random "
            "sample."
        )
    try:
        machines = _pipeline_sets(database, store, of)
    except ArtifactError as error:
        machines = []
        notes.append(f"The pipeline's labels can't be compared: {error}")
    if of.label_set is None:  # a round of labels has one
        raise ArtifactError(f"round {of.name} says nothing of its labels")
    people = [*zip(sets, earlier, strict=False), *itertools.combinations(sets, 2)]
    couples = [*people, *((person, machine) for person in sets for machine in machines)]
    rows = [_agreement_row(a, b, of.label_set.taxonomy) for a, b in couples]
    differing = _machines_differ(of, finished[rater], machines)
    return {"agreement": rows, "notes": notes, "tables": [], "machines_differ": differing}


def _machines_differ(of: Round, ratings: Sequence[Rating], machines: Sequence[AnnotationSet]) -> list[dict[str, Any]]:
    """The segments that a rater gave other labels than the annotators or the pipeline, with what each gave."""
    theirs = {
        machine.name: {(row.trace_id, row.segment): list(row.labels) for row in machine.rows.itertuples()}
        for machine in machines
    }
    said, found = latest(ratings), []
    for shown in of.items:
        if shown.item not in said or said[shown.item].state != "rated":
            continue
        own, segment = labels_said(said[shown.item].said), (shown.about, shown.segment)
        others = {name: labels[segment] for name, labels in theirs.items() if segment in labels}
        if any(set(labels) != set(own) for labels in others.values()):
            note = said[shown.item].note
            found.append({"cells": shown.cells, "about": shown.about, "own": own, "note": note, "machines": others})
    return found


def _pipeline_sets(database: Database, store: ArtifactStore, of: Round) -> list[AnnotationSet]:
    if "annotations" not in of.artifacts:
        return []
    ids = sorted({shown.about for shown in of.items})
    file = str(store.open_file(of.artifacts["annotations"], "annotations.parquet"))
    rows = pd.DataFrame(database.rows(LABELS_OF_TRACES, {"annotations": file, "ids": ids}))
    if rows.empty:
        return []
    found = panel_sets("pipeline", rows, pd.DataFrame({"trace_id": ids}))
    return [each._replace(name=PIPELINE_NAMES[each.name]) for each in (found[-1], *found[:-1])]


def _agreement_row(a: AnnotationSet, b: AnnotationSet, taxonomy: Taxonomy) -> dict[str, Any]:
    joined = join(a, b)
    strict = agreement(joined.a, joined.b)
    entailed = agreement(joined.a, joined.b, "entailment")
    macro_a, macro_b = (macro_sets(each, taxonomy.macro_strategies) for each in (joined.a, joined.b))
    macro = agreement(macro_a, macro_b)
    low, high = _interval(joined.a, joined.b, joined.traces, joined.num_traces)
    values = {
        "a": a.name,
        "b": b.name,
        "segments": strict.num_segments,
        "traces": joined.num_traces,
        "observed": strict.observed,
        "kappa": strict.kappa,
        "low": low,
        "high": high,
        "kappa_entailed": entailed.kappa,
        "kappa_macro": macro.kappa,
    }
    return {name: as_json(value) for name, value in values.items()}


def _interval(a: Sequence[Labels], b: Sequence[Labels], groups: Any, num_groups: int) -> tuple[float, float]:
    """Of κ; NaN for too few groups."""
    if num_groups < MIN_QUESTIONS_FOR_INTERVAL:
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    draws = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), KAPPA_RESAMPLES).astype(float)
    return agreement_intervals(a, b, groups, draws, confidence=CONFIDENCE).kappa


def _verdicts(
    store: ArtifactStore, of: Round, finished: Mapping[str, Sequence[Rating]], before: Mapping[str, Sequence[Rating]]
) -> dict[str, Any]:
    notes = [*([RATED_TWICE] if of.choice.again else []), f"People are compared with {THE_JUDGE}.", TOO_FEW_QUESTIONS]
    twice = [(rater, finished[rater], BEFORE.format(rater), said) for rater, said in before.items()]
    couples = [*twice, *((a, finished[a], b, finished[b]) for a, b in itertools.combinations(finished, 2))]
    rows = [row for couple in couples for row in _verdict_agreement(of, *couple)]
    tables = []
    for rater, ratings in finished.items():
        try:
            found, said = _corrected(store, of, ratings)
        except (ArtifactError, DataError) as error:
            notes.append(f"Nothing is corrected by {rater}: {error}")
            continue
        tables += [_table_as_json(table, rater) for table in found]
        notes += said
    return {"agreement": rows, "notes": notes, "tables": tables}


def _verdict_agreement(
    of: Round, a: str, a_ratings: Sequence[Rating], b: str, b_ratings: Sequence[Rating]
) -> list[dict[str, Any]]:
    """κ of two raters, a row a column of verdicts."""
    one, other = (latest(ratings, blind_only=True) for ratings in (a_ratings, b_ratings))
    rows = []
    for column in dict.fromkeys(column for shown in of.items for column in shown.asked):
        both = [shown for shown in of.items if all(column in _said(own, shown) for own in (one, other))]
        if not both:
            continue
        theirs, ours = ([frozenset({_said(own, shown)[column]}) for shown in both] for own in (one, other))
        found = agreement(theirs, ours)
        questions, names = pd.factorize(np.array([shown.about for shown in both], dtype=object))
        low, high = _interval(theirs, ours, questions, len(names))
        values = {"a": a, "b": b, "column": column, "segments": len(both), "observed": found.observed}
        rows.append(as_json({**values, "kappa": found.kappa, "low": low, "high": high}))
    return rows


def _said(own: Mapping[str, Rating], shown: Shown) -> Mapping[str, str]:
    return own[shown.item].said if shown.item in own else {}


def _corrected(store: ArtifactStore, of: Round, ratings: Sequence[Rating]) -> tuple[list[ResultTable], list[str]]:
    """What one rater's verdicts make of the judge's rates: the tables of ``mralign judge-sheet --in``."""
    run = read_answers(store, of.artifacts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rated.csv")
        write_rated_sheet(path, of, ratings, blind_only=True)
        sheet = read_judge_sheet(path, answers_to_check(run), f"round {of.name}")
    tables: list[ResultTable] = []
    for criterion, judged in verdicts_to_check(run).items():
        people = sheet.verdicts[sheet.verdicts["criterion"] == criterion].merge(judged[ANSWER_KEY])
        if len(people):
            options: dict[str, Any] = {"confidence": CONFIDENCE, "seed": 0, "half_width": HALF_WIDTH}
            tables += people_tables(judged, people, criterion, **options)[0]
    skipped = [
        f"{sheet.num_not_judged} of {sheet.num_items} answers were skipped: where those are the hard ones, the "
        "corrected rates are wrong. Who has seen this can't rate them blind any more: rate all of a round with fewer "
        "questions, before looking."
    ]
    return tables, [*variants_left_out(sheet), *(skipped if sheet.num_not_judged else [])]


def _table_as_json(table: ResultTable, rater: str) -> dict[str, Any]:
    rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    return {"rater": rater, "title": table.title, "columns": list(table.columns), "rows": rows}


def _differences(of: Round, finished: Mapping[str, Sequence[Rating]]) -> list[dict[str, Any]]:
    """The items of which the raters who are done say different things, as they stand now."""
    said = {rater: latest(ratings) for rater, ratings in finished.items()}
    found = []
    for shown in of.items:
        rated = {rater: own[shown.item] for rater, own in said.items() if own[shown.item].state == "rated"}
        if len({_meaning(rating) for rating in rated.values()}) > 1:
            by_rater = {rater: {"said": rating.said, "note": rating.note} for rater, rating in rated.items()}
            found.append({"item": shown.item, "cells": shown.cells, "raters": by_rater})
    return found


def _meaning(rating: Rating) -> frozenset[tuple[str, str]]:
    """What was said; the order of two labels means nothing."""
    labels = {("label", value) for column, value in rating.said.items() if column in LABEL_COLUMNS and value}
    return frozenset(labels or rating.said.items())
