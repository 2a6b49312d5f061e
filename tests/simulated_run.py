"""A run of any size in a store, made up from a seed: what the workbench looks at, without a model or hours of work.

Every table that a run leaves is there, with its own contract, written a few thousand rows at a time. Each trace holds
one word of its own, as ``code000007``, so that a search has a known answer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mralign_core.annotation.failures import write_failures
from mralign_core.config import StorageConfig
from mralign_core.evaluation.decisions import list_flips
from mralign_core.evaluation.held_out_traces import held_out_traces
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.schemas.annotations import ANNOTATIONS, RAW_ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.flips import FLIPS
from mralign_core.schemas.generations import GENERATIONS
from mralign_core.schemas.held_out_traces import HELD_OUT_TRACES
from mralign_core.schemas.judgements import JUDGEMENTS
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.reference_logps import REFERENCE_LOGPS
from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecords
from mralign_core.storage.tables import TableWriter, write_table

JUDGE = "openai/judge"
NAME, RUN = "simulated", "5e1f0000-0000-4000-8000-000000000001"
VARIANTS = ("off", "on", "kto", "mr_align")
BATCH = 2_000
LABELS = np.array(PAPER_TAXONOMY.labels)
STRATA = ("one_hop", "two_hop")


class Size(NamedTuple):
    """How large the run is; the texts of ``LARGE`` are as long as real ones."""

    num_traces: int
    num_segments: int = 4
    sentences: int = 1
    num_evaluated: int = 24
    tokens: int = 24


def large(num_traces: int) -> Size:
    """Traces of about 600 tokens in ten segments."""
    return Size(num_traces, num_segments=10, sentences=3, num_evaluated=max(24, num_traces // 20), tokens=600)


def publish_run(storage: StorageConfig, size: Size, seed: int = 0) -> dict[str, ArtifactRef]:
    """Publish every table of a run, and note it under :data:`NAME`."""
    return _Run(storage, size, seed).publish()


def simulated_store(folder: Path, num_traces: int) -> StorageConfig:
    """A store in a folder with a run of so many traces."""
    section = StorageConfig(root=str(folder / "store"))
    publish_run(section, Size(num_traces))
    return section


class _Run:
    def __init__(self, storage: StorageConfig, size: Size, seed: int) -> None:
        self._store = ArtifactStore(storage)
        self._size = size
        self._rng = np.random.default_rng(seed)
        words = ["".join(self._rng.choice(list("aeioubcdfglmnprst"), 6)) for _ in range(1_500)]
        self._sentences = np.array(
            [" ".join(self._rng.choice(words, 14)).capitalize() + "." for _ in range(3_000)], dtype=object
        )
        self._made: dict[str, ArtifactRef] = {}

    def publish(self) -> dict[str, ArtifactRef]:
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            for write in (self._questions, self._traces, self._labels, self._weights, self._logps, self._answers):
                write()
        RunRecords(self._store, NAME).add(
            RUN, {}, {k: v for k, v in self._made.items() if k != "reference-logps"}, goes_on=False
        )
        return self._made

    def _publish(self, name, table, parents=(), **fingerprint):
        stage, _, variant = name.partition(":")
        fields = {**fingerprint, **({"variant": variant} if variant else {})}
        self._made[name] = self._store.publish(
            stage,
            f"{name.replace(':', '-')}-key",
            self._folder / name,
            parents=[self._made[each] for each in parents],
            fingerprint=fields,
            table=table,
        )

    def _batches(self):
        for start in range(0, self._size.num_traces, BATCH):
            yield np.arange(start, min(start + BATCH, self._size.num_traces))

    def _questions(self) -> None:
        for name, number, split in (
            ("questions", -(-self._size.num_traces // 2), "train"),
            ("evaluation-questions", self._size.num_evaluated, "eval"),
        ):
            rows = np.arange(number)
            with TableWriter(self._folder / name / "questions.parquet", QUESTIONS) as table:
                table.write(
                    {
                        "question_id": [f"{split}-{i:06d}" for i in rows],
                        "question": [_question(split, i, self._sentences[i % 3000]) for i in rows],
                        "answers": [["Oslo", "the city of Oslo"]] * number,
                        "source": [("pocket", "other")[int(i % 3 == 2)] for i in rows],
                        "split": [split] * number,
                        "stratum": [STRATA[i % 2] for i in rows],
                        "scoring": ["exact_match"] * number,
                        "options": [[]] * number,
                        "incorrect_answers": [[]] * number,
                    }
                )
            self._publish(name, QUESTIONS.name)

    def _thinking(self, rows):
        """The segments' texts of some traces: one names the answer, early or at the end, one the trace's own word."""
        size = self._size
        picked = self._sentences[
            self._rng.integers(0, len(self._sentences), (len(rows), size.num_segments, size.sentences))
        ]
        texts = [[" ".join(sentences) for sentences in segments] for segments in picked]
        for i, segments in zip(rows, texts, strict=True):
            segments[0] += f" This is code{i:06d}."
            segments[1 if i % 3 == 2 else -1] += " So it is Oslo." if i % 5 else " So it is unknown."
        return texts

    def _traces(self) -> None:
        """Candidates, and the draws that they were chosen from: one with thinking a trace, one without."""
        size = self._size
        with (
            TableWriter(self._folder / "candidates" / "candidates.parquet", CANDIDATES) as candidates,
            TableWriter(self._folder / "generations" / "generations.parquet", GENERATIONS) as generations,
        ):
            for rows in self._batches():
                texts = self._thinking(rows)
                tokens = _lists(self._rng.integers(0, 50_000, len(rows) * size.tokens), size.tokens)
                thinking = ["\n\n".join(segments) for segments in texts]
                right = rows % 2 == 0
                answers = ["Oslo" if yes else "Bergen" for yes in right]
                completions = [
                    f"<think>\n{t}\n</think>\n<answer>{a}</answer>" for t, a in zip(thinking, answers, strict=True)
                ]
                common = {
                    "question_id": [f"train-{i // 2:06d}" for i in rows],
                    "prompt": [""] * len(rows),
                    "completion": completions,
                    "prompt_ids": [[1, 2]] * len(rows),
                    "completion_ids": tokens,
                    "end_token_id": [None] * len(rows),
                    "answer": answers,
                    "draw": rows % 2,
                }
                candidates.write(
                    common
                    | {
                        "trace_id": [f"trace-{i:06d}" for i in rows],
                        "question": [_question("train", i // 2, self._sentences[i // 2 % 3000]) for i in rows],
                        "answers": [["Oslo", "the city of Oslo"]] * len(rows),
                        "stratum": [STRATA[i // 2 % 2] for i in rows],
                        "polarity": [("negative", "positive")[int(yes)] for yes in right],
                        "segments": [self._spans(segments) for segments in texts],
                        "reasoning_tokens": [size.tokens - 4] * len(rows),
                    }
                )
                shared = {
                    "finish_reason": ["stop"] * len(rows),
                    "token_source": ["sampled"] * len(rows),
                    "thinking_closed": [True] * len(rows),
                    "outcome": ["ok"] * len(rows),
                }
                generations.write(
                    common
                    | shared
                    | {
                        "thinking_mode": ["on"] * len(rows),
                        "thinking": thinking,
                        "em_thought": [bool(i % 5) for i in rows],
                        "em_answer": right,
                        "contains_answer": right,
                    }
                )
                generations.write(
                    common
                    | shared
                    | {
                        "thinking_mode": ["off"] * len(rows),
                        "thinking": [None] * len(rows),
                        "em_thought": [None] * len(rows),
                        "em_answer": ~right,
                        "contains_answer": ~right,
                        "completion": answers,
                        "completion_ids": [[3, 4]] * len(rows),
                    }
                )
        self._publish("candidates", CANDIDATES.name, ["questions"])
        self._publish("generations", GENERATIONS.name, ["questions"])

    def _spans(self, segments):
        spans, at, step = [], len("<think>\n"), (self._size.tokens - 4) // len(segments)
        for place, text in enumerate(segments):
            spans.append(
                {"start": at, "end": at + len(text), "token_start": place * step, "token_end": (place + 1) * step}
            )
            at += len(text) + 2
        return spans

    def _labels(self) -> None:
        """Annotator B differs from A on a fifth of the segments; the adjudicator sides with A."""
        per = self._size.num_segments
        with (
            TableWriter(self._folder / "annotations" / "annotations.parquet", ANNOTATIONS) as labels,
            TableWriter(self._folder / "annotations" / "raw_annotations.parquet", RAW_ANNOTATIONS) as replies,
        ):
            for rows in self._batches():
                number = len(rows) * per
                a, b = self._rng.integers(0, len(LABELS), (2, number))
                is_disputed = self._rng.random(number) < 0.2
                b = np.where(is_disputed, b, a)
                agrees = a == b
                of_a, of_b = (_lists(LABELS[codes], 1) for codes in (a, b))
                sure = _lists(self._rng.integers(5, 11, number).astype(float), 1)
                ids = [f"trace-{i:06d}" for i in np.repeat(rows, per)]
                segments = np.tile(np.arange(per), len(rows))
                labels.write(
                    {
                        "trace_id": ids,
                        "segment": segments,
                        "step": segments,
                        "labels": of_a,
                        "confidences": sure,
                        "rule": np.where(agrees, "agree", "adjudicate"),
                        "labels_a": of_a,
                        "confidences_a": sure,
                        "labels_b": of_b,
                        "confidences_b": sure,
                    }
                )
                self._replies(replies, rows)
        self._publish("annotations", ANNOTATIONS.name, ["candidates"], label_set=PAPER_LABEL_SET.fingerprint())

    def _replies(self, table, rows) -> None:
        for role in ("annotator_a", "annotator_b"):
            number = len(rows)
            table.write(
                {
                    "trace_id": [f"trace-{i:06d}" for i in rows],
                    "role": [role] * number,
                    "model": [f"openai/{role}"] * number,
                    "attempt": [0] * number,
                    "request_digest": ["0" * 64] * number,
                    "prompt_digest": ["1" * 64] * number,
                    "reply": ['[{"segment": 1, "labels": {"retrieval": 9}}]'] * number,
                    "problem": [""] * number,
                    "prompt_tokens": [900] * number,
                    "completion_tokens": [80] * number,
                    "cost_usd": [0.001] * number,
                }
            )

    def _weights(self) -> None:
        per = self._size.num_segments
        with TableWriter(self._folder / "weights" / "weights.parquet", SEGMENT_WEIGHTS) as table:
            for rows in self._batches():
                number = len(rows) * per
                ratios = np.exp(self._rng.normal(0, 0.6, number))
                weights = np.clip(ratios, np.exp(-1), np.e)
                table.write(
                    {
                        "trace_id": [f"trace-{i:06d}" for i in np.repeat(rows, per)],
                        "segment": np.tile(np.arange(per), len(rows)),
                        "weight": weights,
                        "ratio": ratios,
                        "clipped": weights != ratios,
                        "support": self._rng.integers(1, 200, number).astype(float),
                        "weight_low": weights * 0.9,
                        "weight_high": weights * 1.1,
                    }
                )
        self._publish("weights", SEGMENT_WEIGHTS.name, ["candidates", "annotations"], form="ratio")

    def _logps(self) -> None:
        size = self._size
        with TableWriter(self._folder / "reference-logps" / "reference.parquet", REFERENCE_LOGPS) as table:
            for rows in self._batches():
                logps = -self._rng.exponential(0.7, len(rows) * size.tokens).astype(np.float32)
                table.write(
                    {
                        "trace_id": [f"trace-{i:06d}" for i in rows],
                        "partner_trace_id": [f"trace-{(i + 1) % size.num_traces:06d}" for i in rows],
                        "logps": _lists(logps, size.tokens),
                        "kl_logp": -self._rng.exponential(300, len(rows)),
                    }
                )
        self._publish("reference-logps", REFERENCE_LOGPS.name, ["candidates"])
        (self._folder / "adapter:mr_align").mkdir()
        (self._folder / "adapter:mr_align" / "adapter_config.json").write_text("{}")
        self._publish("adapter:mr_align", "", ["candidates", "annotations", "weights", "reference-logps"])
        self._after_training()

    def _after_training(self) -> None:
        """Of MR-ALIGN: tokens of the positive traces became a little more likely, of the negative ones less."""
        size = self._size
        before = pq.ParquetFile(self._folder / "reference-logps" / "reference.parquet")
        step = (size.tokens - 4) // size.num_segments
        with TableWriter(self._folder / "policy-logps:mr_align" / "policy.parquet", POLICY_LOGPS) as table:
            for rows, group in zip(self._batches(), before.iter_batches(BATCH, columns=["logps"]), strict=True):
                reference = group["logps"].flatten().to_numpy().reshape(len(rows), size.tokens).astype(float)
                moves = self._rng.normal(np.where(rows % 2, 0.1, -0.1)[:, None], 0.2, reference.shape)
                policy = np.minimum(reference - moves, -1e-6).astype(np.float32).astype(float)
                inside = slice(0, step * size.num_segments)
                kl = np.expm1(policy - reference) - (policy - reference)
                sums = {"reference_logp": reference, "policy_logp": policy, "kl": kl}
                by_segment = {
                    name: values[:, inside].reshape(len(rows), size.num_segments, step).sum(2)
                    for name, values in sums.items()
                }
                table.write(
                    {name: values.sum(1) for name, values in sums.items()}
                    | {
                        "trace_id": [f"trace-{i:06d}" for i in rows],
                        "num_tokens": [size.tokens] * len(rows),
                        "implicit_reward": (policy - reference).sum(1),
                        "logps": policy.astype(np.float32).tolist(),
                        "segments": [
                            [
                                {
                                    "num_tokens": step,
                                    **{name: float(sums[row, at]) for name, sums in by_segment.items()},
                                }
                                for at in range(size.num_segments)
                            ]
                            for row in range(len(rows))
                        ],
                    }
                )
        self._publish("policy-logps:mr_align", POLICY_LOGPS.name, ["candidates", "reference-logps", "adapter:mr_align"])

    def _answers(self) -> None:
        """Each variant is a little better than the one before it."""
        frames, number = [], self._size.num_evaluated
        ids = [f"eval-{i:06d}" for i in range(number)]
        texts = ["\n\n".join(segments) for segments in self._thinking(np.arange(number))]
        for place, variant in enumerate(VARIANTS):
            right = self._rng.random(number) < 0.5 + 0.1 * place
            thinks = variant != "off"
            frame = pd.DataFrame(
                {
                    "variant": variant,
                    "question_id": ids,
                    "source": [("pocket", "other")[int(i % 3 == 2)] for i in range(number)],
                    "scoring": "exact_match",
                    "stratum": [STRATA[i % 2] for i in range(number)],
                    "draw": 0,
                    "completion": texts,
                    "thinking": texts if thinks else None,
                    "answer": ["Oslo" if yes else "Bergen" for yes in right],
                    "outcome": "ok",
                    "em_thought": [bool(i % 5) if thinks else None for i in range(number)],
                    "em_answer": right,
                    "contains_answer": right,
                    "num_prompt_tokens": 20,
                    "num_tokens": self._size.tokens,
                }
            ).astype(object)
            frames.append(frame)
            with TableWriter(self._folder / f"scores:{variant}" / "scores.parquet", SCORES) as table:
                table.write(frame.to_dict("list"))
            self._publish(f"scores:{variant}", SCORES.name, ["evaluation-questions"])
        questions = self._store.read_table(self._made["evaluation-questions"], "questions.parquet")
        write_table(
            self._folder / "results",
            "flips.parquet",
            list_flips(pd.concat(frames, ignore_index=True), questions),
            FLIPS,
        )
        (self._folder / "results").mkdir(exist_ok=True)
        self._publish("results", "", [f"scores:{variant}" for variant in VARIANTS], judges=[JUDGE])
        self._held_out(frames, questions)
        self._judgements(frames)

    def _held_out(self, frames, questions) -> None:
        """The thinkings of think-on and MR-ALIGN as traces, and one annotator's labels of them."""
        traces = held_out_traces([frames[VARIANTS.index(name)] for name in ("on", "mr_align")], questions)
        write_table(self._folder / "held-out-traces", "candidates.parquet", traces, HELD_OUT_TRACES)
        self._publish("held-out-traces", HELD_OUT_TRACES.name, ["scores:on", "scores:mr_align"])
        rows = []
        for trace in traces.itertuples():
            for segment in range(len(trace.segments)):
                told = {"labels": [str(self._rng.choice(LABELS[:3]))], "confidences": [9.0]}
                both = {f"{name}_{side}": value for name, value in told.items() for side in "ab"}
                rows.append(
                    {"trace_id": trace.trace_id, "segment": segment, "step": segment, "rule": "agree", **told, **both}
                )
        write_table(self._folder / "held-out-annotations", "annotations.parquet", ANNOTATIONS.frame(rows), ANNOTATIONS)
        self._publish("held-out-annotations", ANNOTATIONS.name, ["held-out-traces"])

    def _judgements(self, frames) -> None:
        """A judge's grades, which agree with the match in three of four answers."""
        for variant, frame in zip(VARIANTS, frames, strict=True):
            agrees = self._rng.random(len(frame)) < 0.75
            right = frame["em_answer"].to_numpy(bool) == agrees
            judged = frame[["variant", "question_id", "draw"]].assign(
                judge=JUDGE,
                kind="grade",
                answered=True,
                truthful=None,
                informative=None,
                grade=np.where(right, "correct", "incorrect"),
                num_claims=None,
                num_supported=None,
                reason="",
                request_digest="2" * 64,
                num_requests=1,
                prompt_tokens=50,
                completion_tokens=5,
                cost_usd=0.0,
            )
            write_table(self._folder / f"judgements:{variant}", "judgements.parquet", judged.astype(object), JUDGEMENTS)
            write_failures(self._folder / f"judgements:{variant}", [])
            self._publish(f"judgements:{variant}", JUDGEMENTS.name, [f"scores:{variant}"])


def _lists(values, size):
    """An array as lists of one size."""
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), pa.array(values))


def _question(split, number, sentence):
    return f"Which city is {split} place {number}, the seat of {sentence[:-1].lower()}?"
