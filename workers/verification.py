"""Checks of what a preset promises about its layers."""

from collections.abc import Sequence

import torch

from optimizer.errors import UsageError
from workers.seeds import generator
from workers.weighted_conv import WeightedConv2d


def check_folding(kernel_size: int, den: Sequence[float]) -> None:
    """Check that a weighted layer and its folded plain convolution give the same bits.

    UsageError if they do not. The layer has 4 channels in and out, the image 16 x 16 pixels.
    """
    layer = WeightedConv2d(4, 4, kernel_size, den, padding=kernel_size // 2)
    image = torch.randn(1, 4, 16, 16, generator=generator(0, "folding"))
    with torch.inference_mode():
        difference = (layer(image) - layer.fold()(image)).abs().max().item()
    if difference != 0:
        raise UsageError(
            f"density {list(den)} of kernel size {kernel_size}: the folded convolution differs "
            f"from the weighted one by {difference:g}; expected 0"
        )
