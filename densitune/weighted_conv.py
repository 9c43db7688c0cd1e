"""The operator: convolutions whose kernel is multiplied by phi, and their folding.

A weighted convolution computes conv(x, weight * phi) and is otherwise torch's convolution of the
same dimension (Cammarasana & Patanè 2025, arXiv 2505.24558; as coded in the authors' repository
weightedConvolution2.0, wConv.py and wConv-Trainable.py).

Shapes: weight (O, I/groups, k, ...), phi (k, ...) with one k per spatial dimension, den ((k-1)/2,).
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from densitune import density

PlainConv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class WeightedConv(nn.Module):
    """What the weighted convolutions share, mixed into the torch convolution `plain`.

    Takes the arguments of `plain`, with `den` after `kernel_size`: (k-1)/2 finite numbers >= 0,
    outermost first. The kernel is an odd k in every dimension; k = 1 takes an empty `den`.
    ValueError for any other density or kernel.

    A fixed density lives in the buffer `phi` alone, so a checkpoint carries the density it was
    trained with; a plain model that loads it with strict=False drops phi without a word and
    computes something else. With `trainable` the parameter `den` lives instead and phi is computed
    from it in every forward pass, one density per layer; only its initial values are checked,
    training may move them anywhere (the authors' second variant, wConv-Trainable.py).
    """

    plain: ClassVar[type[nn.Module]]
    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int, ...]
    _conv_forward: Callable[..., Tensor]  # of `plain`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        den: Sequence[float],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        trainable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checked = density.validate(den, _side(kernel_size))
        settings = (stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, kernel_size, *settings)
        self._hold(checked, trainable)

    @classmethod
    def from_conv(cls, conv: PlainConv, den: Sequence[float], *, trainable: bool = False) -> Self:
        """Return a weighted convolution that adopts the very parameters of a plain or weighted one.

        Settings, dtype, device and training flag are those of `conv`; its hooks stay behind. The
        weights stay as they are, so the function changes unless `den` is all ones. ValueError for a
        convolution of another dimension or a type with a forward of its own.
        """
        known = type(conv) is cls.plain or (
            isinstance(conv, WeightedConv) and conv.plain is cls.plain
        )
        if not known:
            raise ValueError(
                f"{cls.__name__}.from_conv takes a {cls.plain.__name__} or a {cls.__name__}, "
                f"not a {type(conv).__name__}"
            )
        checked = density.validate(den, _side(conv.kernel_size))
        twin = _twin(cls.plain, conv, _own_weight(conv), conv.bias)
        _change_class(twin, cls)
        weighted = cast(Self, twin)
        weighted._hold(checked, trainable)
        return weighted

    def reset_parameters(self) -> None:
        """Draw new weights as the authors' layer does (wConv.py); the density stays.

        Kaiming normal over fan_out for ReLU, not compensated for phi, and zero bias. ValueError if
        the weight is computed by a parametrization.
        """
        nn.init.kaiming_normal_(_own_weight(self), mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def trainable(self) -> bool:
        """Whether the density is a parameter."""
        return "den" in self._parameters

    @property
    def phi(self) -> Tensor:
        """The kernel mask, (k, ...): a buffer, or computed if the density is trainable."""
        den = self._parameters.get("den")
        if den is not None:
            return _outer(den, len(self.kernel_size))
        phi = self._buffers.get("phi")
        if phi is None:  # torch asks before it registers
            raise AttributeError("the density is not set yet")
        return phi

    @property
    def den(self) -> Tensor:
        """The density, ((k-1)/2,): the parameter, or read from the central line of phi."""
        den = self._parameters.get("den")
        if den is not None:
            return den
        phi = self.phi
        line = phi[(phi.shape[0] // 2,) * (phi.dim() - 1)]
        return line[: line.shape[0] // 2].clone()

    def set_density(self, den: Sequence[float], *, trainable: bool = False) -> None:
        """Put another density into the place of this one; ValueError if it does not fit."""
        self._hold(density.validate(den, _side(self.kernel_size)), trainable)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (N, I, ...) to (N, O, ...), or without N, as `plain` does."""
        return self._conv_forward(input, self.weight * self.phi, self.bias)

    def fold(self) -> PlainConv:
        """Return the plain convolution of the same function, bit for bit, with weight * phi.

        What takes `weight` for all there is loses phi: fold before batch norm is fused, and before
        weights go to other code. Nothing is shared with this one. Settings, dtype, device and
        training flag are kept; hooks stay behind. ValueError if the weight is computed by a
        parametrization.
        """
        conv = cast(PlainConv, self)
        bias = None
        if conv.bias is not None:
            bias = nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
        return _twin(self.plain, conv, self._folded_weight(), bias)

    def extra_repr(self) -> str:
        """Show the density behind the settings of the convolution."""
        values = ", ".join(f"{value:.6g}" for value in self.den.tolist())
        suffix = ", trainable=True" if self.trainable else ""
        return f"{super().extra_repr()}, den=[{values}]{suffix}"

    def _folded_weight(self) -> nn.Parameter:
        weight = _own_weight(self)
        return nn.Parameter((weight * self.phi).detach(), weight.requires_grad)

    def _hold(self, den: density.Density, trainable: bool) -> None:
        self._drop_density()
        if trainable:
            values = torch.tensor(den, dtype=self.weight.dtype, device=self.weight.device)
            self.register_parameter("den", nn.Parameter(values))
        else:
            mask = torch.from_numpy(density.phi(den, len(self.kernel_size)))
            self.register_buffer("phi", mask.to(self.weight.device, self.weight.dtype))

    def _drop_density(self) -> None:
        self._parameters.pop("den", None)
        self._buffers.pop("phi", None)


class WeightedConv1d(WeightedConv, nn.Conv1d):
    """A `torch.nn.Conv1d` whose kernel is multiplied by phi; see `WeightedConv`."""

    plain = nn.Conv1d


class WeightedConv2d(WeightedConv, nn.Conv2d):
    """A `torch.nn.Conv2d` whose kernel is multiplied by phi; see `WeightedConv`."""

    plain = nn.Conv2d


class WeightedConv3d(WeightedConv, nn.Conv3d):
    """A `torch.nn.Conv3d` whose kernel is multiplied by phi; see `WeightedConv`."""

    plain = nn.Conv3d


def fold_all(model: nn.Module) -> nn.Module:
    """Turn, in place, every weighted convolution of a model into the plain one of equal function.

    Returns `model`. Modules change class and stay the same objects; each gets a new weight
    parameter, so optimizers must be made anew and weights that were tied between layers no longer
    are. ValueError, with nothing changed, if a weight is computed by a parametrization.
    """
    weighted = [module for module in model.modules() if isinstance(module, WeightedConv)]
    folded = [module._folded_weight() for module in weighted]
    for module, weight in zip(weighted, folded, strict=True):
        module.weight = weight
        module._drop_density()
        _change_class(module, module.plain)
    return model


def _change_class(module: nn.Module, new: type[nn.Module]) -> None:
    # As torch's parametrizations and lazy modules do it: every reference to the module stays valid.
    module.__class__ = new


def _twin(
    plain: type[nn.Module], conv: PlainConv, weight: nn.Parameter, bias: Tensor | None
) -> PlainConv:
    """Return a new plain convolution with the settings of `conv` and these parameters."""
    twin = plain(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias is not None,
        conv.padding_mode,
        device="meta",  # neither memory nor random numbers for weights that are replaced at once
    )
    twin.weight = weight
    if bias is not None:
        twin.bias = bias
    return cast(PlainConv, twin.train(conv.training))


def _own_weight(conv: nn.Module) -> nn.Parameter:
    weight = conv._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"the weight of this {type(conv).__name__} is computed (weight norm or another "
            "parametrization); remove the parametrization first"
        )
    return weight


def _side(kernel_size: int | tuple[int, ...]) -> int:
    """Return the k of a kernel that is k in every dimension."""
    sides = {kernel_size} if isinstance(kernel_size, int) else set(kernel_size)
    if len(sides) != 1:
        raise ValueError(
            f"kernel size {kernel_size} has unequal sides; a weighted convolution takes one odd "
            "size for all dimensions"
        )
    return sides.pop()


def _outer(den: Tensor, dimensions: int) -> Tensor:
    """Return phi of a density, differentiable in it."""
    alpha = mask = torch.cat((den, den.new_ones(1), den.flip(0)))
    for _ in range(dimensions - 1):
        mask = mask.unsqueeze(-1) * alpha
    return mask
