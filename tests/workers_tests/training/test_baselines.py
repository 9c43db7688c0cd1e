"""What is linear and best: against least squares by brute force, refitting, and scipy's filters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import correlate
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from workers.data.bank import Bank, Pixels
from workers.training import baselines
from workers.training.tasks import Denoising

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
Array = NDArray[np.float64]


def unlabelled(train: Pixels, validation: Pixels) -> Bank:
    return Bank(train, validation, fingerprint="", source="test")


def labelled(images: Pixels, labels: list[int] | NDArray[np.int64], held_out: int) -> Bank:
    """The last images are for validation."""
    known = np.asarray(labels, dtype=np.int64)
    return Bank(
        train=images[:-held_out],
        validation=images[-held_out:],
        train_labels=known[:-held_out],
        validation_labels=known[-held_out:],
        classes=int(known.max()) + 1,
        fingerprint="",
        source="test",
    )


# The linear filter


def photographs(channels: int, side: int = 24) -> Pixels:
    """Windows of a photograph, (N, C, side, side)."""
    whole = data.astronaut()[:240, :240, :channels]
    windows = whole.reshape(240 // side, side, 240 // side, side, channels)
    return np.ascontiguousarray(windows.transpose(0, 2, 4, 1, 3).reshape(-1, channels, side, side))


def by_stacking(patches: Pixels, variance: float) -> Array:
    """Expected noise as extra equations: sqrt(rows * variance) * weight = 0 for every weight."""
    windows = np.lib.stride_tricks.sliding_window_view(patches / 255, (3, 3), axis=(2, 3))
    channels = patches.shape[1]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 9 * channels)
    centres = windows[..., 1, 1].transpose(0, 2, 3, 1).reshape(-1, channels)
    noise = np.sqrt(len(rows) * variance) * np.eye(9 * channels)
    wanted = np.concatenate([centres, np.zeros((9 * channels, channels))])
    solution = np.linalg.lstsq(np.concatenate([rows, noise]), wanted, rcond=None)[0]
    filters: Array = solution.T.reshape(channels, channels, 3, 3)
    return filters


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.integers(0, 999),
    st.floats(1, 200),
)  # fmt: skip
def test_the_best_filter_solves_the_least_squares_problem(
    channels: int, height: int, width: int, seed: int, sigma: float
) -> None:
    shape = (4, channels, height, width)
    patches = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = baselines.best_filter(patches, sigma).numpy()
    np.testing.assert_allclose(found, by_stacking(patches, (sigma / 255) ** 2), atol=1e-7)


def test_the_best_filter_is_the_best_on_noise_that_is_really_drawn() -> None:
    patches = photographs(1)
    weights = baselines.best_filter(patches, 25).numpy()[0, 0]
    rng = np.random.default_rng(5)
    clean = patches[:, 0] / 255
    noisy = clean + 25 / 255 * rng.standard_normal(clean.shape)

    def error(kernel: Array) -> float:
        restored = np.stack([correlate(image, kernel) for image in noisy])
        return float(np.square(restored - clean)[:, 1:-1, 1:-1].mean())

    best = error(weights)
    moved = [error(weights + 0.02 * rng.standard_normal((3, 3))) for _ in range(20)]
    assert best < min(moved)
    assert best < error(np.full((3, 3), 1 / 9))


def test_without_noise_the_best_filter_copies() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 2, 12, 12), dtype=np.uint8)
    copy = np.zeros((2, 2, 3, 3))
    copy[[0, 1], [0, 1], 1, 1] = 1
    np.testing.assert_allclose(baselines.best_filter(patches, 0).numpy(), copy, atol=1e-9)


def test_on_flat_images_the_best_filter_is_the_mean_drawn_towards_zero() -> None:
    flat = np.full((2, 1, 8, 8), 102, dtype=np.uint8)  # 0.4
    weights = baselines.best_filter(flat, 51).numpy()  # variance 0.04
    np.testing.assert_allclose(weights, 0.16 / (9 * 0.16 + 0.04), rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_linear_filter_is_judged_as_networks_are(channels: int) -> None:
    patches = photographs(channels)
    held_out = photographs(channels, side=40)[:5]
    bank = unlabelled(patches, held_out)
    task = Denoising(bank, CPU, 25)
    seen = []

    class Copy(nn.Module):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            seen.append(noisy.double().numpy())
            return noisy

    task.evaluate(Copy())
    weights = by_stacking(patches, (25 / 255) ** 2)
    restored = [
        sum(correlate(image[c], weights[:, c][o], mode="mirror") for c in range(channels))
        for image in np.concatenate(seen)
        for o in range(channels)
    ]
    images = np.clip(np.reshape(restored, held_out.shape), 0, 1)
    expected = [
        peak_signal_noise_ratio(c / 255, r, data_range=1)
        for c, r in zip(held_out, images, strict=True)
    ]
    found = baselines.linear_filter(task, bank, 25)
    assert found == pytest.approx(float(np.mean(expected)), abs=1e-4)
    assert found > task.floor() + 3


def test_the_colours_help_each_other() -> None:
    grey = photographs(1, side=40)
    alone, together = unlabelled(grey, grey[:5]), unlabelled(*2 * [np.repeat(grey[:9], 3, axis=1)])
    score = baselines.linear_filter(Denoising(alone, CPU, 50), alone, 50)
    assert baselines.linear_filter(Denoising(together, CPU, 50), together, 50) > score + 2


# The linear classifier


def blobs(count: int, classes: int, seed: int, side: int = 3) -> tuple[Pixels, NDArray[np.int64]]:
    """Images whose classes differ in their means."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    images = rng.uniform(110, 145, (classes, side**2))[labels]
    images += 12 * rng.normal(size=(count, side**2))
    return images.clip(0, 255).round().astype(np.uint8).reshape(-1, 1, side, side), labels


def fitted(inputs: Array, targets: Array, penalty: float) -> Array:
    """Weights and, last, the intercept, which is not penalised, as one least-squares problem."""
    count, width = inputs.shape
    rows = np.column_stack([inputs, np.ones(count)])
    shrinking = np.sqrt(penalty) * np.eye(width + 1)[:width]
    nothing = np.zeros((width, targets.shape[1]))
    found: Array = np.linalg.lstsq(
        np.concatenate([rows, shrinking]), np.concatenate([targets, nothing]), rcond=None
    )[0]
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 12), st.integers(1, 6), st.integers(1, 3), st.integers(0, 999))
def test_ridge_is_as_good_as_it_gets_on_what_is_left_out(
    count: int, width: int, outputs: int, seed: int
) -> None:
    """Against fitting again without each of the inputs in turn."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, width))
    targets = inputs @ rng.normal(size=(width, outputs)) + rng.normal(size=(count, outputs))
    inputs, targets = inputs - inputs.mean(axis=0), targets - targets.mean(axis=0)
    largest = np.linalg.eigvalsh(inputs.T @ inputs)[-1]

    def left_out(penalty: float) -> float:
        total = 0.0
        for place in range(count):
            others = np.arange(count) != place
            weights = fitted(inputs[others], targets[others], penalty)
            total += np.square(np.append(inputs[place], 1) @ weights - targets[place]).sum()
        return total

    best = min(largest * baselines.PENALTIES, key=left_out)
    np.testing.assert_allclose(
        baselines.ridge(inputs, targets), fitted(inputs, targets, best)[:-1], atol=1e-7
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_classifier_is_near_the_best_there_is(seed: int) -> None:
    """Classes with one round covariance: the nearest mean is best, and it is linear."""
    images, labels = blobs(3_000, 2, seed)
    rows = images.reshape(len(images), -1).astype(float)
    means = np.stack([rows[:2_000][labels[:2_000] == label].mean(axis=0) for label in range(2)])
    nearest = np.linalg.norm(rows[2_000:, None] - means, axis=2).argmin(axis=1)
    best = 100 * np.mean(nearest == labels[2_000:])
    assert 70 < best < 98.5
    found = baselines.linear_classifier(labelled(images, labels, 1_000))
    assert found == pytest.approx(best, abs=1)


def test_few_large_images_are_enough_where_the_classes_are_plain() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(40) % 2
    images = rng.integers(0, 120, (40, 3, 33, 50), dtype=np.uint8)
    images[labels == 1, :, :16] += 60
    assert baselines.linear_classifier(labelled(images, labels, 20)) == 100


def test_what_is_not_linear_is_not_learnt() -> None:
    rng = np.random.default_rng(4)
    images = rng.choice(np.array([50, 200], dtype=np.uint8), (2_000, 1, 2, 2))
    labels = (images[:, 0, 0, 0] == images[:, 0, 1, 1]).astype(np.int64)
    assert abs(baselines.linear_classifier(labelled(images, labels, 1_000)) - 50) < 15


def test_images_that_are_all_alike_are_given_the_commonest_class() -> None:
    images = np.full((12, 1, 8, 8), 77, dtype=np.uint8)
    labels = [0, 1, 2, 2, 2, 1, 0, 2, 1, 0, 2, 2]
    assert baselines.linear_classifier(labelled(images, labels, 4)) == 50


def test_classes_without_training_images_are_never_guessed() -> None:
    images = np.arange(12, dtype=np.uint8).repeat(16).reshape(12, 1, 4, 4)
    labels = [1, 1, 1, 1, 3, 3, 3, 3, 0, 2, 3, 3]
    assert baselines.linear_classifier(labelled(images, labels, 4)) == 50


def test_only_a_fixed_sample_of_many_images_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "IMAGES", 50)
    monkeypatch.setattr(baselines, "PATCHES", 50)
    chosen = baselines._sample(200, 50)
    assert sorted({*chosen.tolist()}) == chosen.tolist()
    assert len(chosen) == 50
    assert np.array_equal(baselines._sample(30, 50), np.arange(30))
    images, labels = blobs(240, 3, seed=1)
    bank = labelled(images, labels, 40)
    changed = bank.train.copy()
    changed[np.setdiff1d(np.arange(200), chosen)] = 0
    assert bank.train_labels is not None
    assert bank.validation_labels is not None
    only = Bank(
        changed, bank.validation, bank.train_labels, bank.validation_labels, 3,
        fingerprint="", source="",
    )  # fmt: skip
    assert baselines.linear_classifier(only) == baselines.linear_classifier(bank)
    clean = unlabelled(bank.train, photographs(1)[:2])
    other = unlabelled(changed, photographs(1)[:2])
    scores = [baselines.linear_filter(Denoising(b, CPU, 25), b, 25) for b in (clean, other)]
    assert scores[0] == scores[1]


def test_without_labels_there_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="no labels"):
        baselines.linear_classifier(unlabelled(photographs(1), photographs(1)))
