"""Pooling and prototypes against loops, and k-means against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from mtkv.fuse.prototypes import first, kmeans, pool, prototypes_of, query_of

SAMPLE = torch.tensor([0, 0, 2, 2, 2])  # samples 1 and 3 have no token


def test_pool_is_the_mean_over_a_samples_tokens_and_zero_without_tokens():
    x = torch.randn(5, 2, 3)
    pooled = pool(x, SAMPLE, 4)
    torch.testing.assert_close(pooled[0], x[:2].mean(0).flatten())
    torch.testing.assert_close(pooled[2], x[2:].mean(0).flatten())
    assert pooled[1].abs().sum() == pooled[3].abs().sum() == 0


def test_first_is_a_samples_first_token_and_zero_without_tokens():
    x = torch.randn(5, 2, 3)
    found = first(x, SAMPLE, 4)
    torch.testing.assert_close(found, torch.stack([x[0], 0 * x[0], x[2], 0 * x[0]]).flatten(1))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("method", ["mean", "cls", "kmeans"])
def test_prototypes_are_each_teachers_tokens_of_the_same_sample_in_the_querys_space(method, per_layer):
    layers, width, teachers = 3, 4, 2
    kvs = torch.randn(5, teachers, layers, 2, width)
    found = prototypes_of(kvs, SAMPLE, 4, method, per_layer, centroids=2)
    features = (layers, 2 * width) if per_layer else (layers * 2 * width,)
    centroids = (2,) if method == "kmeans" else ()
    assert found.shape == (4, teachers, *features[:-1], *centroids, features[-1])
    for row, tokens in ((0, [0, 1]), (2, [2, 3, 4])):
        for teacher in range(teachers):
            own = kvs[tokens, teacher]
            if method != "kmeans":
                want = own[0] if method == "cls" else own.mean(0)
                torch.testing.assert_close(found[row, teacher], want.reshape(features))
                query = query_of(kvs[:, teacher], SAMPLE, 4, method, per_layer)
                torch.testing.assert_close(query[row], found[row, teacher])
                continue
            for layer in range(layers) if per_layer else [slice(None)]:
                points = own[:, layer].flatten(1)
                want = kmeans(points[None], torch.ones(1, len(tokens), dtype=torch.bool), 2)[0]
                torch.testing.assert_close(found[row, teacher, layer] if per_layer else found[row, teacher], want)
    assert found[1].abs().sum() == found[3].abs().sum() == 0


def test_the_query_of_kmeans_is_the_mean_and_batches_without_tokens_have_zeros():
    kv = torch.randn(5, 3, 2, 4)
    torch.testing.assert_close(query_of(kv, SAMPLE, 4, "kmeans"), pool(kv, SAMPLE, 4))
    nothing = torch.zeros(0, 2, 3, 2, 4)
    for method, shape in (("mean", (2, 2, 24)), ("cls", (2, 2, 24)), ("kmeans", (2, 2, 4, 24))):
        found = prototypes_of(nothing, torch.zeros(0, dtype=torch.long), 2, method)
        assert found.shape == shape
        assert found.abs().sum() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_planted_clusters_are_found_as_by_scikit_learn_in_any_order_and_beside_padding(clusters, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.nn.functional.one_hot(torch.randperm(6, generator=generator)[:clusters], 6).double()
    sizes = torch.randint(1, 7, (clusters,), generator=generator)
    points = centres.repeat_interleave(sizes, 0)
    points = points + torch.randn(points.shape, generator=generator, dtype=torch.float64)
    theirs = KMeans(clusters, n_init=10, random_state=0).fit(points.numpy())
    order = torch.randperm(len(points), generator=generator)
    two = torch.full((2, len(points) + 3, 6), 1e6, dtype=torch.float64)
    two[0, : len(points)], two[1, 3:] = points, points[order]
    real = torch.zeros(two.shape[:2], dtype=torch.bool)
    real[0, : len(points)] = real[1, 3:] = True
    ours = kmeans(two, real, clusters)
    for found in ours:
        want = torch.from_numpy(theirs.cluster_centers_)
        distance = torch.cdist(found, want)
        assert sorted(distance.argmin(1).tolist()) == list(range(clusters))
        assert distance.amin(1).max() < 1e-6


def test_more_clusters_than_points_repeat_points_and_no_points_give_zeros():
    points = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]]]).repeat(2, 1, 1)
    found = kmeans(points, torch.tensor([[True, True, False], [False] * 3]), 4)
    assert {tuple(point) for point in found[0].tolist()} == {(1.0, 0.0), (0.0, 3.0)}
    assert found[1].abs().sum() == 0
