"""The model card written beside an adapter: no clock time, no path, so the same run gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mralign_core.config import TrainConfig, Variant
from mralign_core.training.examples import TrainingExample

TEMPLATE = """\
---
base_model: {base_model}
library_name: peft
license: other
pipeline_tag: text-generation
tags:
- lora
- {tag}
---
# {title} adapter for {base_model}

A LoRA adapter trained to close the gap between what a reasoning model thinks and what it answers
(MR-ALIGN, arXiv 2510.24794). Objective: {objective}.

Licence: not chosen yet. The base model's licence and that of the training questions apply.

## Data
{counts}
{facts}

## Weights of the completion tokens
{weights}

## Training
{settings}

## How to load
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base_model}")
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```
"""
TITLES = {"sft": "SFT", "kto": "KTO", "mr_align": "MR-ALIGN"}
OBJECTIVES = {
    "sft": "mean cross-entropy on the completions of positive traces",
    "kto": "KTO, every token with weight 1",
    "mr_align": "KTO on log-ratios weighted by the meta-reasoning transition of each thinking segment",
}


def model_card(
    base_model: str,
    variant: Variant,
    section: TrainConfig,
    *,
    seed: int,
    rows: Sequence[TrainingExample],
    counts: Mapping[str, int],
    facts: Mapping[str, Any],
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        base_model: name of the base model.
        variant: what was trained.
        section: hyper-parameters; those that can't change a result are left out.
        seed: the training seed.
        rows: what was trained on, for the statistics of the weights.
        counts: rows used and left out.
        facts: what the caller knows about the data: source, yield, seeds.
    """
    skipped = {"variants", "learning_rate" if variant == "sft" else "sft_learning_rate"}
    settings = {name: value for name, value in section.fingerprint().items() if name not in skipped}
    return TEMPLATE.format(
        base_model=base_model,
        tag=variant.replace("_", "-"),
        title=TITLES[variant],
        objective=OBJECTIVES[variant],
        facts=_bullets(facts),
        counts=_bullets(counts),
        weights=_bullets(_weight_statistics(rows)),
        settings=_bullets({"seed": seed, **settings}),
    )


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


def _bullets(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {str(name).replace('_', ' ')}: {value}" for name, value in values.items())
