import pandas as pd
import pytest

from mralign_core.method.taxonomy import Taxonomy

LABELS = ("ask", "tell", "doubt", "check")
MACRO = {"ask": "talk", "tell": "talk", "doubt": "think", "check": "think"}


@pytest.fixture
def taxonomy():
    """Not the paper's: nothing may assume its labels."""
    return Taxonomy(LABELS, MACRO, {label: f"what {label} does" for label in LABELS})


@pytest.fixture
def candidates_of():
    """Builds the columns of table ``candidates`` that a comparison reads; every second trace is negative."""

    def build(*traces, question="Who wrote it?"):
        return pd.DataFrame([_row(number, texts, question) for number, texts in enumerate(traces)])

    return build


def _row(number, texts, question):
    completion, segments = "<think>", []
    for text in texts:
        segments.append({"start": len(completion), "end": len(completion) + len(text)})
        completion += text + "\n\n"
    return {
        "trace_id": f"t{number}",
        "question_id": f"q{number}",
        "question": question,
        "answers": ["Galen"],
        "stratum": "",
        "polarity": ("positive", "negative")[number % 2],
        "completion": completion + "</think>",
        "segments": segments,
    }
