"""The networks that are trained: of a known family or by their names, weighted, initialised.

Initial weights of a family depend on the seed and on the name of their layer only: not on the
density, the order of construction or torch's global random state, which is neither read nor moved.
A network by name has its own, which depend on the seed alone; `library` draws its weighted
convolutions again, as a family's.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, assert_never

import torch
from torch import Tensor, nn

from densitune import density
from densitune.conversion import apply_densities
from densitune.treatment import Treatment, draw, masked
from densitune.weighted_conv import WeightedConv
from optimizer.arms import Init, Mask, Start
from optimizer.learning_rates import Family, Kind
from workers.networks import named
from workers.networks.classifiers import VGG, ResNet
from workers.networks.denoisers import DnCNN, NAFNet
from workers.networks.named import Network
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

    channels_last: ClassVar[bool] = True
    """Whether memory is so: 1.1x to 1.7x in float32 on one core (docs/performance.md)."""

    @property
    def kind(self) -> Kind:
        """Return what it is trained as."""
        return self.family

    @property
    def name(self) -> str:
        """Return what it is called."""
        return self.family


def build(
    proxy: Proxy | Network,
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

    `library` draws the weights of spatial convolutions as the layer library does, of a network by
    name those of the weighted ones; `compensated` then divides the weighted ones by RMS(phi), so
    that weight * phi starts at the scale of the identity; `model` leaves what a network by name has
    drawn. `gain` multiplies the initial weights of the weighted convolutions of a kernel size, in d
    dimensions by its power d / 2; `start` multiplies them by phi or divides by it, tap by tap.
    `mask` says what multiplies the kernel in the place of phi. With `trainable` every layer has a
    density of its own as a parameter, which starts at the one given. Convolutions whose size has no
    density stay plain. ValueError for a proxy that its family cannot build or a density whose
    kernel size the proxy does not have; UsageError for a network by name that cannot be built.
    """
    model = _drawn(proxy, densities, init, seed, trainable=trainable)
    arm = Treatment(densities, gain, mask, start, init, trainable)
    for layer in _own_weights(model):
        arm.begin(layer.weight, layer.kernel_size[0])
    set_densities(model, densities, mask)
    return model


def empty(
    proxy: Proxy | Network, densities: Mapping[int, Sequence[float]], *, trainable: bool
) -> nn.Module:
    """Return what `build` does, before weights and buffers other than densities have values."""
    if isinstance(proxy, Network):
        return _drawn(proxy, densities, "model", 0, trainable=trainable)
    for kernel_size in proxy.kernel_sizes:
        density.length(kernel_size)
    with torch.device("meta"):  # shapes only: constructors draw from the global generator
        model = _construct(proxy)
    return apply_densities(model.to_empty(device="cpu"), densities, trainable=trainable)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a network's function depends on, by name: parameters and buffers."""
    held = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach() for name, tensor in held}


def arrange(model: nn.Module, proxy: Proxy | Network) -> nn.Module:
    """Put, in place, a network's images and kernels into the order of memory that suits it."""
    if proxy.channels_last:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


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
        layers = [module for module in _weighted(model) if module.kernel_size[0] == size]
        own = torch.tensor(den, dtype=weight.dtype).to(weight.device, non_blocking=True)
        phis = {
            dimensions: masked(den, mask, dimensions, weight.dtype).to(
                weight.device, non_blocking=True
            )
            for dimensions in {_dimensions(layer) for layer in layers}
        }
        for layer in layers:
            if layer.trainable:
                layer.den.copy_(own)
            else:
                layer.phi.copy_(phis[_dimensions(layer)])


def trainable_densities(model: nn.Module) -> list[tuple[int, Tensor]]:
    """Return kernel size and density, the parameter ((k-1)/2,), of every layer that learns its own.

    In the order of the layers.
    """
    return [(layer.kernel_size[0], layer.den) for layer in _weighted(model) if layer.trainable]


def _drawn(
    proxy: Proxy | Network,
    densities: Mapping[int, Sequence[float]],
    init: Init,
    seed: int,
    *,
    trainable: bool,
) -> nn.Module:
    """Return a weighted network with the weights of a seed, before any is scaled."""
    if not isinstance(proxy, Network):
        model = empty(proxy, densities, trainable=trainable)
        _initialise(model, seed)
        return model
    model = named.construct(proxy, seed)
    with warnings.catch_warnings():  # what is left alone is told at the launch
        warnings.simplefilter("ignore", UserWarning)
        apply_densities(model, densities, trainable=trainable, layers=proxy.layers)
    if init != "model":
        for name, module in model.named_modules():
            if isinstance(module, WeightedConv):
                draw(module, seed, name)
    return model


def _weighted(model: nn.Module) -> list[WeightedConv]:
    return [module for module in model.modules() if isinstance(module, WeightedConv)]


def _own_weights(model: nn.Module) -> list[WeightedConv]:
    """Return the weighted convolutions of a model, one of those that share a weight."""
    return list({id(layer.weight): layer for layer in reversed(_weighted(model))}.values())


def _dimensions(layer: WeightedConv) -> int:
    return layer.weight.dim() - 2


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
            if isinstance(module, nn.Conv2d) and _is_spatial(module):
                draw(module, seed, name)
            else:
                _init_torch(module, generator(seed, "weights", name))
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # normalisations and NAFNet's scales: constants


def _is_spatial(conv: nn.Conv2d) -> bool:
    return all(side > 1 and side % 2 == 1 for side in conv.kernel_size)


def _init_torch(layer: nn.Conv2d | nn.Linear, draw: torch.Generator) -> None:
    """Draw weights and bias from U(±1/sqrt(fan_in)), torch's default for both layers."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # kaiming_uniform_ with a = sqrt(5)
    nn.init.uniform_(layer.weight, -bound, bound, generator=draw)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=draw)
