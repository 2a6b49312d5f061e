"""The card of an exported adapter or merged model: the adapter's own, with what the run that trained it knows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.config import Variant
from mralign_core.evaluation.metrics import metrics_of
from mralign_core.models.adapter_files import VLLM_LORA_RANKS
from mralign_core.reporting.markdown import code, literal, one_line, table
from mralign_core.reporting.titles import ACCURACY, METRIC_TITLES, VARIANT_TITLES, metric_title
from mralign_core.training.card import USE, Card, CardSection, card_head, load_adapter

HERE = "path/to/this/folder"
LOAD_MERGED = f"""\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{HERE}", dtype="auto")
```"""
METRIC_LEGENDS = {
    "Acc": "Acc: thinking and answer both name a gold answer; ",
    "Mis": "Mis: exactly one of them does. ",
    ACCURACY: f"{ACCURACY}: the share of right answers. ",
    METRIC_TITLES["truthful_informative"]: "truthful, informative, both: the share of answers that a judge calls so. ",
}
"""Metric as the card calls it → what it is, in the order of a sentence."""
USED_TO = {"train": "align on", "eval": "evaluate on"}


class RunFacts(NamedTuple):
    """What a run knows of the adapter that it trained."""

    questions: pd.DataFrame
    """Rows of table ``questions``; their splits and sources are counted."""
    funnel: pd.DataFrame
    """Yield of the selection: ``step, kept, dropped, reason``."""
    summary: pd.DataFrame | None
    """Metrics of each variant, as :func:`~mralign_core.evaluation.metrics.summarize` has them; None: not evaluated."""
    differences: pd.DataFrame | None
    """Their paired differences, as :func:`~mralign_core.evaluation.metrics.paired_differences` has them."""
    confidence: float
    """Coverage of the intervals."""


def adapter_card(
    card: Card, base_model: str, variant: Variant, run: RunFacts, *, adapter_config: Mapping[str, Any]
) -> Card:
    """The card of an exported adapter.

    Args:
        card: the one in the adapter's artifact.
        base_model: name of the base model.
        variant: what was trained.
        run: the run's facts.
        adapter_config: PEFT's ``adapter_config.json``.
    """
    command = serve_adapter(one_line(base_model), variant, adapter_config)
    use = f"{load_adapter(base_model)}\n\nWith vLLM: {code(command)}"
    return Card(card_head(base_model, variant), _sections(card, variant, run, use))


def merged_card(card: Card, base_model: str, variant: Variant, run: RunFacts, *, dtype: str, rounding: str) -> Card:
    """The card of a model with the adapter merged into it.

    Args:
        card: the one in the adapter's artifact.
        base_model: name of the base model.
        variant: what was trained.
        run: the run's facts.
        dtype: precision of the merged weights.
        rounding: what merging cost, in words.
    """
    use = f"{LOAD_MERGED}\n\nWith vLLM: `{serve_merged(dtype)}`\n\n{rounding}"
    return Card(card_head(base_model, variant, is_merged=True), _sections(card, variant, run, use))


def serve_adapter(model: str, variant: Variant, adapter_config: Mapping[str, Any], path: str = HERE) -> str:
    """The command that serves an adapter beside its model with vLLM, which makes room for some ranks only."""
    rank, experts = adapter_config["r"], adapter_config.get("target_parameters")
    room = next((room for room in VLLM_LORA_RANKS if room >= rank), None)
    if room is None:
        return f"none: rank {rank} is more than the {VLLM_LORA_RANKS[-1]} that vLLM takes; export it with --merge"
    options, named = f"--enable-lora --max-lora-rank {room}", f"{variant}={path}"
    if experts:  # PEFT has the experts of a layer in one matrix; vLLM loads these when told to
        options += " --enable-mixed-moe-lora-format"
        named = json.dumps({"name": variant, "path": path, "is_3d_lora_weight": True})
    return f"vllm serve {shlex.quote(model)} {options} --lora-modules {shlex.quote(named)}"


def serve_merged(dtype: str, path: str = HERE) -> str:
    """The command that serves a merged model with vLLM, which would round float32 weights unless told not to."""
    return f"vllm serve {shlex.quote(path)}" + " --dtype float32" * (dtype == "float32")


def _sections(card: Card, variant: Variant, run: RunFacts, use: str) -> tuple[CardSection, ...]:
    """What the adapter's card says of its training, then what the run adds."""
    return (
        *(section for section in card.sections if section.title != USE),
        CardSection("Where the data comes from", _origin(run)),
        CardSection("Results", _results(variant, run)),
        CardSection(USE, use),
    )


def _origin(run: RunFacts) -> str:
    sizes = run.questions.groupby(["split", "source"], sort=False).size()
    sources = [
        f"- questions to {USED_TO[split]}, {literal(source)}: {size:,}" for (split, source), size in sizes.items()
    ]
    steps = [
        (row.step, f"{row.kept:,}", f"{row.dropped:,}" if row.dropped else "", row.reason)
        for row in run.funnel.itertuples()
    ]
    return "\n".join([*sources, "", _table(("step", "kept", "dropped", "why"), steps)])


def _results(variant: Variant, run: RunFacts) -> str:
    if run.summary is None or run.differences is None:
        return "Not evaluated."
    levels = run.summary.set_index(["stratum", "variant"])
    paired = run.differences.query("variant == @variant and baseline == 'on'").set_index(["stratum", "metric"])
    rows = [
        (stratum, name, *(f"{levels.loc[(stratum, each), metric]:.3f}" for each in ("on", variant)), _shift(shift))
        for stratum in levels.index.unique("stratum")
        for metrics in [metrics_of(levels.loc[stratum, "scoring"].iloc[0])]
        for metric in metrics
        for name in [metric_title(metric, metrics)]
        for _, shift in paired.loc[[(stratum, metric)]].iterrows()
    ]
    columns = ("questions", "metric", "before", VARIANT_TITLES[variant], f"difference ({run.confidence:.0%} interval)")
    shown = {name for _, name, *_ in rows}
    legend = (
        f"{int(levels['num_questions'].max()):,} questions, with thinking on. "
        + "".join(says for name, says in METRIC_LEGENDS.items() if name in shown)
        + "Intervals are bootstraps over questions, paired with the model before training."
    )
    return f"{legend}\n\n{_table(columns, rows)}"


def _shift(row: Any) -> str:
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Its cells are text, whatever they hold."""
    return table(columns, [[literal(cell) for cell in row] for row in rows])
