"""Where a uniform mask is identity: what the trace says, and what training in float64 does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitune.conversion import apply_densities
from densitune.weighted_conv import WeightedConv2d
from workers.networks import proxies
from workers.networks.proxies import Proxy
from workers.networks.scale_free import uniform_is_identity
from workers.seeds import generator
from workers.training.recipe import optimizer_for

pytestmark = pytest.mark.numerical

ALL = {3: (0.5,), 5: (0.2, 0.8)}
CASES = [
    (Proxy("vgg", 4, 3, (3, 5), 1, 2), (3, 5), True),
    (Proxy("resnet", 4, 8, (3, 5), 1, 2), (3, 5), True),
    (Proxy("dncnn", 4, 3, (3, 5), 1, None), (5,), True),  # the inner layer
    (Proxy("dncnn", 4, 3, (3, 5), 1, None), (3,), False),  # the outer ones
    (Proxy("nafnet", 4, 3, (3,), 1, None), (3,), False),
]


def build(proxy: Proxy, sizes: tuple[int, ...], mask: float) -> nn.Module:
    """Return a proxy in float64 whose weighted convolutions have the same number at every tap.

    Epsilons are tiny: what is left is rounding.
    """
    network = proxies.build(proxy, {k: ALL[k] for k in sizes}, init="library", seed=1).double()
    for module in network.modules():
        if isinstance(module, WeightedConv2d):
            module.phi.fill_(mask)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.eps = 1e-30
    return network


def trained(proxy: Proxy, network: nn.Module) -> Tensor:
    """Return the losses of some steps with the family's own optimiser, and the raw weights."""
    optimizer = optimizer_for(proxy, network, torch.tensor(0.02))
    draw = generator(0, "images")
    losses = []
    for _ in range(8):
        images = torch.rand(8, 1, 16, 16, generator=draw, dtype=torch.float64)
        outputs = network(images + 0.1)
        labels = torch.arange(8) % 2
        if proxy.classes is None:
            loss = F.mse_loss(outputs, images)
        else:
            loss = F.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach()[None])
    return torch.cat([*losses, *(p.detach().flatten() for p in network.parameters())])


@pytest.mark.parametrize(("proxy", "sizes", "said"), CASES)
def test_a_uniform_mask_trains_as_identity_exactly_where_the_trace_says_so(
    proxy: Proxy, sizes: tuple[int, ...], said: bool
) -> None:
    assert uniform_is_identity(build(proxy, sizes, 0.4)) == said
    identity, uniform = (trained(proxy, build(proxy, sizes, mask)) for mask in (1.0, 0.4))
    difference = (identity - uniform).abs().max().item()
    assert difference < 1e-9 if said else difference > 1e-3


class Two(nn.Module):
    """A convolution, what follows it, and another use of either."""

    def __init__(self, after: nn.Module, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(self.conv(x))
        return result


class Twice(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = self.after(y) + y
        return result


class Borrowed(Two):
    def forward(self, x: Tensor) -> Tensor:
        borrowed: Tensor = super().forward(x) * self.conv.weight.norm()
        return borrowed


class Branching(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0 else x


class Reused(Two):
    def forward(self, x: Tensor) -> Tensor:
        again: Tensor = self.after(super().forward(x))
        return again


def frozen() -> nn.Module:
    return Two(nn.BatchNorm2d(4).eval())


def hooked() -> nn.Module:
    network = Two(nn.BatchNorm2d(4))
    network.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    return network


def tied() -> nn.Module:
    first, second = Two(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)
    second.weight = first.conv.weight
    return nn.Sequential(first, second)


class Own(nn.BatchNorm2d):
    """May do anything."""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Two(nn.BatchNorm2d(4)), True),
        (lambda: Two(nn.BatchNorm2d(4), bias=True), True),
        (lambda: Two(nn.InstanceNorm2d(4), bias=True), True),
        (lambda: Two(nn.GroupNorm(2, 4)), True),
        (lambda: Two(nn.LayerNorm([4, 8, 8])), True),
        (lambda: nn.Sequential(Two(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 4, 1)), True),
        (lambda: Two(nn.GroupNorm(2, 4), bias=True), False),
        (lambda: Two(nn.LayerNorm([4, 8, 8]), bias=True), False),
        (lambda: Two(nn.ReLU()), False),
        (lambda: Two(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))), False),
        (lambda: Two(Own(4)), False),
        (lambda: Twice(nn.BatchNorm2d(4)), False),
        (lambda: Borrowed(nn.BatchNorm2d(4)), False),
        (lambda: Branching(nn.BatchNorm2d(4)), False),
        (lambda: Reused(nn.BatchNorm2d(4)), False),
        (frozen, False),
        (hooked, False),
        (tied, False),
    ],
)
def test_other_networks_are_scale_free_only_without_a_doubt(
    make: Callable[[], nn.Module], said: bool
) -> None:
    network = make()
    before = dict(network.state_dict())
    apply_densities(network, {3: (0.5,)})
    assert uniform_is_identity(network) == said
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_a_network_without_weighted_convolutions_has_no_mask_to_speak_of() -> None:
    assert not uniform_is_identity(Two(nn.BatchNorm2d(4)))
