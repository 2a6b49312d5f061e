"""Random annotated traces, as the frames and the Parquet files that the stages exchange."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.base import Table
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage.tables import TableWriter, write_table


class Files(NamedTuple):
    candidates: Path
    annotations: Path


def taxonomy_of(num_labels: int) -> Taxonomy:
    names = tuple(f"label_{n:03d}" for n in range(num_labels))
    return Taxonomy(names, dict.fromkeys(names, "macro"), dict.fromkeys(names, "does something"))


def annotation_row(trace_id, segment, step, labels, confidences=None):
    confidences = [9.0] * len(labels) if confidences is None else confidences
    votes: dict[str, list[Any]] = {f"{name}_{who}": [] for name in ("labels", "confidences") for who in "ab"}
    own = {"trace_id": trace_id, "segment": segment, "step": step, "labels": labels, "confidences": confidences}
    return own | {"rule": "agree"} | votes


def candidate_row(trace_id, polarity="positive", stratum=""):
    text = {name: "x" for name, column in CANDIDATES.columns.items() if column.type == pa.string()}
    spans = [{"start": 0, "end": 1, "token_start": 0, "token_end": 1}]
    rest = {
        "answers": ["x"],
        "draw": 0,
        "prompt_ids": [0],
        "completion_ids": [0],
        "end_token_id": None,
        "reasoning_tokens": 1,
    }
    of_question = {"question_id": f"question of {trace_id}", "stratum": stratum}
    return text | rest | of_question | {"segments": spans, "trace_id": trace_id, "polarity": polarity}


def random_rows(rng, num_traces, taxonomy=PAPER_TAXONOMY, strata=("",), num_labels_used=None):
    """Candidates and annotations: merged steps, unlabelled ones, whole traces without a label or without a row."""
    labels = taxonomy.labels[:num_labels_used]
    candidates, annotations = [], []
    for number in range(num_traces):
        trace_id, polarity = f"t{number:04d}", ("positive", "negative")[int(rng.random() < 0.4)]
        candidates.append(candidate_row(trace_id, polarity, str(rng.choice(strata))))
        segment = 0
        for step in range(int(rng.integers(0, 6))):
            size = 0 if number % 7 == 3 else int(rng.choice(3, p=[0.2, 0.4, 0.4]))
            chosen = [str(label) for label in rng.choice(labels, size=size, replace=False)]
            confidences = rng.integers(5, 8, size=size).astype(float).tolist()
            for _ in range(int(rng.integers(1, 3))):
                annotations.append(annotation_row(trace_id, segment, step, chosen, confidences))
                segment += 1
    return candidates, annotations


def with_votes(rng, annotations, taxonomy=PAPER_TAXONOMY):
    """The same rows as two annotators and an adjudicator may have made them, step by step."""
    votes: dict[tuple[str, int], dict[str, Any]] = {}
    for row in annotations:
        votes.setdefault((row["trace_id"], row["step"]), _votes_on(row["labels"], rng, taxonomy))
    return [row | votes[row["trace_id"], row["step"]] for row in annotations]


def _votes_on(labels, rng, taxonomy):
    """Votes, and a rule that may have led from them to these labels."""
    rule = str(rng.choice(["agree", "merge", "adjudicate"] if labels else ["both silent", "overruled"]))
    other = next(name for name in taxonomy.labels if name not in labels)
    a, b = {
        "agree": (labels, labels[::-1]),
        "merge": (labels[:1], labels[1:]),
        "adjudicate": ([other], labels),
        "both silent": ([], []),
        "overruled": ([], [other]),
    }[rule]
    votes = {"labels_a": a, "confidences_a": [5.0] * len(a), "labels_b": b, "confidences_b": [9.0] * len(b)}
    return votes | {"rule": rule if labels else "unlabelled"}


def write_files(folder, candidates, annotations) -> Files:
    """Files as the stages write them, every row checked."""
    return Files(
        write_table(folder, "candidates.parquet", _frame(candidates, CANDIDATES), CANDIDATES),
        write_table(folder, "annotations.parquet", _frame(annotations, ANNOTATIONS), ANNOTATIONS),
    )


def write_unchecked(folder, candidates, annotations) -> Files:
    """Files whose rows nobody checked."""
    for name, rows, table in (("candidates", candidates, CANDIDATES), ("annotations", annotations, ANNOTATIONS)):
        with TableWriter(folder / f"{name}.parquet", table) as writer:
            writer.write({column: [row[column] for row in rows] for column in table.columns})
    return Files(folder / "candidates.parquet", folder / "annotations.parquet")


def _frame(rows, table: Table) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(table.columns)).astype(object)
