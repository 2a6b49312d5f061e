"""The snippets that variants with retrieval are shown: searched once, and the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mralign_core.config import RunConfig
from mralign_core.models.families import family_of
from mralign_core.models.locate import locate_model
from mralign_core.retrieval.corpus import CORPUS_FIELD, POCKET_CORPUS
from mralign_core.retrieval.searching import open_retriever, snippets_of_questions
from mralign_core.retrieval.steering import refuse_steering_snippets
from mralign_core.schemas.snippets import SNIPPETS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.engine.graph import NOTHING, Input, Part
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making
from tasks.engine.task import artifact
from tasks.fields import collection, pick

FILE = "snippets.parquet"


def _parts(config: RunConfig) -> Sequence[Part]:
    return [NOTHING] if config.evaluate.retrieval.corpus and config.questions.eval else []


def _contents(config: RunConfig, _: Part) -> dict[str, Any]:
    """What is searched in, and what ranks it."""
    return {"corpus": collection(config, config.evaluate.retrieval.corpus, CORPUS_FIELD)}


@artifact(
    "snippets",
    stage="evaluate",
    parts=_parts,
    inputs=(Input("evaluation-questions"),),
    fields=lambda config: pick(config.evaluate.retrieval, "top_k"),
    details=_contents,
    sources=("mralign_core.retrieval.searching",),
    without=lambda config: () if config.evaluate.retrieval.corpus == POCKET_CORPUS else ("mralign_core.pocket",),
)
def find_snippets(making: Making) -> Built:
    """Search the text collection for every held-out question."""
    config, questions = making.config, making.table("evaluation-questions", "questions.parquet")
    with progress("indexing the text collection", "indexing") as report:
        retriever = open_retriever(config.evaluate.retrieval.corpus, config.model.pocket, CORPUS_FIELD, report)
    with progress("searching for snippets", "searching") as report:
        found = snippets_of_questions(retriever, questions, config.evaluate.retrieval.top_k, report)
    write_table(making.directory, FILE, found, SNIPPETS)
    num_empty = len(questions) - found["question_id"].nunique()
    return Built(SNIPPETS.name, {"pieces searched": len(retriever), "questions without snippets": num_empty})


def check_snippets(config: RunConfig, snippets: ArtifactRef, model: ArtifactRef) -> None:
    """Where a server is to be asked with snippets, refuse those that it would obey, before anything is spent.

    Raises:
        DataError: names their documents.
    """
    if config.evaluate.sampler != "endpoint":
        return
    from mralign_core.models.load import load_tokenizer

    store = ArtifactStore(config.storage)
    location = locate_model(store.open_directory(model))
    tokenizer = load_tokenizer(location.path, location.revision)
    refuse_steering_snippets(tokenizer, store.read_table(snippets, FILE), family_of(config.model, tokenizer))
