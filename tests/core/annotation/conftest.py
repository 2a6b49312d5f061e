import pandas as pd
import pytest


@pytest.fixture
def candidates_of():
    """Builds the columns of table ``candidates`` that annotation reads, from texts of segments."""

    def build(*traces, question="Who wrote it?", answers=("Galen",)):
        return pd.DataFrame([_row(f"t{number}", texts, question, answers) for number, texts in enumerate(traces)])

    return build


def _row(trace_id, texts, question, answers):
    completion, segments = "<think>", []
    for text in texts:
        segments.append(
            {"start": len(completion), "end": len(completion) + len(text), "token_start": 0, "token_end": 1}
        )
        completion += text + "\n\n"
    return {
        "trace_id": trace_id,
        "question": question,
        "answers": list(answers),
        "completion": completion + "</think>",
        "segments": segments,
    }
