"""Sampling in shards, and the selection of training traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.generation import Decoding, SampleRequest
from mralign_core.generation.importing import import_traces
from mralign_core.generation.loading import load_tokenizer
from mralign_core.generation.scoring import score_samples
from mralign_core.generation.selecting import Selection, select
from mralign_core.generation.transformers_sampler import TransformersSampler, load_sampler
from mralign_core.models import limit_threads, locate_model, model_name
from mralign_core.questions.loading import refuse_overlap
from mralign_core.schemas import CANDIDATES, GENERATIONS, THINKING_MODES
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.caching import Built, Produced, Work, file_digests, shard_bounds, stage_task
from tasks.progress import progress
from tasks.quarantine import carry_over, write_rows


def open_sampler(
    store: ArtifactStore,
    config: RunConfig,
    model: ArtifactRef,
    batch_size: int,
    adapter: ArtifactRef | None = None,
) -> TransformersSampler:
    """Load the sampler of a run, with an adapter on top when one is given."""
    limit_threads(config.model)
    location = locate_model(store.open_directory(model), model_name(config.model))
    return load_sampler(
        location.path,
        revision=location.revision,
        dtype=config.model.dtype,
        device=config.model.device,
        batch_size=batch_size,
        instruction=config.generate.instruction,
        think_open=config.model.think_open,
        think_close=config.model.think_close,
        adapter_dir=store.open_directory(adapter) if adapter else None,
    )


def generation_shards(config: RunConfig, questions: ArtifactRef) -> list[tuple[int, int]]:
    """Row ranges of the training questions, one a shard; none when traces are imported."""
    if config.generate.source == "traces":
        return []
    return list(shard_bounds(len(training_questions(config, questions)), config.generate.shard_size))


def training_questions(config: RunConfig, questions: ArtifactRef) -> pd.DataFrame:
    """The questions to align on."""
    frame = ArtifactStore(config.storage).read_table(questions, "questions.parquet")
    return frame[frame["split"] == "train"].reset_index(drop=True)


def shard_work(config: RunConfig, questions: ArtifactRef, model: ArtifactRef, start: int, end: int) -> Work:
    """The draws of questions ``start`` to ``end``."""
    part = {"start": start, "end": end}
    return Work("generations-shard", config, {"questions": questions, "model": model}, part)


def generations_work(config: RunConfig, questions: ArtifactRef, model: ArtifactRef) -> Work:
    """The draws of all training questions."""
    return Work("generations", config, {"questions": questions, "model": model})


def candidates_work(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, generations: ArtifactRef | None
) -> Work:
    """The kept traces, from sampled draws or, without them, from the file of traces."""
    inputs = {"questions": questions, "model": model}
    if generations is None:
        return Work("candidates", config, inputs, file_digests(traces=config.generate.traces_path))
    return Work("candidates", config, {**inputs, "generations": generations})


@stage_task("generate-shard", "generate {start}–{end}")
def sample_shard(config: RunConfig, questions: ArtifactRef, model: ArtifactRef, start: int, end: int) -> Produced:
    """Sample questions ``start`` to ``end`` in both thinking modes, every draw, and score them."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        rows = training_questions(config, questions).iloc[start:end]
        requests = [
            SampleRequest(row.question_id, row.question, mode, draw)
            for mode in THINKING_MODES
            for row in rows.itertuples()
            for draw in range(config.generate.num_draws)
        ]
        sampler = open_sampler(store, config, model, config.generate.batch_size)
        with progress(f"sampling questions {start}–{end}", f"generate-{start}") as report:
            samples = sampler.sample(requests, Decoding.of(config.generate, config.seed), report)
        frame = score_samples(requests, samples, rows, config.model)
        write_rows(store, directory, "generations.parquet", frame, GENERATIONS)
        return Built(GENERATIONS.name, {"tokens": int(frame["completion_ids"].map(len).sum())})

    return shard_work(config, questions, model, start, end).produce(build)


@stage_task("collect-generations")
def collect_generations(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, shards: Sequence[ArtifactRef]
) -> Produced:
    """Join the shards into one table."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        frame = pd.concat([store.read_table(shard, "generations.parquet") for shard in shards], ignore_index=True)
        carry_over(store, shards, directory)
        write_rows(store, directory, "generations.parquet", frame, GENERATIONS)
        outcomes = frame.groupby(["thinking_mode", "outcome"]).size()
        return Built(GENERATIONS.name, {f"{mode} {what}": int(n) for (mode, what), n in outcomes.items()})

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
            imported = import_traces(config.generate.traces_path, tokenizer, config.generate, config.model)
            held_out = store.read_table(questions, "questions.parquet").query("split == 'eval'")
            refuse_overlap(imported.questions, held_out)
            selection = Selection(imported.candidates, imported.funnel)
        else:
            draws = store.read_table(generations, "generations.parquet")
            selection = select(draws, training_questions(config, questions), config.generate, tokenizer, config.model)
        write_rows(store, directory, "candidates.parquet", selection.candidates, CANDIDATES)
        selection.funnel.to_json(directory / "funnel.json", orient="records", indent=1)
        return Built(
            CANDIDATES.name,
            selection.candidates["polarity"].value_counts().to_dict(),
        )

    return candidates_work(config, questions, model, generations).produce(build)
