"""Strided 1 x 1 convolutions: what torch computes, and no memory but their own."""

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkout import ROOT
from torch import Tensor, nn

from densitune.weighted_conv import WeightedConv2d
from workers.networks.pointwise import make_exact

pytestmark = pytest.mark.numerical

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


def is_exact(module: nn.Module) -> bool:
    make_exact(module)
    return "_conv_forward" in vars(module)


def results(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Output, then the gradients by images and parameters."""
    images = images.detach().requires_grad_()
    output = module(images)
    loss = (output.square() * torch.arange(1.0, 1 + output.numel()).view_as(output)).sum()
    return [output.detach(), *torch.autograd.grad(loss, (images, *module.parameters()))]


@given(
    channels=st.tuples(st.integers(1, 15), st.integers(1, 20)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda stride: stride != (1, 1)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    weighted=st.booleans(),
    biased=st.booleans(),
    batch=st.sampled_from([(), (1,), (3,)]),
)
def test_it_computes_what_torch_does(
    channels: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    weighted: bool,
    biased: bool,
    batch: tuple[int, ...],
) -> None:
    if weighted:
        module: nn.Conv2d = WeightedConv2d(*channels, 1, [], stride=stride, bias=biased)
    else:
        module = nn.Conv2d(*channels, 1, stride=stride, bias=biased)
    images = torch.randn(*batch, channels[0], *size, dtype=torch.float64)
    exact = copy.deepcopy(module.double())
    assert is_exact(exact)
    torch.testing.assert_close(results(exact, images), results(module, images))


class OwnConvolution(nn.Conv2d):
    """A convolution that computes something else."""

    def _conv_forward(self, *arguments: Any) -> Tensor:
        found: Tensor = 2 * super()._conv_forward(*arguments)
        return found


class OwnForward(nn.Conv2d):
    """A convolution that computes something around torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.Conv2d(4, 8, (1, 3), stride=2),
        nn.Conv2d(16, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1, stride=2, padding=1),
        nn.Conv2d(4, 8, 1, stride=2, groups=2),
        nn.Conv1d(4, 8, 1, stride=2),
        OwnConvolution(4, 8, 1, stride=2),
        nn.ConvTranspose2d(4, 8, 1, stride=2),
        nn.Linear(4, 8),
    ],
    ids=str,
)
def test_everything_else_is_left_alone(module: nn.Module) -> None:
    assert not is_exact(module)


def test_a_subclass_keeps_what_it_computes() -> None:
    module, images = OwnForward(4, 8, 1, stride=2).double(), torch.randn(2, 4, 6, 6).double()
    expected = results(module, images)
    assert is_exact(module)
    torch.testing.assert_close(results(module, images), expected, rtol=1e-12, atol=1e-12)


def test_an_exact_network_is_copied_saved_and_folded_as_before() -> None:
    conv, images = WeightedConv2d(4, 8, 1, [], stride=2), torch.randn(2, 4, 6, 6)
    expected, state = conv(images), set(conv.state_dict())
    assert is_exact(conv)
    assert set(conv.state_dict()) == state
    for same in (conv, copy.deepcopy(conv), conv.fold()):
        assert torch.equal(same(images), expected)


# On the CPU at hand and on one without AVX-512, in processes of their own that may die

PROGRAM = """
import itertools, sys
import torch
from workers_tests.networks.test_pointwise import LAST, PLAIN, gradients_of
from workers.networks import proxies
from workers.networks.pointwise import make_exact

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)


def check(module, images, case, rounding=1e-6):
    exact = gradients_of(module, images, torch.float64)
    terms = gradients_of(module, images, torch.float64, magnitude=True)
    make_exact(module)
    for one, other, scale in zip(gradients_of(module, images, torch.float32), exact, terms):
        assert (one - other).norm() < rounding * scale.norm(), (case, (one - other).norm())


for dimensions, stride, channels, out, groups in itertools.product(
    (1, 2, 3), (1, 2, 3), (1, 2, 3, 4, 5, 7, 8, 12, 16), (4, 8), (1, 2)
):
    memory = LAST[dimensions]
    conv = PLAIN[dimensions](groups * channels, groups * out, 1, stride=stride, groups=groups)
    size = (17, 16) if dimensions == 2 else (9,) * dimensions
    images = torch.randn(8, groups * channels, *size).to(memory_format=memory)
    check(conv.to(memory_format=memory), images, (dimensions, stride, channels, out, groups))

for channels in (4, 7, 8):  # AVX-512's kernel leaves its workspace in larger images only
    conv = PLAIN[2](channels, 16, 1, stride=2).to(memory_format=LAST[2])
    images = torch.randn(8, channels, 64, 64).to(memory_format=LAST[2])
    check(conv, images, ("large", channels))

for width in (4, 5, 6, 7, 8, 16):
    proxy = proxies.Proxy("resnet", width, 8, (3,), 3, 10)
    network = proxies.build(proxy, {3: (0.6,)}, init="library", seed=width).eval()
    images = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)
    # Rounding adds up over ten layers, and turns a ReLU now and then; a wrong gradient is 1e-3 off.
    check(network.to(memory_format=torch.channels_last), images, width, rounding=2e-5)
print("exact")
"""


def gradients_of(
    module: nn.Module, images: Tensor, dtype: torch.dtype, magnitude: bool = False
) -> Sequence[Tensor]:
    """The gradients by all parameters in a precision, as float64.

    With `magnitude`: as if nothing cancelled, which is what rounding is relative to.
    """
    module = copy.deepcopy(module).to(dtype)
    if magnitude:
        images = images.abs()
        for parameter in module.parameters():
            parameter.data.abs_()
    output = module(images.to(dtype))
    upstream = torch.arange(output.numel(), dtype=torch.float64).view_as(output).sin()
    upstream = upstream.abs() if magnitude else upstream
    found = torch.autograd.grad(output, list(module.parameters()), upstream.to(output))
    return [gradient.double() for gradient in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "threads"), [("AVX2", 1), ("AVX2", 2), ("AVX512_CORE", 1), ("DEFAULT", 1)]
)
def test_gradients_are_exact_and_no_memory_is_overwritten(limit: str, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        env={
            **os.environ,
            "LD_PRELOAD": "libc_malloc_debug.so.0",  # where glibc 2.34 and later keep the checks
            "MALLOC_CHECK_": "3",  # mallopt(3): a block whose surroundings changed aborts
            "ONEDNN_MAX_CPU_ISA": limit,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "exact\n"), done.stderr
