"""k-means against scikit-learn called on all frames; the file of centres."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from s3prl_mtl.clustering import kmeans
from s3prl_mtl.clustering.kmeans import Centers, fit_centers, read_centers, write_centers
from tests.mistakes import user_error

LARGE = 2**30


@pytest.fixture
def utterances() -> list[np.ndarray]:
    """60 utterances of 20 to 80 frames around 8 points."""
    random = np.random.default_rng(0)
    points = random.normal(size=(8, 5)) * 6
    sizes = random.integers(20, 80, 60)
    return [
        (points[random.integers(0, 8, size)] + random.normal(size=(size, 5))).astype(np.float32)
        for size in sizes
    ]


def test_frames_that_fit_are_clustered_as_by_scikit_learn(utterances: list[np.ndarray]) -> None:
    found = fit_centers(utterances, 8, buffer_bytes=LARGE, seed=3)
    # The settings of fairseq's learn_kmeans.py.
    expected = MiniBatchKMeans(
        n_clusters=8,
        init="k-means++",
        n_init=20,
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=3,
    ).fit(np.concatenate(utterances))
    np.testing.assert_array_equal(found, expected.cluster_centers_)


def test_more_frames_are_clustered_as_well(utterances: list[np.ndarray]) -> None:
    frames = np.concatenate(utterances)
    best = KMeans(8, n_init=10, random_state=0).fit(frames)
    small = frames.nbytes // 5
    found = fit_centers(utterances, 8, buffer_bytes=small, seed=0)
    distances = ((frames[:, None] - found[None]) ** 2).sum(axis=2).min(axis=1)
    assert distances.sum() < 1.02 * best.inertia_


def test_every_frame_counts_once_in_a_pass(
    utterances: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far apart clusters: after a pass each centre is the mean of its frames."""
    monkeypatch.setattr(kmeans, "BATCH_FRAMES", 100)
    labels = [np.arange(len(u)) % 4 for u in utterances]
    far = np.eye(5, dtype=np.float32)[:4] * 1000
    frames = [u + far[label] for u, label in zip(utterances, labels, strict=True)]
    together, classes = np.concatenate(frames), np.concatenate(labels)
    means = np.array([together[classes == k].mean(axis=0) for k in range(4)])
    found = fit_centers(frames, 4, buffer_bytes=together.nbytes // 5, seed=0)
    order = np.argmax(found[:, :4], axis=1)
    np.testing.assert_allclose(found[np.argsort(order)], means, rtol=1e-4, atol=0.05)


def test_a_seed_gives_the_same_centres(utterances: list[np.ndarray]) -> None:
    small = np.concatenate(utterances).nbytes // 3
    one, same, other = (
        fit_centers(utterances, 8, buffer_bytes=small, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_few_utterances_are_held_at_once() -> None:
    alive = 0
    most = 0

    class Frames(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[np.ndarray]:
        nonlocal alive, most
        random = np.random.default_rng(0)
        for _ in range(500):
            alive += 1
            most = max(most, alive)
            yield random.normal(size=(50, 4)).astype(np.float32).view(Frames)

    fit_centers(stream(), 4, buffer_bytes=10 * 50 * 4 * 4, seed=0)
    assert most <= 2 * 10 + 2


def test_refuses_fewer_frames_than_clusters() -> None:
    with user_error("invalid-value", "--clusters 8"):
        fit_centers([np.zeros((7, 3), np.float32)], 8, buffer_bytes=LARGE, seed=0)
    with user_error("invalid-value", "--clusters 8"):
        fit_centers([], 8, buffer_bytes=LARGE, seed=0)


def test_labels_are_those_of_scikit_learn(utterances: list[np.ndarray]) -> None:
    frames = np.concatenate(utterances)
    model = KMeans(8, n_init=1, random_state=0).fit(frames)
    found = Centers(model.cluster_centers_, {}).assign(frames)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, model.predict(frames))


def test_centres_are_written_and_read(tmp_path: Path) -> None:
    centers = Centers(np.eye(3, dtype=np.float32), {"features": "mfcc", "label_rate": 100.0})
    write_centers(tmp_path / "c.npz", centers)
    read = read_centers(tmp_path / "c.npz")
    np.testing.assert_array_equal(read.centers, centers.centers)
    assert read.settings == {"format": 1, **centers.settings}
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_a_file_of_centres_executes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, centers=np.array([{"a": 1}], dtype=object), settings=np.array("{}"))
    with user_error("file-malformed", "c.npz"):
        read_centers(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with user_error("file-malformed", "c.npz"):
        read_centers(path)


def test_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with user_error("file-missing", "c.npz"):
        read_centers(path)
    for arrays in (
        {"weights": np.eye(2)},
        {"centers": np.eye(2), "settings": np.array("{")},
        {"centers": np.eye(2), "settings": np.array('{"format": 2}')},
        {"centers": np.ones(2), "settings": np.array('{"format": 1}')},
        {"centers": np.full((2, 2), np.nan), "settings": np.array('{"format": 1}')},
    ):
        np.savez(path, **arrays)
        with user_error("file-malformed", "c.npz"):
            read_centers(path)
    path.write_bytes(path.read_bytes()[:100])
    with user_error("file-malformed", "c.npz"):
        read_centers(path)
