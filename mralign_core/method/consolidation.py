"""One label set a segment from two annotators, and whether an adjudicator must decide (§3.1.2, App. B.2).

Decisions where the paper is silent: rule (iii) applies only where rule (i) did not accept; ties break by the
canonical label order; "exceeds" is strict; results are in that order too; two empty sets are "unlabelled".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mralign_core.errors import DataError
from mralign_core.method.taxonomy import MAX_LABELS, Taxonomy


class LabelVote(NamedTuple):
    """One annotator's labels for a segment and the confidence (0–10) in each."""

    labels: tuple[str, ...]
    confidences: tuple[float, ...]


class Consolidated(NamedTuple):
    """Labels and confidences in canonical order, and the rule that decided (``schemas.annotations.RULES``).

    With rule "adjudicate" the labels are those that rule (ii) kept, fewer than the most allowed; the
    adjudicator's labels take their place.
    """

    labels: tuple[str, ...]
    confidences: tuple[float, ...]
    rule: str


def consolidate(
    a: LabelVote, b: LabelVote, *, threshold: float, max_labels: int = MAX_LABELS, taxonomy: Taxonomy
) -> Consolidated:
    """Consolidate two annotators' labels of one segment.

    Implements rules (i) to (iii) of §3.1.2 of arXiv 2510.24794: (i) equal sets are accepted with b's
    confidences; (ii) otherwise the common labels are kept and, up to ``max_labels``, labels of only one
    annotator are added, the more confident first, only those above ``threshold``; (iii) fewer than
    ``max_labels`` go to the adjudicator.

    Args:
        a: the first annotator's vote.
        b: the second annotator's, whose confidences count where both agree.
        threshold: a label that only one annotator gave needs a confidence above this.
        max_labels: most labels of a segment.
        taxonomy: the label set, whose order breaks ties.

    Raises:
        DataError: a vote has too many labels, one twice, an unknown one, or not one confidence for each.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> a = LabelVote(("retrieval", "analogy"), (9, 8))
    >>> b = LabelVote(("retrieval", "synthesis"), (6, 7.5))
    >>> consolidate(a, b, threshold=7, taxonomy=PAPER_TAXONOMY)
    Consolidated(labels=('retrieval', 'analogy'), confidences=(9, 8), rule='merge')
    """
    for vote in (a, b):
        _check_vote(vote, max_labels, taxonomy)
    confidence_a = dict(zip(a.labels, a.confidences, strict=True))
    confidence_b = dict(zip(b.labels, b.confidences, strict=True))
    if confidence_a.keys() == confidence_b.keys():
        return _in_canonical_order(confidence_b, "agree" if confidence_b else "unlabelled", taxonomy)
    highest = {
        label: max(votes[label] for votes in (confidence_a, confidence_b) if label in votes)
        for label in confidence_a | confidence_b
    }
    common = confidence_a.keys() & confidence_b.keys()
    single = [label for label in highest if label not in common and highest[label] > threshold]
    single.sort(key=lambda label: (-highest[label], taxonomy.state(label)))
    kept = {label: highest[label] for label in (*common, *single[: max_labels - len(common)])}
    return _in_canonical_order(kept, "merge" if len(kept) == max_labels else "adjudicate", taxonomy)


def accept(vote: LabelVote, taxonomy: Taxonomy) -> Consolidated:
    """Take the labels of a distilled annotator that is sure enough; nobody else was asked.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> accept(LabelVote(("synthesis", "retrieval"), (9.0, 6.0)), PAPER_TAXONOMY)
    Consolidated(labels=('retrieval', 'synthesis'), confidences=(6.0, 9.0), rule='distilled')
    """
    return _in_canonical_order(dict(zip(vote.labels, vote.confidences, strict=True)), "distilled", taxonomy)


def merge_steps(steps_a: Sequence[int], steps_b: Sequence[int]) -> list[int]:
    """Steps on which both annotators agree: neighbouring segments are one step iff both put them in one step.

    Args:
        steps_a: the first annotator's step number of each segment, any integers.
        steps_b: the second annotator's.

    Returns:
        Step number of each segment, from 0, never falling.

    Raises:
        ValueError: the annotators saw different numbers of segments.

    >>> merge_steps([0, 0, 0, 1], [0, 1, 1, 1])
    [0, 1, 1, 2]
    """
    segments = list(zip(steps_a, steps_b, strict=True))
    merged = [0] * min(1, len(segments))
    for before, here in pairwise(segments):
        same = before[0] == here[0] and before[1] == here[1]
        merged.append(merged[-1] + (not same))
    return merged


def _in_canonical_order(confidence: dict[str, float], rule: str, taxonomy: Taxonomy) -> Consolidated:
    labels = tuple(sorted(confidence, key=taxonomy.state))
    return Consolidated(labels, tuple(confidence[label] for label in labels), rule)


def _check_vote(vote: LabelVote, max_labels: int, taxonomy: Taxonomy) -> None:
    if len(vote.labels) != len(vote.confidences) or len(set(vote.labels)) != len(vote.labels):
        raise DataError(f"a vote needs distinct labels and one confidence for each, got {vote}")
    if len(vote.labels) > max_labels:
        raise DataError(f"a vote has {len(vote.labels)} labels, at most {max_labels} are allowed: {vote}")
    for label in vote.labels:
        taxonomy.state(label)
