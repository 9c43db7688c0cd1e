"""A 1-D network of your own in a study: in which of four ways a sensor with three axes was moved.

Run it as it is, without a density: python sensor.py. In a study: densitune launch sensor.yaml
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densitune


def movements(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return signals (N, 3, 128) and how they came about: slow, fast, by a knock or a drift."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    start = torch.rand(count, 1, generator=generator)
    time = torch.arange(128) / 128
    slow, fast = ((2 * math.pi * (cycles * time + start)).sin() for cycles in (3, 12))
    knock = 2 * (-((time - start) / 0.03).square()).exp()
    waves = torch.stack([slow, fast, knock, 2 * (time - start)])
    wave = waves[labels, torch.arange(count)]
    direction = F.normalize(torch.randn(count, 3, 1, generator=generator), dim=1)
    noise = torch.randn(count, 3, 128, generator=generator)
    return direction * wave[:, None] + 0.5 * noise, labels


def network() -> nn.Module:
    layers = [nn.Conv1d(3, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4)]
    layers += [nn.Conv1d(16, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 4))


def train(run: densitune.Run) -> None:
    torch.manual_seed(run.seed)
    signals, labels = (part.to(run.device) for part in movements(512, seed=1))
    held_out, truth = (part.to(run.device) for part in movements(256, seed=2))
    model = run.apply(network()).to(run.device)  # with this arm's density, or a control
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr or 3e-3)
    for epoch in run.epochs():
        for chosen in torch.randperm(len(signals)).split(32):
            loss = F.cross_entropy(model.train()(signals[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = model.eval()(held_out).argmax(1) == truth
        run.report(epoch, 100 * right.float().mean())  # ends the run if the study cuts it


if __name__ == "__main__":
    run = densitune.Run(budget=8)
    train(run)
    print({epoch: f"{value:.1f} %" for epoch, value in run.values.items()})
