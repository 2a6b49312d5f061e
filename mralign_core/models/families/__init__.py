"""How model families think: how it is switched, which tags surround it, what counts as the answer.

A mode is asked for by any of four means (:class:`ModeRequest`): variables of the chat template, a system message, a
sentence of the instruction, the beginning of the reply. So a new family is data and no code: an entry of
``families.yaml``, or a file of the user's with the same fields (docs/model-families.md).
"""

from mralign_core.models.families.recognising import family_of
from mralign_core.models.families.rendering import opened_by_prompt
from mralign_core.models.families.table import GENERIC, Family, family_fingerprint, named_family

__all__ = [
    "GENERIC",
    "Family",
    "family_fingerprint",
    "family_of",
    "named_family",
    "opened_by_prompt",
]
