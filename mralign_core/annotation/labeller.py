"""Annotators that are asked nothing over the network, since their labels are here: people, and distilled annotators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from mralign_core.annotation.prompts import ratings
from mralign_core.llm.request import Received
from mralign_core.method.consolidation import LabelVote


class Labeller(Protocol):
    """Whose labels are at hand."""

    @property
    def model(self) -> str:
        """As the config names it."""

    @property
    def sha256(self) -> str:
        """Of the artifact that holds its labels, or makes them."""

    def reply(self, row: Any) -> Received:
        """What it says of a row of the candidates, as an annotator's reply that merges nothing."""

    def require(self, candidates: pd.DataFrame, field: str) -> None:
        """Refuse traces that it can't label.

        Raises:
            DataError: it names them, and what to do.
        """


def reply_text(votes: Sequence[LabelVote], overall_confidence: float) -> str:
    """Labels as the JSON reply of an annotator that merges nothing.

    >>> reply_text([LabelVote(("analogy",), (8,))], 8)
    '{"steps": [{"thinking_step": [0], "labels": [{"label": "analogy", "confidence": 8}]}], "overall_confidence": 8}'
    """
    steps = [{"thinking_step": [number], "labels": ratings(vote)} for number, vote in enumerate(votes)]
    return json.dumps({"steps": steps, "overall_confidence": overall_confidence})


def require_labelled(labellers: Mapping[str, Labeller], candidates: pd.DataFrame) -> None:
    """Refuse traces that a labeller, such as a person who is an annotator, can't label.

    Raises:
        DataError: it names them, and what to do.
    """
    for role, labeller in labellers.items():
        labeller.require(candidates, f"annotate.{role}")
