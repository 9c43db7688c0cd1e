"""What an arm of a study does to a model: its density or mask, and where its weights start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from densitune import conversion, density, repeatable
from densitune.choices import Init, Mask, Start
from densitune.weighted_conv import WeightedConv


@dataclass(frozen=True)
class Treatment:
    """An arm as a model meets it; without densities it does nothing."""

    densities: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By kernel size."""
    gain: Mapping[int, float] = field(default_factory=dict)
    """By kernel size: what initial weights are multiplied by in two dimensions; in d of them by its
    power d / 2, as RMS(phi) goes."""
    mask: Mask = "density"
    start: Start = "drawn"
    init: Init = "model"
    trainable: bool = False

    @property
    def is_plain(self) -> bool:
        """Tell whether convolutions stay plain ones: nothing multiplies their kernels."""
        ones = all(value == 1 for den in self.densities.values() for value in den)
        return self.mask == "ones" or (ones and not self.trainable)

    def apply(self, model: nn.Module, seed: int) -> nn.Module:
        """Treat, in place, the convolutions of the densities' sizes; return `model`.

        Its initial weights are those that it has, unless `init` has them drawn: by the seed and the
        layer's name, with no use of torch's global generators. ValueError, with nothing changed, if
        a size occurs nowhere in the model.
        """
        if not self.densities:
            return model
        names = {id(module): name for name, module in model.named_modules()}
        seen: set[int] = set()
        for module, side in conversion._of_sizes(model, self.densities):
            weight = cast(nn.Parameter, module.weight)
            if id(weight) not in seen:  # what modules share starts once
                seen.add(id(weight))
                if self.init != "model":
                    draw(module, seed, names[id(module)])
                self.begin(weight, side)
        if not self.is_plain:
            conversion.apply_densities(model, self.densities, trainable=self.trainable)
            if self.mask == "uniform":
                fill(model, self.densities, self.mask)
        return model

    @torch.no_grad()
    def begin(self, weight: Tensor, side: int) -> None:
        """Scale, in place, a weight (O, I/groups, k, ...) as it is drawn to where it starts.

        Each size has a density. In d dimensions RMS(phi) is RMS(alpha)^d (densitune.density.rms).
        """
        den, dimensions = self.densities[side], weight.dim() - 2
        if self.init == "compensated":
            weight.div_(density.rms(den, dimensions))
        if side in self.gain:
            weight.mul_(self.gain[side] ** (dimensions / 2))
        if self.start != "drawn":
            begin_at(weight, masked(den, "density", dimensions, weight.dtype), self.start)


def masked(den: Sequence[float], mask: Mask, dimensions: int, dtype: torch.dtype) -> Tensor:
    """Return phi (k, ...), or what is to be in its place: its root mean square everywhere, or 1."""
    phi = torch.from_numpy(density.phi(den, dimensions)).to(dtype)
    if mask == "density":
        return phi
    return torch.full_like(
        phi, 1.0 if mask == "ones" else phi.double().square().mean().sqrt().item()
    )


def begin_at(weight: Tensor, phi: Tensor, start: Start) -> None:
    """Multiply, in place, a weight (O, I/groups, k, ...) by phi (k, ...), or divide it by that.

    A tap whose phi is zero, or so small that its reciprocal is infinite, has no effect whatever its
    weight, which then stays as it is.
    """
    phi = phi.to(weight.device)
    inverse = phi.reciprocal()
    weight.mul_(phi if start == "times_phi" else inverse.where(inverse.isfinite(), 1))


@torch.no_grad()
def fill(model: nn.Module, densities: Mapping[int, Sequence[float]], mask: Mask) -> None:
    """Put a mask, in place, where weighted convolutions of a model have phi."""
    for module, side in conversion._of_sizes(model, densities):
        phi = cast(WeightedConv, module).phi
        phi.copy_(masked(densities[side], mask, phi.dim(), phi.dtype))


@torch.no_grad()
def draw(module: nn.Module, seed: int, name: str) -> None:
    """Draw weights as the authors' layer does (`WeightedConv.reset_parameters`), by seed and name.

    On the CPU, so that every device has the same.
    """
    generator = torch.Generator().manual_seed(repeatable.derive(seed, "weights", name))
    weight, bias = cast(nn.Parameter, module.weight), cast(nn.Parameter | None, module.bias)
    drawn = torch.empty(weight.shape, dtype=weight.dtype)
    nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu", generator=generator)
    weight.copy_(drawn)
    if bias is not None:
        nn.init.zeros_(bias)


def learned(model: nn.Module) -> dict[str, list[list[float]]]:
    """Return what layers have learned, as JSON: {kernel size: [density of each layer]}."""
    found: dict[str, list[list[float]]] = {}
    for module in model.modules():
        if isinstance(module, WeightedConv) and module.trainable:
            found.setdefault(str(module.kernel_size[0]), []).append(module.den.tolist())
    return found
