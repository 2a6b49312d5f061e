"""People as annotators: ``human/NAME`` in a config stands for the labels that NAME gave in the browser.

Decisions:

* The labels are an artifact, ``human-labels/NAME-<digest>``, published from the ratings. ``human/NAME`` is what
  NAME published last; ``human/NAME-3f9a`` the one whose digest begins so. Its content is in the key of all that is
  made with it, and it stands in their lineage.
* A segment is known by its text too. A trace that lacks a label of a segment is an error, before anything is asked of
  other annotators: to leave it out would make another set of traces of which nobody knows that people chose it.
* People give no confidences. Theirs count as 10, so that a label that only the person gave is added, as is one that a
  model is sure of.
* A person is one of the two annotators. The adjudicator sees disputes, which nobody rated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation.labeller import reply_text
from mralign_core.config.annotate import HUMAN_PREFIX
from mralign_core.errors import DataError
from mralign_core.llm.request import Received
from mralign_core.method.consolidation import LabelVote
from mralign_core.schemas.annotations import MOST_CONFIDENT
from mralign_core.spreadsheets import item_id
from mralign_core.storage.digests import key_of

MOST_TRACES_NAMED = 5
"""Traces that a message names."""


class HumanLabels(NamedTuple):
    """The labels that a person gave, by the item of their segment."""

    model: str
    """As the config names the person, such as ``human/anna``."""
    sha256: str
    """Of the artifact."""
    by_item: Mapping[str, tuple[str, ...]]

    def reply(self, row: Any) -> Received:
        """What the person says of a row of the candidates, as an annotator's reply; all of it must be labelled."""
        items = _items(row)
        said = [self.by_item[item] for item in items]
        votes = [LabelVote(labels, (MOST_CONFIDENT,) * len(labels)) for labels in said]
        shown, text = key_of(items=items), reply_text(votes, MOST_CONFIDENT)
        return Received(self.sha256, shown, self.model, text, "stop", 0, 0, 0.0, {}, True)

    def require(self, candidates: pd.DataFrame, field: str) -> None:
        """Refuse traces that the person did not label whole.

        Args:
            candidates: ``trace_id, completion, segments`` of the traces.
            field: of the config that names the person.

        Raises:
            DataError: it names them, and what to do.
        """
        missing = [
            str(row.trace_id)
            for row in candidates.itertuples(index=False)
            if not all(item in self.by_item for item in _items(row))
        ]
        if missing:
            name = self.model.removeprefix(HUMAN_PREFIX).partition("-")[0]
            named = ", ".join(missing[:MOST_TRACES_NAMED]) + (", …" if len(missing) > MOST_TRACES_NAMED else "")
            raise DataError(
                f"{field}: {self.model} has no label of some segment of {len(missing):,} of these {len(candidates):,} "
                f"traces: {named}. Have them rated (mralign rate --rater {name} --traces {len(candidates)}) and "
                f"published (mralign rate --rater {name} --publish), or name a model here; what {name} rated can be "
                "compared with it all the same"
            )


def _items(row: Any) -> list[str]:
    texts = (row.completion[span["start"] : span["end"]] for span in row.segments)
    return [item_id(str(row.trace_id), number, text) for number, text in enumerate(texts)]
