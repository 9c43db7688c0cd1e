"""Networks as users write them: what works, and what has to be refused."""

import random
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Classifier(nn.Module):
    """Two convolutions with a stride, batch norm, dropout and `view`, which needs plain memory."""

    def __init__(
        self, channels: int, classes: int, dropout: float, dimensions: int, side: int
    ) -> None:
        super().__init__()
        conv = CONVS[dimensions]
        self.stem = conv(channels, 4, 3, stride=2, padding=1)
        self.norm = NORMS[dimensions](4)
        self.drop = nn.Dropout(dropout)
        self.last = conv(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * (side // 2) ** dimensions, classes)
        self.head.weight.data.add_(0.01 * float(np.random.default_rng(1).standard_normal()))
        self.shift = nn.Parameter(torch.tensor([np.random.rand(), random.random()]).float())

    def forward(self, images: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.stem(images))))
        x = self.last(x)
        logits: Tensor = self.head(x.view(len(x), -1)) + self.shift.mean()
        return logits


def classifier(
    channels: int, classes: int, dropout: float = 0.5, dimensions: int = 2, side: int = 16
) -> nn.Module:
    return Classifier(channels, classes, dropout, dimensions, side).eval()  # as some builders do


class Several(nn.Module):
    """A network that returns more than one thing."""

    def __init__(self, inner: nn.Module, form: str) -> None:
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, images: Tensor) -> Any:
        out = self.inner(images)
        if not self.training:
            return out
        return (out, out.detach()) if self.form == "tuple" else OrderedDict(out=out, aux=-out)


def several(channels: int, classes: int, form: str) -> nn.Module:
    return Several(classifier(channels, classes), form)


def denoiser(
    channels: int, classes: None, depthwise: bool = False, transposed: bool = False
) -> nn.Module:
    """Also layers that have other forms here: strided 1 x 1 and wide depthwise kernels."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.ConvTranspose2d(8, 8, 3, padding=1)] * transposed
    if depthwise:
        layers += [nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 8, 1, stride=2)]
        layers += [nn.Upsample(scale_factor=2)]
    return nn.Sequential(*layers, nn.Conv2d(8, channels, 3, padding=1))


class Faulty(Classifier):
    """What cannot be trained, or not the same again, by its fault."""

    def __init__(self, channels: int, classes: int, fault: str) -> None:
        super().__init__(channels, classes, 0.0, 2, 16)
        self.fault, self.passes = fault, 0
        if fault == "lazy":
            self.head = nn.LazyLinear(classes)
        if fault == "double":
            self.double()
        if fault == "elsewhere":
            self.to("meta")

    def forward(self, images: Tensor) -> Any:
        self.passes += self.fault in ("counting", "late")
        if self.fault == "counting":
            return super().forward(images) * self.passes
        if self.fault == "late":
            return super().forward(images) * (2 if self.passes > 5 else 1)
        if self.fault == "chance in judging" and not self.training:
            return super().forward(images) * torch.rand(len(images), 1)
        if self.fault == "numpy":
            return super().forward(images) * float(np.random.default_rng().standard_normal())
        if self.fault == "asking" and images.sum().item() > 1e9:
            return None
        if self.fault == "raising":
            raise KeyError("no such thing")
        if self.fault == "detached":
            return super().forward(images).detach()
        if self.fault == "text":
            return "no tensor"
        if self.fault == "nan":
            return super().forward(images) / 0 * 0
        if self.fault == "half detached":
            x = torch.relu(self.stem(images)).detach()
            return self.head(self.last(x).view(len(x), -1))
        if self.fault == "bypass":
            x = nn.functional.conv2d(images, self.stem.weight, self.stem.bias, 2, 1)
            return self.head(self.last(x).view(len(x), -1))
        return super().forward(images)


class Keeping(nn.Identity):
    """A layer with state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"count": 1}


def faulty(channels: int, classes: int, fault: str) -> Any:
    if fault == "no module":
        return lambda images: images
    if fault == "not built":
        raise RuntimeError("out of\nideas")
    if fault == "extra state":
        return nn.Sequential(classifier(channels, classes), Keeping())
    return Faulty(channels, classes, fault)


def flat_denoiser(channels: int, classes: None) -> nn.Module:
    """A denoiser of signals of one dimension."""
    return nn.Sequential(
        nn.Conv1d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, channels, 3, padding=1)
    )
