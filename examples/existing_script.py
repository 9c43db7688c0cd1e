"""A PyTorch script that existed before densitune: it tells in which direction stripes run.

The eight lines that were added or changed for a study end in `# densitune`. By itself it trains as
before: python existing_script.py. In a study: densitune launch existing_script.yaml
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densitune  # densitune

ANGLES = 6


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 24, 24) of stripes in noise, and which of six directions they have."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(ANGLES, (count,), generator=generator)
    angle, phase = math.pi * labels / ANGLES, torch.rand(count, generator=generator)
    place = torch.arange(24) / 24 - 0.5
    across = angle.cos()[:, None, None] * place + angle.sin()[:, None, None] * place[:, None]
    images = (2 * math.pi * (5 * across + phase[:, None, None])).sin()
    return (images + 2 * torch.randn(images.shape, generator=generator))[:, None], labels


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(12)]
    layers += [nn.Conv2d(12, 12, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, ANGLES))


def main(run: densitune.Run) -> None:  # densitune: was main()
    torch.manual_seed(run.seed)  # densitune: was 0
    images, labels = stripes(512, seed=1)
    held_out = stripes(256, seed=2)
    model = run.apply(network())  # densitune: was network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr or 3e-3)  # densitune: was 3e-3
    for epoch in run.epochs():  # densitune: was range(1, 11)
        for chosen in torch.randperm(len(images)).split(32):
            loss = F.cross_entropy(model.train()(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = model.eval()(held_out[0]).argmax(1) == held_out[1]
        print(f"epoch {epoch}: {100 * right.float().mean():.1f} % of the directions are right")
        run.report(epoch, 100 * right.float().mean())  # densitune


if __name__ == "__main__":
    main(densitune.Run(budget=10))  # densitune: was main()
