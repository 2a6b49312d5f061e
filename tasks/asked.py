"""The questions that a stage asks, as its shards share them: read, prepared and digested once a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.digests import row_digests
from tasks.engine.graph import Items
from tasks.engine.session import session

DECIDING = ("question_id", "question", "answers", "scoring", "options")
"""What of a question decides its draws and their scores."""


class Asked(NamedTuple):
    """The questions, which nobody may change, and each as an item of shards."""

    questions: pd.DataFrame
    items: Items


def asked(
    config: RunConfig,
    questions: ArtifactRef,
    prepare: Callable[[pd.DataFrame], pd.DataFrame],
    beside: Sequence[ArtifactRef] = (),
) -> Asked:
    """The questions of an artifact.

    Args:
        config: the run config.
        questions: the artifact.
        prepare: makes of its table what is asked.
        beside: what it reads besides.
    """

    def read() -> Asked:
        frame = prepare(store.read_table(questions, "questions.parquet"))
        return Asked(frame, Items(frame["question_id"].tolist(), row_digests(frame, DECIDING)))

    store = ArtifactStore(config.storage)
    with session() as shared:
        read_from = (store.root_uri, questions.sha256, *(ref.sha256 for ref in beside))
        found: Asked = shared.once("asked", (*read_from, prepare.__name__), read)
    return found
