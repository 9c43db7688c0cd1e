"""An exact gradient for strided 1 x 1 convolutions of few channels on a CPU.

oneDNN (3.13, as in torch 2.15) computes the float32 weight gradient of such a convolution in a
workspace that is too small if memory is channels last and the input has fewer channels than the
kernel takes at once: 8 with AVX2, 16 with AVX-512 (uxlfoundation/oneDNN issue 6035). It then writes
over other memory: the process dies, or with several threads the gradient is wrong. A convolution of
stride 1 needs no workspace, so the pixels are chosen first. docs/decisions.md lists the shapes that
were tried.

Shapes: images (N, C, H, W), kernels (O, C, 1, 1).
"""

from functools import partial
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16
"""Input channels from which on the workspace is large enough on every CPU."""


def make_exact(network: nn.Module) -> None:
    """Have, in place, the strided 1 x 1 convolutions of few channels choose their pixels first.

    Those are plain and weighted 2-D convolutions, and subclasses that convolve as they do, without
    groups and padding. They compute the same function. What a network computes by calling
    `F.conv2d` itself is out of reach.
    """
    for module in network.modules():
        if _is_affected(module):
            # What both torch's and the weighted forward call.
            module._conv_forward = partial(convolve, stride=module.stride)  # type: ignore[method-assign]


def convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, *, stride: tuple[int, ...]
) -> Tensor:
    """Return the 1 x 1 convolution of every stride-th pixel of images (N, C, H, W) or (C, H, W)."""
    down, across = stride
    return F.conv2d(input[..., ::down, ::across], weight, bias)


def _is_affected(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ("valid", (0, 0))
        and module.groups == 1
        and module.in_channels < CHANNELS
    )
