"""A distilled annotator: says of each segment of a trace which labels it has and how sure it is, at no price.

In a config it is ``local/NAME``, one that ``mralign distil-annotator`` published. Decisions:

* It always gives the most probable label, and a second one that is more likely given than not.
* Its confidences are calibrated: of the labels that it gives 8 of 10, eight in ten were given by whom it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from mralign_core.annotation.labeller import reply_text
from mralign_core.distillation.calibration import Calibration
from mralign_core.distillation.features import Encoder, VectorScale, segment_features, vectors_of
from mralign_core.distillation.label_chain import LabelChain
from mralign_core.llm.request import Received
from mralign_core.method import FloatArray
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import MAX_LABELS
from mralign_core.schemas.annotations import MOST_CONFIDENT
from mralign_core.storage.digests import key_of

WEIGHTS_FILE, ABOUT_FILE = "annotator.safetensors", "annotator.json"
MORE_LIKELY_THAN_NOT = 0.5
SUREST = MOST_CONFIDENT - 0.01
"""So that ``escalate_below: 10`` passes everything on."""


class AboutAnnotator(BaseModel):
    """What a distilled annotator is, beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: int = 1
    """Of the files; another one can't be read."""
    labels: tuple[str, ...]
    """In canonical order."""
    calibration: tuple[float, float, float]
    """Intercept, slope and ceiling."""
    encoder: str = ""
    """Path or name of the sentence-transformers model that gives vectors; none where it is empty."""
    encoder_probe: tuple[tuple[float, ...], ...] = ()
    """The vectors that the model gives of two texts, so that another model under its name is noticed."""

    encoder_scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and spread of the vectors' dimensions, where a language model that reads whole traces gives them."""

    @property
    def scale(self) -> VectorScale | None:
        """The scale of the vectors, if they have one."""
        return VectorScale(*self.encoder_scale) if self.encoder_scale else None


class DistilledAnnotator(NamedTuple):
    """An annotator, and the encoder that it needs or None."""

    about: AboutAnnotator
    chain: LabelChain
    encode: Encoder | None = None

    def confidences(self, traces: Sequence[Sequence[str]]) -> FloatArray:
        """Pr(label is among the segment's) for each segment and label, shape (segments of all traces, labels)."""
        if not any(traces):
            return np.zeros((0, len(self.about.labels)))
        vectors = vectors_of(traces, self.encode) if self.encode else None
        features = segment_features(traces, vectors, self.about.scale)
        marginals = self.chain.marginals(features, [len(trace) for trace in traces])
        return Calibration(*self.about.calibration).apply(marginals)

    def votes(self, traces: Sequence[Sequence[str]]) -> list[LabelVote]:
        """One or two labels of each segment, the surer one first, with confidences from 0 to 10."""
        return [vote_of(probs, self.about.labels) for probs in self.confidences(traces)]


def vote_of(probs: Sequence[float] | FloatArray, labels: Sequence[str]) -> LabelVote:
    """The labels that a segment is given.

    >>> vote_of([0.3, 0.75, 0.6], ["a", "b", "c"])
    LabelVote(labels=('b', 'c'), confidences=(7.5, 6.0))
    """
    ranked = np.argsort(-np.asarray(probs), kind="stable")[:MAX_LABELS]
    given = [int(each) for place, each in enumerate(ranked) if place == 0 or probs[each] >= MORE_LIKELY_THAN_NOT]
    confidences = tuple(confidences_of(np.asarray(probs)[given]).tolist())
    return LabelVote(tuple(labels[each] for each in given), confidences)


def confidences_of(probs: FloatArray) -> FloatArray:
    """Probabilities as confidences from 0 to 10, as the annotator says them.

    >>> confidences_of(np.array([0.123456, 1.0])).tolist()
    [1.23, 9.99]
    """
    return np.minimum(SUREST, np.round(MOST_CONFIDENT * probs, 2))


class LocalLabeller(NamedTuple):
    """A distilled annotator in a panel."""

    model: str
    """As the config names it, such as ``local/paid``."""
    sha256: str
    """Of the artifact."""
    annotator: DistilledAnnotator

    def reply(self, row: Any) -> Received:
        """What it says of a row of the candidates, as an annotator's reply."""
        texts = [row.completion[span["start"] : span["end"]] for span in row.segments]
        votes = self.annotator.votes([texts])
        surest = [max(vote.confidences) for vote in votes]
        text = reply_text(votes, round(sum(surest) / len(surest), 2) if surest else 0.0)
        return Received(self.sha256, key_of(texts=texts), self.model, text, "stop", 0, 0, 0.0, {}, True)

    def require(self, candidates: pd.DataFrame, field: str) -> None:
        """It can label any trace."""


def write_annotator(annotator: DistilledAnnotator, folder: Path) -> None:
    """Write an annotator's files."""
    from safetensors.numpy import save_file

    save_file(annotator.chain._asdict(), folder / WEIGHTS_FILE)
    (folder / ABOUT_FILE).write_text(annotator.about.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_annotator(weights: Path, about: Path) -> DistilledAnnotator:
    """Read an annotator; its encoder is for the caller to load."""
    from safetensors.numpy import load_file

    described = AboutAnnotator.model_validate_json(about.read_text(encoding="utf-8"))
    return DistilledAnnotator(described, LabelChain(**load_file(weights)))
