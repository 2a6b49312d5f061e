"""Sampling in shards, and the selection of training traces; no table of draws is ever held whole."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pandas as pd
from transformers import PreTrainedTokenizerBase

from mralign_core.config import RunConfig, StorageConfig
from mralign_core.generation.funnel import Funnel, imbalance, require_both_polarities
from mralign_core.generation.importing import import_traces
from mralign_core.generation.outcomes import COUNTED, count_draws, describe_draws
from mralign_core.generation.sampling import Tally, sample_questions
from mralign_core.generation.select_traces import REMEDY, STEPS, distinct_questions, select
from mralign_core.models.families import family_of
from mralign_core.models.load import load_tokenizer
from mralign_core.models.locate import locate_model, model_name
from mralign_core.questions import question_key, refuse_overlap
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.generations import GENERATIONS
from mralign_core.schemas.outcomes import FAILED
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN, ArtifactRef, ArtifactStore
from mralign_core.storage.tables import stream_table
from tasks.clients import save_account
from tasks.engine.progress import progress
from tasks.engine.quarantine import RowWriter, join_shards, write_rows
from tasks.engine.run import Built, Produced, Work, file_digests, shard_bounds, stage_task
from tasks.sampling import sampler_of

logger = logging.getLogger("mralign_core.generation")
FUNNEL = "funnel.json"
"""Beside the candidates: what each step of the selection kept."""
ROWS_AT_ONCE = 1_000
"""Draws, or traces, in memory at a time where a table is read or written piece by piece."""


def generation_shards(config: RunConfig, questions: ArtifactRef, model: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the training questions, one a shard; none when traces are imported or all draws are there."""
    if config.generate.source == "traces":
        return []
    if generations_work(config, questions, model).is_finished(ArtifactStore(config.storage)):
        return []
    return training_shards(config, questions)


def training_shards(config: RunConfig, questions: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the training questions, one a shard."""
    return list(shard_bounds(len(training_questions(config, questions)), config.generate.shard_size))


def training_questions(config: RunConfig, questions: ArtifactRef) -> pd.DataFrame:
    """The questions to align on, each asked once; the caller must not change them."""
    return _distinct(config.storage, questions)


def shard_work(config: RunConfig, questions: ArtifactRef, model: ArtifactRef, start: int, end: int) -> Work:
    """The draws of questions ``start`` to ``end``."""
    part = {"start": start, "end": end}
    inputs = {"questions": questions, "model": model}
    return Work("generations-shard", config, inputs, part, config.generate.ask_again)


def generations_work(config: RunConfig, questions: ArtifactRef, model: ArtifactRef) -> Work:
    """The draws of all training questions."""
    inputs = {"questions": questions, "model": model}
    return Work("generations", config, inputs, ask_again=config.generate.ask_again)


def candidates_work(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, generations: ArtifactRef | None
) -> Work:
    """The kept traces, from sampled draws or, without them, from the file of traces."""
    inputs = {"questions": questions, "model": model}
    if generations is None:
        return Work("candidates", config, inputs, file_digests(traces=config.generate.traces_path))
    return Work("candidates", config, {**inputs, "generations": generations})


@stage_task("generate-shard", "generate {start}–{end}")
def sample_shard(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, start: int, end: int, of: int = 0
) -> Produced:
    """Sample questions ``start`` to ``end``, of so many that this process samples, and score the draws.

    Of a stored shard whose draws failed in part, only those are asked for: the replies to the others are kept.
    """
    work = shard_work(config, questions, model, start, end)
    sampled = _Sampled.of_run(generations_work(config, questions, model).key)

    def build(store: ArtifactStore, directory: Path) -> Built:
        rows = training_questions(config, questions).iloc[start:end]
        ledger_name = _ledger_name(questions)
        sampler = sampler_of(store, config, model, stage="generate", ledger_name=ledger_name)
        with progress("sampling questions", "generation") as report:

            def on_progress(tally: Tally) -> None:
                total = sampled.update(start, tally)
                report(total.questions, of or end - start, sampled.note(total, of or end - start))

            frame = sample_questions(
                sampler,
                rows,
                config.generate,
                seed=config.seed,
                rules=config.match.rules,
                on_progress=on_progress,
            )
        if config.generate.sampler == "endpoint":
            save_account(store, ledger_name, config.generate)
        write_rows(directory, "generations.parquet", frame, GENERATIONS)
        return Built(
            GENERATIONS.name, sampled.shards[start]._asdict() | _to_ask(int((frame["outcome"] == FAILED).sum()))
        )

    produced = work.produce(build)
    if produced.was_cached:
        sampled.found(start, Tally.of(ArtifactStore(config.storage).manifest(produced.ref).counts))
    return produced


@stage_task("collect-generations")
def collect_generations(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, shards: Sequence[ArtifactRef]
) -> Produced:
    """Join the shards into one table, and count what came of the draws."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        join_shards(store, shards, directory, {"generations.parquet": GENERATIONS})
        draws = stream_table(directory / "generations.parquet", GENERATIONS, COUNTED, ROWS_AT_ONCE)
        count_draws(draws).to_json(directory / "draws.json", orient="records", indent=1)
        of_shards = [store.manifest(shard).counts for shard in shards]
        tally = sum(map(Tally.of, of_shards), Tally())
        num_failed = sum(counts.get(TO_ASK_AGAIN, 0) for counts in of_shards)
        if num_failed:
            logger.warning("%d draw(s) failed: their questions stay undecided until a run asks again", num_failed)
        return Built(GENERATIONS.name, tally._asdict() | _to_ask(num_failed))

    return generations_work(config, questions, model).produce(build)


@stage_task("select-candidates")
def select_candidates(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, generations: ArtifactRef | None
) -> Produced:
    """Keep the traces of questions that thinking makes right, or wrong; or import traces from a file."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        location = locate_model(store.open_directory(model), model_name(config.model))
        tokenizer = load_tokenizer(location.path, location.revision)
        if generations is None:
            polarities = _import(store, config, questions, tokenizer, directory)
        else:
            polarities = _select(store, config, questions, generations, tokenizer, directory)
        return Built(CANDIDATES.name, polarities)

    return candidates_work(config, questions, model, generations).produce(build)


def _import(
    store: ArtifactStore,
    config: RunConfig,
    questions: ArtifactRef,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> dict[str, int]:
    """Write the candidates that the file of traces gives, and their yield; returns their number by polarity."""
    held_out = store.read_table(questions, "questions.parquet").query("split == 'eval'")
    left_out = set(held_out["question"].map(question_key)) if config.questions.on_overlap == "drop" else ()
    family = family_of(config.model, tokenizer)
    imported = import_traces(
        config.generate.traces_path, tokenizer, config.generate, family, config.match.rules, left_out
    )
    refuse_overlap(imported.questions, held_out)
    write_rows(directory, "candidates.parquet", imported.candidates, CANDIDATES)
    imported.funnel.to_json(directory / FUNNEL, orient="records", indent=1)
    return imported.candidates["polarity"].value_counts().to_dict()


def warn_of_imbalance(config: RunConfig, candidates: ArtifactRef) -> None:
    """Warn where few of the kept traces are of one polarity."""
    if text := imbalance(ArtifactStore(config.storage).manifest(candidates).counts):
        logger.warning("%s", text)


def _select(
    store: ArtifactStore,
    config: RunConfig,
    questions: ArtifactRef,
    generations: ArtifactRef,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> dict[str, int]:
    """Write the candidates that the draws give, and their yield; returns their number by polarity."""
    path = store.open_file(generations, "generations.parquet")
    draws = stream_table(path, GENERATIONS, list(GENERATIONS.columns), ROWS_AT_ONCE)
    funnel = Funnel(STEPS)
    kept = select(
        (row for batch in draws for row in batch.to_pylist()),
        _training_rows(config.storage, questions),
        config.generate,
        tokenizer,
        family_of(config.model, tokenizer),
        funnel,
    )
    polarities: Counter[str] = Counter()
    with RowWriter(directory, "candidates.parquet", CANDIDATES) as candidates:
        while traces := list(islice(kept, ROWS_AT_ONCE)):
            candidates.add(pd.DataFrame(traces).astype(object))
            polarities.update(trace["polarity"] for trace in traces)
    require_both_polarities(polarities, funnel, f"{describe_draws(read_draws(store, generations))}\n{REMEDY}")
    funnel.frame().to_json(directory / FUNNEL, orient="records", indent=1)
    return dict(polarities.most_common())


def read_draws(store: ArtifactStore, generations: ArtifactRef) -> pd.DataFrame:
    """What became of the draws, by thinking mode; see :func:`~mralign_core.generation.outcomes.count_draws`."""
    return pd.DataFrame(json.loads(store.open_file(generations, "draws.json").read_text()))


@lru_cache(maxsize=1)  # every shard asks for them
def _distinct(storage: StorageConfig, questions: ArtifactRef) -> pd.DataFrame:
    return distinct_questions(_training_rows(storage, questions))


def _training_rows(storage: StorageConfig, questions: ArtifactRef) -> pd.DataFrame:
    frame = ArtifactStore(storage).read_table(questions, "questions.parquet")
    return frame[frame["split"] == "train"].reset_index(drop=True)


def _to_ask(num_failed: int) -> dict[str, int]:
    """What a manifest counts of draws that failed, all by the server's fault; refused ones are finished."""
    return {LEFT_OUT: num_failed, TO_ASK_AGAIN: num_failed} if num_failed else {}


def _ledger_name(questions: ArtifactRef) -> str:
    """One account for all sampling of these questions, whatever the settings."""
    return f"generate/{questions.sha256}"


class _Sampled:
    """How far the shards of one run are that this process samples, and how fast it is."""

    _runs: ClassVar[dict[str, _Sampled]] = {}

    def __init__(self) -> None:
        self.shards: dict[int, Tally] = {}
        self._found = Tally()
        self._started = 0.0

    @classmethod
    def of_run(cls, key: str) -> _Sampled:
        return cls._runs.setdefault(key, cls())

    def found(self, start: int, tally: Tally) -> None:
        """Count a shard that was in the store; it says nothing about the speed."""
        if start not in self.shards:
            self._found += tally
            self.shards[start] = tally

    def update(self, start: int, tally: Tally) -> Tally:
        """Note how far a shard is; returns the sum over all shards."""
        self._started = self._started or time.monotonic()  # not before the model is loaded
        self.shards[start] = tally
        return sum(list(self.shards.values()), Tally())  # a copy: other threads add shards meanwhile

    def note(self, total: Tally, of: int) -> str:
        """Speed, yield and time left, in words."""
        seconds = time.monotonic() - self._started
        made = total.questions - self._found.questions
        parts = [
            f"{(total.tokens - self._found.tokens) / max(seconds, 1e-9):,.0f} tokens/s",
            f"{total.positive:,} positive and {total.negative:,} negative questions",
        ]
        if made:
            parts.append(f"{timedelta(seconds=round(seconds / made * (of - total.questions)))} left")
        return " · ".join(parts)
