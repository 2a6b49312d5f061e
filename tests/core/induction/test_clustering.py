"""Clusters by density on the sphere, their silhouette, and the map."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from mralign_core.induction.clustering import NOISE, cluster, cosine_distances, place_on_map


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def three_clouds():
    """Three tight clouds of 8 directions in 16 dimensions, and 4 directions of their own."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(16)[:3], 8, axis=0)
    alone = np.eye(16)[8:12]
    return unit(np.vstack([centres + 0.05 * rng.normal(size=centres.shape), alone]))


def test_clouds_are_found_and_what_stands_alone_is_noise(three_clouds):
    found = cluster(three_clouds, min_samples=4, xi=0.05)
    assert found.num_clusters == 3
    clouds = [set(found.assignment[start : start + 8]) for start in (0, 8, 16)]
    assert [len(cloud) for cloud in clouds] == [1, 1, 1] and len(set.union(*clouds)) == 3
    # The xi method may count the first label after a cluster to it.
    assert (found.assignment[24:] == NOISE).sum() >= 3


def test_silhouette_is_the_mean_over_labels_that_are_no_noise(three_clouds):
    found = cluster(three_clouds, min_samples=4, xi=0.05)
    inside = found.assignment != NOISE
    expected = silhouette_samples(three_clouds[inside], found.assignment[inside], metric="cosine").mean()
    assert found.silhouette == pytest.approx(expected) and expected > 0.7
    assert found.note == ""


@pytest.mark.parametrize(("num_labels", "why"), [(8, "two clusters or more"), (2, "fewer than min_samples")])
def test_without_two_clusters_there_is_no_silhouette_and_a_reason(three_clouds, num_labels, why):
    found = cluster(three_clouds[:num_labels], min_samples=4, xi=0.05)
    assert found.silhouette is None and why in found.note


def test_length_of_vectors_does_not_matter_only_direction():
    vectors = np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]])
    assert cosine_distances(unit(vectors)) == pytest.approx(np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]]), abs=1e-12)


def test_the_map_keeps_clouds_apart_and_is_the_same_for_a_seed(three_clouds):
    places = place_on_map(three_clouds, seed=3)
    assert np.array_equal(places, place_on_map(three_clouds, seed=3))
    centres = np.array([places[start : start + 8].mean(axis=0) for start in (0, 8, 16)])
    spread = max(np.linalg.norm(places[s : s + 8] - c, axis=1).max() for s, c in zip((0, 8, 16), centres, strict=True))
    assert np.linalg.norm(centres[0] - centres[1]) > spread


@pytest.mark.parametrize("num_labels", [0, 1, 3, 4])
def test_few_labels_have_places_too(three_clouds, num_labels):
    places = place_on_map(three_clouds[:num_labels], seed=0)
    assert places.shape == (num_labels, 2) and np.isfinite(places).all()
