"""Annotation sets: one annotator's labels of some segments, whoever the annotator is, and what two of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.errors import DataError
from mralign_core.method.agreement import Labels
from mralign_core.method.taxonomy import Taxonomy

SET_COLUMNS = ["trace_id", "segment", "step", "labels", "confidences"]
SEGMENT = ["trace_id", "segment"]
_VOTES = {"A": ("labels_a", "confidences_a"), "B": ("labels_b", "confidences_b"), "pipeline": ("labels", "confidences")}


class AnnotationSet(NamedTuple):
    """One annotator's labels.

    ``rows`` has ``SET_COLUMNS``, a row a segment that the annotator was shown and answered for; no labels means that
    the annotator gave none, while a segment without a row was not rated.
    """

    name: str
    rows: pd.DataFrame

    @property
    def merges(self) -> bool:
        """Whether any two segments are one step. A sheet gives its rater no way to say so, and merges nothing."""
        return bool(self.rows.duplicated(["trace_id", "step"]).any())

    def unmerged(self) -> AnnotationSet:
        """The same labels with each segment a step of its own."""
        return self._replace(rows=self.rows.assign(step=self.rows["segment"]))


class Joined(NamedTuple):
    """The segments that two annotation sets share, in order, and how many they don't.

    Args:
        segments: the ``SEGMENT`` columns of the shared ones.
        a: label set of each shared segment in the first.
        b: in the second.
        traces: (N,) index of each one's trace, from 0.
        num_traces: traces with a shared segment.
        num_only_a: segments in the first set only.
        num_only_b: segments in the second only.
    """

    segments: pd.DataFrame
    a: list[Labels]
    b: list[Labels]
    traces: NDArray[np.intp]
    num_traces: int
    num_only_a: int
    num_only_b: int


def panel_sets(panel: str, annotations: pd.DataFrame, candidates: pd.DataFrame) -> list[AnnotationSet]:
    """A panel's three sets: annotator A's labels, annotator B's, and the consolidated ones ("pipeline").

    Segments are merged into steps where both annotators merged them, in all three; a merge that only one of them made
    is not in the table. Annotator B's set has the segments that it was asked about, and is left out where those are
    none.

    Args:
        panel: name of the panel, the beginning of the sets' names.
        annotations: rows of ``schemas.annotations``.
        candidates: the traces that are compared.

    Raises:
        DataError: the annotations are of other traces than the candidates.
    """
    foreign = sorted(set(annotations["trace_id"]) - set(candidates["trace_id"]))
    if foreign:
        raise DataError(
            f"annotations of panel {panel!r}: {len(foreign)} trace(s) are not among the {len(candidates)} candidates, "
            f"the first is {foreign[0]!r}; name candidates and annotations of the same run"
        )
    asked = {"B": annotations[annotations["rule"] != "distilled"]}
    return [
        AnnotationSet(
            f"{panel} {who}",
            rows[["trace_id", "segment", "step", labels, confidences]]
            .rename(columns={labels: "labels", confidences: "confidences"})
            .sort_values(SEGMENT, ignore_index=True),
        )
        for who, (labels, confidences) in _VOTES.items()
        if len(rows := asked.get(who, annotations)) or annotations.empty
    ]


def unite_equal(sets: Sequence[AnnotationSet]) -> tuple[list[AnnotationSet], dict[str, str]]:
    """The sets that differ, and for each that was left out the name of the earlier one it equals.

    Panels often share an annotator; comparing its labels with themselves would only fill the table.
    """
    kept: dict[tuple[object, ...], AnnotationSet] = {}
    equal: dict[str, str] = {}
    for each in sets:
        content = tuple(
            (row.trace_id, row.segment, row.step, tuple(row.labels), tuple(row.confidences))
            for row in each.rows[SET_COLUMNS].itertuples(index=False)
        )
        first = kept.setdefault(content, each)
        if first is not each:
            equal[each.name] = first.name
    return list(kept.values()), equal


def join(a: AnnotationSet, b: AnnotationSet) -> Joined:
    """What two sets say about the segments that both rated, joined by trace and segment, never by text."""
    columns = [*SEGMENT, "labels"]
    both = a.rows[columns].merge(b.rows[columns], on=SEGMENT, how="outer", suffixes=("_a", "_b"), indicator=True)
    where = both["_merge"].value_counts()
    shared = both[both["_merge"] == "both"].sort_values(SEGMENT, ignore_index=True)
    traces, names = pd.factorize(shared["trace_id"])
    return Joined(
        shared[SEGMENT],
        [frozenset(labels) for labels in shared["labels_a"]],
        [frozenset(labels) for labels in shared["labels_b"]],
        traces.astype(np.intp),
        len(names),
        int(where["left_only"]),
        int(where["right_only"]),
    )


def check_labels(sets: Sequence[AnnotationSet], taxonomy: Taxonomy) -> None:
    """Refuse labels of another label set.

    Raises:
        DataError: a set has a label that the taxonomy lacks.
    """
    for each in sets:
        unknown = sorted({label for labels in each.rows["labels"] for label in labels} - set(taxonomy.labels))
        if unknown:
            raise DataError(
                f"annotation set {each.name!r} has {len(unknown)} label(s) outside the label set, such as "
                f"{unknown[0]!r}; only annotations with the same labels can be compared (annotate.label_set)"
            )
