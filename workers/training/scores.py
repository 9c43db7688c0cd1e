"""What a network achieves on images: the score, and the two metrics that it may be.

Shapes: M images, C channels, H x W pixels, B of them judged at once; that changes memory, not
results beyond rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = 2_500 * 32 * 32
"""What a GPU judges at once: enough to fill it, and launches are few. A layer of 32 channels has
330 MB of them in float32, and only one network is judged at a time."""
BEST_PSNR = 100.0
"""PSNR in dB of an image without error (an all-black one, say), which would be infinite."""
MOST = 1e6
"""What lies further from zero is kept nowhere, as of a metric (storage.ledger)."""


@dataclass(frozen=True)
class Score:
    """What a network achieves on the images that it is judged on."""

    value: float
    """The task's metric, higher is better: top-1 accuracy in % or PSNR in dB."""
    extra: dict[str, Any]
    """What is told beside it, as JSON."""
    images: tuple[float, ...] = ()
    """The metric of every image, in their order: its mean is the value."""

    @property
    def is_finite(self) -> bool:
        """Tell whether the value and all numbers beside it are finite."""
        numbers = [number for number in self.extra.values() if isinstance(number, float)]
        return all(map(math.isfinite, (self.value, *numbers)))


Judge = Callable[[nn.Module], Score]
"""Judges a network, which is in evaluation mode."""


def classified(
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    at_once: int | None = None,
) -> Score:
    """Return how well images (M, C, H, W) are told apart by their logits (B, classes).

    Top-1 accuracy in %, with top-5 and the mean cross-entropy in nats beside it.
    """
    at_once = at_once or fitting(images, on_a_cpu=256)
    first: list[Tensor] = []
    fifth: list[Tensor] = []
    entropy: list[Tensor] = []
    for some, wanted in zip(images.split(at_once), labels.split(at_once), strict=True):
        logits = logits_of(some)
        # A tie is a miss, and so is NaN: a dead network must not look perfect.
        own = logits.gather(1, wanted[:, None])
        not_below = (~(logits < own)).sum(dim=1)  # the label's own logit included
        first.append(not_below <= 1)
        fifth.append(not_below <= 5)
        entropy.append(F.cross_entropy(logits, wanted, reduction="none").double())
    hits = torch.stack([torch.cat(first), torch.cat(fifth)])
    top1, top5 = (100 * hits.sum(dim=1).double() / len(images)).tolist()
    beside = {"top5": top5, "cross_entropy": torch.cat(entropy).mean().item()}
    return Score(top1, beside, tuple((100.0 * hits[0].double()).tolist()))


def restored(
    network: nn.Module, images: Tensor, noises: Tensor, at_once: int | None = None
) -> Score:
    """Return how well a network restores images (M, C, H, W) uint8 from noise of that shape.

    PSNR in dB of the clipped output, averaged over images, and SSIM beside it. An image has the
    pixels of many patches, so that fewer are judged at once.
    """
    at_once = at_once or fitting(images, on_a_cpu=16)
    psnr: list[Tensor] = []
    ssim: list[Tensor] = []
    for some, noise in zip(images.split(at_once), noises.split(at_once), strict=True):
        clean = some.float() / 255
        output = network(clean + noise).clamp(0, 1)
        error = (output.double() - clean.double()).square().mean(dim=(1, 2, 3))
        psnr.append((-10 * torch.log10(error)).clamp(max=BEST_PSNR))
        ssim.append(_ssim(output, clean))
    each = torch.cat(psnr)
    return Score(each.mean().item(), {"ssim": torch.cat(ssim).mean().item()}, tuple(each.tolist()))


def fitting(images: Tensor, *, on_a_cpu: int) -> int:
    """Return how many of images (M, C, H, W) are judged at once where they lie.

    On a CPU always as many, so that results keep their bits.
    """
    if images.device.type == "cpu":
        return on_a_cpu
    return max(1, PIXELS // (images.shape[-2] * images.shape[-1]))


class Constant(nn.Module):
    """A network without weights: the same logits (classes,) for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, C, H, W)."""
        return self._logits.expand(len(images), -1)


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
