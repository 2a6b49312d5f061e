"""Questions and the model: what the pipeline starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mralign_core.config import RunConfig
from mralign_core.evaluation.judge_sheet import PEOPLE_FIELD, check_judge_sheet
from mralign_core.generation.prompts import refuse_control_tokens, require_chat_endpoint
from mralign_core.judging.judge import check_judges
from mralign_core.models.families import family_of
from mralign_core.models.locate import (
    describe_model,
    file_content_digest,
    folder_digest,
    local_path,
    locate_model,
)
from mralign_core.pocket.quality import check_quality
from mralign_core.pocket.world import build_world
from mralign_core.questions.loading import QuestionSets, read_question_sets
from mralign_core.questions.locating import locate_sets
from mralign_core.retrieval.corpus import POCKET_CORPUS, corpus_files
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactRef, ArtifactStore, file_sha256, key_of
from mralign_core.storage.quarantine import write_rows
from tasks.engine.graph import Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import pick

GUESSABLE = "guessable.json"
"""Beside the questions: those with a yes/no gold answer or one that stands in the question, asked or not."""
OVERLAP = "overlap.json"
"""Beside the questions: those taken out of the training sets because they are evaluated on, a row a pair."""


def _world(config: RunConfig) -> dict[str, Any]:
    return pick(config.model.pocket, "world_seed", "overwrite_prob") if config.questions.asks_pocket else {}


def _contents(config: RunConfig, _: Part) -> dict[str, str]:
    """What each set is read from: a digest of its files, not the folder they are in; or the hub id."""
    return {
        f"{one.role} {one.label}": key_of(files=[(path.name, file_sha256(path)) for path in one.files])
        if one.files
        else one.hub_id
        for one in locate_sets(config.questions)
    }


def _not_asked(config: RunConfig) -> tuple[str, ...]:
    return () if config.questions.asks_pocket else ("mralign_core.pocket.world",)


@artifact(
    "questions",
    stage="prepare",
    fields=lambda config: {**config.questions.fingerprint(), "pocket": _world(config)},
    details=_contents,
    sources=("mralign_core.questions.loading",),
    without=_not_asked,
)
def load_questions(making: Making) -> Built:
    """Read and check the questions to align on; refuse, or take out, those that are evaluated on."""
    sets = read_question_sets(making.config.questions, making.config.model.pocket, making.config.judge)
    write_rows(making.directory, "questions.parquet", sets.of("train"), QUESTIONS)
    sets.overlap.to_json(making.directory / OVERLAP, orient="records", indent=1, force_ascii=False)
    _list_guessable(making, sets, "train")
    return Built(QUESTIONS.name, sets.counts("train"))


def _list_guessable(making: Making, sets: QuestionSets, split: str) -> None:
    path = making.directory / GUESSABLE
    sets.guessable_of(split).to_json(path, orient="records", indent=1, force_ascii=False)


def _held_out_contents(config: RunConfig, part: Part) -> dict[str, Any]:
    """The contents of these sets; and whether there are others, since ids then say of which set they are."""
    contents = {name: digest for name, digest in _contents(config, part).items() if name.startswith("eval ")}
    return {**contents, "beside training sets": bool(config.questions.train)}


@artifact(
    "evaluation-questions",
    stage="prepare",
    fields=lambda config: {**pick(config.questions, "eval", "on_guessable"), "pocket": _world(config)},
    details=_held_out_contents,
    sources=("mralign_core.questions.loading",),
    without=_not_asked,
)
def load_evaluation_questions(making: Making) -> Built:
    """Read and check the questions to evaluate on; none where no set is named."""
    sets = read_question_sets(making.config.questions, making.config.model.pocket, making.config.judge)
    write_rows(making.directory, "questions.parquet", sets.of("eval"), QUESTIONS)
    _list_guessable(making, sets, "eval")
    return Built(QUESTIONS.name, sets.counts("eval"))


def _model(config: RunConfig) -> dict[str, Any]:
    source = config.model.source
    names = {"pocket": ("pocket",), "hub": ("path", "revision"), "smollm2": ()}[source]
    return {"source": source, **pick(config.model, *names)}


def _weights_at_hand(config: RunConfig, _: Part) -> dict[str, str]:
    """Of a local folder or file the contents count, not only its name."""
    local = local_path(config.model)
    if local is None:
        return {}
    return {"folder": folder_digest(local)} if local.is_dir() else {"file": file_content_digest(local)}


@artifact(
    "model",
    stage="prepare",
    fields=_model,
    details=_weights_at_hand,
    sources=("mralign_core.models.locate", "mralign_core.pocket.model", "mralign_core.pocket.quality"),
    without=lambda config: () if config.model.source == "pocket" else ("mralign_core.pocket",),
    is_main=lambda _: True,
)
def prepare_model(making: Making) -> Built:
    """Build the pocket model and pass its quality gates, or pin down the model that the config names."""
    from mralign_core.generation.checking import check_weights
    from mralign_core.generation.transformers_sampler import TransformersSampler
    from mralign_core.models.load import load_model_and_tokenizer
    from mralign_core.pocket.model import train_pocket_model

    config, directory = making.config, making.directory
    if config.model.source != "pocket":
        revision = describe_model(config.model, directory)
        location = locate_model(directory)
        if Path(location.path).is_dir():
            check_weights(Path(location.path))
        return Built(model_revision=revision)
    pocket = config.model.pocket
    world = build_world(pocket.world_seed, pocket.overwrite_prob, pocket.popular_share, pocket.misconception_share)
    with progress("pretraining the pocket model", "pretraining") as report:
        counts = train_pocket_model(
            world,
            steps=pocket.pretrain_steps,
            seed=pocket.world_seed,
            directory=directory,
            architecture=pocket.architecture,
            num_layers=pocket.num_layers,
            on_progress=report,
        )
    model, tokenizer = load_model_and_tokenizer(directory, "float32", "cpu")
    sampler = TransformersSampler(model, tokenizer, batch_size=128, family=family_of(config.model, tokenizer))
    return Built(counts={**counts, **check_quality(world, sampler, pocket)})


def check_prompts(
    config: RunConfig, questions: ArtifactRef, model: ArtifactRef, evaluation_questions: ArtifactRef | None = None
) -> None:
    """Refuse a tokenizer, a chat template or questions that don't go with the model, before anything is spent.

    Raises:
        ConfigError: see :mod:`mralign_core.generation.checking`; or the template runs for ever, or can't be asked for a
            thinking mode at the endpoint that samples.
        DataError: sampler ``endpoint`` is to ask questions that spell out control tokens.
    """
    if config.model.source == "pocket":
        return
    from mralign_core.generation.checking import check_tokens
    from mralign_core.generation.template_probe import probe_template
    from mralign_core.models.load import load_tokenizer

    store = ArtifactStore(config.storage)
    location = locate_model(store.open_directory(model))
    tokenizer = load_tokenizer(location.path, location.revision)
    probe_template(location.path, location.revision, config.model, config.generate.instruction)
    family = family_of(config.model, tokenizer)
    check_tokens(location, tokenizer, family)
    generates = config.generate.sampler == "endpoint" and config.generate.source == "sample"
    evaluates = config.evaluate.sampler == "endpoint"
    asking = {"generate.endpoint": questions if generates else None}
    asking |= {"evaluate.endpoint": evaluation_questions if evaluates else None}
    for field, ref in asking.items():
        if ref:
            asked = store.read_table(ref, "questions.parquet")
            refuse_control_tokens(tokenizer, zip(asked["question_id"], asked["question"], strict=True), family, field)
    if generates or evaluates:
        require_chat_endpoint(tokenizer, family, config.generate.instruction)


def check_evaluation(config: RunConfig) -> None:
    """Refuse, before anything is spent, what evaluation reads and asks beside the model.

    Raises:
        ConfigError: a judge can't be asked.
        DataError: ``evaluate.retrieval.corpus`` is not there, or has nothing that can be read; or
            ``evaluate.people_sheet`` is no filled sheet.
    """
    if not config.questions.eval:
        return
    check_judges(config.judge)
    if (corpus := config.evaluate.retrieval.corpus) and corpus != POCKET_CORPUS:
        corpus_files(Path(corpus))
    if sheet := config.evaluate.people_sheet:
        check_judge_sheet(Path(sheet), PEOPLE_FIELD)


def check_training(config: RunConfig, model: ArtifactRef) -> None:
    """Refuse what training would refuse, before hours of sampling and annotation.

    Raises:
        ConfigError: ``train.target_modules`` names a module that the model does not have, or the weights alone do not
            fit the device that this process would train on.
    """
    from mralign_core.models.lora import check_target_modules
    from mralign_core.training.footprint import check_weights_fit

    location = locate_model(ArtifactStore(config.storage).open_directory(model))
    check_target_modules(location.path, config.train.target_modules, revision=location.revision)
    if config.train.where == "inline" and not config.train.accelerate_config:
        check_weights_fit(
            location.path,
            config.model.dtype,
            config.model.device,
            load_in_4bit=config.train.load_in_4bit,
            revision=location.revision,
        )
