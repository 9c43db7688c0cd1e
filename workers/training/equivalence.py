"""What a density does to training: the same as a plain convolution's other start and other steps.

With w the raw weight and v = phi * w the kernel that convolves, dL/dw = phi * dL/dv. A step of SGD
on w with momentum and weight decay is then that on v whose gradients are multiplied by phi²; one of
Adam, which divides by the gradient's scale, is that on v whose steps are multiplied by phi, with
gradients times phi for its epsilon. (Ding et al. 2023, arXiv 2205.15242, use it the other way
round.) Clipping the norm of all gradients would break it.
"""

from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densitune import density
from densitune.density import Density
from densitune.weighted_conv import WeightedConv2d, fold_all
from workers.seeds import generator

Rule = Literal["SGD", "Adam"]
STEPS = 20


def deviation(kernel_size: int, den: Density, rule: Rule) -> float:
    """Return by how much two trainings in float64 differ that should be the same.

    One is of two weighted layers around a ReLU, the other of the plain convolutions that they fold
    to. It is the largest difference of their kernels after any of STEPS steps, as a share of the
    largest weight.
    """
    weighted = _weighted(kernel_size, den)
    plain = fold_all(deepcopy(weighted))
    phi = torch.from_numpy(density.phi(den))
    kernels, twins = _path(weighted, phi, rule), _path(plain, phi, rule)
    return float((kernels - twins).abs().max() / kernels.abs().max())


def _weighted(kernel_size: int, den: Density) -> nn.Sequential:
    """Return two weighted layers whose outputs have the input's scale, whatever the density."""
    draw = generator(0, "equivalence")
    layers = [
        WeightedConv2d(*channels, kernel_size, den, padding="same", dtype=torch.float64)
        for channels in ((1, 4), (4, 1))
    ]
    with torch.no_grad():
        for layer in layers:
            nn.init.normal_(layer.weight, generator=draw)
            layer.weight.div_(layer.phi.norm() * layer.in_channels**0.5)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _path(network: nn.Module, phi: Tensor, rule: Rule) -> Tensor:
    """Train a network to give back what it gets; return its kernels after each step, flat.

    Where kernels are plain, what phi would do is done to their gradients and steps.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    plain = [conv.weight for conv in convolutions if not isinstance(conv, WeightedConv2d)]
    # So that kernels move as much whatever the density: their gradients grow with phi.
    if rule == "SGD":
        lr, factor = 0.05 / phi.square().sum().item(), phi.square()
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            network.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    else:
        lr, factor = 0.01 / phi.norm().item(), phi
        optimizer = torch.optim.Adam(network.parameters(), lr)
    draw = generator(0, "equivalence images")
    path = []
    for _ in range(STEPS):
        images = torch.randn(2, 1, 16, 16, generator=draw, dtype=torch.float64)
        optimizer.zero_grad()
        F.mse_loss(network(images), images).backward()
        before = [weight.detach().clone() for weight in plain]
        with torch.no_grad():
            for weight in plain:
                assert weight.grad is not None
                weight.grad.mul_(factor)
                if rule == "Adam":
                    weight.zero_()  # its steps do not depend on where it is
        optimizer.step()
        with torch.no_grad():
            for weight, old in zip(plain, before, strict=True):
                if rule == "Adam":
                    weight.mul_(phi).add_(old)
            folded = fold_all(deepcopy(network))
            path.append(torch.cat([each.flatten() for each in folded.parameters()]))
    return torch.stack(path)
