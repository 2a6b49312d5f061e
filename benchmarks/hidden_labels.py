"""How near each estimator comes to the transition matrices of the true labels, which the pocket grammar knows.

The grammar writes traces; the cue annotators and their adjudicator label them, with and without more noise. P⁺ and P⁻
of each estimator are compared with the frequencies of the true labels in 30 times as many traces of the same world, and
log P⁺/P⁻ on moves that each class makes often. "true labels" are those of the very traces: no estimate from what
annotators say can be expected to come nearer.

Run ``python -m benchmarks.hidden_labels`` from the repository (five minutes).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.config import AnnotateConfig, EndpointConfig, EstimateConfig, StorageConfig
from mralign_core.estimation.corpus import CLASSES, count_corpus
from mralign_core.estimation.matrices import Estimates, estimate_corpus, estimate_transitions
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.method import FloatArray
from mralign_core.method.distances import weighted_distance
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import Trace, write_trace
from mralign_core.pocket.world import FactQuestion, build_world
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore, ReplyStore
from mralign_core.storage.tables import write_table

ESTIMATORS = ("frequency", "em", "em_converged", "hidden")
NOISE = {"as in the demo": (0.10, 0.05), "more": (0.15, 0.20)}
"""Probabilities of overlooking a cue, and of taking its label for another one."""
MORE = 30
OFTEN = 50
"""Times that each class makes a move whose log P⁺/P⁻ is compared."""

Written = tuple[FactQuestion, Trace]


def main() -> None:
    """Print a table for each noise: means over worlds, and in how many of them hidden labels are nearest of two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=int, default=1000, help="traces of a world")
    parser.add_argument("--worlds", type=int, default=4)
    options = parser.parse_args()
    for name, noise in NOISE.items():
        rows = pd.concat([errors(world, options.traces, noise) for world in range(options.worlds)])
        mean = rows.groupby(level=0, sort=False).mean()
        wins = (rows.loc["hidden"].reset_index() < rows.loc["em_converged"].reset_index()).sum()
        print(f"\nnoise {name}: {options.worlds} worlds, {options.traces} traces each")
        print(mean.round(3).to_string())
        print("worlds in which hidden is nearer than em_converged:", wins[mean.columns[:3]].to_dict())


def errors(world_seed: int, num_traces: int, noise: tuple[float, float]) -> pd.DataFrame:
    """Distances from the truth in one world, a row an estimator."""
    rng = np.random.default_rng([world_seed, 1])
    truth = _of_true_labels(_write(world_seed, MORE * num_traces, rng))
    written = _write(world_seed, num_traces, rng)
    found = {"true labels": (_of_true_labels(written), 0.0)}
    with tempfile.TemporaryDirectory(prefix="hidden-labels-") as folder:
        files = _annotated(written, noise, Path(folder))
        batches = read_trace_batches(*files, taxonomy=PAPER_TAXONOMY, with_votes=True)
        corpus = count_corpus(batches, PAPER_TAXONOMY.num_states)
    for estimator in ESTIMATORS:
        section = EstimateConfig(estimator=estimator, num_resamples=0)
        started = time.perf_counter()
        estimates = estimate_corpus(corpus, section, PAPER_TAXONOMY, min_stratum_traces=num_traces).estimates
        found[estimator] = (estimates, time.perf_counter() - started)
    return pd.DataFrame({name: _errors(each, truth) | {"seconds": took} for name, (each, took) in found.items()}).T


def pocket_traces(world_seed: int, num_traces: int) -> pd.DataFrame:
    """Traces that the grammar writes about a world's questions, as rows of table ``candidates``."""
    written = _write(world_seed, num_traces, np.random.default_rng([world_seed, 1]))
    return pd.DataFrame([_row(number, *each) for number, each in enumerate(written)]).astype(object)


def _write(world_seed: int, num_traces: int, rng: np.random.Generator) -> list[Written]:
    world = build_world(seed=world_seed)
    questions = [world.questions[number] for number in rng.integers(len(world.questions), size=num_traces)]
    return [(question, write_trace(world, question, rng)) for question in questions]


def _of_true_labels(written: Sequence[Written]) -> Estimates:
    traces = [
        LabelledTrace(
            trace_id=str(number),
            polarity=_polarity(question, trace),
            steps=[(PAPER_TAXONOMY.state(segment.label),) for segment in trace.segments],
            step_of_segment=list(range(len(trace.segments))),
        )
        for number, (question, trace) in enumerate(written)
    ]
    section = EstimateConfig(estimator="frequency", num_resamples=0)
    return estimate_transitions(traces, section, PAPER_TAXONOMY).estimates


def _polarity(question: FactQuestion, trace: Trace) -> str:
    return "positive" if trace.answer == question.answer else "negative"


def _annotated(written: Sequence[Written], noise: tuple[float, float], folder: Path) -> tuple[Path, Path]:
    """Files of candidates and annotations."""
    candidates = pd.DataFrame([_row(number, *each) for number, each in enumerate(written)]).astype(object)
    drop_prob, flip_prob = noise
    a, b, adjudicator = (EndpointConfig(model=f"cue/{name}") for name in ("a", "b", "adjudicator"))
    section = AnnotateConfig(
        annotator_a=a, annotator_b=b, adjudicator=adjudicator, cue_drop_prob=drop_prob, cue_flip_prob=flip_prob
    )
    client = LLMClient(ReplyStore(ArtifactStore(StorageConfig(root=str(folder)))), concurrency=16)
    made = annotate_traces(candidates, section, seed=0, label_set=PAPER_LABEL_SET, client=client)
    return (
        write_table(folder, "candidates.parquet", candidates[list(CANDIDATES.columns)], CANDIDATES),
        write_table(folder, "annotations.parquet", made.annotations, ANNOTATIONS),
    )


def _row(number: int, question: FactQuestion, trace: Trace) -> dict[str, object]:
    """A row of table ``candidates``, a segment a token: tokens are of no matter here."""
    start, spans = len("<think>"), []
    for place, segment in enumerate(trace.segments):
        end = start + len(segment.text)
        spans.append({"start": start, "end": end, "token_start": place, "token_end": place + 1})
        start = end + len("\n\n")
    texts = {
        "trace_id": f"{number:06d}",
        "question_id": question.question_id,
        "question": question.text,
        "stratum": question.stratum,
        "polarity": _polarity(question, trace),
        "prompt": question.text,
        "completion": trace.completion,
        "answer": trace.answer,
    }
    tokens = {"prompt_ids": [0], "completion_ids": list(range(len(spans))), "end_token_id": None, "reasoning_tokens": 1}
    return texts | tokens | {"answers": [question.answer], "segments": spans, "draw": 0}


def _errors(found: Estimates, truth: Estimates) -> dict[str, float]:
    plus, minus = (truth[name].counts for name in CLASSES[:2])
    often, times = (plus >= OFTEN) & (minus >= OFTEN), plus + minus
    squares = (_log_ratio(found) - _log_ratio(truth))[often] ** 2
    distances = {name: weighted_distance(found[name].p, truth[name].p, truth[name].counts) for name in CLASSES[:2]}
    return {
        "P⁺, L1": distances["plus"],
        "P⁻, L1": distances["minus"],
        "log P⁺/P⁻, root mean square": float(np.sqrt(np.average(squares, weights=times[often]))),
    }


def _log_ratio(estimates: Estimates) -> FloatArray:
    """Log P⁺/P⁻; 0 where no transition is allowed."""
    plus, minus = (np.where(estimates[name].p > 0, estimates[name].p, 1.0) for name in CLASSES[:2])
    return np.log(plus / minus)


if __name__ == "__main__":
    main()
