"""A candidates artifact made of texts of segments, for tests of what comes after the selection."""

import pandas as pd

from mralign_core.config import StorageConfig
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import write_table


def candidate_row(trace_id, texts, *, question="Who wrote it?", polarity="positive", stratum=""):
    """One row of ``schemas.candidates``; token spans are made up."""
    completion, segments = "<think>", []
    for place, text in enumerate(texts):
        end = len(completion) + len(text)
        segments.append({"start": len(completion), "end": end, "token_start": place, "token_end": place + 1})
        completion += text + "\n\n"
    return {
        "trace_id": trace_id,
        "question_id": f"q-{trace_id}",
        "question": question,
        "answers": ["Galen"],
        "stratum": stratum,
        "polarity": polarity,
        "draw": 0,
        "prompt": question,
        "completion": completion + "</think>",
        "prompt_ids": [1],
        "completion_ids": list(range(len(texts) + 1)),
        "end_token_id": None,
        "answer": "Galen",
        "segments": segments,
        "reasoning_tokens": len(texts),
    }


def publish_candidates(storage: StorageConfig, rows, directory) -> ArtifactRef:
    """Put rows into the store as the artifact ``candidates``."""
    store = ArtifactStore(storage)
    directory.mkdir(parents=True, exist_ok=True)
    write_table(directory, "candidates.parquet", pd.DataFrame(list(rows)), CANDIDATES)
    return store.publish("candidates", "made-for-a-test", directory, parents=[], fingerprint={}, table="candidates")
