"""What a weighted convolution costs beside torch's own, over the convolutions of the proxies.

    python benchmarks/conv_overhead.py --quick

Timed are the training step of the one layer (forward, backward, SGD), and inference with the folded
layer. The control is a plain convolution against another one: it shows what is noise. Needs torch,
torchvision and numpy only. Targets: training steps at most 1 % longer in the median over all
shapes; inference as the control.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from helpers.cases import FAMILIES, Case
from helpers.ratios import Clock, Ratio, Run, clock, environment, interleaved, summary, table
from torch import Tensor, nn

from densitune import density
from densitune.weighted_conv import WeightedConv2d
from workers.networks import proxies
from workers.networks.named import Network
from workers.networks.proxies import Proxy

KERNEL_SIZES = (3, 5, 7)
OWN_RESOLUTION = 32
"""Pixels per side of a classifier's images, about those of a denoiser's patches (40); at other
resolutions a batch has as many pixels."""
RESOLUTIONS = (16, OWN_RESOLUTION, 64)
PART = 4
"""By how much batches are smaller unless asked for whole: phi then weighs that much more."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ("training", "control", "inference", "control ")


@dataclass(frozen=True)
class Shape:
    """One convolution as a proxy runs it."""

    inputs: int
    outputs: int
    kernel_size: int
    stride: int
    groups: int
    biased: bool
    first: bool
    """Whether it sees the images themselves, which want no gradient."""
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        dense = f"{self.inputs}>{self.outputs}"
        channels = f"{self.inputs} depthwise" if self.groups > 1 else dense
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"k={self.kernel_size} {channels}{stride} {self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Row:
    """What was measured of one shape."""

    shape: Shape
    precision: str
    training: Ratio
    training_control: Ratio
    inference: Ratio
    inference_control: Ratio

    @property
    def ratios(self) -> tuple[Ratio, Ratio, Ratio, Ratio]:
        return self.training, self.training_control, self.inference, self.inference_control


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    resolutions: tuple[int, ...]
    resolutions, part = ((OWN_RESOLUTION,), 1) if options.whole_batches else (RESOLUTIONS, PART)
    some = 1 if options.quick else None
    shapes = collect(KERNEL_SIZES[:some], resolutions[:some], part)
    pairs = list(itertools.product(PRECISIONS, shapes))
    rows = []
    for index, (precision, shape) in enumerate(pairs, 1):
        rows.append(measure(shape, precision, device, options.seconds))
        name = f"{index}/{len(pairs)} {precision} {shape}"
        print(name, *map(str, rows[-1].ratios), sep="  ", file=sys.stderr, flush=True)
    print(report(rows))
    if options.json:
        content = {"environment": environment(device), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def collect(kernel_sizes: Sequence[int], resolutions: Sequence[int], part: int) -> list[Shape]:
    """Return the distinct weighted convolutions of the proxies, at batches of equal pixels.

    `part` is by how much the batches are smaller than the proxies' own.
    """
    found: dict[Shape, None] = {}
    for family, side, resolution in itertools.product(FAMILIES, kernel_sizes, resolutions):
        recipe = Case(family, side).recipe(torch.device("cpu"))
        fitting = max(1, recipe.batch_size * OWN_RESOLUTION**2 // (part * resolution**2))
        found.update(dict.fromkeys(_shapes_of(recipe.proxy, resolution, fitting)))
    return list(found)


def _shapes_of(proxy: Proxy | Network, resolution: int, batch: int) -> list[Shape]:
    """Return the weighted convolutions of a proxy, as a forward pass meets them."""
    (side,) = proxy.kernel_sizes
    network = proxies.build(proxy, {side: _den(side)}, init="library", seed=0)
    shapes: list[Shape] = []

    def note(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(conv, WeightedConv2d)
        (images,) = inputs
        shapes.append(
            Shape(
                conv.in_channels,
                conv.out_channels,
                side,
                conv.stride[0],
                conv.groups,
                conv.bias is not None,
                not images.requires_grad,
                batch,
                *images.shape[2:],
            )
        )

    for module in network.modules():
        if isinstance(module, WeightedConv2d):
            module.register_forward_hook(note)
    network(torch.zeros(2, proxy.channels, resolution, resolution))
    return shapes


def measure(shape: Shape, precision: str, device: torch.device, seconds: float) -> Row:
    """Compare weighted with plain, and plain with plain, for about `seconds` each."""
    bench = _Bench(shape, PRECISIONS[precision], device)
    plain, other = bench.plain(), bench.plain()
    weighted = WeightedConv2d.from_conv(bench.plain(), _den(shape.kernel_size))
    ticking = clock(device)
    training = [bench.training_step(conv) for conv in (weighted, plain, other)]
    inference = [bench.inference(conv) for conv in (weighted.fold(), plain, other)]
    compared = [
        _compare(a, b, ticking, seconds)
        for way, b, control in (training, inference)
        for a in (way, control)
    ]
    return Row(shape, precision, *compared)


def _compare(a: Run, b: Run, ticking: Clock, seconds: float) -> Ratio:
    b()
    rounds = int(seconds / (4 * ticking(b)))
    return interleaved(a, b, min(max(rounds, 5), 1000), clock=ticking)


class _Bench:
    """The input of one layer, and what can be done with the layer."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        images = torch.randn(shape.batch, shape.inputs, shape.height, shape.width)
        # Under autocast the images are still fp32, what layers hand to each other is not.
        held = torch.float32 if shape.first else dtype
        images = images.to(device, held).to(memory_format=torch.channels_last)
        self._images = images.requires_grad_(not shape.first)
        with torch.no_grad(), self._precision():
            output: Tensor = self.plain()(images)
        self._upstream = torch.randn_like(output)

    def plain(self) -> nn.Conv2d:
        """Return a new plain convolution of the shape."""
        side = self._shape.kernel_size
        conv = nn.Conv2d(
            self._shape.inputs,
            self._shape.outputs,
            side,
            self._shape.stride,
            side // 2,
            groups=self._shape.groups,
            bias=self._shape.biased,
        )
        return conv.to(self._device).to(memory_format=torch.channels_last)

    def training_step(self, conv: nn.Module) -> Run:
        """Return one step: forward, backward, SGD."""
        optimizer = torch.optim.SGD(conv.parameters(), 1e-6, momentum=0.9, fused=True)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            self._images.grad = None
            with self._precision():
                output = conv(self._images)
            output.backward(self._upstream)
            optimizer.step()

        return run

    def inference(self, conv: nn.Module) -> Run:
        """Return a forward pass in inference mode."""
        images = self._images.detach()

        def run() -> None:
            with torch.inference_mode(), self._precision():
                conv(images)

        return run

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        low = self._dtype != torch.float32
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            yield


def report(rows: Sequence[Row]) -> str:
    """Return the medians over the shapes, by precision and kernel size and in all."""
    header = ("median over shapes", "n", *COLUMNS, "training, all time")
    lines = []
    for precision, size in itertools.product(PRECISIONS, (*KERNEL_SIZES, None)):
        chosen = [row for row in rows if row.precision == precision]
        chosen = [row for row in chosen if size in (row.shape.kernel_size, None)]
        if chosen:
            name = f"{precision} {f'k={size}' if size else 'all'}"
            cells = [
                str(summary(column)) for column in zip(*(row.ratios for row in chosen), strict=True)
            ]
            lines.append((name, str(len(chosen)), *cells, f"{_total(chosen):.3f}"))
    return table(header, lines)


def _total(rows: Sequence[Row]) -> float:
    """Return the ratio of the summed training steps, in which large layers count for more."""
    weighted, plain = (sum(row.training.seconds[way] for row in rows) for way in (0, 1))
    return weighted / plain


def _den(kernel_size: int) -> density.Density:
    return density.PUBLISHED[kernel_size][0].den


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing per comparison")
    parser.add_argument("--quick", action="store_true", help="k=3 at one resolution only")
    parser.add_argument(
        "--whole-batches",
        action="store_true",
        help="the proxies' own batches, at 32 pixels only; a quarter of them otherwise",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
