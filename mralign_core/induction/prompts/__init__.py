"""What the open-vocabulary labeller and the namer are told: versioned texts, and the messages made from them.

The rules of :mod:`mralign_core.annotation.prompts` hold here too: a changed text is a new file, instructions come
first and are the same in every request, and what is judged travels as JSON that can't break out of its markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mralign_core.annotation.prompts import ShownTrace, data_message, read_text
from mralign_core.llm.offline import Message

OPEN_LABEL = "open_label.v1"
NAME_CLUSTERS = "name_clusters.v1"
MAX_OPEN_LABELS = 2
"""Most open labels of a segment."""
MAX_WORDS = 6
"""Most words of an open label."""
MAX_LABEL_NAME = 40
"""Longest name of a label, in characters; what label set files accept."""
MAX_DEFINITION = 300
"""Longest definition, in characters."""
MOST_PHRASES = 30
"""Most phrases of a cluster that the namer is shown, the most frequent ones."""
CLUSTERS_PER_MACRO = 4
"""Labels of a macro-strategy that the namer is asked to aim at; the paper has 15 labels in 4."""


def open_label_messages(trace: ShownTrace) -> list[Message]:
    """Messages that ask for open-vocabulary labels of every segment of a trace; gold answers are not shown."""
    segments = [{"index": index, "text": text} for index, text in enumerate(trace.segments)]
    system = read_text(OPEN_LABEL, __name__).format(max_labels=MAX_OPEN_LABELS, max_words=MAX_WORDS)
    return [_system(system), data_message({"question": trace.question, "segments": segments})]


def name_messages(clusters: Sequence[Mapping[str, int]]) -> list[Message]:
    """Messages that ask for a name, a definition and a macro-strategy of every cluster.

    Args:
        clusters: phrase → count of each cluster, most frequent first; they are numbered in this order.
    """
    num_macros = max(1, round(len(clusters) / CLUSTERS_PER_MACRO))
    system = read_text(NAME_CLUSTERS, __name__).format(
        max_name=MAX_LABEL_NAME, max_definition=MAX_DEFINITION, num_macros=num_macros
    )
    shown = [
        {"cluster": number, "phrases": [{"phrase": p, "count": n} for p, n in list(phrases.items())[:MOST_PHRASES]]}
        for number, phrases in enumerate(clusters)
    ]
    return [_system(system), data_message({"clusters": shown})]


def _system(text: str) -> Message:
    return {"role": "system", "content": text}
