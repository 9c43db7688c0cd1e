"""A convolution as an input gradient against torch's own, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from densitune.weighted_conv import WeightedConv2d
from workers.networks.turned import LARGEST, as_input_gradient, convolve, speed_up

pytestmark = pytest.mark.numerical


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@settings(deadline=None, max_examples=60)
@given(
    side=st.sampled_from([3, 5, 7, 9]),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    memory=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_equal_those_of_torch(
    side: int,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    memory: torch.memory_format,
    seed: int,
) -> None:
    before, after = channels
    images = draw(seed, batch, before, *size).contiguous(memory_format=memory).requires_grad_()
    kernels = draw(seed + 1, after, before, side, side).requires_grad_()
    upstream = draw(seed + 2, batch, after, *size)
    expected = F.conv2d(images, kernels, padding=side // 2)
    found = as_input_gradient(images, kernels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, [images, kernels], upstream),
        torch.autograd.grad(expected, [images, kernels], upstream),
    )


@pytest.mark.parametrize("biased", [True, False])
def test_a_large_kernel_on_small_images_is_turned_under_autocast_and_weighted_as_ever(
    biased: bool,
) -> None:
    plain = nn.Conv2d(4, 6, 7, padding=3, bias=biased)
    weighted = WeightedConv2d.from_conv(plain, (0.3, 0.6, 0.9))
    other = copy.deepcopy(weighted)
    speed_up(other)
    images = draw(3, 2, 4, LARGEST, LARGEST, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = other(images), weighted(images)
    assert (found.dtype, found.grad_fn.name()) == (torch.bfloat16, "_TurnedBackward") or biased
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(("size", "dtype"), [(LARGEST + 1, torch.bfloat16), (4, torch.float32)])
def test_what_was_not_measured_is_left_to_torch(size: int, dtype: torch.dtype) -> None:
    images, kernels = draw(1, 2, 3, 4, size, dtype=dtype), draw(2, 5, 3, 7, 7, dtype=dtype)
    bias = draw(3, 5, dtype=dtype)
    expected = F.conv2d(images, kernels, bias, padding=3)
    assert convolve(images, kernels, bias).equal(expected)


def test_all_other_convolutions_keep_their_forward() -> None:
    class Own(nn.Conv2d):
        pass

    kept = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 5, padding=2),
            nn.Conv2d(4, 4, 7, padding=3, groups=4),
            nn.Conv2d(4, 4, 7, padding=3, stride=2),
            nn.Conv2d(4, 4, 7, padding=2),
            nn.Conv2d(4, 4, 7, padding=6, dilation=2),
            nn.Conv2d(4, 4, 7, padding=3, padding_mode="reflect"),
            nn.Conv2d(4, 4, (7, 1), padding=(3, 0)),
            Own(4, 4, 7, padding=3),
        ]
    )
    speed_up(kept)
    assert all("_conv_forward" not in vars(module) for module in kept)
