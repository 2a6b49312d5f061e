"""Snippets that spell out control tokens: a server that encodes the prompt would obey them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mralign_core.errors import DataError
from mralign_core.generation.control_tokens import control_tokens_in
from mralign_core.models.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_NAMED = 10
"""Documents that the message names."""


def refuse_steering_snippets(tokenizer: PreTrainedTokenizerBase, snippets: pd.DataFrame, family: Family) -> None:
    """Refuse snippets that only a sampler which encodes prompts itself can show.

    Args:
        tokenizer: tokenizer of the model that the server serves.
        snippets: rows of :data:`~mralign_core.schemas.snippets.SNIPPETS`.
        family: how the model thinks.

    Raises:
        DataError: names the documents and what they spell out, all at once.
    """
    shown = snippets.drop_duplicates(["document_id", "text"])
    problems: dict[str, str] = {}
    for document_id, text in zip(shown["document_id"], shown["text"], strict=True):
        if said := _steering(tokenizer, text, family):
            problems.setdefault(document_id, said)
    if problems:
        named = [f"{document_id}: {said}" for document_id, said in list(problems.items())[:NUM_NAMED]]
        more = [f"and {len(problems) - NUM_NAMED} more"] if len(problems) > NUM_NAMED else []
        raise DataError(
            f"{len(problems)} document(s) of evaluate.retrieval.corpus, found for held-out questions, spell out "
            "control tokens, which the server of evaluate.endpoint would obey: "
            f"{'; '.join([*named, *more])}. Take these out of the documents, or set evaluate.sampler to "
            "'transformers' or 'vllm', which encode them as text"
        )


def _steering(tokenizer: PreTrainedTokenizerBase, text: str, family: Family) -> str:
    try:
        return ", ".join(map(repr, control_tokens_in(tokenizer, text, family)))
    except DataError as error:  # the tokenizer makes one of other characters
        return str(error)
