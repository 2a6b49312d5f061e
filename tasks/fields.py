"""Fields of the config that several artifacts depend on, as their keys have them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from mralign_core.config import EvaluateConfig, GenerateConfig, RunConfig, Section
from mralign_core.label_sets import label_set_of
from mralign_core.models.families import family_fingerprint
from mralign_core.retrieval.corpus import POCKET_CORPUS, corpus_digest

TRANSPORT = (
    "mralign_core.llm.batch",
    "mralign_core.llm.batch_endpoint",
    "mralign_core.llm.batch_items",
    "mralign_core.llm.batch_lines",
)
"""The batch API: how requests travel, which changes no key, as ``use_batch_api`` doesn't. What a reply says is read by
the same code either way, which is in the keys."""


def pick(section: Section, *names: str) -> dict[str, Any]:
    """Some fields of a section."""
    values = section.fingerprint()
    return {name: values[name] for name in names}


def all_but(section: Section, *names: str) -> dict[str, Any]:
    """The fields of a section that can change a result, without some."""
    return {name: value for name, value in section.fingerprint().items() if name not in names}


def collection(config: RunConfig, corpus: str, field: str) -> Any:
    """What is searched in, the digest of its files, not their place, or which pocket world; and what ranks it.

    Args:
        config: the run config.
        corpus: a file or folder, or :data:`~mralign_core.retrieval.corpus.POCKET_CORPUS`; "" for none.
        field: of the config that names it, for messages.
    """
    if not corpus:
        return ""
    is_pocket = corpus == POCKET_CORPUS
    contents = pick(config.model.pocket, "world_seed", "overwrite_prob") if is_pocket else corpus_digest(corpus, field)
    return {"contents": contents, "ranked_by": f"bm25s {version('bm25s')}"}


def reading(config: RunConfig) -> dict[str, Any]:
    """How a completion is asked for, taken apart and compared with the gold answers."""
    return {"family": family_fingerprint(config.model), "match": config.match.fingerprint()}


def served_or_loaded(config: RunConfig, section: GenerateConfig | EvaluateConfig) -> dict[str, Any]:
    """What samples in a stage: a server, which has a precision of its own, or the model as it is loaded."""
    if section.sampler != "endpoint":
        return pick(config.model, "dtype")
    if config.vllm.starts_for(section):  # serves the model as it is, whatever its name
        return {"endpoint": all_but(section.endpoint, "model"), **pick(config.model, "dtype")}
    return {"endpoint": section.endpoint.fingerprint()}


def labels(config: RunConfig) -> dict[str, Any]:
    """The label set, by its contents."""
    return {"label_set": label_set_of(config).fingerprint()}


def clipped_ratios(config: RunConfig) -> dict[str, Any]:
    """What the weights are made of, before their form, a placebo or normalisation, with all questions."""
    return all_but(config.reward, "form", "gamma", "placebo", "normalize", "leave_own_question_out")


def without_pocket(config: RunConfig) -> tuple[str, ...]:
    """The pocket world's modules, of which matrices depend only if they are made of its grammar's own values."""
    return () if config.estimate.estimator == "oracle" else ("mralign_core.pocket",)


def other_samplers(used: Callable[[RunConfig], str]) -> Callable[[RunConfig], tuple[str, ...]]:
    """The modules of the samplers that a config does not use, of which keys don't depend, nor of how servers are told.

    Args:
        used: the sampler that a config uses.
    """

    def without(config: RunConfig) -> tuple[str, ...]:
        names = [name for name in ("transformers", "vllm", "endpoint") if name != used(config)]
        asking = TRANSPORT if used(config) == "endpoint" else ("mralign_core.llm",)
        return (*(f"mralign_core.generation.{name}_sampler" for name in names), *asking, "mralign_core.serving")

    return without
