"""Tasks: data on a device, with the augmentation, the loss and the metric that belong to them.

Images stay uint8 on the device; batches, augmentation and noise are made there, without Python
work per image. Shapes: N images, C channels, H x W pixels, B images of a batch.
"""

from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from optimizer.errors import UsageError
from workers import seeds
from workers.data.bank import Bank, Held
from workers.training import scores
from workers.training.scores import Judge, Score


class Task(Protocol):
    """What the training loop needs to know of a task."""

    def __len__(self) -> int:
        """Return the number of training items."""

    def batch(self, chosen: Tensor, draws: "Draws") -> tuple[Tensor, Tensor]:
        """Return augmented inputs and targets of the chosen items, indices of shape (B,)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar that training minimises."""

    def evaluate(self, network: nn.Module) -> Score:
        """Judge a network, which is in evaluation mode, on the validation images."""

    def test(self) -> Judge:
        """Open the test split and return what judges on it; UsageError if there is none here."""

    def untrained(self) -> nn.Module:
        """Return what scores the floor: what can be told without any training."""

    def floor(self) -> float:
        """Return the metric without any training: what a network has to beat."""


class Tried(Task, Protocol):
    """What has to be known of a task as well, to try a network on it."""

    def check(self, outputs: Any, targets: Any, network: str) -> None:
        """Raise UsageError, which names the network, if outputs are of a shape that has no loss."""

    def judge_few(self, network: nn.Module, count: int) -> Score:
        """Judge a network on the first validation items alone."""


class Draws:
    """The random numbers of a job, one generator per purpose, on a device.

    Those of its batches; and of a network that draws some itself (dropout) its own.
    """

    def __init__(self, seed: int, device: torch.device, *, network: bool = False) -> None:
        self.augmentation, self.noise = Generator(device), Generator(device)
        self.network = Generator(device) if network else None
        self.start(seed)

    @property
    def generators(self) -> dict[str, Generator]:
        """Return the generators by purpose."""
        return {purpose: draw for purpose, draw in vars(self).items() if draw is not None}

    def start(self, seed: int) -> None:
        """Begin with another seed's numbers, in place: a captured step keeps its generators."""
        for purpose, generator in self.generators.items():
            generator.manual_seed(seeds.derive(seed, purpose))


def _check_shape(outputs: Any, shape: tuple[int, ...], what: str, network: str) -> None:
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"proxy {network} returns a {type(outputs).__name__}, and {what} of shape "
            f"{shape} are wanted"
        )
    if tuple(outputs.shape) != shape:
        raise UsageError(
            f"proxy {network} returns {tuple(outputs.shape)}, and {what} of shape {shape} "
            f"are wanted; look at proxy.kwargs, or return them from a function of your own"
        )


def _opened(bank: Bank) -> Held:
    if bank.test is None:
        raise UsageError(
            f"the data here ({bank.source}) have no test split; complete them, or attach workers "
            f"that have it"
        )
    return bank.test()


def _of(held: Held, score: Score) -> Score:
    """Return a score with the fingerprint of the test split that it was reached on."""
    return replace(score, extra={**score.extra, "test": held.fingerprint})


class Classification:
    """Cross-entropy in nats on labelled images; random crop and flip; top-1 and top-5 in %."""

    def __init__(self, bank: Bank, device: torch.device) -> None:
        if bank.train_labels is None or bank.validation_labels is None:
            raise ValueError(f"the bank of {bank.source} has no labels")
        self._bank = bank
        self._test: Judge | None = None  # opened once, for all jobs
        images = torch.tensor(bank.train, device=device)  # (N, C, H, W) uint8
        self._size = images.shape[-1]
        # An eighth of the side: the usual 4 pixels for 32 x 32.
        self._margin = self._size // 8
        padded = F.pad(images, (self._margin,) * 4)
        self._side = padded.shape[-1]
        # One row a pixel: a crop is one selection of rows, and networks are faster with the
        # channels last.
        self._pixels = padded.movedim(1, -1).reshape(-1, images.shape[1])
        self._labels = torch.tensor(bank.train_labels, device=device)
        self._validation = torch.tensor(bank.validation, device=device)
        self._validation_labels = torch.tensor(bank.validation_labels, device=device)
        mean, std = _channel_statistics(images)
        self._mean = mean.float().view(1, -1, 1, 1)
        self._std = std.float().clamp(min=1e-3).view(1, -1, 1, 1)

    def __len__(self) -> int:
        """Return the number of training images."""
        return len(self._labels)

    def batch(self, chosen: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return normalised crops (B, C, H, W) and labels (B,)."""
        chosen = chosen.to(self._labels.device)
        count, device = len(chosen), chosen.device
        shifts = torch.randint(
            2 * self._margin + 1, (2, count, 1), generator=draws.augmentation, device=device
        )
        flips = torch.randint(2, (count, 1), generator=draws.augmentation, device=device)
        pixels = torch.arange(self._size, device=device)
        rows = pixels + shifts[0]
        columns = torch.where(flips.bool(), pixels.flip(0), pixels) + shifts[1]
        lines = chosen[:, None] * self._side + rows
        places = lines[:, :, None] * self._side + columns[:, None, :]
        crops = self._pixels.index_select(0, places.flatten()).view(*places.shape, -1)
        return self._normalised(crops.movedim(-1, 1)), self._labels[chosen]

    def check(self, outputs: Any, targets: Any, network: str) -> None:
        """Raise UsageError if these are no logits (B, classes)."""
        _check_shape(outputs, (len(targets), self._bank.classes or 0), "logits", network)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (B, classes)."""
        return F.cross_entropy(outputs, targets)

    def evaluate(self, network: nn.Module) -> Score:
        """Return top-1 accuracy in %, with top-5 and the mean cross-entropy in nats beside it."""
        return self._judged(network, self._validation, self._validation_labels)

    def judge_few(self, network: nn.Module, count: int) -> Score:
        """Return the same of the first validation images alone."""
        few = slice(count)
        return self._judged(network, self._validation[few], self._validation_labels[few])

    def test(self) -> Judge:
        """Return what judges on the test split; ValueError if that has no labels."""
        if self._test is None:
            held = _opened(self._bank)
            if held.labels is None:
                raise ValueError(f"the test split of {self._bank.source} has no labels")
            images = torch.tensor(held.images, device=self._labels.device)
            labels = torch.tensor(held.labels, device=self._labels.device)
            self._test = lambda network: _of(held, self._judged(network, images, labels))
        return self._test

    def _judged(self, network: nn.Module, images: Tensor, labels: Tensor) -> Score:
        return scores.classified(lambda some: network(self._normalised(some)), images, labels)

    def untrained(self) -> nn.Module:
        """Return what always tells the shares of the classes, the commonest first among equals.

        By Laplace's rule, so that no class has a share of zero, with one more image of the
        commonest.
        """
        counts = self._labels.bincount(minlength=self._bank.classes or 0) + 1
        counts[counts.argmax()] += 1
        return scores.Constant((counts.double() / counts.sum()).log().float())

    def floor(self) -> float:
        """Return the top-1 accuracy of always guessing the commonest training label."""
        return self.evaluate(self.untrained()).value

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self._mean).div_(self._std)


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of uint8 images, in [0, 1], shape (C,).

    From the counts of the 256 levels: CIFAR-100 as float64 would take more than a gigabyte.
    """
    levels = torch.arange(256, device=images.device, dtype=torch.float64) / 255
    counts = torch.stack(
        [channel.flatten().bincount(minlength=256) for channel in images.unbind(dim=1)]
    ).double()
    pixels = counts.sum(dim=1)
    mean = counts @ levels / pixels
    squares = (counts * (levels - mean[:, None]).square()).sum(dim=1)
    return mean, (squares / (pixels - 1)).sqrt()


class Denoising:
    """Mean squared error against the clean patch; flips and rotations; PSNR in dB.

    The noise is white and Gaussian with standard deviation sigma/255 on images in [0, 1] and is not
    clipped, in training and judging alike (the protocol of Zhang et al. 2017, DnCNN).
    """

    def __init__(self, bank: Bank, device: torch.device, sigma: float) -> None:
        self._bank = bank
        self._test: Judge | None = None
        self._patches = torch.tensor(bank.train, device=device)  # (N, C, H, W) uint8
        self._clean = torch.tensor(bank.validation, device=device)
        self._sigma = sigma / 255
        self._noise = self._fixed_noise(self._clean, "validation noise")

    def __len__(self) -> int:
        """Return the number of training patches."""
        return len(self._patches)

    def batch(self, chosen: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return noisy and clean patches, both (B, C, H, W) float."""
        device = self._patches.device
        clean = self._patches[chosen.to(device)].float() / 255
        turns = torch.randint(
            2, (3, len(chosen), 1, 1, 1), generator=draws.augmentation, device=device
        ).bool()
        # Two flips and a transposition generate the eight symmetries of the square.
        clean = torch.where(turns[0], clean.flip(-1), clean)
        clean = torch.where(turns[1], clean.flip(-2), clean)
        # A transposition loses the plain memory order, in which networks are faster.
        clean = torch.where(turns[2], clean.transpose(-1, -2), clean).contiguous()
        noise = torch.randn(clean.shape, generator=draws.noise, device=device)
        return clean + self._sigma * noise, clean

    def check(self, outputs: Any, targets: Any, network: str) -> None:
        """Raise UsageError if these are no images of the targets' shape (B, C, H, W)."""
        _check_shape(outputs, tuple(targets.shape), "images", network)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(outputs, targets)

    def evaluate(self, network: nn.Module) -> Score:
        """Return PSNR in dB of the clipped output, averaged over images, and SSIM beside it."""
        return scores.restored(network, self._clean, self._noise)

    def judge_few(self, network: nn.Module, count: int) -> Score:
        """Return the same of the first validation images alone."""
        return scores.restored(network, self._clean[:count], self._noise[:count])

    def test(self) -> Judge:
        """Return what judges on the test split."""
        if self._test is None:
            held = _opened(self._bank)
            clean = torch.tensor(held.images, device=self._clean.device)
            noise = self._fixed_noise(clean, "test noise")
            self._test = lambda network: _of(held, scores.restored(network, clean, noise))
        return self._test

    def untrained(self) -> nn.Module:
        """Return what leaves the noisy images as they are."""
        return nn.Identity()

    def floor(self) -> float:
        """Return the PSNR of the noisy images as they are, clipped."""
        return self.evaluate(self.untrained()).value

    def _fixed_noise(self, clean: Tensor, purpose: str) -> Tensor:
        """Return the same noise for every job and rung, whatever its seed: the same question."""
        noise = torch.randn(clean.shape, generator=seeds.generator(0, purpose))
        return noise.to(clean.device) * self._sigma
