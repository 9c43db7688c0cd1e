"""A faster gradient for depthwise convolutions with large kernels on a CPU.

oneDNN (3.13, as in torch 2.15) has a fast depthwise weight gradient only for kernels at most 3
columns wide and no higher than the image, and falls back to a generic one that takes most of a
NAFNet's training step. The columns of a kernel's gradient do not depend on each other, so a wide
kernel's gradient is put together from strips of 3 columns, each that of a k x 3 kernel on shifted
images. docs/decisions.md has the measurements.

Shapes: images (N, C, H, W), kernels (C, 1, k, k) with odd k, both of one dtype.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.networks.same_size import autocast, gradients, is_same_size

STRIP = 3
"""Columns of the widest kernel whose gradient is fast."""


def speed_up(network: nn.Module) -> None:
    """Give, in place, the wide depthwise convolutions of a network the faster weight gradient.

    Those are plain and weighted 2-D convolutions with one k x k kernel per channel, odd k > 3,
    stride and dilation 1 and zero padding k // 2; all others are left alone. Outputs keep their
    bits and gradients change by rounding. Only first derivatives exist afterwards.
    """
    for module in network.modules():
        if _is_wide_depthwise(module):
            # What both torch's and the weighted forward call.
            module._conv_forward = convolve  # type: ignore[method-assign]


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the depthwise convolution (N, C, H, W) of images with zero padding k // 2.

    A single image (C, H, W) is taken too; autocast applies as it does to torch's convolution.
    """
    if input.dim() == 3:
        return convolve(input.unsqueeze(0), weight, bias).squeeze(0)
    arguments = [autocast(argument) for argument in (input, weight, bias)]
    output: Tensor = _Convolution.apply(*arguments)
    return output


class _Convolution(torch.autograd.Function):
    """The convolution with a weight gradient in strips."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input, by_weight, by_bias = ctx.needs_input_grad
        return (
            _input_gradient(gradient, input, weight) if by_input else None,
            _weight_gradient(gradient, input, weight) if by_weight else None,
            gradient.sum((0, 2, 3)) if by_bias else None,
        )


def _input_gradient(gradient: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    padding = weight.shape[-1] // 2
    wanted, around = (True, False), (padding, padding)
    return gradients(gradient, input, weight, wanted, padding=around, groups=len(weight))[0]


def _weight_gradient(gradient: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient by the weight, each entry from one complete sum over the batch."""
    side = weight.shape[-1]
    padding = side // 2
    missing = max(0, side - input.shape[-2])  # rows, for a kernel higher than the image
    gradient = F.pad(gradient, (0, 0, 0, missing)) if missing else gradient
    result = torch.zeros_like(weight)
    for first in (*range(0, side - STRIP, STRIP), side - STRIP):  # the last two may overlap
        left = padding - first
        right = STRIP - 1 - left
        if min(left, right) <= -input.shape[-1]:
            continue  # these columns never meet the image
        strip = slice(first, first + STRIP)
        shifted = F.pad(input, (left, right, 0, missing))  # a negative number crops
        _, result[..., strip] = gradients(
            gradient, shifted, weight[..., strip], (False, True), padding=(padding, 0),
            groups=len(weight),
        )  # fmt: skip
    return result


def _is_wide_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        is_same_size(module)
        and module.kernel_size[0] > STRIP
        and 1 < module.groups == module.in_channels == module.out_channels
    )
