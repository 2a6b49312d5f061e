"""Questions and the model: what the pipeline starts from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mralign_core.config import QuestionsConfig, RunConfig
from mralign_core.generation.loading import load_model_and_tokenizer
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.models import describe_model, folder_digest, locate_model, model_name
from mralign_core.pocket.model import train_pocket_model
from mralign_core.pocket.quality import check_quality
from mralign_core.pocket.world import build_world
from mralign_core.questions import read_question_sets
from mralign_core.schemas import QUESTIONS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.lora import check_target_modules
from tasks.caching import Built, Produced, Work, file_digests, stage_task
from tasks.progress import progress
from tasks.quarantine import write_rows


def questions_work(config: RunConfig) -> Work:
    """The questions of a run."""
    files = file_digests(train=config.questions.train_path, eval=config.questions.eval_path)
    return Work("questions", config, part=files)


def model_work(config: RunConfig) -> Work:
    """The model of a run; of a local folder the contents count, not only its name."""
    folder = Path(config.model.path)
    is_folder = config.model.source == "hub" and folder.is_dir()
    return Work("model", config, part={"folder": folder_digest(folder)} if is_folder else {})


@stage_task("load-questions")
def load_questions(config: RunConfig) -> Produced:
    """Read and check the questions to align on and to evaluate on; refuse an overlap."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        if config.questions.source == "pocket":
            pocket = config.model.pocket
            frame = _first(build_world(pocket.world_seed, pocket.overwrite_prob).questions_frame(), config.questions)
        else:
            frame = read_question_sets(config.questions, needs_train=config.generate.source == "sample")
        write_rows(store, directory, "questions.parquet", frame, QUESTIONS)
        return Built(QUESTIONS.name, frame["split"].value_counts().to_dict())

    return questions_work(config).produce(build)


def _first(frame: pd.DataFrame, section: QuestionsConfig) -> pd.DataFrame:
    """The first so many questions of each split, as the limits say."""
    limits = {"train": section.train_limit, "eval": section.eval_limit}
    rank = frame.groupby("split").cumcount()
    allowed = frame["split"].map(lambda split: limits[split] or len(frame))
    return frame[rank < allowed].reset_index(drop=True)


@stage_task("prepare-model")
def prepare_model(config: RunConfig) -> Produced:
    """Build the pocket model and pass its quality gates, or pin down the model that the config names."""

    def build(store: ArtifactStore, directory: Path) -> Built:
        if config.model.source != "pocket":
            return Built(model_revision=describe_model(config.model, directory))
        pocket = config.model.pocket
        world = build_world(pocket.world_seed, pocket.overwrite_prob)
        with progress("pretraining the pocket model", "pretraining") as report:
            counts = train_pocket_model(
                world,
                steps=pocket.pretrain_steps,
                seed=pocket.world_seed,
                directory=directory,
                on_progress=report,
            )
        model, tokenizer = load_model_and_tokenizer(directory, "float32", "cpu")
        quality = check_quality(world, TransformersSampler(model, tokenizer, batch_size=128), pocket)
        return Built(counts={**counts, **quality})

    return model_work(config).produce(build)


def check_training(config: RunConfig, model: ArtifactRef) -> None:
    """Refuse what training would refuse, before hours of sampling and annotation.

    Raises:
        ConfigError: ``train.target_modules`` names a module that the model does not have.
    """
    location = locate_model(ArtifactStore(config.storage).open_directory(model), model_name(config.model))
    check_target_modules(location.path, config.train.target_modules, revision=location.revision)
