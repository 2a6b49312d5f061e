"""The pocket world: a tiny factual world, and a tiny reasoning model that is taught it, built from one seed.

An ordinary Qwen3 architecture and tokenizer directory on disk, so that nothing downstream knows the
difference. It is a testbed in which the hit gap can be seen and changed within minutes on a CPU; it is no
evidence about large models.
"""

from mralign_core.pocket.grammar import Segment, Trace, write_trace
from mralign_core.pocket.model import train_pocket_model
from mralign_core.pocket.quality import check_quality
from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import Fact, FactQuestion, World, build_world

__all__ = [
    "Fact",
    "FactQuestion",
    "Segment",
    "Trace",
    "World",
    "build_tokenizer",
    "build_world",
    "check_quality",
    "train_pocket_model",
    "write_trace",
]
