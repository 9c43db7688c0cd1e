"""Fused layer normalisation, in Triton's interpreter, against torch's in float64."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from torch import Tensor

from workers import networks
from workers.networks import pixel_norm
from workers.networks.denoisers import normalise
from workers.networks.proxies import Proxy, empty
from workers.training import slots

INTERPRETED = """
import itertools, json, torch
import torch.nn.functional as F
from workers.networks import pixel_norm

found = []
cases = itertools.product((1, 16, 24), (torch.float32, torch.bfloat16), (4096, 64), (False, True))
for channels, dtype, pixel_norm.ELEMENTS, low in cases:
    pixel_norm.PROGRAMS = 3  # so that each takes several blocks
    torch.manual_seed(channels)
    pixels = (torch.randn(2, 5, 7, channels) * 3 + 1).to(dtype).transpose(1, 2).requires_grad_()
    weight, bias = (torch.randn(channels, requires_grad=True) for _ in range(2))
    upstream = torch.randn(2, 7, 5, channels).to(torch.bfloat16 if low else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = pixel_norm.fused(pixels, weight, bias, 1e-6)
    gradients = torch.autograd.grad(output, [pixels, weight, bias], upstream)
    exact = [one.detach().double().requires_grad_() for one in (pixels, weight, bias)]
    expected = F.layer_norm(exact[0], (channels,), *exact[1:], 1e-6)
    references = torch.autograd.grad(expected, exact, upstream.double())
    assert output.dtype == (torch.bfloat16 if low else torch.float32)
    for ours, theirs in zip((output, *gradients), (expected, *references)):
        assert ours.shape == theirs.shape
        # Where a pixel has one channel its gradient is zero.
        error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        found.append((float(error), ours.dtype == torch.bfloat16))
print(json.dumps(found))
"""


def test_outputs_and_gradients_equal_those_of_torch() -> None:
    """Any number of channels, in both precisions, pixels in any order of memory."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 96
    # The interpreter cuts bfloat16 off where a GPU rounds: up to a last place, not half of one.
    assert max(error for error, low in found if low) < 2**-7
    assert max(error for error, low in found if not low) < 1e-5


def test_where_triton_cannot_be_used_torchs_own_stays_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = empty(Proxy("nafnet", 4, 3, (3,), 1, None), {}, trainable=False)
    with caplog.at_level(logging.WARNING, "densitune.worker"):
        slots.suit(network, torch.device("cuda", 99))  # there is no such GPU
    [record] = caplog.records
    assert record.message.startswith("layer normalisation stays torch's, and slower: ")
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_a_torch_without_triton_trains_too_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it could not be imported
    monkeypatch.delitem(sys.modules, "workers.networks.pixel_norm")
    monkeypatch.delattr(networks, "pixel_norm")
    slots._pixel_norm.cache_clear()
    for _ in range(2):
        slots.suit(torch.nn.Identity(), torch.device("cuda", 97))
    slots._pixel_norm.cache_clear()
    [record] = caplog.records
    assert record.message.startswith("layer normalisation stays torch's, and slower: ")


def test_full_memory_is_no_reason_to_do_without_the_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or a worker's bits would depend on who else was in memory when it started."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", full)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            pixel_norm.speed_up(torch.nn.Identity(), torch.device("cuda", 98))
    assert not caplog.records


def test_weights_that_are_not_float32_are_left_to_torch() -> None:
    pixels = torch.linspace(-2, 5, 24, dtype=torch.float64).view(2, 3, 4)
    weight, bias = pixels[0, 1], pixels[1, 2]
    expected = normalise(pixels, weight, bias, 1e-6)
    assert pixel_norm.fused(pixels, weight, bias, 1e-6).equal(expected)


def test_kernels_are_launched_on_the_device_of_their_pixels_and_compiled_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton itself takes the current device, and compiles by defaults that are to change."""
    entered: list[Tensor] = []
    launched: list[bool] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return self

        def __call__(self, pixels: Tensor, *_: Any, enable_fp_fusion: bool) -> None:
            launched.append(enable_fp_fusion and entered[-1] is pixels)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(pixel_norm, "_forward", Kernel())
    monkeypatch.setattr(pixel_norm, "_backward", Kernel())
    pixels = torch.ones(3, 4, requires_grad=True)
    pixel_norm.fused(pixels, torch.ones(4), torch.ones(4), 1e-6).sum().backward()
    assert launched == [True, True]
