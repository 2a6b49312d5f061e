"""Annotators that are asked nothing over the network, since their labels are here: people, and distilled annotators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd

from mralign_core.llm.request import Received


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


def require_labelled(labellers: Mapping[str, Labeller], candidates: pd.DataFrame) -> None:
    """Refuse traces that a labeller, such as a person who is an annotator, can't label.

    Raises:
        DataError: it names them, and what to do.
    """
    for role, labeller in labellers.items():
        labeller.require(candidates, f"annotate.{role}")
