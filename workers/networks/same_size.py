"""What the other forms of a convolution share: convolutions that keep the size of their images.

Shapes: images (N, C, H, W), kernels (O, C / groups, k, k) with odd k.
"""

from typing import TypeGuard, overload

import torch
from torch import Tensor, nn

from densitune.weighted_conv import WeightedConv2d


def is_same_size(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a plain or weighted convolution with zero padding k // 2.

    Its kernel is k x k with odd k, its stride and dilation 1. A subclass may have a forward of its
    own, and is none.
    """
    if not (type(module) is nn.Conv2d or type(module) is WeightedConv2d):
        return False
    side = module.kernel_size[0]
    return (
        module.kernel_size == (side, side)
        and side % 2 == 1
        and module.stride == module.dilation == (1, 1)
        and module.padding in ("same", (side // 2, side // 2))
        and module.padding_mode == "zeros"
    )


@overload
def autocast(tensor: Tensor) -> Tensor:
    """Cast images or a kernel."""


@overload
def autocast(tensor: None) -> None:
    """Leave a bias that is not there."""


def autocast(tensor: Tensor | None) -> Tensor | None:
    """Cast as autocast casts what torch's convolution gets: everything but float64."""
    if tensor is None or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def gradients(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    wanted: tuple[bool, ...],
    *,
    padding: tuple[int, int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return a convolution's gradients by input and weight, where wanted; by the bias never."""
    ones, zeros = (1, 1), (0, 0)
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, input, weight, None, ones, padding, ones, False, zeros, groups, (*wanted, False)
    )
    return by_input, by_weight
