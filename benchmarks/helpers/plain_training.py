"""Training without densitune's tricks, for plain_search.py: what its speed is compared with.

torchvision's transforms in a DataLoader, fp32, torch's default memory format, `weight * phi` in
forward. Networks, initial weights, optimisers, learning rates, steps and validation are
densitune's; crops, flips and noise are of the same kind. It needs neither a database nor Optuna.

What is fast was measured on two cores (torch 2.15, torchvision 0.29). To crop and flip a 32 x 32
image took 37 us on uint8 tensors padded beforehand and 58 us with the padding; conversion and
normalisation added 61 us one by one and 9 us per batch; PIL images took 163 us or more. So only
crops and flips are done one by one. Loading was about 3 % of the CPU time of a step (VGG, DnCNN,
NAFNet); a process for it added 2 to 5 ms of CPU time per batch, which two busy cores do not win
back, so a CPU gets none. A GPU gets a process per core but one, a rule of thumb not yet measured.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from workers import seeds
from workers.data.bank import Arrays
from workers.networks import proxies
from workers.networks.named import Network
from workers.networks.proxies import Proxy
from workers.training.recipe import Recipe, schedule, usual_lr
from workers.training.scores import BEST_PSNR

if TYPE_CHECKING:
    from optimizer.config.study_file import StudyConfig


class WConv2d(nn.Conv2d):
    """A convolution whose kernel is multiplied by phi, with the weights of a plain one."""

    phi: Tensor

    def __init__(self, conv: nn.Conv2d, den: Sequence[float], *, compensated: bool) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # torch's stubs widen what it stores
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.load_state_dict(conv.state_dict())
        alpha = torch.tensor([*den, 1.0, *reversed(den)], dtype=torch.float64)
        self.register_buffer("phi", torch.outer(alpha, alpha).float())
        if compensated:
            self.weight.data /= self.phi.square().mean().sqrt()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (N, I, H, W) to (N, O, H', W')."""
        return F.conv2d(
            input, self.weight * self.phi, self.bias, self.stride, self.padding, groups=self.groups
        )


class Items(Dataset[Any]):
    """Images (N, C, H, W) uint8, augmented one by one, each with its label where there are any."""

    def __init__(
        self,
        images: Tensor,
        augment: Callable[[Tensor], Tensor],
        labels: Sequence[int] | None = None,
    ) -> None:
        self._images, self._augment, self._labels = images, augment, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        image = self._augment(self._images[index])
        return image if self._labels is None else (image, self._labels[index])


class Classification:
    """Random crop and flip, cross-entropy, top-1 accuracy in %."""

    def __init__(self, bank: Arrays, device: torch.device) -> None:
        images = torch.tensor(bank.train)
        size = images.shape[-1]
        margin = size // 8
        # Padded once instead of by RandomCrop(size, padding=margin) every time: the same crops.
        augment = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()])
        labels = torch.tensor(bank.train_labels).tolist()
        self.items = Items(F.pad(images, (margin,) * 4), augment, labels)
        channels = images.movedim(1, 0).flatten(1).double() / 255
        self._mean, self._std = channels.mean(1).tolist(), channels.std(1).clamp(min=1e-3).tolist()
        self._device = device
        self._validation = torch.tensor(bank.validation, device=device)
        self._labels = torch.tensor(bank.validation_labels, device=device)

    def pair(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets on the device, from a batch of uint8 images and labels."""
        images, labels = (part.to(self._device, non_blocking=True) for part in batch)
        return self._normalised(images), labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def evaluate(self, network: nn.Module) -> float:
        """Return top-1 accuracy in %."""
        hits = 0
        for images, labels in zip(
            self._validation.split(256), self._labels.split(256), strict=True
        ):
            hits += int((network(self._normalised(images)).argmax(1) == labels).sum())
        return 100 * hits / len(self._labels)

    def _normalised(self, images: Tensor) -> Tensor:
        floats = v2.functional.to_dtype(images, torch.float32, scale=True)
        normalised: Tensor = v2.functional.normalize(floats, self._mean, self._std, inplace=True)
        return normalised


class Denoising:
    """Random flips and transposition, white Gaussian noise, mean squared error, PSNR in dB."""

    def __init__(self, bank: Arrays, device: torch.device, sigma: float) -> None:
        augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.Lambda(_transposed)]),
            ]
        )
        self.items = Items(torch.tensor(bank.train), augment)
        self._device, self._sigma = device, sigma / 255
        self._clean = torch.tensor(bank.validation, device=device).float() / 255
        # densitune's own validation noise, or the two would be asked different questions.
        noise = torch.randn(bank.validation.shape, generator=seeds.generator(0, "validation noise"))
        self._noisy = self._clean + noise.to(device) * self._sigma

    def pair(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return noisy and clean patches on the device, from a batch of uint8 patches."""
        clean = patches.to(self._device, non_blocking=True).float() / 255
        return clean + self._sigma * torch.randn_like(clean), clean

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(outputs, targets)

    def evaluate(self, network: nn.Module) -> float:
        """Return PSNR in dB of the clipped output, averaged over images."""
        psnr: list[float] = []
        for noisy, clean in zip(self._noisy.split(16), self._clean.split(16), strict=True):
            error = (network(noisy).clamp(0, 1) - clean).double().square().mean((1, 2, 3))
            psnr += (-10 * error.log10()).clamp(max=BEST_PSNR).tolist()
        return statistics.fmean(psnr)


def _transposed(image: Tensor) -> Tensor:
    return image.mT


@dataclass(frozen=True)
class Result:
    """What a training gave and took."""

    value: float
    """Top-1 accuracy in % or PSNR in dB."""
    steps: int
    seconds: float
    """Wall time from building the network to the end of its evaluation."""


class Problem:
    """Data and recipe of a study on a device, which is the GPU if there is one.

    `sigma` is the noise of a denoising task on the 0-255 scale and None for classification.
    `loader_workers` are the processes of the DataLoader. torch's settings stay as they are, except
    that with a GPU cuDNN's search and TF32 are switched on, for the whole process.
    """

    def __init__(
        self,
        bank: Arrays,
        recipe: Recipe,
        sigma: float | None,
        *,
        loader_workers: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data: Classification | Denoising = (
            Classification(bank, self.device)
            if sigma is None
            else Denoising(bank, self.device, sigma)
        )
        self.loader_workers = (
            usual_workers(self.device) if loader_workers is None else loader_workers
        )
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32

    def train(
        self,
        densities: Mapping[int, Sequence[float]],
        seed: int,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
    ) -> Result:
        """Train and evaluate once; `epochs` defaults to the budget, `max_steps` ends it early."""
        started = time.perf_counter()
        planned = (epochs or self.recipe.rungs[-1]) * self._steps_per_epoch()
        steps = min(planned, max_steps or planned)
        network = self._network(densities, seed)
        with contextlib.closing(self._steps(network, seed, planned)) as training:
            for _ in range(steps):
                next(training)
        network.eval()
        with torch.inference_mode():
            value = self.data.evaluate(network)
        return Result(value, steps, time.perf_counter() - started)

    def step_rate(
        self, densities: Mapping[int, Sequence[float]], seed: int, steps: int, warmup: int
    ) -> float:
        """Return training steps per second, once the loader runs and `warmup` steps are done."""
        network = self._network(densities, seed)
        with contextlib.closing(self._steps(network, seed, warmup + steps)) as training:
            for _ in range(warmup):
                next(training)
            started = self._now()
            for _ in range(steps):
                next(training)
            return steps / (self._now() - started)

    def _network(self, densities: Mapping[int, Sequence[float]], seed: int) -> nn.Module:
        """Return densitune's network and initial weights with this file's convolutions."""
        recipe = self.recipe
        network = proxies.build(recipe.proxy, {}, init="library", seed=seed)
        for name, conv in list(network.named_modules()):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] in densities:
                den = densities[conv.kernel_size[0]]
                weighted = WConv2d(conv, den, compensated=recipe.init == "compensated")
                parent, _, child = name.rpartition(".")
                setattr(network.get_submodule(parent), child, weighted)
        return network.to(self.device)

    def _steps(self, network: nn.Module, seed: int, total: int) -> Generator[None]:
        """Train on one batch after another, for ever; the learning rate ends after `total`."""
        torch.manual_seed(seed)  # order, crops, flips and noise, in the loader's processes too
        recipe, data = self.recipe, self.data
        peak = recipe.lr or usual_lr(recipe.proxy, recipe.batch_size)
        optimizer = _optimizer(recipe.proxy, network, peak)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total))
        loader = self._loader()
        network.train()
        while True:
            for batch in loader:
                inputs, targets = data.pair(batch)
                optimizer.zero_grad()
                data.loss(network(inputs), targets).backward()
                optimizer.step()
                rates.step()
                yield

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.data.items,
            self.recipe.batch_size,
            shuffle=True,
            drop_last=len(self.data.items) >= self.recipe.batch_size,
            num_workers=self.loader_workers,
            persistent_workers=self.loader_workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def _steps_per_epoch(self) -> int:
        return max(1, len(self.data.items) // self.recipe.batch_size)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _optimizer(proxy: Proxy | Network, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return densitune's optimiser of the family (workers.training.recipe), as torch has it."""
    parameters = network.parameters()
    match proxy.kind:
        case "vgg" | "resnet" | "classifier":
            return torch.optim.SGD(
                parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
            )
        case "dncnn" | "regressor":
            return torch.optim.Adam(parameters, lr, fused=True)
        case "nafnet":
            return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.9), weight_decay=0.0, fused=True)


def usual_workers(device: torch.device) -> int:
    """Return how many processes the DataLoader gets: none on a CPU, all but one core for a GPU."""
    return max(1, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0


def prepare(config: "StudyConfig", home: Path, *, loader_workers: int | None = None) -> Problem:
    """Return a study's problem, its data prepared in `home` as densitune does."""
    from workers import preparation

    bank = preparation.bank(config.data, home)
    recipe = preparation.recipe(config, bank, "full")
    sigma = getattr(config.data, "sigma", None)
    return Problem(bank, recipe, sigma, loader_workers=loader_workers)
