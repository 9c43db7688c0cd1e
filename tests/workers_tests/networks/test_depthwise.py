"""The gradient in strips against autograd's own of torch's convolution, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from densitune.weighted_conv import WeightedConv2d, fold_all
from workers.networks import depthwise, proxies, same_size
from workers.networks.depthwise import convolve, speed_up
from workers.training import devices

pytestmark = pytest.mark.numerical

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def by_torch(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def gradients(
    run: Convolution, input: Tensor, weight: Tensor, bias: Tensor | None, upstream: Tensor
) -> list[Tensor]:
    """Output, then the gradients by everything that wants one."""
    leaves = [tensor for tensor in (input, weight, bias) if tensor is not None]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = run(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


@settings(deadline=None, max_examples=60)
@given(
    side=st.sampled_from([5, 7, 9, 11, 13]),
    batch=st.integers(1, 3),
    channels=st.integers(2, 18),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    memory=st.sampled_from(sorted(FORMATS)),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_equal_those_of_torch(
    side: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    memory: str,
    biased: bool,
    seed: int,
) -> None:
    input = draw(seed, batch, channels, height, width).to(memory_format=FORMATS[memory])
    weight, upstream = draw(seed + 1, channels, 1, side, side), draw(seed + 2, *input.shape)
    bias = draw(seed + 3, channels) if biased else None
    expected = gradients(by_torch, input, weight, bias, upstream)
    got = gradients(convolve, input, weight, bias, upstream)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [5, 7, 9, 11])
@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-8)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("size", [8, 20])
def test_low_precision_only_rounds_the_exact_gradient(
    side: int, memory: str, dtype: torch.dtype, rounding: float, size: int
) -> None:
    def rounded(seed: int, *shape: int) -> Tensor:
        return draw(seed, *shape, dtype=dtype).to(memory_format=FORMATS[memory])

    input, upstream = rounded(0, 4, 32, size, size), rounded(1, 4, 32, size, size)
    weight = draw(2, 32, 1, side, side, dtype=dtype)
    exact = gradients(by_torch, input.double(), weight.double(), None, upstream.double())[2]
    got = gradients(convolve, input, weight, None, upstream)[2]
    assert got.dtype == dtype
    # Half a unit in the last place, and the sum's own rounding in fp32. A CPU without AVX-512 adds
    # up in bfloat16 and is less exact: by how much, torch's own gradient shows.
    slack = 1e-5 * exact.abs().max().item()
    if dtype == torch.bfloat16 and not devices._adds_in_float32(input.device):
        own = gradients(by_torch, input, weight, None, upstream)[2]
        slack = 1.5 * (own.double() - exact).abs().max().item()
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    input, upstream = (draw(seed, 8, 32, 20, 20, dtype=dtype) for seed in (0, 1))
    weight, bias = draw(2, 32, 1, 7, 7, dtype=dtype), draw(3, 32, dtype=dtype)
    first = gradients(convolve, input, weight, bias, upstream)
    again = gradients(convolve, input.clone(), weight.clone(), bias.clone(), upstream.clone())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_applies_as_to_torch(dtype: torch.dtype) -> None:
    input, upstream = draw(0, 4, 16, 12, 12, dtype=dtype), draw(1, 4, 16, 12, 12)
    weight, bias = draw(2, 16, 1, 5, 5, dtype=dtype), draw(3, 16, dtype=dtype)

    def under_autocast(run: Convolution) -> Convolution:
        def convolution(*leaves: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(*leaves).double()

        return convolution

    expected, got = (
        gradients(under_autocast(run), input, weight, bias, upstream)
        for run in (by_torch, convolve)
    )
    assert torch.equal(got[0], expected[0])
    assert [tensor.dtype for tensor in got[1:]] == [dtype] * 3
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize(("wanted", "work"), [("input", 1), ("weight", 2), ("bias", 0)])
def test_a_gradient_that_nobody_wants_is_not_computed(
    wanted: str, work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def counted(*arguments: Any, **named: Any) -> object:
        calls.append(arguments)
        return same_size.gradients(*arguments, **named)

    monkeypatch.setattr(depthwise, "gradients", counted)
    leaves = {"input": draw(0, 2, 4, 9, 9), "weight": draw(1, 4, 1, 5, 5), "bias": draw(2, 4)}
    leaves[wanted].requires_grad_()
    (got,), (expected,) = (
        torch.autograd.grad(run(**leaves).square().sum(), leaves[wanted])
        for run in (convolve, by_torch)
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert len(calls) == work


def test_a_second_derivative_is_refused() -> None:
    input, weight = draw(0, 2, 4, 9, 9), draw(1, 4, 1, 5, 5).requires_grad_()
    loss = convolve(input, weight, None).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def wide(**changes: Any) -> nn.Conv2d:
    """A convolution that is sped up, unless the changes forbid it."""
    arguments: dict[str, Any] = {
        "in_channels": 6,
        "out_channels": 6,
        "kernel_size": 5,
        "padding": 2,
        "groups": 6,
    }
    return nn.Conv2d(**{**arguments, **changes})


class OwnForward(nn.Conv2d):
    """A convolution that computes something else."""


def is_sped_up(conv: nn.Module) -> bool:
    speed_up(conv)
    return vars(conv).get("_conv_forward") is convolve


@pytest.mark.parametrize(
    "conv",
    [
        wide(),
        wide(kernel_size=7, padding=3, bias=False),
        wide(padding="same"),
        WeightedConv2d(6, 6, 5, [0.2, 0.8], padding=2, groups=6),
        WeightedConv2d(6, 6, 5, [0.2, 0.8], padding=2, groups=6, trainable=True),
    ],
    ids=str,
)
def test_wide_depthwise_convolutions_are_sped_up(conv: nn.Conv2d) -> None:
    twin, input = copy.deepcopy(conv).double(), draw(0, 2, 6, 9, 8)
    assert is_sped_up(conv.double())
    for module in (conv, twin):
        module(input).square().sum().backward()
        module(input[0]).pow(3).sum().backward()  # a single image
    for got, expected in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "module",
    [
        wide(kernel_size=3, padding=1),
        wide(kernel_size=(5, 7)),
        wide(kernel_size=(5, 7), padding=(2, 3)),
        wide(kernel_size=4, padding=2),
        wide(padding=0),
        wide(padding=1),
        wide(padding=(2, 1)),
        wide(padding="valid"),
        wide(stride=2),
        wide(stride=(1, 2)),
        wide(dilation=2, padding=4),
        wide(groups=3),
        wide(groups=1),
        wide(out_channels=12),
        wide(in_channels=1, out_channels=1, groups=1),
        wide(padding_mode="reflect"),
        OwnForward(6, 6, 5, padding=2, groups=6),
        nn.Conv1d(6, 6, 5, padding=2, groups=6),
        nn.ConvTranspose2d(6, 6, 5, padding=2, groups=6),
        nn.Linear(6, 6),
    ],
    ids=str,
)
def test_everything_else_is_left_alone(module: nn.Module) -> None:
    assert not is_sped_up(module)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_network_trains_as_before(trainable: bool) -> None:
    proxy = proxies.Proxy("nafnet", 4, 3, (5, 7), channels=3, classes=None)
    densities = {5: [0.2, 0.8], 7: [0.3, 0.5, 1.2]}
    plain = proxies.build(proxy, densities, init="library", seed=0, trainable=trainable).double()
    with torch.no_grad():  # a new block is the identity map; here every layer has to count
        for name, parameter in plain.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.fill_(0.5)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    images = draw(0, 2, 3, 10, 12)
    for network in (plain, fast):
        network(images).square().sum().backward()
    sped = [module for module in fast.modules() if "_conv_forward" in vars(module)]
    assert len(sped) == 3
    learning = [name for name, _ in fast.named_parameters() if name.endswith("den")]
    assert len(learning) == (5 if trainable else 0)
    for got, expected in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-10)


def test_a_sped_up_network_is_copied_saved_and_folded_as_before() -> None:
    conv = WeightedConv2d(6, 6, 5, [0.2, 0.8], padding=2, groups=6)
    images, state = draw(0, 2, 6, 9, 8, dtype=torch.float32), set(conv.state_dict())
    speed_up(conv)
    expected = conv(images)
    assert set(conv.state_dict()) == state
    assert torch.equal(copy.deepcopy(conv)(images), expected)
    assert torch.equal(conv.fold()(images), expected)
    assert torch.equal(fold_all(nn.Sequential(conv))(images), expected)
