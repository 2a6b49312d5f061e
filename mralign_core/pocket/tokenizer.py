"""A word-level tokenizer for the pocket world, saved and loaded like any other.

A word carries the space in front of it and a punctuation mark carries none, so decoding only joins token
strings, and encoding what was decoded gives the same ids. The vocabulary does not depend on the world's seed.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mralign_core.pocket.grammar import template_texts
from mralign_core.pocket.names import ENTITY_NAMES
from mralign_core.pocket.world import RELATIONS

PAD, UNKNOWN, TURN_START, TURN_END = "<|endoftext|>", "<|unknown|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "\n\n")
CHAT_ROLES = " system user assistant"
PIECE = r" ?(?:[A-Z][a-z]*|[a-z]+)|[.,:?]"
"""What an ordinary token looks like; pieces side by side can be parted again, whatever they are."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|> ' + message.role + '\\n\\n' + message.content + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|> assistant\\n\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""
"""Turns like Qwen3's: without thinking the prompt ends in an empty think block; else the model opens one."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, every word of the pocket world a token.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.tokenize("What is the river of Kilton?")
        ['What', ' is', ' the', ' river', ' of', ' Kilton', '?']
    """
    control = [PAD, UNKNOWN, TURN_START, TURN_END]
    tokens = [*control, *TAGS, *_words()]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    # Not special: "skip_special_tokens" must keep the tags, since segments and answers are found by them.
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=TURN_END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def _words() -> list[str]:
    """Every piece of every text of the pocket world, once, in a fixed order."""
    splitter = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    relations = [f" {relation.name} {relation.object_type}" for relation in RELATIONS]
    texts = ["What is the of?", "The", *relations, CHAT_ROLES, *template_texts()]
    pieces = [piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)]
    names = [f" {name}" for names in ENTITY_NAMES.values() for name in names]
    return list(dict.fromkeys(piece for piece in [*pieces, *names] if piece != " "))
