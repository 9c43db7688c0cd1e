"""The four proxies: their structure, which convolutions are weighted, their initial weights."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from densitune.treatment import learned
from densitune.weighted_conv import WeightedConv2d, fold_all
from workers.networks.classifiers import VGG, ResNet
from workers.networks.denoisers import DnCNN, LayerNorm2d, NAFBlock, NAFNet, simple_gate
from workers.networks.proxies import Proxy, build, trainable_densities
from workers.seeds import generator

pytestmark = pytest.mark.numerical

PROXIES = [
    Proxy("vgg", 8, 6, (5,), 3, 10),
    Proxy("vgg", 8, 7, (7, 3, 5), 3, 10),
    Proxy("resnet", 4, 14, (5,), 3, 10),
    Proxy("resnet", 4, 8, (3, 5, 7), 1, 10),
    Proxy("dncnn", 8, 5, (5,), 1, None),
    Proxy("dncnn", 8, 6, (3, 5), 3, None),
    Proxy("nafnet", 4, 7, (5,), 3, None),
    Proxy("nafnet", 4, 9, (3, 5, 7, 9), 1, None),
    Proxy("nafnet", 4, 1, (7,), 3, None),
]
NAMES = [f"{p.family}-{'-'.join(map(str, p.kernel_sizes))}-d{p.depth}" for p in PROXIES]
every_proxy = pytest.mark.parametrize("proxy", PROXIES, ids=NAMES)


def densities(proxy: Proxy, value: float) -> dict[int, list[float]]:
    return {size: [value] * (size // 2) for size in proxy.kernel_sizes}


def library(proxy: Proxy, value: float = 0.6, seed: int = 1) -> nn.Module:
    return build(proxy, densities(proxy, value), init="library", seed=seed)


def images(proxy: Proxy, height: int = 32, width: int = 32) -> torch.Tensor:
    shape = (2, proxy.channels, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def spatial(model: nn.Module) -> list[nn.Conv2d]:
    """Convolutions of odd size above 1, in the order of construction."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [conv for conv in convolutions if conv.kernel_size[0] in (3, 5, 7, 9)]


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=draw) - 0.5)


# Weighting


@every_proxy
def test_every_spatial_convolution_is_weighted_and_no_other(proxy):
    model = library(proxy)
    assert spatial(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            odd = module.kernel_size[0] > 1 and module.kernel_size[0] % 2 == 1
            assert isinstance(module, WeightedConv2d) is odd


@every_proxy
def test_each_size_gets_its_own_density(proxy):
    chosen = {k: [k / 10 + ring for ring in range(k // 2)] for k in proxy.kernel_sizes}
    model = build(proxy, chosen, init="library", seed=1)
    for conv in spatial(model):
        assert conv.den.tolist() == pytest.approx(chosen[conv.kernel_size[0]])


def test_a_density_changes_the_function_but_not_the_number_of_parameters():
    for proxy in PROXIES:
        first, second = library(proxy, 1.0), library(proxy, 0.5)
        shapes = [{n: p.shape for n, p in parameters(m).items()} for m in (first, second)]
        assert shapes[0] == shapes[1]
        x = images(proxy)
        assert not torch.equal(first(x), second(x))


@every_proxy
def test_a_proxy_without_densities_is_the_identity(proxy):
    plain = build(proxy, {}, init="library", seed=1)
    assert not any(isinstance(module, WeightedConv2d) for module in plain.modules())
    x = images(proxy)
    assert torch.equal(plain(x), library(proxy, 1.0)(x))


@every_proxy
def test_a_proxy_that_learns_its_densities_starts_as_the_one_that_does_not(proxy):
    given = densities(proxy, 0.6)
    model = build(proxy, given, init="library", seed=1, trainable=True)
    fixed = library(proxy)
    sizes = [conv.kernel_size[0] for conv in spatial(model)]
    found = trainable_densities(model)
    assert [size for size, _ in found] == sizes
    assert all(isinstance(den, nn.Parameter) for _, den in found)
    extra = parameters(model).keys() - parameters(fixed).keys()
    assert len(extra) == len(sizes)
    assert trainable_densities(fixed) == []
    noisy = images(proxy)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(noisy), fixed.eval()(noisy))
    expected = {
        str(size): [[torch.tensor(0.6).item()] * (size // 2)] * sizes.count(size)
        for size in set(sizes)
    }
    assert learned(model) == expected
    assert learned(fixed) == {}


@every_proxy
def test_folding_a_proxy_is_exact(proxy):
    model = library(proxy)
    x = images(proxy)
    expected = model(x)
    assert torch.equal(fold_all(model)(x), expected)


def test_kernel_sizes_are_given_to_the_stages_in_turn():
    def sizes(part: nn.Module) -> list[int]:
        return [conv.kernel_size[0] for conv in spatial(part)]

    vgg = VGG((3, 5), 4, 7, 3, 10)
    assert [sizes(stage) for stage in vgg.stages] == [[3, 3], [5, 5], [3, 3, 3]]
    resnet = ResNet((3, 5, 7), 4, 14, 3, 10)
    assert sizes(resnet.stem) == [3]
    assert [sizes(stage) for stage in resnet.stages] == [[3] * 4, [5] * 4, [7] * 4]
    assert sizes(DnCNN((3, 5, 7), 4, 5, 1)) == [3, 5, 7, 3, 5]
    nafnet = NAFNet((3, 5, 7), 4, 8, 1)  # three levels, two blocks in the middle
    assert [sizes(nafnet.intro), sizes(nafnet.ending)] == [[3], [3]]
    assert [sizes(block) for block in nafnet.encoders] == [[3], [5], [7]]
    assert [sizes(block) for block in nafnet.decoders] == [[3], [5], [7]]
    assert sizes(nafnet.middle) == [3, 3]


# Structure


@every_proxy
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 18)])
def test_output_shapes_and_a_gradient_for_every_parameter(proxy, height, width):
    model = library(proxy)
    randomise(model)
    output = model(images(proxy, height, width))
    classes = (2, proxy.classes)
    assert output.shape == (classes if proxy.classes else (2, proxy.channels, height, width))
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@given(depth=st.integers(3, 40))
@settings(deadline=None, max_examples=20)
def test_depth_of_vgg_counts_convolutions_and_favours_later_stages(depth):
    with torch.device("meta"):
        model = VGG((3,), 2, depth, 3, 10)
    counts = [len(spatial(stage)) for stage in model.stages]
    assert sum(counts) == depth
    assert counts == sorted(counts)
    assert counts[-1] - counts[0] <= 1


def test_stages_of_classifiers_halve_the_image_and_double_the_channels():
    for model in (VGG((3,), 4, 6, 3, 10), ResNet((3,), 4, 8, 3, 10)):
        shapes = []
        for stage in model.stages:
            stage.register_forward_hook(lambda _m, _i, out, seen=shapes: seen.append(out.shape[1:]))
        model(torch.rand(2, 3, 32, 32))
        assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_depth_of_resnet_counts_layers_on_its_longest_path(blocks):
    model = ResNet((3,), 4, 6 * blocks + 2, 3, 10)
    projections = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert len(spatial(model)) + 1 == 6 * blocks + 2  # and the linear layer
    assert [conv.stride for conv in projections] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("depth", [2, 7, 10, 13])
def test_other_depths_are_refused_by_resnet(depth):
    with pytest.raises(ValueError, match=r"depth \d+; depth is 6n \+ 2"):
        ResNet((3,), 4, depth, 3, 10)


def test_depths_without_a_network_are_refused():
    with pytest.raises(ValueError, match="depth of at least 3"):
        VGG((3,), 4, 2, 3, 10)
    with pytest.raises(ValueError, match="depth of at least 3"):
        DnCNN((3,), 4, 2, 1)
    with pytest.raises(ValueError, match="use at least 1"):
        NAFNet((3,), 4, 0, 1)


def test_convolutions_before_batch_normalisation_have_no_bias():
    for model in (VGG((3,), 4, 6, 3, 10), ResNet((3,), 4, 8, 3, 10), DnCNN((3,), 4, 5, 1)):
        layers = list(model.modules())
        for conv, following in itertools.pairwise(layers):
            if isinstance(conv, nn.Conv2d):
                assert (conv.bias is None) is isinstance(following, nn.BatchNorm2d)


def test_dncnn_is_the_published_stack():
    kinds = [type(layer).__name__ for layer in DnCNN((3,), 64, 17, 1).layers]
    inner = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == ["Conv2d", "ReLU", *inner * 15, "Conv2d"]


def test_dncnn_that_predicts_no_noise_is_the_identity_map():
    model = library(Proxy("dncnn", 8, 5, (5,), 3, None))
    nn.init.zeros_(model.layers[-1].weight)
    x = torch.rand(2, 3, 9, 11)
    assert torch.equal(model(x), x)


def test_dncnn_subtracts_what_it_predicts():
    model = library(Proxy("dncnn", 8, 5, (5,), 3, None)).eval()
    x = torch.rand(2, 3, 9, 11)
    torch.testing.assert_close(x - model(x), model.layers(x))


@given(depth=st.integers(1, 20))
@settings(deadline=None, max_examples=20)
def test_depth_of_nafnet_counts_blocks(depth):
    with torch.device("meta"):
        model = NAFNet((3,), 2, depth, 3)
    blocks = [module for module in model.modules() if isinstance(module, NAFBlock)]
    levels = len(model.encoders)
    assert len(blocks) == depth
    assert len(model.middle) >= 1
    assert levels == 4 or len(model.middle) <= 2
    assert model.multiple == 2**levels


def test_a_new_nafnet_block_is_the_identity_map():
    block = NAFBlock(6, 3)
    x = torch.rand(2, 6, 5, 7)
    assert torch.equal(block(x), x)


def test_layer_normalisation_of_a_bfloat16_network_is_computed_in_float32() -> None:
    layer = LayerNorm2d(8)
    x = 3 + torch.randn(2, 8, 5, 4, generator=generator(0, "x")).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    wide = x.double()
    centred = wide - wide.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(y.double(), expected, rtol=0, atol=1e-5)  # bfloat16: 4e-3


def test_nafnet_block_equals_the_formula_of_the_paper():
    block = NAFBlock(4, 3).double()
    randomise(block)
    x = torch.rand(2, 4, 5, 6, dtype=torch.float64)

    def norm(layer: LayerNorm2d, y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(1, keepdim=True)
        deviation = (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * layer.weight[:, None, None] + layer.bias[:, None, None]

    def pointwise(layer: nn.Conv2d, y: torch.Tensor) -> torch.Tensor:
        return (
            torch.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], y) + layer.bias[:, None, None]
        )

    wide = pointwise(block.widen, norm(block.norm1, x))
    padded = F.pad(wide, (1, 1, 1, 1))
    filtered = torch.zeros_like(wide)
    for row in range(3):
        for column in range(3):
            tap = block.depthwise.weight[:, 0, row, column][:, None, None]
            filtered += tap * padded[:, :, row : row + 5, column : column + 6]
    filtered += block.depthwise.bias[:, None, None]
    gated = filtered[:, :4] * filtered[:, 4:]
    attention = pointwise(block.attention, gated.mean((2, 3))[:, :, None, None])
    y = x + block.beta * pointwise(block.project, gated * attention)
    expanded = pointwise(block.expand, norm(block.norm2, y))
    expected = y + block.gamma * pointwise(block.reduce, expanded[:, :4] * expanded[:, 4:])
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_the_gate_multiplies_the_halves_of_the_channels():
    x = torch.arange(8.0).reshape(1, 4, 1, 2)
    assert simple_gate(x).tolist() == [[[[0.0 * 4, 1.0 * 5]], [[2.0 * 6, 3.0 * 7]]]]


def test_nafnet_with_a_zero_ending_is_the_identity_map_at_any_size():
    model = library(Proxy("nafnet", 4, 9, (3,), 3, None))
    nn.init.zeros_(model.ending.weight)
    for height, width in [(16, 16), (1, 1), (17, 31), (5, 40)]:
        x = torch.rand(1, 3, height, width)
        assert torch.equal(model(x), x)


def test_nafnet_pads_with_zeros_on_the_right_and_below():
    model = library(Proxy("nafnet", 4, 7, (3,), 3, None))
    randomise(model)
    x = torch.rand(1, 3, 13, 18)
    padded = torch.zeros(1, 3, 16, 24)
    padded[:, :, :13, :18] = x
    torch.testing.assert_close(model(x), model(padded)[:, :, :13, :18])


def test_nafnet_passes_information_through_every_skip_and_level():
    model = library(Proxy("nafnet", 4, 5, (3,), 1, None)).double()
    randomise(model)
    parts = [*model.encoders, *model.downs, *model.middle, *model.ups, *model.decoders]
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    expected = model(x)
    for part in parts:
        kept = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        randomise(part, seed=1)
        assert not torch.allclose(model(x), expected)
        part.load_state_dict(kept)


# Initial weights


@every_proxy
@pytest.mark.parametrize("init", ["library", "compensated"])
def test_a_proxy_depends_on_its_seed_and_not_on_the_global_random_state(proxy, init):
    states = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(build(proxy, densities(proxy, 0.6), init=init, seed=5).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@every_proxy
def test_raw_weights_are_the_same_for_every_density(proxy):
    first, second = parameters(library(proxy, 1.0)), parameters(library(proxy, 0.3))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_proxy
def test_seeds_and_layers_draw_different_weights(proxy):
    first, second = parameters(library(proxy, seed=1)), parameters(library(proxy, seed=2))
    drawn = [name for name in first if name.endswith("weight") and first[name].dim() == 4]
    assert all(not torch.equal(first[name], second[name]) for name in drawn)
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(first[one], first[other])


def test_layers_keep_their_weights_when_the_network_grows():
    short, long = (library(Proxy("dncnn", 8, depth, (5,), 3, None)) for depth in (4, 7))
    for index in (0, 2, 5):
        assert torch.equal(short.layers[index].weight, long.layers[index].weight)


def test_spatial_convolutions_start_at_the_scale_of_the_layer_library():
    for proxy in (Proxy("vgg", 32, 6, (5,), 3, 10), Proxy("nafnet", 32, 5, (7,), 3, None)):
        for conv in spatial(library(proxy)):
            std = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))
            tolerance = 4 / math.sqrt(2 * conv.weight.numel())
            assert conv.weight.std().item() == pytest.approx(std, rel=tolerance)
            assert conv.bias is None or not conv.bias.any()


def test_other_layers_start_with_the_distribution_of_torch():
    model = library(Proxy("nafnet", 32, 5, (7,), 3, None))
    others = [model.downs[0], model.ups[1][0], model.middle[0].widen]
    others.append(library(Proxy("vgg", 32, 6, (5,), 3, 100)).head)
    for layer in others:
        fan_in = layer.weight[0].numel()
        bound = 1 / math.sqrt(fan_in)
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tolerance = 4 / math.sqrt(tensor.numel())
                assert tensor.abs().max().item() <= bound
                assert tensor.abs().mean().item() == pytest.approx(bound / 2, rel=tolerance)
        reference = type(layer)(*_arguments(layer))
        assert reference.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def _arguments(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size[0]


def test_normalisations_and_scales_start_at_their_constants():
    for proxy in PROXIES:
        for module in library(proxy).modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                assert (module.weight == 1).all()
                assert not module.bias.any()
            if isinstance(module, nn.BatchNorm2d):
                assert not module.running_mean.any()
                assert (module.running_var == 1).all()
                assert module.num_batches_tracked == 0
            if isinstance(module, NAFBlock):
                assert not module.beta.any()
                assert not module.gamma.any()


@pytest.mark.parametrize("den", [[0.2, 0.8], [0.3, 1.5], [1.5, 0.75], [1.0, 1.0]])
def test_compensation_gives_every_layer_the_scale_of_the_identity(den):
    proxy = Proxy("vgg", 32, 6, (5,), 3, 10)
    alpha = [*den, 1.0, *reversed(den)]
    gain = math.sqrt(sum((a * b) ** 2 for a in alpha for b in alpha) / 25)
    raw = build(proxy, {5: den}, init="library", seed=3)
    compensated = build(proxy, {5: den}, init="compensated", seed=3)
    for before, after in zip(spatial(raw), spatial(compensated), strict=True):
        torch.testing.assert_close(after.weight * gain, before.weight)
        identity = before.weight.detach().square().mean().sqrt().item()
        effective = (after.weight * after.phi).detach().square().mean().sqrt().item()
        assert effective == pytest.approx(identity, rel=0.05)
    others = set(parameters(raw)) - {
        f"{name}.weight" for name, m in raw.named_modules() if m in spatial(raw)
    }
    first, second = parameters(raw), parameters(compensated)
    assert all(torch.equal(first[name], second[name]) for name in others)


def test_generators_are_equal_for_equal_purposes_only():
    purposes = [(1, "weights", "a"), (1, "weights", "b"), (2, "weights", "a"), (1, "noise", "a")]
    purposes += [(1, "weights"), (1, "weights", 1), (1, "weights", "1"), (1, "weightsa")]
    draws = [torch.rand(4, generator=generator(*purpose)).tolist() for purpose in purposes]
    again = [torch.rand(4, generator=generator(*purpose)).tolist() for purpose in purposes]
    assert draws == again
    assert len(np.unique(draws, axis=0)) == len(purposes)


# Refusals


def test_a_classifier_needs_classes():
    for family in ("vgg", "resnet"):
        with pytest.raises(ValueError, match=f"a {family} proxy is a classifier"):
            build(Proxy(family, 4, 8, (3,), 3, None), {}, init="library", seed=0)


def test_even_kernel_sizes_are_refused():
    with pytest.raises(ValueError, match="kernel size 4 has no centre"):
        build(Proxy("vgg", 4, 6, (3, 4), 3, 10), {3: [0.5]}, init="library", seed=0)


def test_a_size_that_no_stage_takes_is_refused():
    proxy = Proxy("vgg", 4, 6, (3, 5, 7, 9), 3, 10)
    with pytest.raises(ValueError, match=r"no convolution has kernel size 9; .*: 3, 5, 7$"):
        library(proxy)
