"""Whole models: weight the convolutions that a density is for, or scale them, in place."""

import fnmatch
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from densitune import density
from densitune.weighted_conv import WeightedConv, WeightedConv1d, WeightedConv2d, WeightedConv3d

if TYPE_CHECKING:
    from densitune.preset import Preset

_WEIGHTED: Mapping[type[nn.Module], type[WeightedConv]] = {
    weighted.plain: weighted for weighted in (WeightedConv1d, WeightedConv2d, WeightedConv3d)
}
_Init = Literal["keep", "library"]
_WeightedInit = Literal[_Init, "compensated"]
_NAMED = 5
"""How many convolutions a message names."""


def apply_densities(
    model: nn.Module,
    densities: Mapping[int, Sequence[float]] | Mapping[str, Sequence[float]],
    *,
    trainable: bool = False,
    init: _WeightedInit = "keep",
    layers: str | Sequence[str] = (),
) -> nn.Module:
    """Weight, in place, every convolution whose kernel has a size named in `densities`.

    densities: by kernel size, which may be text as in a preset. init: `library` draws the weights
    of these convolutions as the authors' layer does and as studies train (from torch's global
    generator); `compensated` divides them by RMS(phi) after that, as studies with `init:
    compensated` do; `keep` leaves them as they are. layers:
    patterns of names as `named_modules` has them, such as `layer[34].*`; only what fits one is
    weighted, and nothing that fits one with `!` before it.

    Converted are Conv1d, Conv2d and Conv3d themselves and weighted ones, which get the new density.
    Modules change class and stay the same objects, `model` included: sharing, hooks, parameters and
    the optimizers that hold them remain valid. A UserWarning names the convolutions of these sizes
    that are left alone (`left_alone`). ValueError, with nothing changed, for an invalid density, a
    size that occurs nowhere in the model, or a pattern that no convolution's name fits.
    """
    checked = _by_size(densities)
    chosen = _chosen(model, [layers] if isinstance(layers, str) else layers)
    for module, side in _of_sizes(model, checked, chosen):
        _weigh(module, checked[side], trainable)
        if init != "keep":
            cast(WeightedConv, module).reset_parameters()
        if init == "compensated":
            weight = cast(nn.Parameter, module.weight)
            with torch.no_grad():
                weight.div_(density.rms(checked[side], weight.dim() - 2))
    others = {name: why for name, why in left_alone(model, checked).items() if name in chosen}
    if others:
        warnings.warn(f"not every convolution is weighted{_listed('; ', others)}", stacklevel=2)
    return model


def _of_sizes(
    model: nn.Module, sizes: Collection[int], chosen: Collection[str] | None = None
) -> list[tuple[nn.Module, int]]:
    """Return the convolutions that are or can be weighted and have one of these sizes, with it.

    Of those with a name in `chosen`, or all. ValueError for a size that occurs nowhere among them.
    """
    found = [
        (module, side)
        for name, module in model.named_modules()
        if (chosen is None or name in chosen) and (side := _convertible_side(module))
    ]
    sides = {side for _, side in found}
    if unused := sorted(set(sizes) - sides):
        occurring = ", ".join(map(str, sorted(sides - {1}))) or "none"
        others = {
            name: why
            for name, why in left_alone(model, sizes).items()
            if chosen is None or name in chosen
        }
        raise ValueError(
            f"no convolution has kernel size {', '.join(map(str, unused))}; "
            f"sizes in this model that can be weighted: {occurring}{_listed('; ', others)}"
        )
    return [(module, side) for module, side in found if side in sizes]


def scale_initial_weights(
    model: nn.Module,
    by: "float | Preset | Mapping[int, Sequence[float]] | Mapping[str, Any]",
    *,
    init: _Init = "keep",
) -> nn.Module:
    """Multiply, in place, the weights of plain convolutions by RMS(phi): the start, and no more.

    For a new model, once and before training, where a density's start is all that helps.

    by: a preset, also as JSON has it, its densities, or a number > 0. A density is for the
    convolutions of its kernel size, each by RMS(phi) in its number of dimensions; a number is for
    all kernels of odd k > 1 in every dimension. init: as in `apply_densities`, before the weights
    are multiplied.

    Biases and weighted convolutions stay as they are; a weight that modules share is multiplied
    once. A UserWarning names the convolutions of these sizes that are left alone. ValueError, with
    nothing changed, for an invalid density or number, or one that no convolution is for.
    """
    plain = [
        (module, side)
        for module in model.modules()
        if type(module) in _WEIGHTED and (side := _convertible_side(module))
    ]
    sides = {side for _, side in plain if side > 1}
    factor: Any = getattr(by, "densities", by)
    if isinstance(factor, Mapping):
        densities = _by_size(factor.get("densities", factor))
    elif math.isfinite(factor) and factor > 0:
        densities = dict.fromkeys(sides, ())
    else:
        raise ValueError(f"factor {factor} is not a finite number > 0")
    if not densities or densities.keys() - sides:
        wanted = ", ".join(map(str, densities)) or "3 or more"
        occurring = ", ".join(map(str, sorted(sides))) or "none"
        raise ValueError(
            f"no plain convolution has kernel size {wanted}; sizes in this model: {occurring}"
        )
    seen: set[int] = set()
    for module, side in plain:
        weight = cast(nn.Parameter, module.weight)
        if side not in densities or id(weight) in seen:
            continue
        seen.add(id(weight))
        if init == "library":
            WeightedConv.reset_parameters(cast(WeightedConv, module))
        dimensions = weight.dim() - 2
        with torch.no_grad():
            den = densities[side]
            weight.mul_(density.rms(den, dimensions) if den else factor)
    if others := left_alone(model, densities):
        warnings.warn(f"not every convolution is scaled{_listed('; ', others)}", stacklevel=2)
    return model


def left_alone(model: nn.Module, sizes: Collection[int]) -> dict[str, str]:
    """Return why convolutions with a side of one of these sizes cannot be weighted, by name.

    They are transposed, lazy, parametrized (weight norm), of unequal sides, or subclasses with a
    forward of their own.
    """
    return {
        name: _obstacle(module)
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd)
        and _convertible_side(module) is None
        and not set(sizes).isdisjoint(module.kernel_size)
    }


def _chosen(model: nn.Module, layers: Sequence[str]) -> set[str]:
    """Return the names of the convolutions that patterns fit; ValueError if one fits none."""
    names = [name for name, module in model.named_modules() if isinstance(module, _ConvNd)]
    taken = set() if any(not pattern.startswith("!") for pattern in layers) else set(names)
    for pattern in sorted(layers, key=lambda pattern: pattern.startswith("!")):
        fitting = fnmatch.filter(names, pattern.removeprefix("!"))
        if not fitting:
            known = ", ".join(name or "the model" for name in names[:_NAMED])
            raise ValueError(
                f"layers {pattern!r} fits no convolution; their names are {known or 'none'}"
                f"{', ...' if len(names) > _NAMED else ''}"
            )
        taken = taken.difference(fitting) if pattern.startswith("!") else taken.union(fitting)
    return taken


def _by_size(
    densities: Mapping[int, Sequence[float]] | Mapping[str, Sequence[float]],
) -> dict[int, density.Density]:
    checked: dict[int, density.Density] = {}
    for key, den in densities.items():
        if not isinstance(key, int) and not str(key).isdecimal():
            raise ValueError(
                f"{key!r} is no kernel size; give densities by size, such as {{3: [0.7]}} or "
                f'the "densities" of a preset'
            )
        size = int(key)
        if size in checked:
            raise ValueError(f"kernel size {size} is given twice")
        checked[size] = density.validate(den, size)
    return checked


def _convertible_side(module: nn.Module) -> int | None:
    """Return the odd k of a convolution that can be weighted, None of any other module."""
    if not (type(module) in _WEIGHTED or isinstance(module, WeightedConv)):
        return None
    sides = set(cast(_ConvNd, module).kernel_size)
    side = sides.pop()
    return side if not sides and side % 2 == 1 else None


def _obstacle(module: _ConvNd) -> str:
    if parametrize.is_parametrized(module):
        return "its weight is parametrized: apply densities before that"
    if isinstance(module, LazyModuleMixin):
        return f"{type(module).__name__}: run the model once before"
    if isinstance(module, _ConvTransposeNd):
        return type(module).__name__
    if len(set(module.kernel_size)) > 1:
        return f"kernel {module.kernel_size}"
    return f"{type(module).__name__} may have a forward of its own"


def _listed(before: str, others: Mapping[str, str]) -> str:
    """Return what is left alone as part of a message, bounded; nothing if nothing is."""
    if not others:
        return ""
    first = [f"{name or 'the model'} ({why})" for name, why in list(others.items())[:_NAMED]]
    more = [f"{len(others) - _NAMED} more"] if len(others) > _NAMED else []
    return f"{before}left alone: {', '.join([*first, *more])}"


def _weigh(module: nn.Module, den: density.Density, trainable: bool) -> None:
    if not isinstance(module, WeightedConv):
        # As torch's parametrizations and lazy modules do it: references to the module stay valid.
        module.__class__ = _WEIGHTED[type(module)]
    cast(WeightedConv, module).set_density(den, trainable=trainable)
