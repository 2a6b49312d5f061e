"""The model card beside an adapter: no clock time, no path, so the same run gives the same bytes.

When it is exported, the run's data and results are added (:mod:`mralign_core.training.export_card`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from mralign_core.config import TrainConfig, Variant
from mralign_core.reporting.markdown import bullets, literal, one_line
from mralign_core.reporting.titles import VARIANT_TITLES
from mralign_core.training.examples import TrainingExample

HEAD = """\
---
{front}---
# {title} {kind} {base_model}

{what} trained to close the gap between what a reasoning model thinks and what it answers
(MR-ALIGN, arXiv 2510.24794). Objective: {objective}.

Licence: not chosen yet. The base model's licence and that of the training questions apply."""
USE = "How to use"
"""Title of the last section."""
LOAD_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base_model})
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```"""
OBJECTIVES = {
    "sft": "mean cross-entropy on the completions of positive traces",
    "kto": "KTO, every token with weight 1",
    "mr_align": "KTO on log-ratios weighted by the meta-reasoning transition of each thinking segment",
}
REACHED = {
    "loss": "loss",
    "implicit_reward_positive": "implicit reward of positive traces (nats)",
    "implicit_reward_negative": "implicit reward of negative traces (nats)",
    "kl_raw": "KL estimate (nats)",
    "kl_baseline": "KL baseline z0, the estimate clamped at 0 (nats)",
}
"""Columns of ``training_metrics`` that the card shows, and what it calls them."""
LAST_STEPS = 10
"""A single step's implicit rewards are those of a few rows; the card shows the mean over this many last steps."""


class CardSection(NamedTuple):
    """A heading and what stands under it."""

    title: str
    text: str


class Card(NamedTuple):
    """A model card: front matter, title and first words, then sections.

    Example:
        >>> card = Card("# Title", (CardSection("Data", "- rows: 2"), CardSection("How to use", "Load it.")))
        >>> print(card.render())
        # Title
        <BLANKLINE>
        ## Data
        - rows: 2
        <BLANKLINE>
        ## How to use
        Load it.
        <BLANKLINE>
        >>> Card.parse(card.render()) == card
        True
    """

    head: str
    sections: tuple[CardSection, ...]

    def render(self) -> str:
        """The card as Markdown."""
        return "\n\n## ".join([self.head, *(f"{section.title}\n{section.text}" for section in self.sections)]) + "\n"

    @classmethod
    def parse(cls, text: str) -> Card:
        """The card that :meth:`render` made the text of: names and values in it have no line breaks of their own."""
        head, *parts = text.removesuffix("\n").split("\n\n## ")
        sections = (CardSection(title, body) for title, _, body in (part.partition("\n") for part in parts))
        return cls(head, tuple(sections))


def model_card(
    base_model: str,
    variant: Variant,
    section: TrainConfig,
    *,
    seed: int,
    rows: Sequence[TrainingExample],
    counts: Mapping[str, int],
    facts: Mapping[str, Any],
    metrics: Sequence[Mapping[str, float]],
) -> Card:
    """The card of an adapter, with the front matter that model hubs read.

    Args:
        base_model: folder or hub id.
        variant: what was trained.
        section: hyper-parameters; those that can't change the result are left out.
        seed: the training seed.
        rows: what was trained on, for the statistics of the weights.
        counts: rows used and left out.
        facts: what the caller knows about the data: source, yield, seeds.
        metrics: rows of ``training_metrics``, one an optimiser step.
    """
    sections = {
        "Data": f"{bullets(counts)}\n{bullets(facts)}",
        "Weights of the completion tokens": bullets(_weight_statistics(rows)),
        "Training": bullets({"seed": seed, **section.settings_of(variant)}),
        "What training reached": bullets(_reached(metrics)),
        USE: load_adapter(base_model),
    }
    return Card(card_head(base_model, variant), tuple(CardSection(*each) for each in sections.items()))


def card_head(base_model: str, variant: Variant, *, is_merged: bool = False) -> str:
    """Front matter, title and first words of the card of an adapter, or of a model with the adapter merged into it."""
    front = {
        "base_model": one_line(base_model),
        "library_name": "transformers" if is_merged else "peft",
        "license": "other",
        "pipeline_tag": "text-generation",
        "tags": ([] if is_merged else ["lora"]) + [variant.replace("_", "-")],
    }
    name = literal(base_model)
    return HEAD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=math.inf),
        base_model=name,
        title=VARIANT_TITLES[variant],
        kind="of" if is_merged else "adapter for",
        what=f"{name} with a LoRA adapter merged into it," if is_merged else "A LoRA adapter",
        objective=OBJECTIVES[variant],
    )


def load_adapter(base_model: str) -> str:
    """The lines of Python that load an adapter of this model."""
    return LOAD_ADAPTER.format(base_model=json.dumps(one_line(base_model), ensure_ascii=False))


def _weight_statistics(rows: Sequence[TrainingExample]) -> dict[str, str]:
    statistics = {}
    for polarity, is_positive in (("positive", True), ("negative", False)):
        weights = [weight for row in rows if row.is_positive == is_positive for weight in row.weights]
        if weights:
            low, middle, high = np.quantile(weights, [0, 0.5, 1])
            statistics[polarity] = (
                f"{len(weights)} tokens, mean {np.mean(weights):.4f}, "
                f"standard deviation {np.std(weights):.4f}, "
                f"minimum {low:.4f}, median {middle:.4f}, maximum {high:.4f}"
            )
    return statistics


def _reached(metrics: Sequence[Mapping[str, float]]) -> dict[str, str]:
    last = metrics[-LAST_STEPS:]
    reached = {"optimiser steps": f"{len(metrics)}; what follows is the mean over the last {len(last)}"}
    for column, name in REACHED.items():
        values = [row[column] for row in last if not math.isnan(row[column])]
        if values:
            reached[name] = f"{np.mean(values):.4f}"
    return reached
