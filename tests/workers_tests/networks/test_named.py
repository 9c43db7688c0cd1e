"""Networks by name: what their initial weights depend on, which layers are weighted, and how."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.named import network
from torch import nn

from densitune import density
from densitune.treatment import Treatment
from densitune.weighted_conv import WeightedConv, fold_all
from optimizer.arms import Init, Mask
from optimizer.errors import UsageError
from workers.networks import named, proxies
from workers.networks.named import Network

DEN = {3: (0.4,)}


def build(given: Network, init: Init = "model", **how: Any) -> dict[str, torch.Tensor]:
    how = {"seed": 3, **how}
    return proxies.tensors(proxies.build(given, how.pop("densities", DEN), init=init, **how))


OWN = network("classifier")
CASES = [
    OWN,
    network("torchvision:mobilenet_v3_small", channels=3),
    network("timm:resnet10t", '{"stem_width": 8, "channels": [8, 8, 8, 8]}'),
]
every_case = pytest.mark.parametrize("given", CASES, ids=lambda case: case.name)


@every_case
def test_initial_weights_depend_on_the_seed_alone_and_leave_no_trace(given: Network) -> None:
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    first = build(given)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    second = build(given, densities={3: (1.7,)})
    for name, value in first.items():
        assert torch.equal(value, second[name]) or name.endswith("phi"), name
    other = build(given, seed=4)
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@every_case
def test_library_draws_the_weighted_layers_and_leaves_the_rest_to_the_network(
    given: Network,
) -> None:
    own, drawn = (proxies.build(given, DEN, init=init, seed=3) for init in ("model", "library"))
    weighted = {name for name, layer in drawn.named_modules() if isinstance(layer, WeightedConv)}
    assert weighted
    others = proxies.tensors(own)
    for name, value in proxies.tensors(drawn).items():
        of_weighted = name.rpartition(".")[0] in weighted and not name.endswith("phi")
        assert torch.equal(value, others[name]) != of_weighted or value.numel() == 0, name
    for name in weighted:
        layer = drawn.get_submodule(name)
        assert isinstance(layer.weight, torch.Tensor)
        fan_out = layer.weight[:, 0].numel()  # as torch counts, whatever the groups
        spread = layer.weight.std().item() * (fan_out / 2) ** 0.5
        assert spread == pytest.approx(1, abs=5 / layer.weight.numel() ** 0.5)
        assert layer.bias is None or not layer.bias.any()  # type: ignore[operator]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("init", ["model", "library"])
def test_controls_start_at_a_densitys_scale_in_any_number_of_dimensions(
    dimensions: int, init: Init
) -> None:
    given = network("classifier", f'{{"dimensions": {dimensions}}}')
    gain = {3: density.rms(DEN[3])}  # of two dimensions, as an arm has it

    def effective(mask: Mask = "density", **how: Any) -> list[torch.Tensor]:
        model = proxies.build(given, how.pop("densities", DEN), init=init, seed=3, mask=mask, **how)
        return [each for each in fold_all(model).state_dict().values() if each.dim() > 2]

    identity = effective(densities={3: (1.0,)})
    rms = density.rms(DEN[3], dimensions)
    for control in (effective("uniform"), effective(densities={3: (1.0,)}, gain=gain)):
        for scaled, plain in zip(control, identity, strict=True):
            torch.testing.assert_close(scaled, plain * rms)
    mask = torch.from_numpy(density.phi(DEN[3], dimensions)).float()
    for weighted, plain in zip(effective(), identity, strict=True):
        torch.testing.assert_close(weighted, plain * mask)
    for undone, plain in zip(effective(start="over_phi"), identity, strict=True):
        torch.testing.assert_close(undone, plain)
    for undone, weighted in zip(effective(gain={3: 1 / gain[3]}), effective(), strict=True):
        torch.testing.assert_close(undone, weighted / rms)
    for compensated, weighted in zip(
        [*build(given, "compensated").values()], [*build(given, "library").values()], strict=True
    ):
        if compensated.dim() > 2 and not torch.equal(compensated, weighted):
            torch.testing.assert_close(compensated, weighted / rms)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((), {"stem", "last"}),
        (("st*",), {"stem"}),
        (("!stem",), {"last"}),
        (("*", "!last"), {"stem"}),
    ],
)
def test_patterns_choose_layers_by_their_names(layers: Sequence[str], expected: set[str]) -> None:
    model = proxies.build(replace(OWN, layers=tuple(layers)), DEN, init="model", seed=0)
    found = {name for name, layer in model.named_modules() if isinstance(layer, WeightedConv)}
    assert found == expected


def test_what_has_lost_nothing_is_in_training_and_in_plain_memory_if_it_is_the_users() -> None:
    model = proxies.arrange(proxies.build(OWN, DEN, init="model", seed=0), OWN)
    assert all(module.training for module in model.modules())
    assert all(each.is_contiguous() for each in model.parameters())
    theirs = proxies.arrange(proxies.build(CASES[1], DEN, init="model", seed=0), CASES[1])
    kernels = [each for each in theirs.parameters() if each.dim() == 4]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)


REFUSED = [
    (network("torchvision:resnet1"), "torchvision has no network resnet1; nearest are resnet18"),
    (network("timm:resnet1"), "timm has no network resnet1"),
    (
        network("torchvision:resnet18", '{"weights": "DEFAULT"}'),
        "proxy.kwargs.weights asks for weights that would have to be downloaded",
    ),
    (network("timm:resnet10t", '{"pretrained": true}'), "proxy.kwargs.pretrained asks for weights"),
    *(
        (network(name, f'{{"{given}": "/tmp/a.bin"}}'), f"proxy.kwargs.{given} asks for weights")
        for name, arguments in {
            "timm:resnet10t": (
                "pretrained_cfg",
                "pretrained_cfg_overlay",
                "pretrained_filter_fn",
                "checkpoint_path",
                "cache_dir",
            ),
            "torchvision:lraspp_mobilenet_v3_large": ("weights_backbone",),
        }.items()
        for given in arguments
    ),
    (network("timm:hf-hub:timm/resnet10t"), "timm has no network hf-hub:timm/resnet10t"),
    (network("timm:local-dir:/tmp/a"), "timm has no network local-dir:/tmp/a"),
    (network("torchvision:models.resnet.load"), "torchvision has no network models.resnet.load"),
    (
        network("torchvision:resnet18", '{"depth": 3}'),
        "cannot be built for 1 channels and 4 classes with {'depth': 3}: TypeError: ",
    ),
    (network("nothing"), "has no function nothing"),
    (network("nowhere:nothing"), "there is no module nowhere in"),
    (network("faulty", '{"fault": "not built"}'), "RuntimeError: out of ideas"),
    (network("faulty", '{"fault": "no module"}'), "returned a function, not a torch.nn.Module"),
    (network("faulty", '{"fault": "lazy"}'), "head.weight has no shape yet; give lazy layers"),
    (network("faulty", '{"fault": "double"}'), "is no float32; training.precision says"),
    (network("faulty", '{"fault": "elsewhere"}'), "is on meta; build networks on the CPU"),
    (network("faulty", '{"fault": "extra state"}'), "1 (Keeping) keeps state beside its"),
]


@pytest.mark.parametrize(("given", "expected"), REFUSED, ids=[line for _, line in REFUSED])
def test_what_cannot_be_built_is_refused_in_one_line(given: Network, expected: str) -> None:
    with pytest.raises(UsageError) as refusal:
        named.construct(given, 0)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_weights_that_layers_share_are_scaled_once() -> None:
    model = proxies.build(OWN, DEN, init="model", seed=0)
    stem, last = model.get_submodule("stem"), model.get_submodule("last")
    assert isinstance(stem, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    stem.weight = last.weight
    before = last.weight.detach().clone()
    Treatment({3: (1.0,)}, gain={3: 2.0}).apply(model, 0)
    assert torch.equal(last.weight, 2 * before)
