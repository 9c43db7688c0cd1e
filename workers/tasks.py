"""Tasks: data on a device, with the augmentation, the loss and the metric that belong to them.

Images stay uint8 on the device; batches, augmentation and noise are made there, without Python
work per image. Shapes: N images, C channels, H x W pixels, B images of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from workers import seeds
from workers.bank import Bank

EVALUATION_BATCH = 256
"""Images of a validation batch; it changes memory, not results beyond rounding."""
BEST_PSNR = 100.0
"""PSNR in dB of an image without error (an all-black one, say), which would be infinite."""


@dataclass(frozen=True)
class Score:
    """What a network achieves on the validation images."""

    value: float
    """The task's metric, higher is better: top-1 accuracy in % or PSNR in dB."""
    extra: dict[str, float]
    """What is shown beside it."""


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

    def floor(self) -> float:
        """Return the metric without any training: what a network has to beat."""


class Draws:
    """The random numbers of one job, one generator per purpose."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.order: Generator = seeds.generator(seed, "order")
        self.augmentation: Generator = seeds.generator(seed, "augmentation", device=device)
        self.noise: Generator = seeds.generator(seed, "noise", device=device)


class Classification:
    """Cross-entropy on labelled images; random crop and horizontal flip; top-1 and top-5 in %."""

    def __init__(self, bank: Bank, device: torch.device) -> None:
        if bank.train_labels is None or bank.validation_labels is None:
            raise ValueError(f"the bank of {bank.source} has no labels")
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

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (B, classes)."""
        return F.cross_entropy(outputs, targets)

    def evaluate(self, network: nn.Module) -> Score:
        """Return top-1 accuracy in %, and top-5 beside it."""
        pairs = zip(
            self._validation.split(EVALUATION_BATCH),
            self._validation_labels.split(EVALUATION_BATCH),
            strict=True,
        )
        hits = torch.zeros(2, dtype=torch.int64, device=self._labels.device)
        for images, labels in pairs:
            logits = network(self._normalised(images))
            # A tie is a miss, and so is NaN: a dead network must not look perfect.
            own = logits.gather(1, labels[:, None])
            not_below = (~(logits < own)).sum(dim=1)  # the label's own logit included
            hits += torch.stack([(not_below <= 1).sum(), (not_below <= 5).sum()])
        top1, top5 = (100 * hits.double() / len(self._validation)).tolist()
        return Score(top1, {"top5": top5})

    def floor(self) -> float:
        """Return the top-1 accuracy of always guessing the commonest training label."""
        commonest = self._labels.bincount().argmax()
        return 100.0 * (self._validation_labels == commonest).double().mean().item()

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
    clipped, in training and validation alike (the protocol of Zhang et al. 2017, DnCNN).
    """

    def __init__(self, bank: Bank, device: torch.device, sigma: float) -> None:
        self._patches = torch.tensor(bank.train, device=device)  # (N, C, H, W) uint8
        self._clean = torch.tensor(bank.validation, device=device)
        self._sigma = sigma / 255
        # The same noise for every job and rung, whatever its seed: less spread, same question.
        noise = torch.randn(self._clean.shape, generator=seeds.generator(0, "validation noise"))
        self._noise = noise.to(device) * self._sigma

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

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(outputs, targets)

    def evaluate(self, network: nn.Module) -> Score:
        """Return PSNR in dB of the clipped output, averaged over images, and SSIM beside it."""
        psnr: list[Tensor] = []
        ssim: list[Tensor] = []
        for noisy, clean in self._validation_pairs():
            restored = network(noisy).clamp(0, 1)
            error = (restored.double() - clean.double()).square().mean(dim=(1, 2, 3))
            psnr.append((-10 * torch.log10(error)).clamp(max=BEST_PSNR))
            ssim.append(_ssim(restored, clean))
        return Score(torch.cat(psnr).mean().item(), {"ssim": torch.cat(ssim).mean().item()})

    def floor(self) -> float:
        """Return the PSNR of the noisy images as they are, clipped."""
        return self.evaluate(nn.Identity()).value

    def _validation_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A validation crop has the pixels of many patches, so batches are smaller.
        for clean, noise in zip(self._clean.split(16), self._noise.split(16), strict=True):
            images = clean.float() / 255
            yield images + noise, images


def _ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity of images (B, C, H, W) in [0, 1], shape (B,).

    Wang et al. 2004, with their constants and Gaussian window of 1.5 pixels and 11 x 11, averaged
    over the places where the window fits.
    """
    radius, sigma = 5, 1.5
    line = torch.arange(-radius, radius + 1, device=clean.device, dtype=torch.float64)
    window = torch.exp(-0.5 * (line / sigma).square())
    window = (window / window.sum()).to(clean.dtype)
    channels = clean.shape[1]

    def averaged(images: Tensor) -> Tensor:
        down = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        across = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        return F.conv2d(F.conv2d(images, down, groups=channels), across, groups=channels)

    mean_x, mean_y = averaged(restored), averaged(clean)
    variance_x = averaged(restored.square()) - mean_x.square()
    variance_y = averaged(clean.square()) - mean_y.square()
    covariance = averaged(restored * clean) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    )
    return similarity.double().mean(dim=(1, 2, 3))
