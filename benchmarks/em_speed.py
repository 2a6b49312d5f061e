"""Speed and memory of the estimation: Parquet files to P⁺, P⁻ and P, and to weights.

Writes random annotated traces (two chains with known matrices, label sets of one or two, unlabelled and merged
segments) to a temporary folder, then measures each job in a process of its own, so that its peak memory is its own:

* ours: both files → set-pair counts → five EM iterations each for P⁺, P⁻ and P; the same with the bootstrap; and the
  weights of all segments with their intervals → Parquet.
* Algorithm 2 of arXiv 2510.24794 as it is written, a Python loop over transitions and base pairs, on a subset: it
  starts from lists in memory. Its time on everything is extrapolated.
* hmmlearn, when it can be imported: one EM iteration of its CategoricalHMM on a subset, and its M-step alone. It fits
  another model (one hidden chain that emits label sets), so only the cost is comparable.

Run ``python -m benchmarks.em_speed`` from the repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.weights import Weigher
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.method.transitions import m_step, transition_mask
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import TableWriter

TAXONOMY = PAPER_TAXONOMY
NUM_STATES = TAXONOMY.num_states
TRACES_PER_PIECE = 50_000
STRATA = ("one-hop", "two-hop")
POLARITIES = ("negative", "positive")


def main() -> None:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transitions", type=int, default=10_000_000, help="set-to-set transitions to generate")
    parser.add_argument("--subset", type=int, default=50_000, help="transitions for the plain algorithm and hmmlearn")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap resamples")
    parser.add_argument("--job", choices=sorted(JOBS), help="measure one job on --folder and print JSON")
    parser.add_argument("--folder", type=Path, help="folder of the generated files; default: a temporary one")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(_measured(options)))
        return
    with tempfile.TemporaryDirectory(prefix="em-speed-") as scratch:
        options.folder = options.folder or Path(scratch)
        if not (options.folder / "annotations.parquet").exists():
            generate(options.folder, options.transitions)
        print_table({job: _in_own_process(job, options) for job in JOBS})


def generate(folder: Path, num_transitions: int) -> None:
    """Write ``candidates.parquet`` and ``annotations.parquet`` with at least so many transitions."""
    rng = np.random.default_rng(0)
    matrices = [_random_matrix(rng) for _ in POLARITIES]
    folder.mkdir(parents=True, exist_ok=True)
    written = first = 0
    with (
        TableWriter(folder / "candidates.parquet", CANDIDATES) as candidates,
        TableWriter(folder / "annotations.parquet", ANNOTATIONS) as annotations,
    ):
        while written < num_transitions:
            polarity = (rng.random(TRACES_PER_PIECE) < 0.6).astype(np.int64)
            trace_ids = np.array([f"question-{first + n:07d}-0" for n in range(TRACES_PER_PIECE)])
            candidates.write(_candidate_columns(trace_ids, polarity, rng))
            columns, transitions = _annotation_columns(trace_ids, polarity, matrices, rng)
            annotations.write(columns)
            written, first = written + transitions, first + TRACES_PER_PIECE


def _random_matrix(rng: np.random.Generator) -> np.ndarray:
    p = transition_mask(NUM_STATES) * rng.gamma(0.5, size=(NUM_STATES, NUM_STATES))
    p[0, -1] = 0  # every trace has a step
    p[1:-1, -1] = p[1:-1, 1:-1].sum(axis=1) / 8.5  # and about nine of them
    return p / p.sum(axis=1, keepdims=True)


def _candidate_columns(trace_ids: np.ndarray, polarity: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    number = len(trace_ids)
    spans = [{"start": 0, "end": 9, "token_start": 0, "token_end": 9}]
    constant = {
        "answers": ["an answer"],
        "prompt": "a prompt",
        "completion": "reasoning",
        "prompt_ids": [0],
        "completion_ids": list(range(9)),
        "end_token_id": None,
        "answer": "an answer",
        "segments": spans,
        "reasoning_tokens": 9,
        "draw": 0,
    }
    return {
        "trace_id": trace_ids,
        "question_id": trace_ids,
        "question": trace_ids,
        "stratum": np.array(STRATA)[rng.integers(2, size=number)],
        "polarity": np.array(POLARITIES)[polarity],
        **{name: pa.array([value] * number, CANDIDATES.columns[name].type) for name, value in constant.items()},
    }


def _annotation_columns(
    trace_ids: np.ndarray, polarity: np.ndarray, matrices: list[np.ndarray], rng: np.random.Generator
) -> tuple[dict[str, Any], int]:
    """A piece of table ``annotations``, and its number of transitions."""
    trace, place, state = _walk(polarity, matrices, rng)
    extra = (state - 1 + rng.integers(1, TAXONOMY.num_labels, size=len(state))) % TAXONOMY.num_labels + 1
    sizes = rng.choice(3, size=len(state), p=[0.05, 0.45, 0.5])
    repeats = 1 + (rng.random(len(state)) < 0.1)  # merged segments
    rows = np.repeat(np.arange(len(state)), repeats)
    first_row = np.cumsum(repeats) - repeats
    first_of_trace = first_row[np.flatnonzero(np.diff(trace, prepend=-1))]
    segment = np.arange(len(rows)) - np.repeat(first_of_trace, np.bincount(trace, repeats).astype(np.int64))
    labels = _lists(np.stack([state, extra], axis=1)[rows], sizes[rows])
    confidences = pa.ListArray.from_arrays(labels.offsets, pa.array(rng.integers(5, 11, len(labels.values)) * 1.0))
    votes = {f"labels_{who}": labels for who in "ab"} | {f"confidences_{who}": confidences for who in "ab"}
    columns = {
        "trace_id": trace_ids[trace[rows]],
        "segment": segment,
        "step": place[rows],
        "labels": labels,
        "confidences": confidences,
        "rule": np.full(len(rows), "agree"),
        **votes,
    }
    labelled = sizes > 0
    return columns, int(labelled.sum() + len(np.unique(trace[labelled])))


def _walk(polarity: np.ndarray, matrices: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Trace, place in it, and state of every step, in the order of the traces."""
    cumulative = np.cumsum(np.stack(matrices), axis=2)
    alive, state = np.arange(len(polarity)), np.zeros(len(polarity), dtype=np.int64)
    steps = []
    for place in itertools.count():
        drawn = rng.random(len(alive))[:, None]
        state = np.minimum((drawn > cumulative[polarity[alive], state]).sum(axis=1), NUM_STATES - 1)
        goes_on = state != NUM_STATES - 1
        alive, state = alive[goes_on], state[goes_on]
        if not len(alive):
            break
        steps.append(np.stack([alive, np.full(len(alive), place), state]))
    joined = np.concatenate(steps, axis=1)
    return tuple(joined[:, np.lexsort((joined[1], joined[0]))])


def _lists(states: np.ndarray, sizes: np.ndarray) -> pa.ListArray:
    kept = np.arange(2) < sizes[:, None]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(TAXONOMY.labels).take(pa.array(states[kept] - 1)))


def _in_own_process(job: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.em_speed", "--job", job, "--folder", str(options.folder)]
    command += ["--subset", str(options.subset), "--resamples", str(options.resamples)]
    started = time.perf_counter()
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"process_s": time.perf_counter() - started, **json.loads(result.stdout)}


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    started, cpu_started = time.perf_counter(), time.process_time()
    found = JOBS[options.job](options)
    cpu_s = time.process_time() - cpu_started
    return {"seconds": time.perf_counter() - started, "cpu_s": cpu_s, "peak_mb": _peak_mb(), **found}


def _peak_mb() -> float:
    """Largest resident memory of this process. Not ``getrusage``: Linux counts the parent's before the exec, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def _batches(folder: Path) -> Iterator[Any]:
    return read_trace_batches(folder / "candidates.parquet", folder / "annotations.parquet", taxonomy=TAXONOMY)


def estimate(options: argparse.Namespace) -> dict[str, Any]:
    """Files to P⁺, P⁻ and P."""
    corpus = count_corpus(_batches(options.folder), NUM_STATES)
    estimate_corpus(corpus, EstimateConfig(num_resamples=0), TAXONOMY)
    return {"transitions": int(corpus.counts.sum())}


def estimate_with_bootstrap(options: argparse.Namespace) -> dict[str, Any]:
    """Files to P⁺, P⁻ and P with intervals, pooled and for two strata."""
    corpus = count_corpus(_batches(options.folder), NUM_STATES, keep_traces=True)
    section = EstimateConfig(num_resamples=options.resamples)
    matrices = estimate_corpus(corpus, section, TAXONOMY, rng=np.random.default_rng(0))
    matrices.save(options.folder / "transitions.npz")
    return {"transitions": int(corpus.counts.sum())}


def weigh(options: argparse.Namespace) -> dict[str, Any]:
    """A weight with its interval for every segment, written as Parquet."""
    matrices = TransitionMatrices.load(options.folder / "transitions.npz")
    weigher = Weigher(matrices, RewardConfig(), EstimateConfig().confidence)
    with TableWriter(options.folder / "rewards.parquet", SEGMENT_WEIGHTS) as table:
        for batch in _batches(options.folder):
            table.write(weigher.weigh(batch))
    return {"transitions": weigher.counts["segments"]}


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """Algorithm 2 as it is written, thrice, from lists in memory."""
    chains = _subset(options)
    started = time.perf_counter()
    for wanted in ({True}, {False}, {True, False}):
        plain_algorithm_2([chain for is_positive, chain in chains if is_positive in wanted])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "transitions": sum(len(chain) - 1 for _, chain in chains)}


def plain_algorithm_2(chains: list[list[tuple[int, ...]]]) -> list[list[float]]:
    """Algorithm 2 of arXiv 2510.24794 with explicit loops."""
    allowed = transition_mask(NUM_STATES).astype(int).tolist()
    states = range(NUM_STATES)
    p = [[allowed[a][b] / sum(allowed[a]) for b in states] for a in states]
    for _ in range(5):
        counts = [[0.1 * allowed[a][b] for b in states] for a in states]
        for chain in chains:
            for source, target in itertools.pairwise(chain):
                pairs = [(a, b) for a in source for b in target if allowed[a][b]]
                scores = [p[a][b] / len(pairs) for a, b in pairs]
                total = sum(scores)
                for (a, b), score in zip(pairs, scores, strict=True):
                    counts[a][b] += score / total if total > 0 else 1 / len(pairs)
        p = [[0.4 * p[a][b] + 0.6 * counts[a][b] / sum(counts[a]) for b in states] for a in states]
    return p


def hmmlearn_iteration(options: argparse.Namespace) -> dict[str, Any]:
    """One EM iteration of CategoricalHMM on label sets as symbols, and its M-step and ours, each alone."""
    if importlib.util.find_spec("hmmlearn") is None:
        return {"skipped": "hmmlearn is not installed"}
    from hmmlearn.hmm import CategoricalHMM

    chains = [chain[1:-1] for _, chain in _subset(options)]
    symbols = {chosen: number for number, chosen in enumerate(sorted({step for chain in chains for step in chain}))}
    values = np.array([[symbols[step]] for chain in chains for step in chain])
    model = CategoricalHMM(TAXONOMY.num_labels, n_iter=1, random_state=0, n_features=len(symbols))
    started = time.perf_counter()
    model.fit(values, [len(chain) for chain in chains])
    seconds = time.perf_counter() - started
    statistics = model._initialize_sufficient_statistics()
    for name in ("start", "trans", "obs"):
        statistics[name] += 1.0
    counts, mask = np.ones((NUM_STATES, NUM_STATES)), transition_mask(NUM_STATES)
    return {
        "seconds": seconds,
        "transitions": len(values) + len(chains),
        "m_step_us": 1e6 * _mean_time(lambda: model._do_mstep(statistics)),
        "our_m_step_us": 1e6 * _mean_time(lambda: m_step(counts, 0.1, mask)),
    }


def _mean_time(function: Callable[[], Any], repeats: int = 2000) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


def _subset(options: argparse.Namespace) -> list[tuple[bool, list[tuple[int, ...]]]]:
    """The first traces of the files as chains of label sets, <start> and <stop> included, with their polarity."""
    chains: list[tuple[bool, list[tuple[int, ...]]]] = []
    num_transitions = 0
    for batch in _batches(options.folder):
        steps: list[list[tuple[int, ...]]] = [[] for _ in batch.trace_ids]
        for trace, labels in zip(batch.trace_of_step.tolist(), batch.labels.tolist(), strict=True):
            if labels[0]:
                steps[trace].append(tuple(state for state in labels if state))
        for is_positive, chain in zip(batch.is_positive.tolist(), steps, strict=True):
            if num_transitions >= options.subset:
                return chains
            if chain:
                chains.append((is_positive, [(0,), *chain, (NUM_STATES - 1,)]))
                num_transitions += len(chain) + 1
    return chains


JOBS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "estimate": estimate,
    "estimate-with-bootstrap": estimate_with_bootstrap,
    "weigh": weigh,
    "plain-algorithm-2": plain,
    "hmmlearn-iteration": hmmlearn_iteration,
}


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """A line a job, then the ratios to ours."""
    print(f"{'job':26}{'rows':>12}{'seconds':>10}{'CPU s':>10}{'µs/row':>10}{'peak MB':>10}")
    for job, result in found.items():
        if "skipped" in result:
            print(f"{job:26}{result['skipped']:>12}")
            continue
        seconds, rows = result["seconds"], result["transitions"]
        print(
            f"{job:26}{rows:>12,}{seconds:>10.2f}{result['cpu_s']:>10.2f}{1e6 * seconds / rows:>10.3f}"
            f"{result['peak_mb']:>10.0f}"
        )
    ours, loops, hmm = (found[job] for job in ("estimate", "plain-algorithm-2", "hmmlearn-iteration"))
    everything = ours["transitions"]
    loops_s = everything * loops["seconds"] / loops["transitions"]
    print(
        f"\nestimate, whole process with imports: {ours['process_s']:.2f} s\n"
        f"Algorithm 2 in Python loops on all {everything:,} transitions, extrapolated: {loops_s:,.0f} s, "
        f"{loops_s / ours['seconds']:.0f} × ours, and it reads no file"
    )
    if "skipped" not in hmm:
        hmm_s = everything * hmm["seconds"] / hmm["transitions"]
        print(
            f"one hmmlearn EM iteration on all of them, extrapolated: {hmm_s:,.0f} s; "
            f"one M-step alone: hmmlearn {hmm['m_step_us']:.0f} µs, ours {hmm['our_m_step_us']:.0f} µs"
        )


if __name__ == "__main__":
    main()
