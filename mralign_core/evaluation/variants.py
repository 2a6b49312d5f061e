"""What answers held-out questions: the model as it is, in several ways, and each trained adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mralign_core.config import RunConfig

BASELINES = ("off", "on")
"""The model as it is, without thinking and with it."""
SELF_REFINE = "self_refine"
"""The model as it is, with thinking, which mends its answers by feedback of its own."""
WITH_SNIPPETS = {"on_retrieval": "on", "mr_align_retrieval": "mr_align"}
"""Variant that is shown snippets of a text collection → the one that is shown the question alone."""


def variants_to_score(config: RunConfig, trained: Sequence[str] | None = None) -> tuple[str, ...]:
    """The baselines and the trained variants, and behind each what else is to be made of it; none where no question is
    held out.

    Args:
        config: the run config.
        trained: the trained variants; those of the config when None.
    """
    plain = (*BASELINES, *(config.train.variants if trained is None else trained)) if config.questions.eval else ()
    return tuple(variant for each in plain for variant in (each, *_made_of(each, config)))


def variants_to_judge(config: RunConfig) -> tuple[str, ...]:
    """The variants whose answers are judged; none where no judge is named."""
    return variants_to_score(config) if config.judge.endpoints else ()


def adapter_of(variant: str) -> str:
    """The variant whose adapter it answers with; "" where it answers with the model as it is.

    >>> adapter_of("self_refine"), adapter_of("on_retrieval"), adapter_of("mr_align_retrieval"), adapter_of("kto")
    ('', '', 'mr_align', 'kto')
    """
    own = WITH_SNIPPETS.get(variant, variant)
    return "" if own in (*BASELINES, SELF_REFINE) else own


def is_trained(variant: str) -> bool:
    """Whether it is an adapter's, asked as think-on is.

    >>> [name for name in ("off", "on", "self_refine", "kto", "mr_align", "mr_align_retrieval") if is_trained(name)]
    ['kto', 'mr_align']
    """
    return adapter_of(variant) == variant


def _made_of(variant: str, config: RunConfig) -> Iterator[str]:
    if variant == "on" and config.evaluate.self_refine.rounds is not None:
        yield SELF_REFINE
    if config.evaluate.retrieval.corpus:
        yield from (shown for shown, own in WITH_SNIPPETS.items() if own == variant)
