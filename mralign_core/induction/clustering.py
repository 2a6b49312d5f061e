"""Clusters of open labels by OPTICS on cosine distance, how well they hold together, and a map of them (App. B.1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOISE = -1
LEAST_FOR_MAP = 4
"""Fewer labels stand in a row on the map."""
MAX_PERPLEXITY = 15.0
"""t-SNE's number of neighbours; clusters of labels are small."""


class Clustering(NamedTuple):
    """Cluster of each label, 0 … num_clusters − 1 or ``NOISE``; ``note`` says why there is no silhouette."""

    assignment: NDArray[np.int64]
    silhouette: float | None
    note: str = ""

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return int(self.assignment.max(initial=NOISE)) + 1


def cluster(vectors: NDArray[np.float64], *, min_samples: int, xi: float) -> Clustering:
    """Cluster unit vectors by density.

    Args:
        vectors: shape (labels, dimensions).
        min_samples: labels in a neighbourhood that make it dense, and fewest labels of a cluster.
        xi: relative drop in reachability that bounds a cluster.

    >>> ring = np.array([[np.cos(a), np.sin(a)] for a in (0.0, 0.01, 0.02, 1.5, 1.51, 1.52)])
    >>> cluster(ring, min_samples=2, xi=0.05).num_clusters
    2
    """
    from sklearn.cluster import OPTICS

    if len(vectors) < min_samples:
        return Clustering(np.full(len(vectors), NOISE), None, f"{len(vectors)} label(s) are fewer than min_samples")
    optics = OPTICS(min_samples=min_samples, xi=xi, metric="precomputed")
    assignment = optics.fit_predict(cosine_distances(vectors)).astype(np.int64)
    return Clustering(assignment, *_silhouette(vectors, assignment))


def cosine_distances(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """One minus the cosine, of unit vectors: shape (labels, labels), exactly 0 on the diagonal and symmetric."""
    distances = np.clip(1 - vectors @ vectors.T, 0, 2)
    np.fill_diagonal(distances, 0)
    symmetric: NDArray[np.float64] = (distances + distances.T) / 2
    return symmetric


def place_on_map(vectors: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Places in the plane, shape (labels, 2), where labels that are near by cosine distance are near, by t-SNE."""
    from sklearn.manifold import TSNE

    num_labels = len(vectors)
    if num_labels < LEAST_FOR_MAP:
        return np.column_stack([np.arange(num_labels), np.zeros(num_labels)])
    perplexity = min(MAX_PERPLEXITY, (num_labels - 1) / 3)
    tsne = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=seed)
    places: NDArray[np.float64] = tsne.fit_transform(cosine_distances(vectors)).astype(np.float64)
    return places


def _silhouette(vectors: NDArray[np.float64], assignment: NDArray[np.int64]) -> tuple[float | None, str]:
    """Mean silhouette by cosine distance over the labels that are no noise, or None and the reason."""
    from sklearn.metrics import silhouette_score

    inside = assignment != NOISE
    num_clusters = len(set(assignment[inside]))
    if num_clusters < 2:
        return None, f"a silhouette needs two clusters or more, there is {num_clusters or 'none'}"
    distances = cosine_distances(vectors[inside])
    return float(silhouette_score(distances, assignment[inside], metric="precomputed")), ""
