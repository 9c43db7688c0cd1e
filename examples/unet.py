"""A U-Net of your own: which of its convolutions a density touches, and training with one.

Run it as it is: python examples/unet.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densitune import WeightedConv, apply_densities, fold_all, left_alone

DENSITY = {3: (0.6,)}  # by kernel size, outermost value first: a preset has it as preset.densities


class UNet(nn.Module):
    """Maps images (N, 1, H, W) of even sides to logits of the same shape."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 3, 2, padding=1, output_padding=1)
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.first(images).relu()
        coarse = self.up(self.depthwise(self.down(fine).relu()).relu())
        logits: Tensor = self.last(self.merge(torch.cat([fine, coarse], 1)).relu())
        return logits


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Return discs in noise and their masks, (N, 1, 32, 32)."""
    centre, radius = 6 + 20 * torch.rand(count, 2, 1, 1), 3 + 6 * torch.rand(count, 1, 1)
    place = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    masks = ((place - centre).square().sum(1) < radius**2).float()[:, None]
    return masks + 0.8 * torch.randn_like(masks), masks


if __name__ == "__main__":
    torch.manual_seed(0)
    model = UNet()
    alone = left_alone(model, DENSITY)  # the same names as in the warning of the next line
    apply_densities(model, DENSITY, init="library")  # before the optimiser
    for name, layer in model.named_children():
        other = f"left alone: {alone[name]}" if name in alone else "has no kernel of this size"
        print(f"{name:9} {'weighted' if isinstance(layer, WeightedConv) else other}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(101):
        images, masks = discs(16)
        loss = F.binary_cross_entropy_with_logits(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step}: cross-entropy {loss.item():.3f}")
    fold_all(model)  # plain convolutions again, which compute the same
