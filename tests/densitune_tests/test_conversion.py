"""Models whose convolutions are weighted in place."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from densitune.conversion import apply_densities, left_alone, scale_initial_weights
from densitune.weighted_conv import (
    WeightedConv,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    fold_all,
)


def mixed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 5),
        nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 2),
        nn.Conv2d(2, 2, (3, 5)),
        nn.ConvTranspose2d(2, 2, 3),
        nn.LazyConv2d(2, 3),
        nn.Conv1d(2, 2, 3),
        nn.Conv3d(2, 2, 3),
    )


def test_only_kernels_named_are_weighted():
    model = mixed()
    types = [type(module) for module in model]
    with pytest.warns(UserWarning, match=r"left alone: 4 .*, 5 .*, 6 \(Lazy"):
        assert apply_densities(model, {3: [0.7]}) is model
    expected = [WeightedConv2d, *types[1:7], WeightedConv1d, WeightedConv3d]
    assert [type(module) for module in model] == expected


def test_pointwise_convolutions_are_weighted_only_by_name():
    with pytest.warns(UserWarning, match=r"left alone: 4 \(kernel \(3, 5\)\)$"):
        model = apply_densities(mixed(), {1: [], 5: [0.2, 0.8]})
    assert model[1].den.tolist() == pytest.approx([0.2, 0.8])
    assert model[2].phi.tolist() == [[1.0]]
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("layers", "weighted"),
    [
        ("stem", {"stem"}),
        (["body.*"], {"body.0", "body.1"}),
        (["!body.1"], {"stem", "body.0"}),
        (["!*.0", "*"], {"stem", "body.1"}),
    ],
)
def test_patterns_choose_layers_by_name(layers, weighted):
    body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model = nn.Module()
    model.stem, model.body = nn.Conv2d(2, 2, 3), body
    apply_densities(model, {3: [0.5]}, layers=layers)
    found = {name for name, each in model.named_modules() if isinstance(each, WeightedConv2d)}
    assert found == weighted


def test_a_pattern_that_fits_nothing_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    for layers in ("stem", ["0", "!stem"]):
        with pytest.raises(ValueError, match="fits no convolution; their names are 0"):
            apply_densities(model, {3: [0.5]}, layers=layers)
    with pytest.raises(ValueError, match="no convolution has kernel size 3"):
        apply_densities(model, {3: [0.5]}, layers="!0")
    assert type(model[0]) is nn.Conv2d


def test_weighted_convolutions_get_the_new_density():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), WeightedConv2d(3, 2, 3, [0.25], trainable=True))
    raw = [module.weight.clone() for module in model]
    for den, trainable in (([0.5], True), ([0.75], False), ([1.5], True)):
        apply_densities(model, {3: den}, trainable=trainable)
        assert [module.den.tolist() for module in model] == [den, den]
        assert [module.trainable for module in model] == [trainable, trainable]
        carried = {"weight", "bias", "den" if trainable else "phi"}
        assert [set(module.state_dict()) for module in model] == [carried, carried]
    assert all(torch.equal(module.weight, old) for module, old in zip(model, raw, strict=True))


def test_a_module_at_several_places_stays_shared():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU(), shared)})
    apply_densities(model, {3: [0.7]}, trainable=True)
    assert model["a"] is model["b"][0] is model["b"][2]
    assert type(model["a"]) is WeightedConv2d
    assert len(list(model.parameters())) == 3


def test_optimizers_made_before_conversion_still_train():
    conv = nn.Conv2d(2, 2, 3)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    apply_densities(conv, {3: [0.7]})
    before = conv.weight.clone()
    conv(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(conv.weight, before)


def test_a_size_that_does_not_occur_is_refused_and_nothing_changes():
    model = mixed()
    message = r"no convolution has kernel size 7, 9; sizes .* can be weighted: 3, 5; left alone: 4 "
    with pytest.raises(ValueError, match=message):
        apply_densities(model, {3: [0.7], 9: [1.0] * 4, 7: [1.0] * 3})
    assert not any(isinstance(module, WeightedConv) for module in model)
    with pytest.raises(ValueError, match="can be weighted: none"):
        apply_densities(nn.Linear(2, 2), {3: [0.7]})


def test_an_invalid_density_is_refused_and_nothing_changes():
    model = mixed()
    with pytest.raises(ValueError, match="kernel size 5 takes 2"):
        apply_densities(model, {3: [0.7], 5: [0.7]})
    with pytest.raises(ValueError, match="kernel size 2 has no centre"):
        apply_densities(model, {3: [0.7], 2: [0.7]})
    assert type(model[0]) is nn.Conv2d


class Doubled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_sizes_may_be_text_as_in_a_preset():
    preset = json.loads(json.dumps({"densities": {3: [0.7], 5: [0.2, 0.8]}}))
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 5))
    apply_densities(model, preset["densities"])
    assert model[0].den.tolist() == pytest.approx([0.7])
    assert model[1].den.tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"schema": "densitune/preset/1"}, "'schema' is no kernel size.*of a preset"),
        ({"-3": [0.7]}, "'-3' is no kernel size"),
        ({2.5: [0.7]}, "2.5 is no kernel size"),
        ({3: [0.7], "3": [0.8]}, "kernel size 3 is given twice"),
    ],
)
def test_what_is_no_size_is_refused_and_nothing_changes(densities, message):
    model = mixed()
    with pytest.raises(ValueError, match=message):
        apply_densities(model, densities)
    assert not any(isinstance(module, WeightedConv) for module in model)


def test_what_is_left_alone_is_said_with_its_reason():
    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(2, 2, 3),
            "other size": nn.Conv2d(2, 2, 7),
            "unequal": nn.Conv2d(2, 2, (1, 3)),
            "transposed": nn.ConvTranspose2d(2, 2, 3),
            "lazy": nn.LazyConv2d(2, 3),
            "parametrized": parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
            "own": Doubled(2, 2, 3),
        }
    )
    reasons = {
        "unequal": "kernel (1, 3)",
        "transposed": "ConvTranspose2d",
        "lazy": "LazyConv2d: run the model once before",
        "parametrized": "its weight is parametrized: apply densities before that",
        "own": "Doubled may have a forward of its own",
    }
    assert left_alone(model, [3]) == reasons
    assert left_alone(model, [5]) == {}
    with pytest.warns(UserWarning, match="left alone") as said:
        apply_densities(model, {3: [0.7]})
    [message] = [str(one.message) for one in said]
    assert all(f"{name} ({why})" in message for name, why in reasons.items())
    with pytest.raises(ValueError, match=r"can be weighted: none; left alone: the model \(Conv"):
        apply_densities(nn.ConvTranspose2d(2, 2, 3), {3: [0.7]})
    model = nn.Sequential(nn.Conv2d(1, 1, 3), *(nn.ConvTranspose2d(1, 1, 3) for _ in range(9)))
    with pytest.warns(UserWarning, match=r"5 \(ConvTranspose2d\), 4 more$"):
        apply_densities(model, {3: [0.7]})


def test_what_was_left_alone_for_now_is_weighted_later():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3))
    with pytest.warns(UserWarning, match="run the model once before"):
        apply_densities(model, {3: [0.7]})
    model(torch.randn(1, 2, 8, 8))
    apply_densities(model, {3: [0.7]})
    assert all(type(module) is WeightedConv2d for module in model)


def test_weights_are_kept_or_drawn_as_the_authors_layer_draws_them():
    def deviation(**how):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 8, 1))
        before = [module.weight.clone() for module in model]
        apply_densities(model, {3: [0.7]}, **how)
        assert torch.equal(model[1].weight, before[1])
        assert torch.equal(model[0].weight, before[0]) == (how != {"init": "library"})
        return model[0].weight.std().item(), model[0].bias.abs().max().item()

    torch_deviation = 1 / math.sqrt(3 * 9 * 64)  # of U(-b, b) with b = 1/sqrt(fan_in)
    fan_out_deviation = math.sqrt(2 / (9 * 64))
    assert deviation()[0] == pytest.approx(torch_deviation, rel=0.02)
    assert deviation(init="keep") == deviation()
    assert deviation(init="library") == (pytest.approx(fan_out_deviation, rel=0.02), 0.0)


def test_computed_weights_cannot_be_drawn():
    model = parametrizations.weight_norm(WeightedConv2d(2, 2, 3, [0.7]))
    with pytest.raises(ValueError, match="remove the parametrization first"):
        apply_densities(model, {3: [0.5]}, init="library")


def test_batch_norm_is_fused_right_after_folding():
    """Fusers that build a convolution from `weight` alone would drop phi before that."""
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(apply_densities(conv, {3: [0.5]}), norm)
    x = torch.randn(8, 3, 6, 6)
    model(x)  # the norm's statistics
    expected = model.eval()(x)
    folded = fold_all(model)
    torch.testing.assert_close(folded(x), expected)
    by_hand = nn.Conv2d(3, 4, 3)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    by_hand.weight = nn.Parameter(folded[0].weight * scale[:, None, None, None])
    by_hand.bias = nn.Parameter((folded[0].bias - norm.running_mean) * scale + norm.bias)
    torch.testing.assert_close(by_hand(x), expected)
    torch.testing.assert_close(fuse_conv_bn_eval(folded[0], folded[1])(x), expected)


def test_a_plain_model_refuses_weighted_weights_unless_told_not_to():
    """With strict=False it takes the raw weights and drops phi, as WeightedConv says."""
    model, plain = nn.Sequential(nn.Conv2d(2, 2, 3)), nn.Sequential(nn.Conv2d(2, 2, 3))
    weights = apply_densities(model, {3: [0.7]}).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*phi"):
        plain.load_state_dict(weights)
    assert plain.load_state_dict(weights, strict=False).unexpected_keys == ["0.phi"]
    assert plain.load_state_dict(fold_all(model).state_dict()).unexpected_keys == []


# Scaling


def some() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 1)]
    return nn.Sequential(*layers, WeightedConv2d(4, 4, 3, [0.5]), nn.Linear(4, 4))


def factors(model, **how):
    """By how much each of some layers' weights has been multiplied; biases stay as they are."""
    for layer, before in zip(model, some(), strict=True):
        assert torch.equal(layer.bias, before.bias)
    return [
        (layer.weight / before.weight).mean().item()
        for layer, before in zip(model, some(), strict=True)
    ]


def rms(a, dimensions):
    return math.sqrt((2 * a * a + 1) / 3) ** dimensions


def test_a_preset_scales_the_plain_convolutions_of_its_sizes_by_rms_phi():
    scaled = [rms(0.6, 2), rms(0.6, 1), 1, 1, 1, 1]
    for given in ({3: [0.6]}, {"3": [0.6]}, json.loads('{"name": "x", "densities": {"3": [0.6]}}')):
        model = some()
        assert scale_initial_weights(model, given) is model
        assert factors(model) == pytest.approx(scaled, rel=1e-6)
    assert factors(scale_initial_weights(some(), 0.25)) == pytest.approx(
        [0.25, 0.25, 0.25, 1, 1, 1], rel=1e-6
    )


def test_a_scaled_convolution_starts_at_the_scale_of_its_density():
    """In every dimension: the root mean square of the kernel, of many draws."""
    for plain in (nn.Conv1d(64, 64, 5), nn.Conv2d(32, 32, 5), nn.Conv3d(16, 16, 5)):
        weighted = apply_densities(nn.Sequential(plain), {5: [0.2, 0.8]})[0]
        dense = fold_all(weighted).weight.detach().square().mean().sqrt()
        fresh = nn.Sequential(type(plain)(plain.in_channels, plain.out_channels, 5))
        start = scale_initial_weights(fresh, {5: [0.2, 0.8]})[0].weight.detach()
        assert start.square().mean().sqrt().item() == pytest.approx(dense.item(), rel=0.05)


def test_a_compensated_start_is_that_of_the_library_divided_by_rms_phi():
    """What the convolution sees, phi times the weights, starts at the scale of identity."""
    layers = nn.Conv2d(16, 64, 3), nn.Conv1d(64, 64, 3), nn.Conv2d(64, 64, 5)
    both = [nn.Sequential(*copy.deepcopy(layers)) for _ in range(2)]
    densities = {3: [0.5], 5: [0.2, 0.8]}
    for model, init in zip(both, ("library", "compensated"), strict=True):
        torch.manual_seed(1)
        apply_densities(model, densities, init=init)
    for drawn, compensated in zip(*both, strict=True):
        scale = drawn.phi.square().mean().sqrt()
        torch.testing.assert_close(compensated.weight * scale, drawn.weight)
        assert compensated.bias.eq(0).all()


def test_shared_weights_are_scaled_once_and_drawn_before_that_if_asked():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    scale_initial_weights(model, 0.5)
    assert torch.equal(model[0].weight, before * 0.5)
    scale_initial_weights(model, 0.5, init="library")
    drawn = model[0].weight.std().item()
    assert drawn == pytest.approx(0.5 * math.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ({7: [0.1, 0.2, 0.3]}, "no plain convolution has kernel size 7; sizes in this model: 3, 5"),
        ({3: [0.5, 0.5]}, "takes 1"),
        ({"three": [0.5]}, "is no kernel size"),
        ({}, "no plain convolution has kernel size 3 or more"),
        (0.0, "factor 0.0 is not a finite number > 0"),
        (math.inf, "factor inf is not"),
    ],
)
def test_what_cannot_be_scaled_is_refused_and_nothing_changes(by, message):
    model = some()
    with pytest.raises(ValueError, match=message):
        scale_initial_weights(model, by)
    assert factors(model) == [1.0] * 6


def test_what_is_left_unscaled_is_named():
    with pytest.warns(UserWarning, match=r"not every convolution is scaled; left alone: 1 \(Conv"):
        scale_initial_weights(nn.Sequential(nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3)), 0.5)
