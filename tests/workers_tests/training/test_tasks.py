"""Tasks: what batches are made of and how networks are judged, against numpy and scikit-image."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from optimizer.errors import UsageError
from workers.data.bank import Bank, Held, Labels, Pixels
from workers.seeds import generator
from workers.training import scores
from workers.training.tasks import Classification, Denoising, Draws

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


def pixels(count: int, channels: int, side: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def labelled(
    train: Pixels, validation: Pixels | None = None, classes: int = 10
) -> tuple[Bank, NDArray[np.int64], NDArray[np.int64]]:
    """Return a bank with random labels, and the labels."""
    validation = train if validation is None else validation
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, len(train))
    held_out = rng.integers(0, classes, len(validation))
    bank = Bank(train, validation, labels, held_out, classes, fingerprint="", source="test")
    return bank, labels, held_out


def unlabelled(train: Pixels, validation: Pixels | None = None) -> Bank:
    return Bank(train, train if validation is None else validation, fingerprint="", source="test")


class Apply(nn.Module):
    """A network that is a plain function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# Classification: batches


@pytest.mark.parametrize(("side", "channels", "margin"), [(16, 3, 2), (32, 1, 4), (12, 3, 1)])
def test_batch_is_crop_flip_and_normalisation_of_the_chosen_images(
    side: int, channels: int, margin: int
) -> None:
    images = pixels(20, channels, side)
    bank, labels, _ = labelled(images)
    chosen = np.array([3, 0, 19, 7, 7, 7, 11])
    inputs, targets = Classification(bank, CPU).batch(torch.tensor(chosen), Draws(5, CPU))

    draws = generator(5, "augmentation")
    down, right = torch.randint(2 * margin + 1, (2, 7, 1), generator=draws)[:, :, 0].tolist()
    flips = torch.randint(2, (7, 1), generator=draws)[:, 0].tolist()
    mean = (images / 255).mean(axis=(0, 2, 3))
    std = (images / 255).std(axis=(0, 2, 3))
    expected = []
    for image, dy, dx, flip in zip(images[chosen], down, right, flips, strict=True):
        padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)))
        crop = padded[:, dy : dy + side, dx : dx + side]
        crop = crop[:, :, ::-1] if flip else crop
        expected.append((crop / 255 - mean[:, None, None]) / std[:, None, None])
    np.testing.assert_allclose(inputs.numpy(), np.stack(expected), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(targets.numpy(), labels[chosen])
    assert inputs.dtype == torch.float32


def test_every_crop_is_a_window_of_the_padded_image_and_half_are_flipped() -> None:
    image = pixels(1, 1, 8, seed=3)
    padded = np.pad(image[0, 0], 1)
    windows = {
        (dy, dx, flip): padded[dy : dy + 8, dx : dx + 8][:, :: -1 if flip else 1].tobytes()
        for dy, dx, flip in itertools.product(range(3), range(3), (False, True))
    }
    bank, _, _ = labelled(image)
    count = 1800
    inputs, _ = Classification(bank, CPU).batch(
        torch.zeros(count, dtype=torch.int64), Draws(0, CPU)
    )
    back = inputs[:, 0].double().numpy() * (image / 255).std(ddof=1) + (image / 255).mean()
    crops = [crop.tobytes() for crop in np.rint(255 * back).astype(np.uint8)]
    found = {place: crops.count(window) for place, window in windows.items()}
    assert sum(found.values()) == count  # nothing but such windows
    # Each of the 18 occurs about 100 times: within five standard deviations of its binomial.
    assert all(abs(times - 100) < 5 * np.sqrt(100 * 17 / 18) for times in found.values())
    flipped = sum(times for (_, _, flip), times in found.items() if flip)
    assert abs(flipped - count / 2) < 5 * np.sqrt(count) / 2


def test_labels_follow_their_images() -> None:
    images = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 64).reshape(25, 1, 8, 8)
    bank, labels, _ = labelled(images)
    task = Classification(bank, CPU)
    inputs, targets = task.batch(torch.randperm(25), Draws(0, CPU))
    values = inputs.amax(dim=(1, 2, 3)).double().numpy()  # padding is darker than every image
    level = np.rint(255 * (values * (images / 255).std(ddof=1) + (images / 255).mean()) / 10)
    np.testing.assert_array_equal(targets.numpy(), labels[level.astype(int)])
    assert len(task) == 25


def test_a_channel_of_one_colour_stays_finite() -> None:
    images = pixels(4, 3, 8)
    images[:, 1] = 77
    bank, _, _ = labelled(images)
    inputs, _ = Classification(bank, CPU).batch(torch.arange(4), Draws(0, CPU))
    assert inputs.isfinite().all()


def test_loss_of_classification_is_the_mean_cross_entropy() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    labels = np.array([0, 1, 4, 2, 2, 3])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    bank, _, _ = labelled(pixels(1, 1, 8))
    loss = Classification(bank, CPU).loss(torch.tensor(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(-np.log(shares[range(6), labels]).mean(), rel=1e-5)


def test_classification_needs_labels() -> None:
    with pytest.raises(ValueError, match="the bank of test has no labels"):
        Classification(unlabelled(pixels(2, 1, 8)), CPU)


# Classification: the metric


def test_accuracy_is_that_of_numpy_and_validation_is_not_augmented() -> None:
    train, held = pixels(9, 2, 8), pixels(600, 2, 8, seed=4)  # three validation batches
    bank, _, labels = labelled(train, held)
    network = nn.Linear(128, 10)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator(0, "test"))
    score = Classification(bank, CPU).evaluate(nn.Sequential(nn.Flatten(), network).eval())

    mean = (train / 255).mean(axis=(0, 2, 3), keepdims=True)
    std = (train / 255).std(axis=(0, 2, 3), ddof=1, keepdims=True)
    weight, bias = (p.detach().double().numpy() for p in (network.weight, network.bias))
    logits = ((held / 255 - mean) / std).reshape(600, -1) @ weight.T + bias
    ranks = np.argsort(-logits, axis=1)
    assert score.value == pytest.approx(100 * (ranks[:, 0] == labels).mean(), rel=1e-12)
    top5 = (ranks[:, :5] == labels[:, None]).any(axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert score.extra == {
        "top5": pytest.approx(100 * top5.mean(), rel=1e-12),
        "cross_entropy": pytest.approx(-np.log(shares[range(600), labels]).mean(), rel=1e-5),
    }
    assert np.array_equal(score.images, 100 * (ranks[:, 0] == labels))


VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, float("inf"), float("-inf"), float("nan")])


@given(st.lists(st.lists(VALUES, min_size=8, max_size=8), min_size=1, max_size=6))
@settings(max_examples=150)
def test_ties_and_nan_are_misses(rows: list[list[float]]) -> None:
    bank, _, labels = labelled(pixels(1, 1, 8), pixels(len(rows), 1, 8), classes=8)
    score = Classification(bank, CPU).evaluate(Apply(lambda _: torch.tensor(rows)))
    hits = np.zeros(2)
    for row, label in zip(rows, labels.tolist(), strict=True):
        # Sorted from the best, NaN before all others, and of equals the label itself last.
        order = sorted(
            range(8),
            key=lambda c: (row[c] == row[c], -row[c] if row[c] == row[c] else 0, c == label),
        )
        place = 8 if row[label] != row[label] else order.index(label)
        hits += [place < 1, place < 5]
    assert [score.value, score.extra["top5"]] == pytest.approx(list(100 * hits / len(rows)))


@pytest.mark.parametrize("logit", [0.0, float("nan"), float("inf")])
def test_a_dead_network_scores_nothing(logit: float) -> None:
    bank, _, _ = labelled(pixels(1, 1, 8), pixels(300, 1, 8))
    dead = Apply(lambda x: torch.full((len(x), 10), logit))
    score = Classification(bank, CPU).evaluate(dead)
    assert (score.value, score.extra["top5"]) == (0.0, 0.0)


# Denoising: batches


def test_noise_is_white_gaussian_of_the_given_strength() -> None:
    task = Denoising(unlabelled(pixels(50, 3, 16)), CPU, sigma=25)
    inputs, targets = task.batch(torch.arange(50).repeat(20), Draws(2, CPU))
    noise = (inputs - targets).double().numpy() * 255 / 25
    n = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(n)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / n)  # a Gaussian's kurtosis
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 5 / np.sqrt(n)
    assert abs((noise * targets.numpy()).mean()) < 5 / np.sqrt(n)


@pytest.mark.parametrize("level", [0, 255])
def test_noise_is_not_clipped(level: int) -> None:
    flat = np.full((4, 1, 16, 16), level, dtype=np.uint8)
    inputs, targets = Denoising(unlabelled(flat), CPU, sigma=25).batch(
        torch.arange(4), Draws(0, CPU)
    )
    assert torch.all(targets == level / 255)
    outside = ((inputs < 0) | (inputs > 1)).double().mean().item()
    assert abs(outside - 0.5) < 5 * 0.5 / np.sqrt(inputs.numel())


def test_inputs_are_targets_plus_the_noise_of_the_seed() -> None:
    task = Denoising(unlabelled(pixels(6, 1, 8)), CPU, sigma=50)
    chosen = torch.tensor([5, 1, 1])
    inputs, targets = task.batch(chosen, Draws(9, CPU))
    noise = torch.randn((3, 1, 8, 8), generator=generator(9, "noise"))
    np.testing.assert_allclose(inputs, targets + 50 / 255 * noise, rtol=0, atol=1e-6)


def test_targets_are_all_eight_symmetries_of_the_patch() -> None:
    patches = pixels(3, 2, 6, seed=8)
    count = 2400
    chosen = np.arange(count) % 3
    _, targets = Denoising(unlabelled(patches), CPU, sigma=25).batch(
        torch.tensor(chosen), Draws(1, CPU)
    )
    back = np.rint(255 * targets.double().numpy())
    np.testing.assert_allclose(targets.numpy(), back / 255, atol=1e-7)
    seen: dict[int, int] = dict.fromkeys(range(8), 0)
    for patch, target in zip(patches[chosen], back.astype(np.uint8), strict=True):
        turned = [np.rot90(patch, k, axes=(1, 2)) for k in range(4)]
        symmetries = [*turned, *(t[:, :, ::-1] for t in turned)]
        (which,) = [i for i, s in enumerate(symmetries) if np.array_equal(s, target)]
        seen[which] += 1
    assert all(abs(times - 300) < 5 * np.sqrt(300 * 7 / 8) for times in seen.values())


def test_batch_keeps_the_order_of_the_chosen_patches() -> None:
    flat = np.repeat(np.arange(20, dtype=np.uint8), 64).reshape(20, 1, 8, 8)
    chosen = torch.tensor([4, 19, 0, 4])
    task = Denoising(unlabelled(flat), CPU, sigma=1)
    _, targets = task.batch(chosen, Draws(0, CPU))
    np.testing.assert_allclose(255 * targets[:, 0, 3, 3], [4, 19, 0, 4], rtol=1e-6)
    assert len(task) == 20


def test_patches_lie_in_plain_memory_order() -> None:
    task = Denoising(unlabelled(pixels(5, 3, 8)), CPU, sigma=25)
    assert all(part.is_contiguous() for part in task.batch(torch.arange(5), Draws(0, CPU)))


def test_loss_of_denoising_is_the_mean_squared_error() -> None:
    first, second = (torch.rand(2, 1, 4, 4) for _ in range(2))
    expected = ((first - second).double().numpy() ** 2).mean()
    loss = Denoising(unlabelled(pixels(1, 1, 8)), CPU, 25).loss(first, second)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# Denoising: the metric


def natural(count: int, channels: int = 1, side: int = 32) -> Pixels:
    """Return smooth images of different brightness and contrast."""
    rows, columns = np.mgrid[:side, :side] / side
    waves = [
        (20 + 25 * i % 200) + (10 + 7 * i % 40) * np.sin(3 * rows + (i + c) * columns)
        for i in range(count)
        for c in range(channels)
    ]
    pixels: np.ndarray = np.clip(waves, 0, 255).astype(np.uint8)
    return pixels.reshape(count, channels, side, side)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_those_of_numpy_and_scikit_image(channels: int) -> None:
    clean = natural(20, channels)  # more than one validation batch
    seen: list[Tensor] = []

    def network(noisy: Tensor) -> Tensor:
        seen.append(noisy)
        return 0.9 * noisy + 0.02

    score = Denoising(unlabelled(clean), CPU, sigma=25).evaluate(Apply(network))
    restored = np.clip(0.9 * torch.cat(seen).numpy() + np.float32(0.02), 0, 1)
    original = (clean / 255).astype(np.float32)
    errors = ((restored.astype(float) - original) ** 2).mean(axis=(1, 2, 3))
    assert score.value == pytest.approx((-10 * np.log10(errors)).mean(), abs=1e-4)
    pairs = list(zip(original, restored, strict=True))
    theirs = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]
    assert score.value == pytest.approx(np.mean(theirs), abs=1e-4)
    ssim = [
        structural_similarity(
            a.transpose(1, 2, 0).astype(float),
            b.transpose(1, 2, 0).astype(float),
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in pairs
    ]
    assert score.extra == {"ssim": pytest.approx(np.mean(ssim), abs=1e-4)}
    assert score.value == pytest.approx(np.mean(score.images), rel=1e-12)
    # The mean over images is another number than the PSNR of the mean error.
    assert abs(score.value + 10 * np.log10(errors.mean())) > 0.01


@pytest.mark.parametrize(
    ("level", "gain"),
    [
        (128, 0.0),  # five standard deviations from both ends: clipping changes nothing
        (0, 10 * np.log10(2)),  # clipping removes half of the error
        (255, 10 * np.log10(2)),
    ],
)
def test_the_noisy_input_itself_scores_what_the_noise_is_worth(level: int, gain: float) -> None:
    flat = np.full((8, 1, 64, 64), level, dtype=np.uint8)
    score = Denoising(unlabelled(flat), CPU, sigma=25).evaluate(nn.Identity())
    expected = 20 * np.log10(255 / 25) + gain  # 20.17 dB
    # Standard error of the mean square of n Gaussians, in dB; of half-Gaussians sqrt(5/2) of it.
    spread = 10 / np.log(10) * np.sqrt(5 / flat.size)
    assert score.value == pytest.approx(expected, abs=5 * spread)


def test_clipping_raises_the_score_of_the_noisy_input() -> None:
    clean = natural(6, side=64)
    seen: list[Tensor] = []

    def network(noisy: Tensor) -> Tensor:
        seen.append(noisy)
        return noisy

    score = Denoising(unlabelled(clean), CPU, sigma=25).evaluate(Apply(network))
    unclipped = ((torch.cat(seen).double().numpy() - clean / 255) ** 2).mean(axis=(1, 2, 3))
    assert score.value > (-10 * np.log10(unclipped)).mean() + 0.05


def test_validation_noise_is_the_same_for_every_worker() -> None:
    bank = unlabelled(natural(4))
    first, second = (Denoising(bank, CPU, 25) for _ in range(2))
    torch.rand(3)
    second.batch(torch.arange(4), Draws(3, CPU))
    scores = [task.evaluate(nn.Identity()) for task in (first, second, first)]
    assert scores[0] == scores[1] == scores[2]


def test_a_perfect_image_counts_as_100_db() -> None:
    black = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    bank = unlabelled(np.concatenate([black, natural(1)]))
    constant = Denoising(bank, CPU, 25).evaluate(Apply(torch.zeros_like))
    other = -10 * np.log10(((natural(1) / 255) ** 2).mean())
    assert constant.value == pytest.approx((100 + other) / 2, abs=1e-4)


def test_nan_is_not_a_score() -> None:
    dead = Apply(lambda noisy: torch.full_like(noisy, float("nan")))
    assert np.isnan(Denoising(unlabelled(natural(2)), CPU, 25).evaluate(dead).value)


def test_the_floor_of_denoising_is_the_psnr_of_the_clipped_noisy_images() -> None:
    clean = np.random.default_rng(3).integers(60, 200, (3, 1, 48, 48), dtype=np.uint8)
    bank = Bank(train=clean, validation=clean, fingerprint="", source="")
    task = Denoising(bank, torch.device("cpu"), sigma=25.0)
    # In the middle of the range nothing is clipped, so it is 20 log10(255 / 25) = 20.17 dB.
    assert abs(task.floor() - 20.17) < 0.15


def test_the_floor_of_classification_is_the_share_of_the_commonest_training_class() -> None:
    images = np.zeros((6, 1, 8, 8), dtype=np.uint8)
    bank = Bank(
        train=images,
        validation=images[:4],
        train_labels=np.array([2, 2, 2, 0, 1, 1]),
        validation_labels=np.array([2, 0, 1, 1]),
        classes=3,
        fingerprint="",
        source="",
    )
    task = Classification(bank, torch.device("cpu"))
    assert task.floor() == 25.0
    # By Laplace's rule, with one more of class 2: 5, 2 and 3 of 10.
    score = task.evaluate(task.untrained())
    wanted = -np.log([0.5, 0.2, 0.3, 0.3]).mean()
    assert score.extra["cross_entropy"] == pytest.approx(wanted, rel=1e-6)
    assert score.images == (100.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("each", [1, 7, 500])
def test_of_classes_that_are_equally_common_the_floor_takes_one(each: int) -> None:
    labels = np.repeat(np.arange(10), each)
    images = np.zeros((len(labels), 1, 8, 8), dtype=np.uint8)
    bank = Bank(images, images, labels, labels, 10, fingerprint="", source="")
    assert Classification(bank, CPU).floor() == 10.0


# The test split


def test_a_score_on_the_test_split_is_that_of_its_images_as_validation_images() -> None:
    train, test = pixels(12, 1, 8), pixels(300, 1, 8, seed=5)  # more than one batch
    _, labels, _ = labelled(train)
    wanted = np.random.default_rng(9).integers(0, 10, len(test))
    held = Held(test, wanted)
    tested = Bank(train, train, labels, labels, 10, fingerprint="", source="", test=lambda: held)
    other = Bank(train, test, labels, wanted, 10, fingerprint="", source="")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    score = Classification(tested, CPU).test()(network)
    expected = Classification(other, CPU).evaluate(network)
    assert score.value == expected.value != Classification(tested, CPU).evaluate(network).value
    assert score.extra == {**expected.extra, "test": held.fingerprint}


def test_noise_on_the_test_split_is_the_same_for_every_worker_and_its_own() -> None:
    images = natural(20)
    bank = Bank(images, images, fingerprint="", source="", test=lambda: Held(images))
    scores = [Denoising(bank, CPU, sigma=25).test()(nn.Identity()) for _ in range(2)]
    assert scores[0].images == scores[1].images
    assert scores[0] == scores[1]
    validation = Denoising(bank, CPU, sigma=25).evaluate(nn.Identity())
    assert scores[0].value != validation.value
    assert scores[0].value == pytest.approx(validation.value, abs=0.2)
    assert scores[0].extra.keys() == {"ssim", "test"}


@pytest.mark.parametrize("labels", [None, np.arange(3)])
def test_the_test_split_is_opened_once_for_all_jobs(labels: Labels | None) -> None:
    images = natural(3)
    classes = None if labels is None else 3
    opened = []

    def test() -> Held:
        opened.append(1)
        return Held(images, labels)

    bank = Bank(images, images, labels, labels, classes, fingerprint="", source="", test=test)
    task = Denoising(bank, CPU, sigma=25) if labels is None else Classification(bank, CPU)
    assert task.test()(task.untrained()) == task.test()(task.untrained())
    assert opened == [1]


def test_the_test_split_is_not_opened_before_it_is_asked_for() -> None:
    def refuse() -> Held:
        raise AssertionError("opened")

    images = natural(3)
    task = Denoising(Bank(images, images, fingerprint="", source="", test=refuse), CPU, sigma=25)
    task.batch(torch.arange(3), Draws(0, CPU))
    task.evaluate(nn.Identity())
    task.floor()
    with pytest.raises(AssertionError, match="opened"):
        task.test()


def test_data_without_a_test_split_say_so() -> None:
    images = natural(3)
    bank, _, _ = labelled(pixels(3, 1, 8))
    for task in (Denoising(unlabelled(images), CPU, 25), Classification(bank, CPU)):
        with pytest.raises(UsageError, match=r"the data here \(test\) have no test split; "):
            task.test()


def test_a_gpu_judges_as_many_images_as_fill_it_and_a_cpu_always_as_many() -> None:
    small, large = (torch.empty(9, 3, side, side, device="meta") for side in (32, 320))
    assert scores.fitting(small, on_a_cpu=256) == 2_500
    assert scores.fitting(large, on_a_cpu=16) == 25
    assert scores.fitting(torch.empty(9, 1, 4_000, 4_000, device="meta"), on_a_cpu=16) == 1
    assert scores.fitting(torch.empty(9, 3, 32, 32), on_a_cpu=256) == 256
