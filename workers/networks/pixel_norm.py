"""Layer normalisation over the channels of each pixel as one kernel forward and one backward.

torch's own takes a step of a NAFNet two casts beside the kernel forward, and backward a reduction
over all pixels that leaves most of a GPU idle: about 40 % of the step on an H200. These kernels
read what the network has and write what the next convolution takes. docs/performance.md has the
measurements. They are Triton's, which comes with a torch for CUDA.

Shapes: pixels (..., C) of float32 or bfloat16, weight and bias (C,) float32. A gradient by weight
or bias is added up in a fixed order, so it has the same bits every time.
"""

import logging
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.networks.denoisers import LayerNorm2d, normalise

PROGRAMS = 264
"""That add up a gradient by weight and bias, at most: two for each multiprocessor of an H100."""
ELEMENTS = 4096
"""Of all pixels that a program takes at once."""
MOST = 2**31
"""Elements that 32-bit offsets reach."""
OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: a default of Triton's is another from 3.10 on, and the bits would be too."""

log = logging.getLogger("densitune.worker")


def speed_up(network: nn.Module, device: torch.device) -> None:
    """Give, in place, the layer normalisations of a network on a GPU the fused kernels.

    Outputs and gradients change by rounding. Only first derivatives exist afterwards. Where Triton
    cannot be used (it needs a C compiler and Python's headers), torch's own stay, and a line of the
    log says so.
    """
    if not _work(device):
        return
    for module in network.modules():
        if isinstance(module, LayerNorm2d):
            module.normalise = fused


def fused(pixels: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return normalised pixels, (..., C) as given; in the type that autocast asks for, if on.

    torch's own where offsets would not fit, or where weights are not float32.
    """
    if pixels.numel() >= MOST or weight.dtype != torch.float32:
        return normalise(pixels, weight, bias, eps)
    kind = pixels.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    normal: Tensor = _Fused.apply(pixels, weight, bias, eps, dtype)
    return normal


@cache
def _work(device: torch.device) -> bool:
    """Try the kernels on a device; what it raises when its memory is full comes through."""
    try:
        pixels = torch.ones(2, 16, device=device, requires_grad=True)
        fused(pixels, pixels[0], pixels[0], 1e-6).sum().backward()
    except torch.OutOfMemoryError:
        raise  # the next slot may have them, and one process keeps to one kind of bits
    except Exception as error:  # Triton and a compiler have many ways to fail
        reason = next(iter(str(error).splitlines()), "")
        log.warning("layer normalisation stays torch's, and slower: %s", reason)
        return False
    return True


class _Fused(torch.autograd.Function):
    """The gradients: Ba et al. 2016 (arXiv 1607.06450), eq. 3, differentiated."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        pixels = pixels.contiguous()
        output = torch.empty_like(pixels, dtype=dtype)
        count, channels, wide, rows = _shape(pixels)
        # Triton takes the current device, and a measurement is made outside of any lane.
        with torch.cuda.device_of(pixels):
            _forward[(triton.cdiv(count, rows),)](
                pixels, weight, bias, output, count, eps, channels, wide, rows, **OPTIONS
            )
        ctx.save_for_backward(pixels, weight)
        ctx.eps = eps
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        count, channels, wide, rows = _shape(pixels)
        blocks = triton.cdiv(count, rows)
        programs = min(PROGRAMS, blocks)
        by_pixels = torch.empty_like(pixels)
        sums = pixels.new_empty((programs, 2, channels), dtype=torch.float32)
        with torch.cuda.device_of(pixels):
            _backward[(programs,)](
                pixels, weight, gradient, by_pixels, sums, count, ctx.eps, blocks,
                channels, wide, rows, **OPTIONS,
            )  # fmt: skip
        by_weight, by_bias = sums.sum(0)
        return by_pixels, by_weight, by_bias, None, None


def _shape(pixels: Tensor) -> tuple[int, int, int, int]:
    """Return the number of pixels, their channels, those padded, and the pixels of a block."""
    channels = pixels.shape[-1]
    wide = triton.next_power_of_2(channels)
    return pixels.numel() // channels, channels, wide, max(1, ELEMENTS // wide)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # Triton reads annotations its own way
    pixels, weights, biases, outputs, count, eps,
    channel_count: tl.constexpr, wide: tl.constexpr, row_count: tl.constexpr,
):  # fmt: skip
    """Normalise row_count pixels of channel_count channels, padded to `wide`, a power of two."""
    rows = tl.program_id(0) * row_count + tl.arange(0, row_count)
    channels = tl.arange(0, wide)
    inside = channels < channel_count
    mask = (rows < count)[:, None] & inside[None, :]
    at = rows[:, None] * channel_count + channels[None, :]
    x = tl.load(pixels + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / channel_count
    centred = tl.where(mask, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channel_count + eps)
    weight = tl.load(weights + channels, mask=inside, other=0.0)
    bias = tl.load(biases + channels, mask=inside, other=0.0)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(outputs + at, y.to(outputs.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    pixels, weights, gradients, by_pixels, sums, count, eps, blocks,
    channel_count: tl.constexpr, wide: tl.constexpr, row_count: tl.constexpr,
):  # fmt: skip
    """Differentiate by the pixels of every n-th block, and by weight and bias in parts."""
    program = tl.program_id(0)
    channels = tl.arange(0, wide)
    inside = channels < channel_count
    weight = tl.load(weights + channels, mask=inside, other=0.0)
    by_weight = tl.zeros([wide], tl.float32)
    by_bias = tl.zeros([wide], tl.float32)
    for block in range(program, blocks, tl.num_programs(0)):
        rows = block * row_count + tl.arange(0, row_count)
        mask = (rows < count)[:, None] & inside[None, :]
        at = rows[:, None] * channel_count + channels[None, :]
        x = tl.load(pixels + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gradients + at, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, 1) / channel_count
        centred = tl.where(mask, x - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channel_count + eps)
        normal = centred * scale[:, None]
        by_weight += tl.sum(g * normal, 0)
        by_bias += tl.sum(g, 0)
        weighted = g * weight[None, :]
        level = tl.sum(weighted, 1) / channel_count
        along = tl.sum(weighted * normal, 1) / channel_count
        dx = (weighted - level[:, None] - normal * along[:, None]) * scale[:, None]
        tl.store(by_pixels + at, dx.to(by_pixels.dtype.element_ty), mask=mask)
    tl.store(sums + program * 2 * channel_count + channels, by_weight, mask=inside)
    tl.store(sums + program * 2 * channel_count + channel_count + channels, by_bias, mask=inside)
