"""Denoisers of plain convolutions, which are weighted later. All kernel sizes are odd.

Shapes: noisy images (N, channels, H, W) to denoised images of the same shape.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LEVELS = 4


class DnCNN(nn.Module):
    """Convolutions that predict the noise, which is subtracted: y - R(y), eq. 1 of the paper.

    Zhang et al. 2017 (arXiv 1608.03981, section III-A): convolution and ReLU, then depth - 2 times
    convolution, batch normalisation and ReLU, then a convolution. Its stages are its layers: layer
    i takes kernel_sizes[i % len(kernel_sizes)].
    """

    def __init__(self, kernel_sizes: Sequence[int], width: int, depth: int, channels: int) -> None:
        super().__init__()
        if depth < 3:
            raise ValueError(
                f"a DnCNN proxy of depth {depth} has no normalised layer; use a depth of at least 3"
            )
        widths = [channels] + [width] * (depth - 1) + [channels]
        self.layers = nn.Sequential()
        for index, (before, after) in enumerate(pairwise(widths)):
            kernel_size = kernel_sizes[index % len(kernel_sizes)]
            inner = 0 < index < depth - 1
            self.layers.append(_conv(before, after, kernel_size, bias=not inner))
            if inner:
                self.layers.append(nn.BatchNorm2d(after))
            if index < depth - 1:
                self.layers.append(nn.ReLU(inplace=True))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise: (N, channels, H, W) to the same shape."""
        noise: Tensor = self.layers(noisy)
        return noisy - noise


class NAFNet(nn.Module):
    """A U-net of nonlinear-activation-free blocks around a global residual.

    Chen et al. 2022, "Simple Baselines for Image Restoration" (arXiv 2204.04676); shapes, biases
    and constants as in megvii-research/NAFNet, basicsr/models/archs/NAFNet_arch.py. `depth` counts
    the blocks: one in the encoder and one in the decoder of each of min(4, (depth - 1) // 2)
    levels, the rest in the middle. Stages are the levels from the outside and then the middle;
    stage i takes kernel_sizes[i % len(kernel_sizes)], the first and last convolution the first
    size. The 2x2 convolutions that halve the resolution have an even kernel, hence no centre and no
    density. Any H and W: the image is padded with zeros to a multiple of 2^levels and cropped back.
    """

    def __init__(self, kernel_sizes: Sequence[int], width: int, depth: int, channels: int) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"a NAFNet proxy of depth {depth} has no block; use at least 1")
        levels = min(MAX_LEVELS, (depth - 1) // 2)
        sizes = [kernel_sizes[stage % len(kernel_sizes)] for stage in range(levels + 1)]
        self.multiple = 2**levels
        self.intro = _conv(channels, width, sizes[0])
        self.encoders = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for level in range(levels):
            wide = width << level
            self.encoders.append(NAFBlock(wide, sizes[level]))
            self.downs.append(nn.Conv2d(wide, 2 * wide, kernel_size=2, stride=2))
            self.ups.append(
                nn.Sequential(nn.Conv2d(2 * wide, 4 * wide, 1, bias=False), nn.PixelShuffle(2))
            )
            self.decoders.append(NAFBlock(wide, sizes[level]))
        middle = [NAFBlock(width << levels, sizes[levels]) for _ in range(depth - 2 * levels)]
        self.middle = nn.Sequential(*middle)
        self.ending = _conv(width, channels, sizes[0])

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise: (N, channels, H, W) to the same shape."""
        height, width = noisy.shape[2:]
        padded = F.pad(noisy, (0, -width % self.multiple, 0, -height % self.multiple))
        x = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder, skip in reversed(list(zip(self.ups, self.decoders, skips, strict=True))):
            x = decoder(up(x) + skip)
        denoised: Tensor = padded + self.ending(x)
        return denoised[:, :, :height, :width]


class NAFBlock(nn.Module):
    """Spatial mixing and channel mixing, each gated, scaled and added to its input.

    Chen et al. 2022, figure 3c: beta and gamma, one per channel, start at zero, so that a new block
    is the identity map.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.norm1 = LayerNorm2d(channels)
        self.widen = nn.Conv2d(channels, wide, 1)
        self.depthwise = _conv(wide, wide, kernel_size, groups=wide)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.expand = nn.Conv2d(channels, wide, 1)
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set beta and gamma to zero."""
        nn.init.zeros_(self.beta)
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Mix: (N, C, H, W) to the same shape."""
        gated = simple_gate(self.depthwise(self.widen(self.norm1(x))))
        # Over the channels-last view, so that the gradient comes in that order of memory too.
        mean = gated.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None]
        attended = gated * self.attention(mean)
        x = x + _scaled(self.project, self.beta, attended)
        return x + _scaled(self.reduce, self.gamma, simple_gate(self.expand(self.norm2(x))))


def _scaled(conv: nn.Conv2d, scale: Tensor, x: Tensor) -> Tensor:
    """Return scale * conv(x) for a 1x1 convolution and a factor per channel (1, C, 1, 1).

    The factor goes into the weights: they are small, and x is not.
    """
    assert conv.bias is not None
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), conv.bias * scale.flatten())


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of (N, C, H, W).

    In its weights' precision, as autocast has it on a GPU. On a CPU autocast leaves it in bfloat16,
    and that is slow over few channels: half of a small NAFNet's step (docs/performance.md).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)  # NAFNet's eps, basicsr/models/archs/arch_util.py
        self.normalise = normalise
        """Of pixels (..., C), weight, bias and eps; workers.networks.pixel_norm has another."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: (N, C, H, W) to the same shape."""
        pixels = x.permute(0, 2, 3, 1)
        return self.normalise(pixels, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def normalise(pixels: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return pixels (..., C), each normalised over its channels, in the type of the weights."""
    return F.layer_norm(pixels.to(weight.dtype), weight.shape, weight, bias, eps)


def simple_gate(x: Tensor) -> Tensor:
    """Multiply the first half of the channels by the second: (N, 2C, H, W) to (N, C, H, W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


def _conv(
    before: int, after: int, kernel_size: int, *, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias)
