"""The table of what each variant costs in tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from mralign_core.evaluation.token_costs import TOKENS_FILE
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.titles import UNDEFINED, variant_title

TOKEN_TITLE = "What each variant costs"


def read_mean_tokens(results: Path) -> pd.DataFrame | None:
    """The mean tokens in the folder of an artifact ``results``; None where nothing was answered, or before there were
    any.
    """
    path = results / TOKENS_FILE
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def token_table(tokens: pd.DataFrame) -> ResultTable:
    """Mean tokens of an answer: in the prompts, and drawn; of several rounds all together.

    Args:
        tokens: what :func:`~mralign_core.evaluation.token_costs.mean_tokens` returns.
    """
    drawn = dict(zip(tokens["variant"], tokens["num_tokens"], strict=True))
    rows = [
        [
            variant_title(row.variant),
            f"{row.num_prompt_tokens:,.1f}",
            f"{row.num_tokens:,.1f}",
            f"{row.num_tokens / drawn['on']:.2f} ×" if drawn.get("on") else UNDEFINED,
        ]
        for row in tokens.itertuples()
    ]
    return ResultTable(["tokens an answer", "read", "drawn", "drawn, of think on"], rows, title=TOKEN_TITLE)
