"""What a run starts from: each reference of its config, resolved once and recorded; what is new of its questions."""

from mralign_core.intake.aliases import model_in_reply, with_replies
from mralign_core.intake.champion import pin_champion
from mralign_core.intake.novelty import NewQuestions, SetNews, new_questions
from mralign_core.intake.resolution import ConfigReference, Resolution, Resolutions, changed_references
from mralign_core.intake.resolving import Resolved, resolve

__all__ = [
    "ConfigReference",
    "NewQuestions",
    "Resolution",
    "Resolutions",
    "Resolved",
    "SetNews",
    "changed_references",
    "model_in_reply",
    "new_questions",
    "pin_champion",
    "resolve",
    "with_replies",
]
