"""Small networks that stand for a user's own: built from plain numbers, weighted, initialised.

Initial weights depend on the seed and on the name of their layer only: not on the density, the
order of construction or torch's global random state, which is neither read nor moved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import assert_never

import torch
from torch import Tensor, nn

from densitune import density
from densitune.conversion import apply_densities
from densitune.weighted_conv import WeightedConv2d
from optimizer.arms import Init, Mask, Start
from optimizer.learning_rates import Family
from workers.networks.classifiers import VGG, ResNet
from workers.networks.denoisers import DnCNN, NAFNet
from workers.seeds import generator


@dataclass(frozen=True)
class Proxy:
    """A network by its family and numbers; `depth` and the stages are the family's own."""

    family: Family
    width: int
    """Channels of the first stage."""
    depth: int
    kernel_sizes: tuple[int, ...]
    """Odd sizes, given to the stages in turn."""
    channels: int
    """Channels of the images: 1 or 3."""
    classes: int | None
    """Classes of a classifier; None for a denoiser."""


def build(
    proxy: Proxy,
    densities: Mapping[int, Sequence[float]],
    *,
    init: Init,
    seed: int,
    gain: Mapping[int, float] = MappingProxyType({}),
    trainable: bool = False,
    mask: Mask = "density",
    start: Start = "drawn",
) -> nn.Module:
    """Return the proxy on the CPU, its convolutions weighted by the density of their kernel size.

    `library` draws the weights of spatial convolutions as the layer library does; `compensated`
    divides the weighted ones by RMS(phi), so that weight * phi starts at the scale of the identity.
    `gain` multiplies the initial weights of the weighted convolutions of a kernel size; `start`
    multiplies them by phi or divides by it, tap by tap. `mask` says what multiplies the kernel in
    the place of phi. With `trainable` every layer has a density of its own as a parameter, which
    starts at the one given. Convolutions whose size has no density stay plain. ValueError for a
    proxy that its family cannot build or a density whose kernel size the proxy does not have.
    """
    model = empty(proxy, densities, trainable=trainable)
    _initialise(model, seed)
    if init == "compensated":
        _compensate(model, densities)
    _amplify(model, gain)
    _start(model, start)
    set_densities(model, densities, mask)
    return model


def empty(proxy: Proxy, densities: Mapping[int, Sequence[float]], *, trainable: bool) -> nn.Module:
    """Return what `build` does, before weights and buffers other than densities have values."""
    for kernel_size in proxy.kernel_sizes:
        density.length(kernel_size)
    with torch.device("meta"):  # shapes only: constructors draw from the global generator
        model = _construct(proxy)
    return apply_densities(model.to_empty(device="cpu"), densities, trainable=trainable)


@torch.no_grad()
def set_densities(
    model: nn.Module, densities: Mapping[int, Sequence[float]], mask: Mask = "density"
) -> None:
    """Give, in place, the weighted convolutions of a model other densities of the same sizes.

    `mask` says what multiplies the kernel, as in `build`; those that learn their density have phi.
    """
    weight = next(model.parameters())
    for size, den in densities.items():
        # Once to the device, which need not be waited for, and from there to every layer.
        own, phi = (
            values.to(weight.device, non_blocking=True)
            for values in (torch.tensor(den, dtype=weight.dtype), _phi(den, mask, weight.dtype))
        )
        for module in model.modules():
            if isinstance(module, WeightedConv2d) and module.kernel_size[0] == size:
                if module.trainable:
                    module.den.copy_(own)
                else:
                    module.phi.copy_(phi)


def _phi(den: Sequence[float], mask: Mask, dtype: torch.dtype) -> Tensor:
    """Return phi (k, k), or what is to be in its place: its root mean square everywhere, or 1."""
    phi = torch.from_numpy(density.phi(den, 2)).to(dtype)
    if mask == "density":
        return phi
    return torch.full_like(
        phi, 1.0 if mask == "ones" else phi.double().square().mean().sqrt().item()
    )


def trainable_densities(model: nn.Module) -> list[tuple[int, Tensor]]:
    """Return kernel size and density, the parameter ((k-1)/2,), of every layer that learns its own.

    In the order of the layers.
    """
    return [
        (module.kernel_size[0], module.den)
        for module in model.modules()
        if isinstance(module, WeightedConv2d) and module.trainable
    ]


def learned(model: nn.Module) -> dict[str, list[list[float]]]:
    """Return what the layers have learned, as JSON: {kernel size: [density of each layer]}."""
    found: dict[str, list[list[float]]] = {}
    for kernel_size, den in trainable_densities(model):
        found.setdefault(str(kernel_size), []).append(den.tolist())
    return found


def _construct(proxy: Proxy) -> nn.Module:
    sizes, width, depth = proxy.kernel_sizes, proxy.width, proxy.depth
    match proxy.family:
        case "vgg":
            return VGG(sizes, width, depth, proxy.channels, _classes(proxy))
        case "resnet":
            return ResNet(sizes, width, depth, proxy.channels, _classes(proxy))
        case "dncnn":
            return DnCNN(sizes, width, depth, proxy.channels)
        case "nafnet":
            return NAFNet(sizes, width, depth, proxy.channels)
    assert_never(proxy.family)


def _classes(proxy: Proxy) -> int:
    if proxy.classes is None:
        raise ValueError(
            f"a {proxy.family} proxy is a classifier and needs a number of classes; "
            "use dncnn or nafnet for denoising"
        )
    return proxy.classes


@torch.no_grad()
def _initialise(model: nn.Module, seed: int) -> None:
    """Give every parameter and buffer of an empty model its initial value."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw = generator(seed, "weights", name)
            if isinstance(module, nn.Conv2d) and _is_spatial(module):
                _init_library(module, draw)
            else:
                _init_torch(module, draw)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # normalisations and NAFNet's scales: constants


def _is_spatial(conv: nn.Conv2d) -> bool:
    return all(side > 1 and side % 2 == 1 for side in conv.kernel_size)


def _init_library(conv: nn.Conv2d, draw: torch.Generator) -> None:
    """Draw as the authors' layer does: Kaiming normal over fan_out, zero bias (wConv.py)."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=draw)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _init_torch(layer: nn.Conv2d | nn.Linear, draw: torch.Generator) -> None:
    """Draw weights and bias from U(±1/sqrt(fan_in)), torch's default for both layers."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # kaiming_uniform_ with a = sqrt(5)
    nn.init.uniform_(layer.weight, -bound, bound, generator=draw)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=draw)


@torch.no_grad()
def _compensate(model: nn.Module, densities: Mapping[int, Sequence[float]]) -> None:
    """Divide the weights of weighted convolutions by RMS(phi), which is their gain in scale."""
    for module in model.modules():
        if isinstance(module, WeightedConv2d):
            module.weight.div_(density.rms(densities[module.kernel_size[0]], 2))


@torch.no_grad()
def _amplify(model: nn.Module, gain: Mapping[int, float]) -> None:
    """Multiply the weights of weighted convolutions by the gain of their kernel size."""
    for module in model.modules():
        if isinstance(module, WeightedConv2d) and module.kernel_size[0] in gain:
            module.weight.mul_(gain[module.kernel_size[0]])


@torch.no_grad()
def _start(model: nn.Module, start: Start) -> None:
    """Multiply the weights of weighted convolutions by phi, or divide them by it.

    A tap whose phi is zero, or so small that its reciprocal is infinite, has no effect whatever its
    weight, which then stays as it is.
    """
    for module in model.modules():
        if isinstance(module, WeightedConv2d) and start != "drawn":
            inverse = module.phi.reciprocal()
            over = inverse.where(inverse.isfinite(), 1)
            module.weight.mul_(module.phi if start == "times_phi" else over)
