"""Whether a chat template hands questions on as they are; what :mod:`mralign_core.generation.template_probe` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError
from mralign_core.generation.prompts import TEMPLATE_REMEDY, render_prompt
from mralign_core.models.families import Family, family_of
from mralign_core.models.families.rendering import chat_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_PROMPT = 100_000
"""Characters; what a chat template may make of a question of a few thousand."""
AWKWARD = (
    'Is "it\'s" <b>A & B</b>, {{ c }} or {% d %} \\ 50 %?\n  Wörter, 日本, 🍎; '
    + " ".join(f"word{number}" for number in range(500))
    + " and The End Of It?"
)
"""A question that a chat template must hand on as it is: neither escaped, cut off, changed in case nor left out."""


def check_rendering(tokenizer: PreTrainedTokenizerBase, section: ModelConfig, instruction: str) -> Family:
    """Refuse a chat template that does not hand a question on as it is, once, the same every time.

    Args:
        tokenizer: tokenizer of the model.
        section: the model section, which names the family.
        instruction: text before `Question: …` in the prompt.

    Returns:
        The family.

    Raises:
        ConfigError: names the template and the remedy; or as
            :func:`~mralign_core.models.families.recognising.family_of` and
            :func:`~mralign_core.generation.prompts.render_prompt`.
    """
    try:
        family = family_of(section, tokenizer)
        for mode in ("on", "off"):
            texts = [render_prompt(tokenizer, AWKWARD, mode, family, instruction).text for _ in range(3)]
            _check_texts(texts, chat_of(AWKWARD, mode, family, instruction)[-1]["content"])
    except ConfigError:
        raise
    except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise ConfigError(
            f"model.path {tokenizer.name_or_path!r}: its chat template fails on a plain question "
            f"({type(error).__name__}: {error!s:.300}). {TEMPLATE_REMEDY}"
        ) from error
    return family


def _check_texts(texts: Sequence[str], content: str) -> None:
    text, problem = texts[0], ""
    if len(set(texts)) > 1:
        problem = "makes another prompt every time"
    elif len(text) > LONGEST_PROMPT:
        problem = f"makes {len(text):,} characters of {len(content):,}"
    elif text.count(content) != 1:
        problem = f"writes the instruction and the question {text.count(content)} times"
    if problem:
        raise ConfigError(f"model.path: the model's chat template {problem}: {text!r:.200}. {TEMPLATE_REMEDY}")
