"""The operator against a reference in float64 that is written out tap by tap in numpy."""

import copy
import io
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from densitune.conversion import apply_densities
from densitune.weighted_conv import (
    WeightedConv,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    fold_all,
)

pytestmark = pytest.mark.numerical

Array = NDArray[np.float64]

WEIGHTED = {1: WeightedConv1d, 2: WeightedConv2d, 3: WeightedConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = [1, 3, 5, 7, 9]


@dataclass
class Reference:
    """Output of a weighted convolution and the gradients of sum(output * upstream)."""

    output: Array
    weight: Array
    input: Array
    bias: Array


def mask_value(den: list[float], tap: tuple[int, ...]) -> float:
    """phi at one tap: a factor for each coordinate, by its distance from the border."""
    n = len(den)
    return math.prod(1.0 if i == n else den[min(i, 2 * n - i)] for i in tap)


def reference(
    x: Array,
    w: Array,
    b: Array,
    den: list[float],
    *,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    upstream: Array | None = None,
) -> Reference:
    dimensions = x.ndim - 2
    k = w.shape[2]
    border = [(0, 0), (0, 0)] + [(padding, padding)] * dimensions
    padded = np.pad(x, border)
    extent = dilation * (k - 1) + 1
    shape = tuple((side - extent) // stride + 1 for side in padded.shape[2:])
    output = np.zeros((x.shape[0], w.shape[0], *shape))
    upstream = np.zeros_like(output) if upstream is None else upstream
    weight_gradient, padded_gradient = np.zeros_like(w), np.zeros_like(padded)
    outs, ins = w.shape[0] // groups, w.shape[1]
    for position in np.ndindex(*shape):
        for tap in np.ndindex(*(k,) * dimensions):
            mask = mask_value(den, tap)
            pixel = tuple(p * stride + t * dilation for p, t in zip(position, tap, strict=True))
            for group in range(groups):
                o = slice(group * outs, (group + 1) * outs)
                i = slice(group * ins, (group + 1) * ins)
                here, kernel = padded[(slice(None), i, *pixel)], w[(o, slice(None), *tap)]
                above = upstream[(slice(None), o, *position)]
                output[(slice(None), o, *position)] += mask * here @ kernel.T
                weight_gradient[(o, slice(None), *tap)] += mask * above.T @ here
                padded_gradient[(slice(None), i, *pixel)] += mask * above @ kernel
        output[(slice(None), slice(None), *position)] += b
    inside = tuple(slice(padding, padding + side) for side in x.shape[2:])
    bias_gradient = upstream.sum(axis=(0, *range(2, x.ndim)))
    return Reference(output, weight_gradient, padded_gradient[(..., *inside)], bias_gradient)


def example_den(k: int) -> list[float]:
    return [0.3 + 0.45 * ring for ring in range(k // 2)]


def weighted(dimensions: int, *args, **kwargs) -> WeightedConv:
    return WEIGHTED[dimensions](*args, dtype=torch.float64, **kwargs)


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter of a convolution a random value, its bias too."""
    with torch.no_grad():
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                parameter.normal_()
    return module


def image(module: nn.Module, side: int, batch: int = 2) -> torch.Tensor:
    shape = (batch, module.in_channels) + (side,) * len(module.kernel_size)
    return torch.randn(shape, dtype=module.weight.dtype)


def assert_agrees(module: WeightedConv, x: torch.Tensor, den: list[float]) -> None:
    x.requires_grad_()
    output = module(x)
    upstream = torch.randn_like(output)
    output.backward(upstream)
    bias = np.zeros(module.out_channels) if module.bias is None else module.bias.detach().numpy()
    expected = reference(
        x.detach().numpy(),
        module.weight.detach().numpy(),
        bias,
        den,
        stride=module.stride[0],
        padding=module.padding[0],
        dilation=module.dilation[0],
        groups=module.groups,
        upstream=upstream.numpy(),
    )
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(output.detach().numpy(), expected.output, **close)
    np.testing.assert_allclose(module.weight.grad.numpy(), expected.weight, **close)
    np.testing.assert_allclose(x.grad.numpy(), expected.input, **close)
    if module.bias is not None:
        np.testing.assert_allclose(module.bias.grad.numpy(), expected.bias, **close)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# The operator


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_output_and_gradients_equal_the_written_out_reference(dimensions, k, trainable):
    den = example_den(k)
    module = weighted(dimensions, 2, 3, k, den, padding=k // 2, trainable=trainable)
    assert_agrees(randomised(module), image(module, side=2 if dimensions == 3 else 4), den)


@pytest.mark.parametrize(
    "given_settings",
    [
        {"stride": 2, "bias": True},
        {"dilation": 2, "bias": False},
        {"groups": 2, "bias": True},
        {"stride": 3, "dilation": 2, "groups": 2, "bias": False},
    ],
    ids=["stride", "dilation", "groups", "all"],
)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_settings_equal_the_written_out_reference_in_every_dimension_and_size(
    dimensions, k, given_settings
):
    den = example_den(k)
    reach = given_settings.get("dilation", 1) * (k // 2)
    module = weighted(dimensions, 2, 4, k, den, padding=reach, **given_settings)
    # One position more than the stride, so that a strided convolution has two outputs in a row.
    side = given_settings.get("stride", 1) + 1
    assert_agrees(randomised(module), image(module, side, batch=1), den)


@settings(deadline=None, max_examples=40)
@given(
    dimensions=st.sampled_from([1, 2]),
    den=st.lists(st.floats(0, 3), max_size=2),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    extra=st.integers(0, 3),
    bias=st.booleans(),
)
def test_every_setting_equals_the_written_out_reference(
    dimensions, den, channels, groups, stride, padding, dilation, extra, bias
):
    k = 2 * len(den) + 1
    module = weighted(
        dimensions,
        channels[0] * groups,
        channels[1] * groups,
        k,
        den,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    side = max(1, dilation * (k - 1) + 1 - 2 * padding) + extra
    assert_agrees(randomised(module), image(module, side), den)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("k", SIZES)
def test_identity_is_the_plain_convolution_bit_for_bit(dimensions, k):
    plain = PLAIN[dimensions](2, 3, k, padding=k // 2)
    identity = WEIGHTED[dimensions].from_conv(plain, [1.0] * (k // 2))
    x = image(plain, side=4)
    output, expected = identity(x), plain(x)
    assert torch.equal(output, expected)
    gradients = [
        torch.autograd.grad(out.square().sum(), plain.weight) for out in (output, expected)
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_zero_outer_ring_is_the_smaller_kernel(dimensions):
    large = randomised(weighted(dimensions, 2, 3, 5, [0.0, 0.6]))
    small = weighted(dimensions, 2, 3, 3, [0.6])
    inner = (slice(None), slice(None)) + (slice(1, 4),) * dimensions
    small.weight.data, small.bias.data = large.weight.data[inner].clone(), large.bias.data.clone()
    x = image(large, side=6)
    cropped = x[(slice(None), slice(None)) + (slice(1, -1),) * dimensions]
    torch.testing.assert_close(large(x), small(cropped), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_equal_padding_the_image_beforehand(mode):
    module = randomised(weighted(2, 2, 3, 5, [0.2, 0.8], padding=2, padding_mode=mode))
    x = image(module, side=6)
    name = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (2, 2), (2, 2)], mode=name)
    expected = reference(
        padded,
        module.weight.detach().numpy(),
        module.bias.detach().numpy(),
        [0.2, 0.8],
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
    )
    np.testing.assert_allclose(module(x).detach().numpy(), expected.output, rtol=1e-12, atol=1e-12)


def test_padding_same_keeps_the_size_and_equals_explicit_padding():
    same = randomised(weighted(2, 2, 3, 5, [0.2, 0.8], padding="same", dilation=2))
    explicit = weighted(2, 2, 3, 5, [0.2, 0.8], padding=4, dilation=2)
    explicit.load_state_dict(same.state_dict())
    x = image(same, side=7)
    assert same(x).shape == (2, 3, 7, 7)
    torch.testing.assert_close(same(x), explicit(x), rtol=1e-12, atol=1e-12)


def test_channels_last_is_kept_and_changes_nothing():
    module = randomised(WeightedConv2d(4, 8, 3, [0.7], padding=1))
    x = image(module, side=6)
    expected = module(x)
    module.to(memory_format=torch.channels_last)
    output = module(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert module.fold().weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)


# The density


def test_a_fixed_density_is_a_buffer_and_reads_back():
    module = weighted(3, 1, 1, 5, [0.2, 0.8])
    assert module.den.tolist() == [0.2, 0.8]
    assert dict(module.named_buffers())["phi"] is module.phi
    assert "den" not in dict(module.named_parameters())
    for tap in np.ndindex(5, 5, 5):
        assert module.phi[tap].item() == pytest.approx(mask_value([0.2, 0.8], tap), rel=1e-15)


def test_changing_the_density_read_from_a_layer_does_not_change_the_layer():
    module = weighted(1, 1, 1, 3, [0.5])
    module.den.fill_(9.0)
    assert module.phi.tolist() == [0.5, 1.0, 0.5]


def test_phi_is_rounded_once_to_the_dtype_of_the_weight():
    module = WeightedConv2d(1, 1, 3, [0.1], dtype=torch.bfloat16)
    corner = torch.tensor(0.1 * 0.1, dtype=torch.float64).to(torch.bfloat16)
    assert module.phi.dtype == torch.bfloat16
    assert torch.equal(module.phi[0, 0], corner)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gradient_of_a_trainable_density_equals_finite_differences(dimensions, k):
    module = randomised(weighted(dimensions, 2, 2, k, example_den(k), trainable=True))
    x = image(module, side=k, batch=1)

    def output(den, weight):
        return torch.func.functional_call(module, {"den": den, "weight": weight}, (x,))

    assert torch.autograd.gradcheck(output, (module.den, module.weight))


def test_a_trainable_density_belongs_to_its_layer_and_is_unconstrained():
    model = nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3))
    apply_densities(model, {3: [0.5]}, trainable=True)
    first, second = model
    optimizer = torch.optim.SGD([first.den], lr=1.0)
    first.den.grad = torch.tensor([2.0])
    optimizer.step()
    assert first.phi.tolist() == [-1.5, 1.0, -1.5]
    assert second.phi.tolist() == [0.5, 1.0, 0.5]


def test_initial_weights_have_the_scale_of_the_authors_layer():
    module = WeightedConv2d(16, 64, 5, [0.2, 0.8])
    std = math.sqrt(2 / (64 * 5 * 5))
    assert module.weight.std().item() == pytest.approx(std, rel=0.02)
    assert module.weight.mean().abs().item() < std / 40
    assert torch.equal(module.bias, torch.zeros(64))


@pytest.mark.parametrize("kernel_size", [2, 4, (4, 4)])
def test_even_kernels_are_refused(kernel_size):
    with pytest.raises(ValueError, match=r"kernel size \d has no centre; use an odd size"):
        WeightedConv2d(1, 1, kernel_size, [0.5])


def test_kernels_of_unequal_sides_are_refused():
    with pytest.raises(ValueError, match=r"kernel size \(3, 5\) has unequal sides"):
        WeightedConv2d(1, 1, (3, 5), [0.5])
    with pytest.raises(ValueError, match=r"kernel size \(1, 3\) has unequal sides"):
        WeightedConv2d.from_conv(nn.Conv2d(1, 1, (1, 3)), [0.5])


@pytest.mark.parametrize("den", [[], [0.5, 0.5], [-0.1], [math.nan], [math.inf]])
def test_densities_that_do_not_fit_are_refused_in_one_line(den):
    with pytest.raises(ValueError, match="density") as error:
        WeightedConv2d(1, 1, 3, den)
    assert "\n" not in str(error.value)


# State, copies and compilation


@pytest.mark.parametrize("trainable", [False, True])
def test_a_checkpoint_carries_its_density(trainable):
    saved = WeightedConv2d(2, 3, 5, [0.2, 0.8], trainable=trainable)
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    stream.seek(0)
    loaded = WeightedConv2d(2, 3, 5, [1.0, 1.0], trainable=trainable)
    loaded.load_state_dict(torch.load(stream, weights_only=True))
    x = image(saved, side=6)
    assert torch.equal(loaded.den, saved.den)
    assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(duplicate, trainable):
    original = apply_densities(nn.Conv2d(2, 3, 3), {3: [0.7]}, trainable=trainable)
    twin = duplicate(original)
    x = image(original, side=4)
    expected = original(x)
    assert type(twin) is WeightedConv2d
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert torch.equal(original(x), expected)


@pytest.mark.parametrize("trainable", [False, True])
def test_the_density_follows_dtype_and_device(trainable):
    module = WeightedConv2d(2, 3, 3, [0.7], trainable=trainable).to(torch.float64)
    assert module.phi.dtype == module.den.dtype == torch.float64
    assert module(torch.randn(1, 2, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert module.to("meta").phi.device.type == "meta"


@pytest.mark.parametrize("trainable", [False, True])
def test_the_density_can_be_replaced_functionally(trainable):
    module = WeightedConv2d(2, 3, 3, [0.7], trainable=trainable)
    other = WeightedConv2d.from_conv(module, [0.4])
    replacement = {"den": torch.tensor([0.4])} if trainable else {"phi": other.phi}
    x = image(module, side=4)
    replaced = torch.func.functional_call(module, replacement, (x,))
    torch.testing.assert_close(replaced, other(x))


@pytest.mark.parametrize("trainable", [False, True])
def test_compiles_into_one_graph(trainable):
    module = WeightedConv2d(2, 3, 3, [0.7], padding=1, trainable=trainable)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = image(module, side=4)
    assert torch.equal(compiled(x), module(x))


def test_the_density_is_shown():
    assert "kernel_size=(5, 5)" in repr(WeightedConv2d(2, 3, 5, [0.2, 0.8]))
    assert "den=[0.2, 0.8])" in repr(WeightedConv2d(2, 3, 5, [0.2, 0.8]))
    assert "den=[0.7], trainable=True)" in repr(WeightedConv1d(2, 3, 3, [0.7], trainable=True))


# Conversion and folding


def awkward(dimensions: int) -> nn.Module:
    """A plain convolution with every setting away from its default."""
    conv = PLAIN[dimensions](
        4,
        6,
        3,
        stride=2,
        padding=2,
        dilation=2,
        groups=2,
        padding_mode="circular",
        dtype=torch.float64,
    )
    conv.bias.requires_grad_(False)
    return conv.eval()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_conversion_keeps_everything_but_the_density(dimensions, trainable):
    conv = awkward(dimensions)
    module = WEIGHTED[dimensions].from_conv(conv, [0.7], trainable=trainable)
    assert isinstance(module, PLAIN[dimensions])
    assert module.weight is conv.weight
    assert module.bias is conv.bias
    assert not module.training
    assert module.den.tolist() == [0.7]
    assert module.trainable is trainable
    assert module.extra_repr().startswith(conv.extra_repr())
    assert type(conv) is PLAIN[dimensions]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_folding_is_exact_and_keeps_everything(dimensions, trainable):
    conv = awkward(dimensions)
    module = WEIGHTED[dimensions].from_conv(conv, [0.7], trainable=trainable)
    folded = module.fold()
    x = image(conv, side=6)
    assert type(folded) is PLAIN[dimensions]
    assert torch.equal(folded(x), module(x))
    assert folded.extra_repr() == conv.extra_repr()
    assert folded.state_dict().keys() == conv.state_dict().keys()
    assert not folded.training
    assert folded.weight.requires_grad
    assert not folded.bias.requires_grad
    assert folded.bias.data_ptr() != module.bias.data_ptr()


def test_conversion_and_folding_draw_no_random_numbers():
    conv = nn.Conv2d(2, 3, 3, bias=False)
    state = torch.get_rng_state()
    assert WeightedConv2d.from_conv(conv, [0.7]).fold().bias is None
    assert torch.equal(torch.get_rng_state(), state)


def test_conversion_refuses_other_dimensions_and_types():
    with pytest.raises(ValueError, match="takes a Conv2d or a WeightedConv2d, not a Conv1d"):
        WeightedConv2d.from_conv(nn.Conv1d(1, 1, 3), [0.5])
    with pytest.raises(
        ValueError, match="takes a Conv1d or a WeightedConv1d, not a WeightedConv2d"
    ):
        WeightedConv1d.from_conv(WeightedConv2d(1, 1, 3, [0.5]), [0.5])
    with pytest.raises(ValueError, match="not a ConvTranspose2d"):
        WeightedConv2d.from_conv(nn.ConvTranspose2d(1, 1, 3), [0.5])


def test_a_model_that_is_a_convolution_is_converted_and_folded():
    conv = nn.Conv2d(2, 2, 3)
    x = image(conv, side=4)
    weighted_conv = apply_densities(conv, {3: [0.7]})
    assert type(weighted_conv) is WeightedConv2d
    expected = weighted_conv(x)
    folded = fold_all(weighted_conv)
    assert type(folded) is nn.Conv2d
    assert torch.equal(folded(x), expected)


def test_hooks_survive_conversion_and_folding():
    calls = []
    conv = nn.Conv2d(2, 2, 3)
    handles = [
        conv.register_forward_hook(lambda *_: calls.append("forward")),
        conv.register_forward_pre_hook(lambda *_: calls.append("before")),
        conv.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    x = image(conv, side=4).requires_grad_()
    for model in (apply_densities(conv, {3: [0.7]}), fold_all(conv)):
        calls.clear()
        model(x).sum().backward()
        assert calls == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    conv(x).sum().backward()
    assert calls == []


@pytest.mark.parametrize("trainable", [False, True])
def test_folding_a_model_is_exact(trainable):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
    )
    apply_densities(model, {3: [0.7], 5: [0.2, 0.8]}, trainable=trainable)
    x = torch.randn(2, 2, 9, 9)
    expected = model(x)
    assert fold_all(model) is model
    assert not any(isinstance(module, WeightedConv) for module in model.modules())
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.0.weight", "2.0.bias"}
    assert torch.equal(model(x), expected)


def test_folding_tied_weights_weights_each_layer_once():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    apply_densities(model, {3: [0.7]})
    x = torch.randn(1, 2, 6, 6)
    expected = model(x)
    assert torch.equal(fold_all(model)(x), expected)


def test_a_weight_that_is_computed_cannot_be_folded():
    conv = nn.utils.parametrizations.weight_norm(WeightedConv2d(2, 2, 3, [0.7]))
    model = nn.Sequential(WeightedConv2d(2, 2, 3, [0.7]), conv)
    with pytest.raises(ValueError, match="remove the parametrization first"):
        fold_all(model)
    assert type(model[0]) is WeightedConv2d
    with pytest.raises(ValueError, match="remove the parametrization first"):
        conv.fold()
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    x = torch.randn(1, 2, 6, 6)
    expected = model(x)
    assert torch.equal(fold_all(model)(x), expected)
