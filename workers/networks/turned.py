"""Convolutions with large kernels on small images, computed as an input gradient on a GPU.

For 7 x 7 kernels on images of 8 x 8 cuDNN (9.19, on an H200) has no forward kernel that uses the
tensor cores: 392 us for a batch of 128 from 64 to 128 channels and 765 from 128 to 128, where the
gradients by their inputs take 27 and 38. A convolution is the input gradient of the one with the
turned kernel, inputs and outputs exchanged: so computed they take 39 and 58.

Shapes: images (N, C, H, W), kernels (O, C, k, k) with odd k.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.networks.same_size import autocast, gradients, is_same_size

SIDE = 7
"""Of the smallest kernel whose forward convolution is slow."""
LARGEST = 8
"""Side of the largest image on which it was seen to be slow; on 16 x 16 it is not."""


def speed_up(network: nn.Module) -> None:
    """Have, in place, the convolutions of a network on a GPU choose the faster of two forms.

    Those are plain and weighted 2-D convolutions with one k x k kernel, odd k >= SIDE, without
    groups, of stride and dilation 1 and zero padding k // 2; all others are left alone. Outputs
    change by rounding, gradients do not. Only first derivatives exist afterwards.
    """
    for module in network.modules():
        if is_same_size(module) and module.groups == 1 and module.kernel_size[0] >= SIDE:
            # What both torch's and the weighted forward call.
            module._conv_forward = convolve  # type: ignore[method-assign]


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution (N, O, H, W) of images with zero padding k // 2.

    In the other form in bfloat16 and for sides of at most LARGEST, by a fixed rule: it was measured
    for 7 x 7 on 8 x 8, and larger kernels and smaller images were taken to be alike.
    """
    input, weight, bias = autocast(input), autocast(weight), autocast(bias)
    if input.dtype != torch.bfloat16 or max(input.shape[-2:]) > LARGEST:
        return F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2)
    output = as_input_gradient(input, weight)
    return output if bias is None else output + bias.view(1, -1, 1, 1)


def as_input_gradient(input: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution (N, O, H, W) of images with zero padding k // 2, without bias."""
    output: Tensor = _Turned.apply(input, weight)
    return output


class _Turned(torch.autograd.Function):
    """A convolution without bias as the input gradient of another one."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        memory = torch.channels_last
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=memory)
        shape = len(input), len(weight), *input.shape[2:]
        exchanged = torch.empty(  # only its shape counts
            shape, dtype=input.dtype, device=input.device, memory_format=memory
        )
        output, _ = gradients(
            input, exchanged, turned, (True, False), padding=_padding(weight), groups=1
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        return gradients(
            gradient, input, weight, ctx.needs_input_grad, padding=_padding(weight), groups=1
        )


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[-1] // 2, weight.shape[-1] // 2
