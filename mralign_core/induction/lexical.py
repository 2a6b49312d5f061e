"""An offline stand-in for the labeller and the namer: it lifts phrases out of the text, and understands nothing.

Its open labels are cue words that stand in a segment, such as "let me check", or the segment's first words where
none does; its clusters are named after their most frequent phrase and grouped by its first word. It is for
trying the command without a key; what it induces is a taxonomy of wordings, not of moves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mralign_core.annotation.cue import LEXICON
from mralign_core.annotation.prompts import read_payload
from mralign_core.induction.naming import named_by_phrase
from mralign_core.induction.replies import MAX_PHRASE, normalize
from mralign_core.llm import offline
from mralign_core.llm.offline import Message

LEXICAL_PROVIDER = "lexical"
MODELS = ("phrases",)
LEAST_STRENGTH = 5.0
"""Weaker cues, such as "is", are in nearly every sentence."""
MOST_WORDS = 4
NUM_FIRST_WORDS = 3


def lexical_reply(_: str, messages: Sequence[Message], __: Mapping[str, Any]) -> str:
    """The JSON reply to a labeller's or a namer's request."""
    payload = read_payload(messages)
    if "clusters" in payload:
        return json.dumps({"clusters": [_name(entry) for entry in payload["clusters"]]})
    return json.dumps(
        {"segments": [{"index": part["index"], "labels": find_phrases(part["text"])} for part in payload["segments"]]}
    )


def find_phrases(text: str) -> list[str]:
    """The strongest cue that stands in a text, else its first words; nothing where it has no words.

    >>> find_phrases("Wait, let me double check: the capital is Rome."), find_phrases("The capital is Rome.")
    (['let me double check'], ['the capital is'])
    """
    lowered = text.strip().lower().replace("’", "'")
    found = [
        (-strength, match.start(), normalize(match[0]))
        for pattern, strength in _cues()
        if (match := pattern.search(lowered))
    ]
    phrases = [phrase for _, _, phrase in sorted(found) if len(phrase.split()) <= MOST_WORDS]
    first_words = " ".join(normalize(lowered[: 10 * MAX_PHRASE]).split()[:NUM_FIRST_WORDS])
    phrase = (phrases or [first_words])[0][:MAX_PHRASE].strip()
    return [phrase] if phrase else []


def _name(entry: Mapping[str, Any]) -> dict[str, Any]:
    phrases = {phrase["phrase"]: phrase["count"] for phrase in entry["phrases"]}
    name, definition, _ = named_by_phrase(entry["cluster"], phrases)
    macro = f"{next(iter(phrases)).split()[0]} …"
    return {"cluster": entry["cluster"], "name": name, "definition": definition, "macro_strategy": macro[:60]}


@cache
def _cues() -> list[tuple[re.Pattern[str], float]]:
    return [
        (re.compile(pattern, re.DOTALL), strength)
        for cues in LEXICON.values()
        for pattern, strength in cues.items()
        if strength >= LEAST_STRENGTH
    ]


offline.register(LEXICAL_PROVIDER, MODELS, lexical_reply)
