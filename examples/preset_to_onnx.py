"""A preset in a module of Lightning's form: trained, folded, and written for ONNX.

Without Lightning, so that it runs anywhere; with it, inherit from lightning.LightningModule, and
its Trainer does what `fit` does. Run: python examples/preset_to_onnx.py presets/quickstart.json
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densitune import Preset, fold_all, load_preset


class Denoiser(nn.Module):
    """Takes noise from grey images, (N, 1, H, W)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 8, 1)]
        for size in preset.densities:  # a preset is for the convolutions of its kernel sizes
            layers += [nn.Conv2d(8, 8, size, padding=size // 2), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(8, 1, 1))
        preset.apply(self.network)  # before the optimiser; draws the weights as the study did

    def forward(self, noisy: Tensor) -> Tensor:
        noise: Tensor = self.network(noisy)
        return noisy - noise

    def training_step(self, clean: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = F.mse_loss(self(clean + 0.1 * torch.randn_like(clean)), clean)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def fit(module: Denoiser, steps: int) -> float:
    """Do what a Trainer does, on smooth images; return the last loss."""
    optimizer = module.configure_optimizers()
    for step in range(steps):
        clean = F.interpolate(torch.rand(8, 1, 5, 5), size=(24, 24), mode="bicubic")
        loss = module.training_step(clean, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    preset = load_preset(sys.argv[1])
    print(f"{preset.verdict}: {preset.advice}")
    denoiser = Denoiser(preset)
    print(f"mean squared error: {fit(denoiser, steps=150):.4f}; noise alone has 0.0100")
    fold_all(denoiser.eval())  # plain convolutions: what reads the file knows no densities
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    like = (torch.rand(2, 1, 24, 24),)
    torch.onnx.export(denoiser, like, "denoiser.onnx", dynamic_shapes=(free,), external_data=False)
