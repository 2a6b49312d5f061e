"""Sampling in shards, and the selection of training traces; no table of draws is ever held whole."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from mralign_core.config import RunConfig
from mralign_core.exporting.paths import is_export, traces_file
from mralign_core.exporting.restoring import restore_candidates
from mralign_core.generation.forecast import Load, Rates, estimate_load
from mralign_core.generation.funnel import Funnel, imbalance, require_both_polarities
from mralign_core.generation.importing import import_traces
from mralign_core.generation.outcomes import COUNTED, count_draws, describe_draws
from mralign_core.generation.sampling import Tally, sample_questions, tally_draws
from mralign_core.generation.select_traces import (
    SELECTION_REMEDY,
    STEPS,
    DrawRow,
    distinct_questions,
    select,
)
from mralign_core.generation.thinking_draws import DRAW_STEPS, DRAWS_REMEDY, select_draws
from mralign_core.models.families import family_fingerprint, family_of
from mralign_core.models.locate import locate_model
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.generations import GENERATIONS
from mralign_core.schemas.outcomes import FAILED
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN, ArtifactRef, ArtifactStore
from mralign_core.storage.quarantine import RowWriter, write_rows
from mralign_core.storage.tables import stream_table
from tasks.asked import Asked, asked
from tasks.clients import save_account, turn
from tasks.engine.graph import Input, OtherWay, Part, Shards
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, file_digests
from tasks.engine.shards import join, lay_out
from tasks.engine.task import artifact
from tasks.fields import all_but, other_samplers, pick, reading, served_or_loaded
from tasks.sampling import sampled_so_far, sampler_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("mralign_core.generation")
FUNNEL = "funnel.json"
"""Beside the candidates: what each step of the selection kept."""
DRAWS = "draws.json"
"""Beside the draws: what became of them, by thinking mode."""
ROWS_AT_ONCE = 1_000
"""Draws, or traces, in memory at a time where a table is read or written piece by piece."""
SELECTION = (
    "answer_match",
    "cut_off",
    "min_segments",
    "max_segments",
    "min_reasoning_tokens",
    "max_reasoning_tokens",
    "traces_per_question",
)
SAMPLING = (
    "mralign_core.generation.sampling",
    "mralign_core.generation.outcomes",
    "mralign_core.generation.open_sampler",
    "mralign_core.models.load",  # finds the tokens that end a sample
)


def _sampling(config: RunConfig) -> dict[str, Any]:
    # Which answers count as right decides which draws are made, where not all are.
    is_sequential = config.generate.draws == "sequential"
    skip = {*SELECTION, "source", "endpoint"} - ({"answer_match", "cut_off"} if is_sequential else set())
    fields = {**all_but(config.generate, *skip), **reading(config), "seed": config.seed}
    return {**fields, **served_or_loaded(config, config.generate)}


DRAWN: dict[str, Any] = {
    "fields": _sampling,
    "sources": SAMPLING,
    "without": other_samplers(lambda config: config.generate.sampler),
    "ask_again": lambda config: config.generate.ask_again,
}
"""What decides draws, in a shard and joined."""


def _to_sample(config: RunConfig, questions: ArtifactRef) -> Asked:
    return asked(config, questions, distinct_questions)


@artifact(
    "generations-shard",
    stage="generate",
    run_name="generate {rows}",
    options=("of",),
    inputs=(Input("questions", is_keyed=False), Input("model")),
    items=lambda config, inputs: _to_sample(config, inputs["questions"]).items,
    is_main=lambda config: config.generate.source == "sample",
    **DRAWN,
)
def sample_shard(making: Making) -> Built:
    """Sample some questions, of so many that this process samples, and score the draws.

    Of a stored shard whose draws failed in part, only those are asked for: the replies to the others are kept.
    """
    config, shard = making.config, making.work
    rows = _to_sample(config, making["questions"]).questions.iloc[list(shard.rows)]
    ledger_name = f"generate/{making['questions'].sha256}"  # one account for all sampling of these questions
    sampler = sampler_of(making.store, config, making["model"], stage="generate", ledger_name=ledger_name)
    sampled, num_questions = sampled_so_far(shard.line), making.options.get("of") or len(rows)
    with turn(making.store, ledger_name, config.generate), progress("sampling questions", "generation") as report:

        def on_progress(tally: Tally) -> None:
            total = sampled.update(shard.rows[0], tally)
            report(total.questions, num_questions, sampled.note(total, num_questions))

        frame = sample_questions(
            sampler, rows, config.generate, seed=config.seed, rules=config.match.rules, on_progress=on_progress
        )
    if config.generate.sampler == "endpoint":
        save_account(making.store, ledger_name, config.generate)
    write_rows(making.directory, "generations.parquet", frame, GENERATIONS)
    tally = sampled.shards[shard.rows[0]]
    return Built(GENERATIONS.name, tally._asdict() | _to_ask(int((frame["outcome"] == FAILED).sum())))


@artifact(
    "generations",
    stage="generate",
    inputs=(Input("questions"), Input("model")),
    parts=lambda config: ({},) if config.generate.source == "sample" else (),
    shards=Shards("generations-shard", lambda config: config.generate.shard_size),
    **DRAWN,
)
def collect_generations(making: Making) -> Built:
    """Join the draws of all questions, and count what came of them."""
    layout = lay_out(making.work, making.store)
    join(making.store, layout, making.directory, {"generations.parquet": GENERATIONS}, "question_id")
    path = making.directory / "generations.parquet"
    counts = count_draws(stream_table(path, GENERATIONS, COUNTED, ROWS_AT_ONCE))
    counts.to_json(making.directory / DRAWS, orient="records", indent=1)
    tally = tally_draws(_rows(path), making.config.generate)
    num_failed = int(counts[FAILED].sum())
    if num_failed:
        logger.warning("%d draw(s) failed: their questions stay undecided until a run asks again", num_failed)
    return Built(GENERATIONS.name, tally._asdict() | _to_ask(num_failed))


def _selection(config: RunConfig) -> dict[str, Any]:
    family = {"family": family_fingerprint(config.model)}
    if config.generate.source == "sample":
        return {**pick(config.generate, "source", "num_draws", *SELECTION), **family}
    return {
        **pick(config.generate, "source", "instruction", *SELECTION),
        **family,
        "match": config.match.fingerprint(),
        "on_overlap": config.questions.on_overlap,
    }


def _trace_file(config: RunConfig, _: Part) -> dict[str, str]:
    return file_digests(traces=traces_file(config.generate.traces_path)) if config.generate.source == "traces" else {}


def takes_export(config: RunConfig) -> bool:
    """Whether the traces are those of an export, which are taken as they are."""
    return config.generate.source == "traces" and is_export(config.generate.traces_path)


def restore_export(making: Making) -> Built:
    """Take the traces of an export, as they are."""
    from mralign_core.models.load import load_tokenizer

    config, location = making.config, locate_model(making.store.open_directory(making["model"]))
    counts = restore_candidates(
        config.generate.traces_path,
        making.directory,
        load_tokenizer(location.path, location.revision),
        config.generate,
        making.table("evaluation-questions", "questions.parquet"),
        config.questions.on_overlap,
    )
    return Built(CANDIDATES.name, counts)


@artifact(
    "candidates",
    stage="generate",
    inputs=(
        Input("questions"),
        Input("model"),
        Input("generations", when=lambda config, _: config.generate.source == "sample"),
        Input("evaluation-questions", when=lambda config, _: config.generate.source == "traces"),
    ),
    fields=_selection,
    details=_trace_file,
    sources=(
        "mralign_core.generation.select_traces",
        "mralign_core.generation.importing",
        "mralign_core.models.load",  # the tokenizer, by which segments have their tokens
        "mralign_core.schemas.generations",
    ),
    without=lambda config: ("mralign_core.generation.importing",) if config.generate.source == "sample" else (),
    is_main=lambda config: config.generate.source == "traces",
    other_way=OtherWay(
        takes_export,
        restore_export,
        ("mralign_core.exporting.restoring", "mralign_core.models.load"),  # the tokenizer, by which traces are decoded
    ),
)
def select_candidates(making: Making) -> Built:
    """Keep the traces of questions that thinking makes right, or wrong; or import traces from a file."""
    from mralign_core.models.load import load_tokenizer

    location = locate_model(making.store.open_directory(making["model"]))
    tokenizer = load_tokenizer(location.path, location.revision)
    keep = _select if making.get("generations") else _import
    return Built(CANDIDATES.name, keep(making, tokenizer))


def _import(making: Making, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Write the candidates that the file of traces gives, and their yield; returns their number by polarity."""
    config, directory = making.config, making.directory
    imported = import_traces(
        config.generate.traces_path,
        tokenizer,
        config.generate,
        family_of(config.model, tokenizer),
        config.match.rules,
        making.table("evaluation-questions", "questions.parquet"),
        config.questions.on_overlap,
    )
    write_rows(directory, "candidates.parquet", imported.candidates, CANDIDATES)
    imported.funnel.to_json(directory / FUNNEL, orient="records", indent=1)
    return dict(Counter(imported.candidates["polarity"]).most_common())


def _select(making: Making, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Write the candidates that the draws give, and their yield; returns their number by polarity."""
    config, funnel = making.config, Funnel(STEPS)
    kept = select(
        _rows(making.file("generations", "generations.parquet")),
        making.table("questions", "questions.parquet"),
        config.generate,
        tokenizer,
        family_of(config.model, tokenizer),
        funnel,
    )
    draws = describe_draws(read_draws(making.store, making["generations"]))
    return _write_traces(making, kept, funnel, f"{draws}\n{SELECTION_REMEDY}")


def _write_traces(making: Making, kept: Iterator[DrawRow], funnel: Funnel, remedy: str) -> dict[str, int]:
    """Write traces a few at a time, and their yield; returns their number by polarity, of which both must be there."""
    polarities: Counter[str] = Counter()
    with RowWriter(making.directory, "candidates.parquet", CANDIDATES) as candidates:
        while traces := list(islice(kept, ROWS_AT_ONCE)):
            candidates.add(pd.DataFrame(traces).astype(object))
            polarities.update(trace["polarity"] for trace in traces)
    require_both_polarities(polarities, funnel, remedy)
    funnel.frame().to_json(making.directory / FUNNEL, orient="records", indent=1)
    return dict(polarities.most_common())


def _of_draws(config: RunConfig) -> dict[str, Any]:
    of_a_trace = [name for name in SELECTION if name != "traces_per_question"]
    family = {"family": family_fingerprint(config.model)}
    return {**pick(config.generate, *of_a_trace), **pick(config.estimate, "traces"), **family}


@artifact(
    "thinking-draws",
    stage="generate",
    parts=lambda config: ({},) if config.estimate.uses_draws else (),
    inputs=(Input("questions"), Input("model"), Input("generations")),
    fields=_of_draws,
    sources=(
        "mralign_core.generation.thinking_draws",
        "mralign_core.models.load",  # the tokenizer, by which segments have their tokens
        "mralign_core.schemas.generations",
    ),
)
def select_thinking_draws(making: Making) -> Built:
    """Keep the think-on draws that matrices are estimated from in place of the candidates, each a trace like them."""
    from mralign_core.models.load import load_tokenizer

    config, funnel = making.config, Funnel(DRAW_STEPS)
    assert config.estimate.traces != "selected"
    location = locate_model(making.store.open_directory(making["model"]))
    tokenizer = load_tokenizer(location.path, location.revision)
    kept = select_draws(
        _rows(making.file("generations", "generations.parquet")),
        making.table("questions", "questions.parquet"),
        config.generate,
        config.estimate.traces,
        tokenizer,
        family_of(config.model, tokenizer),
        funnel,
    )
    return Built(CANDIDATES.name, _write_traces(making, kept, funnel, DRAWS_REMEDY))


def warn_of_imbalance(config: RunConfig, candidates: ArtifactRef) -> None:
    """Warn where few of the kept traces are of one polarity."""
    for text in notes_on_yield(config, candidates):
        logger.warning("%s", text)


def notes_on_yield(config: RunConfig, candidates: ArtifactRef) -> list[str]:
    """What is to be said where few of the kept traces are of one polarity, and P is estimated from them."""
    if config.estimate.uses_draws:
        return []
    return list(filter(None, [imbalance(ArtifactStore(config.storage).manifest(candidates).counts)]))


class SamplingLoad(NamedTuple):
    """What sampling takes by number of hosts, and whether the rates were measured on this run's own shards."""

    by_hosts: dict[int, Load]
    rates: Rates
    is_measured: bool


def sampling_load(
    config: RunConfig, questions: ArtifactRef, sampled: Sequence[ArtifactRef], tokens_per_second: float
) -> SamplingLoad:
    """What sampling will take on 1, 8 and ``generate.num_workers`` hosts.

    Args:
        config: the run config.
        questions: artifact of the questions.
        sampled: draws that are there, whose rates are taken for those of all.
        tokens_per_second: of one host.
    """
    store = ArtifactStore(config.storage)
    tally = sum((Tally.of(store.manifest(ref).counts) for ref in sampled), Tally())
    rates = Rates.measured(tally) if tally.questions else Rates.assumed(config.generate)
    num_questions = len(_to_sample(config, questions).questions)
    hosts = sorted({1, 8, config.generate.num_workers})
    by_hosts = {
        num_hosts: estimate_load(
            num_questions, config.generate, rates, tokens_per_second=tokens_per_second, num_hosts=num_hosts
        )
        for num_hosts in hosts
    }
    return SamplingLoad(by_hosts, rates, bool(tally.questions))


def read_draws(store: ArtifactStore, generations: ArtifactRef) -> pd.DataFrame:
    """What became of the draws, by thinking mode; see :func:`~mralign_core.generation.outcomes.count_draws`."""
    return pd.DataFrame(store.read_json(generations, DRAWS))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The draws in a file, one at a time."""
    batches = stream_table(path, GENERATIONS, list(GENERATIONS.columns), ROWS_AT_ONCE)
    return (row for batch in batches for row in batch.to_pylist())


def _to_ask(num_failed: int) -> dict[str, int]:
    """What a manifest counts of draws that failed, all by the server's fault; refused ones are finished."""
    return {LEFT_OUT: num_failed, TO_ASK_AGAIN: num_failed} if num_failed else {}
