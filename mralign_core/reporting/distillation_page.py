"""What a distilled annotator can do, in words: the first that its run's page says."""

from __future__ import annotations

from collections.abc import Sequence

from mralign_core.distillation.measuring import Measured
from mralign_core.distillation.scores import Escalated
from mralign_core.reporting.distillation_tables import summary_line
from mralign_core.reporting.markdown import code

TOLD_SHARE = 0.1
"""Of the segments, that go on in the sentence; the tables have more."""


def distillation_sentences(measured: Measured) -> list[str]:
    """What it can do alone, and what it can do with a teacher who is asked about the least sure."""
    alone = f"On folds of {measured.traces:,} traces that it did not see, {summary_line(measured.scores)}"
    return [alone, *(_escalation_sentence(measured.if_segments_go_on))]


def distillation_markdown(measured: Measured, name: str, key: str, teacher: str) -> str:
    """The page: the result, how to use it, what it learned from.

    Args:
        measured: what it can do.
        name: what configs call it, behind ``local/``.
        key: of its artifact, ``stage/key``.
        teacher: the artifact or the file whose labels it learned.
    """
    sentences = [f"{each[0].upper()}{each[1:]}." for each in distillation_sentences(measured)]
    in_config, digest = f"annotate.annotator_a: local/{name}", key.rpartition("-")[2]
    use = f"Use it with {code(in_config)}; {code(f'local/{name}-{digest[:8]}')} pins this one."
    return "\n\n".join([*sentences, use, f"It is {code(key)}, and learned from {code(teacher)}."])


def _escalation_sentence(curve: Sequence[Escalated]) -> list[str]:
    """Nothing where confidences tell no tenth of the segments apart."""
    alone = [row for row in curve if row.share == 0]
    some = [row for row in curve if 0 < row.share < 1]
    if not alone or not some:
        return []
    told = min(some, key=lambda row: abs(row.share - TOLD_SHARE))
    return [
        f"if the {told.share:.0%} of its segments with a confidence below {told.below:.2f} go on to its teacher, F1 of "
        f"all labels is {told.macro_f1:.3f}; alone it is {alone[0].macro_f1:.3f}"
    ]
