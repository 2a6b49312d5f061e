"""Data sets of the hub, one pinned split of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mralign_core.errors import DataError
from mralign_core.questions.files import BATCH_ROWS
from mralign_core.questions.jsonl import Line

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("mralign_core.questions")
TIMEOUT_S = 10.0


def pin_revision(hub_id: str, revision: str, field: str) -> str:
    """The commit that a revision (empty: the newest) of a data set is.

    It is asked for before the data is: a hub out of reach is then told at once, not after minutes of retries. With
    ``HF_HUB_OFFLINE`` set the hub is not asked, and the revision comes back as it is.

    Raises:
        DataError: there is no such data set or revision, or the hub can't be reached; says what to do.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(hub_id, revision=revision or None, timeout=TIMEOUT_S).sha or revision
    except OfflineModeIsEnabled:
        return revision
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"{field}: {hub_id!r} is no file or folder here, and the hub gives no such data set or revision "
            f"({type(error).__name__}). Check the spelling, and HF_TOKEN for gated sets"
        ) from None
    except Exception as error:
        raise DataError(
            f"{field}: {hub_id!r} is no file or folder here, and the hub can't be reached ({error!r:.120}). Name a "
            "file or folder in path; or set HF_HUB_OFFLINE=1 if an earlier load left the set in HF_HOME"
        ) from None


def load_split(hub_id: str, subset: str, split: str, revision: str, field: str) -> Dataset:
    """One split of a data set, from the hub, or from a folder that is laid out as the hub's are.

    Raises:
        DataError: it can't be loaded, or has no such split.
    """
    from datasets import load_dataset

    try:
        return load_dataset(hub_id, subset or None, split=split, revision=revision or None)
    except Exception as error:
        raise DataError(
            f"{field}: split {split!r} of {hub_id!r} can't be loaded ({type(error).__name__}: {error}). Set split, or "
            "subset, to one that it has; or name a file in path"
        ) from error


def stream_dataset(dataset: Dataset) -> Iterator[Line]:
    """The rows of a data set; features that would be decoded, such as images, stay bytes."""
    rows = (row for batch in dataset.with_format("arrow").iter(BATCH_ROWS) for row in batch.to_pylist())
    for number, values in enumerate(rows, start=1):
        yield Line(number, values, f"row {number}", "")
