"""A label set from traces: open labels, embedded, clustered, named (App. B.1).

The paper, with 2,000 traces: 23,878 labels in 2,473 kinds, those given five times or more embedded with bge-m3 and
clustered by OPTICS on cosine distance, silhouette 0.4861. It gives no settings of OPTICS; ours are in the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mralign_core.config import InduceConfig
from mralign_core.errors import DataError
from mralign_core.induction import lexical  # noqa: F401  makes the offline models known
from mralign_core.induction.asking import Answer
from mralign_core.induction.clustering import NOISE, Clustering, cluster, place_on_map
from mralign_core.induction.embedding import embed
from mralign_core.induction.naming import InducedLabel, join_labels, make_label_set, name_clusters, named_by_phrase
from mralign_core.induction.open_labels import OpenLabels, label_openly, sample_traces
from mralign_core.label_sets import LabelSet
from mralign_core.llm.client import LLMClient
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.store import KeepsRecords, KeepsReplies

NAMING = "naming"
"""What failed, where no trace did, in the list of failures."""
OPEN_LABEL_COLUMNS = ["open_label", "count", "is_kept", "cluster", "is_noise", "label", "x", "y"]


class Induction(NamedTuple):
    """A new label set and how it came about.

    ``open_labels`` has a row for every open label (``OPEN_LABEL_COLUMNS``), most frequent first: ``cluster``, ``label``
    and the place on the map are null where it was too rare, ``label`` is null for noise too. ``failures`` maps what
    failed (a trace_id, or "naming") to its problem. ``cost_usd`` is what this call paid.
    """

    label_set: LabelSet
    labels: list[InducedLabel]
    open_labels: pd.DataFrame
    counts: dict[str, Any]
    failures: dict[str, str]
    cost_usd: float

    def description(self) -> dict[str, Any]:
        """How the labels came about, as JSON: the labels with their phrases, noise, what was too rare, failures."""
        rows = self.open_labels
        return {
            "counts": self.counts,
            "labels": [{**label._asdict(), "num_instances": label.num_instances} for label in self.labels],
            "noise": _counts_by_label(rows[rows["is_noise"]]),
            "too_rare": _counts_by_label(rows[~rows["is_kept"]]),
            "failures": self.failures,
        }


def _counts_by_label(rows: pd.DataFrame) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(rows["open_label"], rows["count"], strict=True)}


def induce_label_set(
    candidates: pd.DataFrame,
    section: InduceConfig,
    *,
    seed: int,
    replies: KeepsReplies,
    ledger: Ledger | None = None,
    batches: KeepsRecords | None = None,
    first_pause_s: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Induction:
    """Induce a label set from traces.

    Implements App. B.1 of arXiv 2510.24794. Every reply is kept before it is read, so a call that is repeated after
    an error sends only the requests that have no reply yet.

    Args:
        candidates: table ``candidates``.
        section: labeller, embedder, clustering, namer.
        seed: seed of the draw of traces and of the map.
        replies: where replies are kept and looked up.
        ledger: the account that requests are paid from; without one, nothing is limited.
        batches: where batches under way are recorded, for a labeller or namer that uses a batch API.
        first_pause_s: pause before the second attempt at a request.
        on_progress: called with (done, total) as traces are labelled.

    Raises:
        ConfigError: a model is unknown, lacks its API key or a price, or can't be loaded.
        DataError: no trace could be labelled, or there is no cluster to name.
        UserError: an endpoint refused a request in a way that repeating can't help, or the budget is used up.
        EndpointUnavailableError: an endpoint stayed out of reach.
    """
    from mralign_core.induction.embedding_endpoint import Embeddings  # takes seconds: see its docstring

    _check_models(section)
    options: Any = {"concurrency": section.concurrency, "ledger": ledger, "first_pause_s": first_pause_s}
    client = LLMClient(replies, batches=batches, **options)
    sample = sample_traces(candidates, section.num_traces, seed)
    found = label_openly(sample, section.labeller, client, on_progress, section.ask_again)
    kept = _frequent(found.counts, section.min_frequency)
    vectors, embedding_usd = embed(kept, section, LLMClient(replies, service=Embeddings(), **options))
    clustering = cluster(vectors, min_samples=section.min_samples, xi=section.xi)
    clusters = _members(kept, clustering, found.counts)
    answer = name_clusters(clusters, section.namer, client, section.ask_again)
    labels = join_labels(clusters, answer.parsed or list(map(named_by_phrase, range(len(clusters)), clusters)))
    return Induction(
        make_label_set(labels),
        labels,
        _open_label_rows(found.counts, labels, clusters, dict(zip(kept, place_on_map(vectors, seed), strict=True))),
        _counts(found, len(kept), len(labels), clustering) | {"to_ask_again": found.num_to_ask + _is_to_ask(answer)},
        found.failures | ({} if answer.parsed else {NAMING: answer.problem}),
        found.cost_usd + embedding_usd + answer.cost_usd,
    )


def _is_to_ask(answer: Answer[Any]) -> bool:
    return answer.parsed is None and not answer.is_final


def _check_models(section: InduceConfig) -> None:
    from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

    roles = ("labeller", "namer", *(("embedding",) if section.embedder == "endpoint" else ()))
    for role in roles:
        api.check_endpoint(getattr(section, role), f"induce.{role}")


def _frequent(counts: Mapping[str, int], min_frequency: int) -> list[str]:
    kept = [phrase for phrase, count in counts.items() if count >= min_frequency]
    if not kept:
        most = max(counts.values(), default=0)
        raise DataError(
            f"none of {len(counts)} open labels was given induce.min_frequency {min_frequency} times, the commonest "
            f"one {most} times: lower it, or give more traces"
        )
    return kept


def _members(kept: Sequence[str], clustering: Clustering, counts: Mapping[str, int]) -> list[dict[str, int]]:
    """Phrase → count of each cluster; the cluster with most instances comes first."""
    clusters: list[dict[str, int]] = [{} for _ in range(clustering.num_clusters)]
    for phrase, number in zip(kept, clustering.assignment, strict=True):
        if number != NOISE:
            clusters[number][phrase] = counts[phrase]
    if not clusters:
        raise DataError(
            f"OPTICS found no cluster among {len(kept)} open labels: lower induce.min_samples or induce.min_frequency, "
            "raise induce.xi, or give more traces"
        )
    return sorted(clusters, key=lambda phrases: (-sum(phrases.values()), next(iter(phrases))))


def _open_label_rows(
    counts: Mapping[str, int],
    labels: Sequence[InducedLabel],
    clusters: Sequence[Mapping[str, int]],
    places: Mapping[str, NDArray[np.float64]],
) -> pd.DataFrame:
    cluster_of = {phrase: number for number, phrases in enumerate(clusters) for phrase in phrases}
    label_of = {phrase: label.name for label in labels for phrase in label.phrases}
    rows = []
    for phrase, count in counts.items():
        x, y = places.get(phrase, (None, None))
        is_noise = phrase in places and phrase not in cluster_of
        rows.append(
            (phrase, count, phrase in places, cluster_of.get(phrase), is_noise, label_of.get(phrase), x, y),
        )
    return pd.DataFrame(rows, columns=OPEN_LABEL_COLUMNS).astype({"cluster": "Int64", "x": float, "y": float})


def _counts(found: OpenLabels, num_kept: int, num_labels: int, clustering: Clustering) -> dict[str, Any]:
    return {
        "traces": found.num_traces,
        "failed_traces": len(found.failures),
        "segments": found.num_segments,
        "instances": sum(found.counts.values()),
        "distinct": len(found.counts),
        "kept": num_kept,
        "clusters": clustering.num_clusters,
        "noise": int((clustering.assignment == NOISE).sum()),
        "labels": num_labels,
        "silhouette": clustering.silhouette,
        "silhouette_note": clustering.note,
    }
