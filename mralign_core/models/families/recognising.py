"""Which family a model belongs to: the one that the config names, or else what its chat template shows."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.models.families.rendering import opened_by_prompt, prompt_text
from mralign_core.models.families.table import AUTO, GENERIC, Family, built_in_families, named_family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("mralign_core.generation")
PROBE = "Which is the highest mountain of Iran?"
"""A question to try a family's switch on."""
THINKS = re.compile("think|reason", re.IGNORECASE)
"""Words that a chat template of a reasoning model has."""


def family_of(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Family:
    """The family that the config names, or for `auto` the first of the table that the tokenizer's chat template shows.

    Raises:
        ConfigError: the config names no family, or one whose modes give this tokenizer the same prompt.
    """
    if model.family == AUTO:
        family, reason = _recognise(tokenizer)
        logger.info("model.family auto: %s, because %s", family.name, reason)
        if family == GENERIC and THINKS.search(tokenizer.get_chat_template() if tokenizer.chat_template else ""):
            logger.warning(
                "model.family auto: the chat template speaks of thinking, but has no switch or tags that are known, so "
                "the model is asked for %s in words, which it may not heed. If it thinks in a way of its own, name its "
                "family or a YAML file (docs/model-families.md)",
                GENERIC.think_open + GENERIC.think_close,
            )
        return family
    family = named_family(model.family)
    if not _switches(tokenizer, family):
        raise ConfigError(
            f"model.family {model.family!r} has no effect on this model's chat template, which asks for the same with "
            f"and without thinking: give {AUTO!r}, or a YAML file of the model's own switch (docs/model-families.md)"
        )
    return family


def _recognise(tokenizer: PreTrainedTokenizerBase) -> tuple[Family, str]:
    if not tokenizer.chat_template:
        return GENERIC, "the tokenizer has no chat template"
    template, families = tokenizer.get_chat_template(), built_in_families()
    for family in families.values():
        signs = family.recognised_by
        if signs and all(sign in template for sign in signs) and _switches(tokenizer, family):
            return family, f"the chat template holds {' and '.join(map(repr, signs))}"
    always = families["deepseek_r1"]
    if opened_by_prompt(prompt_text(tokenizer, PROBE, "on", always, ""), always):
        return always, f"the chat template opens {always.think_open!r} and has no switch"
    return GENERIC, "the chat template has no switch that is known"


def _switches(tokenizer: PreTrainedTokenizerBase, family: Family) -> bool:
    """Whether the modes give different prompts, and the one without thinking is not left inside a think block."""
    on, off = (prompt_text(tokenizer, PROBE, mode, family, "") for mode in ("on", "off"))
    return on != off and not opened_by_prompt(off, family)
