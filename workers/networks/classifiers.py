"""Classifiers for small images (CIFAR's 32x32) of plain convolutions, which are weighted later.

Both have three stages of width, 2 * width and 4 * width channels at full, half and quarter
resolution; stage i takes kernel_sizes[i % len(kernel_sizes)], all odd.

Shapes: images (N, in_channels, H, W) to logits (N, classes).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 3


class VGG(nn.Module):
    """Stacks of convolution, batch normalisation and ReLU with max pooling between the stages.

    Simonyan & Zisserman 2015 (arXiv 1409.1556), with the batch normalisation that CIFAR versions
    in public use add. `depth` counts the convolutions; later stages get the remainder, as there.
    The paper's three fully connected layers are left out for global average pooling and one linear
    layer: at this size they would hold most of the parameters, and no density reaches them.
    """

    def __init__(
        self, kernel_sizes: Sequence[int], width: int, depth: int, in_channels: int, classes: int
    ) -> None:
        super().__init__()
        if depth < STAGES:
            raise ValueError(
                f"a VGG proxy of depth {depth} has fewer convolutions than its {STAGES} stages; "
                f"use a depth of at least {STAGES}"
            )
        self.stages = nn.ModuleList()
        channels = in_channels
        for stage in range(STAGES):
            kernel_size = kernel_sizes[stage % len(kernel_sizes)]
            layers = (depth + stage) // STAGES
            widths = [channels] + [width << stage] * layers
            blocks = [_vgg_layer(before, after, kernel_size) for before, after in pairwise(widths)]
            self.stages.append(nn.Sequential(*blocks))
            channels = widths[-1]
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify: (N, in_channels, H, W) to (N, classes); H and W at least 4."""
        x = images
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else F.max_pool2d(x, 2))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ResNet(nn.Module):
    """The CIFAR residual network of He et al. 2016 (arXiv 1512.03385, section 4.2).

    A stem convolution, then three stages of n basic blocks, depth = 6n + 2. Where shapes change the
    shortcut is a strided 1x1 projection (option B); the stem has the first stage's kernel.
    """

    def __init__(
        self, kernel_sizes: Sequence[int], width: int, depth: int, in_channels: int, classes: int
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"a ResNet proxy cannot have depth {depth}; depth is 6n + 2 with n >= 1 blocks per "
                "stage, such as 8, 14 or 20"
            )
        self.stem = nn.Sequential(_conv(in_channels, width, kernel_sizes[0]), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList()
        channels = width
        for stage in range(STAGES):
            kernel_size = kernel_sizes[stage % len(kernel_sizes)]
            blocks = nn.Sequential()
            for block in range(depth // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_BasicBlock(channels, width << stage, kernel_size, stride))
                channels = width << stage
            self.stages.append(blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify: (N, in_channels, H, W) to (N, classes)."""
        x = F.relu(self.stem(images), inplace=True)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    """Two convolutions and a shortcut: (N, before, H, W) to (N, after, H/stride, W/stride)."""

    def __init__(self, before: int, after: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(before, after, kernel_size, stride),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            _conv(after, after, kernel_size),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.extend([_conv(before, after, 1, stride), nn.BatchNorm2d(after)])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x), inplace=True)


def _vgg_layer(before: int, after: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(before, after, kernel_size), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _conv(before: int, after: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    # No bias: the batch normalisation behind it has one.
    return nn.Conv2d(
        before, after, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
