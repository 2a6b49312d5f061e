"""The offline cue annotators against labels that others gave to other traces, with other vocabularies.

Three published sets of segment-labelled reasoning traces are read from a folder (``<set>.jsonl.gz``, one object a trace
with ``segments`` of ``label`` and ``text``); ``label_mappings.yaml`` says which of their labels correspond to ours, and
why. Both annotators and the consolidated labels are scored on the sets' own segments.

A segment counts as found when one of our mapped labels is among its labels. Precision, recall and F1 are given with
their value by chance: an annotator who gives the same labels as often, to random segments, has precision = share of
segments with their label, recall = share of segments with ours. Most of these traces are mathematics, the lexicon was
written for questions of fact, and the unit is often half a sentence, so the figures show transfer and are not an upper
bound.

Run ``python -m benchmarks.labels_of_others FOLDER`` from the repository (or set MRALIGN_REAL_DATA to the folder above).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.comparison.annotation_sets import panel_sets
from mralign_core.config import AnnotateConfig
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.method.agreement import Labels, agreement
from tests.kept_replies import MemoryReplyStore

MAPPINGS = Path(__file__).with_name("label_mappings.yaml")
MAIN_SPLIT = {"reasoningflow_human": "v0_human_D"}
"""The split with one trace a problem; the others are second ratings of some of them."""


class Score(NamedTuple):
    """How well one annotator finds one label of others; shares in [0, 1], NaN where not defined."""

    label: str
    ours: str
    num_theirs: int
    num_ours: int
    precision: float
    recall: float
    f1: float
    chance_precision: float
    chance_recall: float
    chance_f1: float
    kappa: float


def main() -> None:
    """Print a table for each set and annotator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ["MRALIGN_REAL_DATA"], "traces/labelled") if "MRALIGN_REAL_DATA" in os.environ else None
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="where the .jsonl.gz files are")
    parser.add_argument("--noise", action="store_true", help="with the offline annotators' default noise")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many traces of each set")
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.error("name the folder of the labelled traces, or set MRALIGN_REAL_DATA")
    for name, mapping in load_mappings().items():
        traces = list(read_traces(arguments.folder / f"{name}.jsonl.gz", MAIN_SPLIT.get(name)))[: arguments.limit]
        theirs, annotators = annotate(traces, noise=arguments.noise)
        print(f"\n## {name}: {len(traces)} traces, {len(theirs)} segments\n")
        for annotator, ours in annotators.items():
            print_scores(annotator, score(theirs, ours, mapping))
        print_unmapped(theirs, mapping)


def load_mappings() -> dict[str, dict[str, Any]]:
    """Set → their label → ``ours`` with ``why``, or ``unmapped``."""
    return dict(yaml.safe_load(MAPPINGS.read_text(encoding="utf-8")))


def read_traces(path: Path, split: str | None) -> Iterator[dict[str, Any]]:
    """The traces of one file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            trace = json.loads(line)
            if split is None or trace["split"] == split:
                yield trace


def annotate(traces: list[dict[str, Any]], *, noise: bool) -> tuple[list[str], dict[str, list[Labels]]]:
    """Their label of every segment, and for each of our annotators its label sets, in the same order."""
    candidates = pd.DataFrame([as_candidate(number, trace) for number, trace in enumerate(traces)])
    probs = {} if noise else {"cue_drop_prob": 0.0, "cue_flip_prob": 0.0}
    roles = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    result = annotate_traces(
        candidates,
        AnnotateConfig.model_validate({**roles, **probs}),
        seed=0,
        label_set=PAPER_LABEL_SET,
        client=LLMClient(MemoryReplyStore(), concurrency=1),
    )
    assert result.failures.empty, "offline annotators never fail"
    sets = panel_sets("cue", result.annotations, candidates)
    theirs = [segment["label"] for trace in traces for segment in labelled_segments(trace)]
    ours: dict[str, list[Labels]] = {each.name: [frozenset(labels) for labels in each.rows["labels"]] for each in sets}
    assert all(len(labels) == len(theirs) for labels in ours.values())
    return theirs, ours


def labelled_segments(trace: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The segments that have text."""
    return [segment for segment in trace["segments"] if segment["text"].strip()]


def as_candidate(number: int, trace: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that annotation reads; segments are the set's own."""
    completion, spans = "", []
    for segment in labelled_segments(trace):
        text = segment["text"].strip()
        spans.append({"start": len(completion), "end": len(completion) + len(text)})
        completion += f"{text}\n\n"
    return {
        "trace_id": f"{number:05d}",
        "question": trace.get("question") or "(not given)",
        "answers": list(trace.get("gold") or ["(not given)"]),
        "completion": completion,
        "segments": spans,
    }


def score(theirs: Sequence[str], ours: Sequence[Labels], mapping: Mapping[str, Any]) -> list[Score]:
    """A score for each of their labels that is mapped and occurs.

    Example:
        >>> (found,) = score(["a", "a", "b"], [{"x"}, set(), {"x", "y"}], {"a": {"ours": ["x"]}})
        >>> found.precision, found.recall, round(found.chance_precision, 2)
        (0.5, 0.5, 0.67)
    """
    size = len(theirs)
    scores = []
    for label, entry in mapping.items():
        wanted = frozenset(entry.get("ours", ()))
        has_theirs, has_ours = [each == label for each in theirs], [bool(labels & wanted) for labels in ours]
        num_theirs, num_ours = sum(has_theirs), sum(has_ours)
        if not wanted or not num_theirs:
            continue
        both = sum(a and b for a, b in zip(has_theirs, has_ours, strict=True))
        precision, recall = _share(both, num_ours), both / num_theirs
        by_chance = (num_theirs / size, num_ours / size)
        yes_or_no = [[frozenset({"yes"} if each else ()) for each in side] for side in (has_theirs, has_ours)]
        f1 = (_f1(precision, recall), _f1(*by_chance))
        kappa = agreement(yes_or_no[0], yes_or_no[1]).kappa
        named = (label, " + ".join(entry["ours"]), num_theirs, num_ours)
        scores.append(Score(*named, precision, recall, f1[0], *by_chance, f1[1], kappa))
    return scores


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def print_scores(annotator: str, scores: list[Score]) -> None:
    """One Markdown table."""
    print(f"{annotator}\n")
    print("| theirs | ours | support | given | precision (chance) | recall (chance) | F1 (chance) | κ |")
    print("|---|---|---|---|---|---|---|---|")
    for row in scores:
        pairs = [(row.precision, row.chance_precision), (row.recall, row.chance_recall), (row.f1, row.chance_f1)]
        cells = " | ".join(f"{value:.2f} ({chance:.2f})" for value, chance in pairs)
        print(f"| {row.label} | {row.ours} | {row.num_theirs} | {row.num_ours} | {cells} | {row.kappa:.2f} |")
    print()


def print_unmapped(theirs: list[str], mapping: Mapping[str, Any]) -> None:
    """The labels that have no counterpart, or none stated."""
    for label in sorted(set(theirs)):
        reason = mapping.get(label, {"unmapped": "not in label_mappings.yaml"}).get("unmapped")
        if reason:
            print(f"- {label} ({theirs.count(label)} segments) is not mapped: {reason}")


if __name__ == "__main__":
    main()
