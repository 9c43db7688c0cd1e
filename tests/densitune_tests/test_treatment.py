"""What an arm does to a model, in any number of dimensions, against a reckoning of its own."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from densitune.treatment import Treatment, learned
from densitune.weighted_conv import WeightedConv

KINDS: dict[int, Callable[..., Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def model(dimensions: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    conv = KINDS[dimensions]
    return nn.Sequential(conv(2, 3, 3), conv(3, 2, 5), conv(2, 1, 1)).double()


def kernel(layer: nn.Module) -> torch.Tensor:
    """What a convolution convolves with."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return (weight * layer.phi if isinstance(layer, WeightedConv) else weight).detach()


def mask(den: list[float], dimensions: int) -> torch.Tensor:
    """Phi, product by product."""
    alpha = [*den, 1.0, *reversed(den)]
    k = len(alpha)
    values = [
        math.prod(alpha[place] for place in places)
        for places in itertools.product(range(k), repeat=dimensions)
    ]
    return torch.tensor(values, dtype=torch.float64).reshape((k,) * dimensions)


def rms(values: torch.Tensor) -> float:
    return math.sqrt(sum(value**2 for value in values.flatten().tolist()) / values.numel())


densities = st.lists(st.floats(0.1, 2.0), min_size=1, max_size=1)


@pytest.mark.parametrize("dimensions", KINDS)
@given(den=densities)
def test_a_density_s_start_and_steps_are_its_mask_s(dimensions: int, den: list[float]) -> None:
    plain, phi = model(dimensions), mask(den, dimensions)
    for kind, start, expected in (
        ("density", "drawn", phi),
        ("uniform", "drawn", torch.full_like(phi, rms(phi))),
        ("ones", "times_phi", phi),
        ("density", "over_phi", torch.ones_like(phi)),
    ):
        arm = Treatment({3: den}, mask=kind, start=start)  # type: ignore[arg-type]
        treated = arm.apply(model(dimensions), 0)
        assert isinstance(treated, nn.Sequential)
        torch.testing.assert_close(kernel(treated[0]), kernel(plain[0]) * expected)
        assert torch.equal(kernel(treated[1]), kernel(plain[1]))
        assert isinstance(treated[0], WeightedConv) == (kind != "ones" and den != [1.0])


@pytest.mark.parametrize("dimensions", KINDS)
@given(den=densities)
def test_the_gain_of_a_scale_control_is_that_of_the_layer_s_dimensions(
    dimensions: int, den: list[float]
) -> None:
    gain = rms(mask(den, 2))  # as an arm has it
    treated = Treatment({3: [1.0]}, {3: gain}).apply(model(dimensions), 0)
    plain = model(dimensions)
    assert isinstance(treated, nn.Sequential)
    assert type(treated[0]) is KINDS[dimensions]
    torch.testing.assert_close(kernel(treated[0]), kernel(plain[0]) * rms(mask(den, dimensions)))


def test_identity_leaves_a_model_as_it_is() -> None:
    plain, treated = model(2), Treatment({3: [1.0], 5: [1.0, 1.0]}).apply(model(2), 0)
    assert [type(layer) for layer in treated.children()] == [nn.Conv2d] * 3
    for name, value in plain.state_dict().items():
        assert torch.equal(treated.state_dict()[name], value)


@pytest.mark.parametrize("init", ["library", "compensated"])
def test_weights_that_a_study_draws_follow_from_seed_and_name(init: Any) -> None:
    den, phi = [0.5], mask([0.5], 2)
    global_state = torch.get_rng_state()
    one, same, other = (
        Treatment({3: den}, init=init).apply(model(2, s), s // 2) for s in (0, 1, 2)
    )
    assert not torch.equal(torch.get_rng_state(), global_state)  # by the models alone
    assert isinstance(one, nn.Sequential)
    assert isinstance(same, nn.Sequential)
    assert isinstance(other, nn.Sequential)
    assert torch.equal(kernel(one[0]), kernel(same[0]))
    assert not torch.equal(kernel(one[0]), kernel(other[0]))
    assert not one[0].get_parameter("bias").any()
    plain = Treatment({3: [1.0]}, init="library").apply(model(2, 5), 0)
    assert isinstance(plain, nn.Sequential)
    scale = rms(phi) if init == "compensated" else 1.0
    torch.testing.assert_close(kernel(one[0]) * scale, kernel(plain[0]) * phi)


def test_layers_that_learn_tell_what_they_have_learned() -> None:
    treated = Treatment({3: [1.0]}, trainable=True).apply(model(3), 0)
    assert learned(treated) == {"3": [[1.0]]}
    assert isinstance(treated, nn.Sequential)
    assert isinstance(treated[0], WeightedConv)
    assert treated[0].trainable


def test_a_size_that_is_nowhere_changes_nothing() -> None:
    plain, given = model(2), model(2)
    with pytest.raises(ValueError, match="no convolution has kernel size 7"):
        Treatment({3: [0.5], 7: [0.5, 0.5, 0.5]}, {3: 2.0}).apply(given, 0)
    assert torch.equal(kernel(given[0]), kernel(plain[0]))


def test_a_weight_that_layers_share_starts_once() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    layers[1].weight = layers[0].weight
    before = kernel(layers[0]).clone()
    Treatment({3: [1.0]}, {3: 2.0}).apply(layers, 0)
    assert torch.equal(kernel(layers[1]), 2 * before)
