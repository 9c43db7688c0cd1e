"""A 3-D network of your own in a study: a small denoiser of volumes.

Run it as it is, without a density: python volumes.py. In a study: densitune launch volumes.yaml
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densitune

SIGMA = 0.5


def volumes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy and clean volumes of smooth bodies, (N, 1, 12, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, 4, generator=generator)
    clean = (F.interpolate(coarse, size=(12, 12, 12), mode="trilinear") > 0.5).float()
    return clean + SIGMA * torch.randn(clean.shape, generator=generator), clean


def psnr(found: Tensor, clean: Tensor) -> float:
    return -10 * F.mse_loss(found, clean).log10().item()


def floor() -> float:
    """Return what needs no network: the noisy volumes themselves."""
    return psnr(*volumes(32, seed=2))


def network() -> nn.Module:
    layers = [nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(8, 1, 3, padding=1))


def train(run: densitune.Run) -> None:
    torch.manual_seed(run.seed)
    noisy, clean = (part.to(run.device) for part in volumes(64, seed=1))
    held_out, truth = (part.to(run.device) for part in volumes(32, seed=2))
    model = run.apply(network()).to(run.device)  # with this arm's density, or a control
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr or 1e-2)
    for epoch in run.epochs():
        for chosen in torch.randperm(len(noisy)).split(4):
            loss = F.mse_loss(model(noisy[chosen]), clean[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            run.report(epoch, psnr(model(held_out), truth))  # ends the run if the study cuts it


if __name__ == "__main__":
    run = densitune.Run(budget=8)
    train(run)
    print(f"noisy {floor():.2f} dB", {epoch: f"{dB:.2f} dB" for epoch, dB in run.values.items()})
