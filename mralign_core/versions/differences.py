"""What sets two versions apart: config, data, labels, weights, scores, and the answers that flipped.

Scores are compared on the questions and draws that both answered, as a challenger's are with the model before training:
paired, with bootstrap intervals over questions (:mod:`mralign_core.evaluation.metrics`). What judges say is compared as
levels only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.errors import ArtifactError
from mralign_core.evaluation.decisions import list_flips
from mralign_core.evaluation.held_out import with_gold
from mralign_core.evaluation.metrics import metrics_of, paired_differences, summarize
from mralign_core.schemas.flips import FLIPS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.versions.version import Version, trained_on

BEFORE, AFTER = "on", "after"
"""What the answers of two versions are called while they are compared: every variant is compared with ``on``."""
CELL_OF_ANSWER = ["question_id", "draw"]
PLACE_OF_ANSWER = ["source", "stratum"]
SEGMENT_KEY = ["trace_id", "segment"]


class ConfigChange(NamedTuple):
    """A field of the config, dotted, with both values; None where a version's config has none."""

    field: str
    before: Any
    after: Any


class Overlap(NamedTuple):
    """How many things two versions share, and how many only one of them has."""

    both: int
    added: int
    gone: int

    @classmethod
    def of(cls, before: set[str], after: set[str]) -> Overlap:
        """That of two sets."""
        return cls(len(before & after), len(after - before), len(before - after))


class SegmentChange(NamedTuple):
    """What became of the segments of those traces that both versions were trained on.

    ``mean`` and ``most`` are |Δw| of the weights; None of versions without.
    """

    num_segments: int
    num_relabelled: int
    mean: float | None = None
    most: float | None = None


class VersionDifferences(NamedTuple):
    """All that sets a version apart from an earlier one."""

    config: list[ConfigChange]
    """Fields whose values differ."""
    artifacts: list[str]
    """Kinds of artifact that the two were made from and measured by, and that differ."""
    questions: Overlap
    """Those that the versions were trained on."""
    traces: Overlap
    """Those that the versions were trained on, by their text."""
    segments: SegmentChange | None
    """Labels and weights of the traces of both; None where they share none, or one's are no longer in the store."""
    scores: pd.DataFrame
    """``stratum, scoring, metric, before, after, difference, low, high, num_questions``; shares."""
    flips: pd.DataFrame
    """Rows of :data:`~mralign_core.schemas.flips.FLIPS`, from the earlier version to the later."""
    missing: list[str]
    """Why something could not be compared: sentences."""


def version_differences(store: ArtifactStore, before: Version, after: Version) -> VersionDifferences:
    """What sets two versions apart; what is gone from the store is said, and the rest compared.

    Args:
        store: where they are.
        before: the earlier one, such as the champion.
        after: the later one.
    """
    missing: list[str] = []
    traces, segments = Overlap(0, 0, 0), None
    try:
        traces, segments = _compare_traces(store, before, after)
    except ArtifactError as error:
        missing.append(f"traces, labels and weights: {error}")
    scores, flips = pd.DataFrame(), FLIPS.frame([])
    try:
        scores, flips = _compare_answers(store, before, after)
    except ArtifactError as error:
        missing.append(f"answers: {error}")
    return VersionDifferences(
        config=config_changes(before.record.config, after.record.config),
        artifacts=_other_artifacts(before, after),
        questions=Overlap.of(set(trained_on(store, before)), set(trained_on(store, after))),
        traces=traces,
        segments=segments,
        scores=scores,
        flips=flips,
        missing=missing,
    )


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ConfigChange]:
    """The fields of two configs that differ, section by section; a field that one lacks is as one that is empty.

    Example:
        >>> config_changes({"train": {"beta": 0.1, "lora_r": 8}}, {"train": {"beta": 0.2, "lora_r": 8}})
        [ConfigChange(field='train.beta', before=0.1, after=0.2)]
        >>> config_changes({"questions": {"eval": []}}, {"questions": {"eval": [{"name": "sciq", "limit": 0}]}})
        [ConfigChange(field='questions.eval.0.name', before=None, after='sciq')]
    """
    first, second = dict(leaves(before)), dict(leaves(after))
    return [
        ConfigChange(field, first.get(field), second.get(field))
        for field in dict.fromkeys([*first, *second])
        if (first.get(field) or None) != (second.get(field) or None)
    ]


def leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted field and value of all that a config, or a part of one, has; sections of a list are numbered from 0."""
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inner = enumerate(value)
    else:
        yield field, value
        return
    for name, item in inner:
        yield from leaves(item, f"{field}.{name}" if field else str(name))


def _other_artifacts(before: Version, after: Version) -> list[str]:
    """By content: another key may have the same."""
    first, second = (
        {kind: path.rpartition("/")[2] for kind, path in one.record.made_from.items()} for one in (before, after)
    )
    return [kind for kind in dict.fromkeys([*first, *second]) if first.get(kind) != second.get(kind)]


def _compare_traces(store: ArtifactStore, before: Version, after: Version) -> tuple[Overlap, SegmentChange | None]:
    texts = [
        store.read_table(one.traces, "candidates.parquet").set_index("trace_id")["completion"]
        for one in (before, after)
    ]
    named = [set(each.index + "\n" + each) for each in texts]
    shared = {text.partition("\n")[0] for text in named[0] & named[1]}
    return Overlap.of(*named), _compare_segments(store, before, after, shared) if shared else None


def _compare_segments(store: ArtifactStore, before: Version, after: Version, traces: set[str]) -> SegmentChange:
    labels = _joined(store, before, after, traces, "annotations", "labels")
    relabelled = [set(a) != set(b) for a, b in zip(labels["labels_before"], labels["labels_after"], strict=True)]
    change = SegmentChange(len(labels), sum(relabelled))
    if not all("weights" in one.parents for one in (before, after)):
        return change
    weights = _joined(store, before, after, traces, "weights", "weight")
    moved = (weights["weight_after"] - weights["weight_before"]).abs()
    return change._replace(mean=float(moved.mean()), most=float(moved.max())) if len(moved) else change


def _joined(
    store: ArtifactStore, before: Version, after: Version, traces: set[str], kind: str, column: str
) -> pd.DataFrame:
    """A column of both versions' segments, those of some traces."""
    frames = [_segments(store, one.parent(kind), kind, column, traces) for one in (before, after)]
    return frames[0].merge(frames[1], on=SEGMENT_KEY, suffixes=("_before", "_after"), validate="one_to_one")


def _segments(store: ArtifactStore, ref: ArtifactRef, kind: str, column: str, traces: set[str]) -> pd.DataFrame:
    frame = store.read_table(ref, f"{kind}.parquet")[[*SEGMENT_KEY, column]]
    return frame[frame["trace_id"].isin(traces)]


def _compare_answers(store: ArtifactStore, before: Version, after: Version) -> tuple[pd.DataFrame, pd.DataFrame]:
    questions, scores = _answered_by_both(store, before, after)
    scored = with_gold(scores)
    if scored.empty:
        return _levels_beside(before, after, set()), FLIPS.frame([])
    section = after.record.config["evaluate"]
    rng = np.random.default_rng([after.record.config["seed"], 6])
    resampling: dict[str, Any] = {"num_resamples": section["num_resamples"], "confidence": section["confidence"]}
    summary, moved = summarize(scored), paired_differences(scored, **resampling, rng=rng)
    table = _with_levels(summary, moved)
    beside = _levels_beside(before, after, set(table["stratum"]))
    table = pd.concat([table, beside], ignore_index=True) if len(beside) else table
    return table, list_flips(scored, questions)


def _answered_by_both(store: ArtifactStore, before: Version, after: Version) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The later version's questions, and both versions' answers to those that the earlier one was asked too.

    What a question is called, and its set and stratum, are the later version's.
    """
    asked = [store.read_table(one.parent("evaluation-questions"), "questions.parquet") for one in (before, after)]
    first, second = (store.read_table(one.parent("scores"), "scores.parquet") for one in (before, after))
    called = {content: question_id for question_id, content in _contents(asked[1]).items()}
    renamed = {question_id: called.get(content) for question_id, content in _contents(asked[0]).items()}
    first = first.assign(question_id=first["question_id"].map(renamed)).dropna(subset="question_id")
    first = first.drop_duplicates(CELL_OF_ANSWER)  # a set may ask the same question twice
    cells = second[[*CELL_OF_ANSWER, *PLACE_OF_ANSWER]].merge(first[CELL_OF_ANSWER], on=CELL_OF_ANSWER)
    both = [
        each.assign(variant=name).drop(columns=PLACE_OF_ANSWER).merge(cells, on=CELL_OF_ANSWER)
        for name, each in ((BEFORE, first), (AFTER, second))
    ]
    return asked[1], pd.concat(both, ignore_index=True)


def _contents(questions: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Question → all that decides whether an answer to it is right."""
    columns = (questions[name] for name in ("question_id", "question", "scoring", "answers"))
    return {row[0]: (*row[1:3], *row[3]) for row in zip(*columns, strict=True)}


def _with_levels(summary: pd.DataFrame, moved: pd.DataFrame) -> pd.DataFrame:
    levels = summary.set_index(["stratum", "variant"])
    rows = [
        {
            "stratum": row["stratum"],
            "scoring": levels.at[(row["stratum"], AFTER), "scoring"],
            "metric": row["metric"],
            "before": levels.at[(row["stratum"], BEFORE), row["metric"]],
            "after": levels.at[(row["stratum"], AFTER), row["metric"]],
            **{name: row[name] for name in ("difference", "low", "high", "num_questions")},
        }
        for row in moved.to_dict("records")
        if row["metric"] in metrics_of(levels.at[(row["stratum"], AFTER), "scoring"])
    ]
    return pd.DataFrame(rows)


def _levels_beside(before: Version, after: Version, strata: set[str]) -> pd.DataFrame:
    """What both records say of strata that could not be compared answer by answer, as those that judges score."""
    first, second = (
        {row["stratum"]: row for row in one.record.scores if row["variant"] == one.record.variant}
        for one in (before, after)
    )
    rows = [
        {"stratum": name, "scoring": second[name]["scoring"], "metric": metric}
        | {"before": first[name].get(metric), "after": second[name].get(metric)}
        | {"difference": np.nan, "low": np.nan, "high": np.nan, "num_questions": second[name]["num_questions"]}
        for name in second
        if name in first and name not in strata
        for metric in metrics_of(second[name]["scoring"])
    ]
    return pd.DataFrame(rows)
