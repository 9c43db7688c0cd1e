"""A preset in a project of one's own: read, applied, and refused where it is none."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import densitune
from densitune import WeightedConv2d, load_preset
from optimizer.presets import document


def write(path: Path, **changes: Any) -> Path:
    """Write what a preset has at least, changed at the top."""
    content = {
        "schema": document.SCHEMA,
        "densities": {"3": [0.5], "5": [0.2, 0.7]},
        "task": {"init": "compensated"},
        "evidence": {"verdict": "better", "advice": "Use it."},
    }
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 4, 1))


def test_a_preset_weights_a_model_and_draws_its_weights_as_the_study_did(tmp_path: Path) -> None:
    preset = load_preset(write(tmp_path / "a.json"))
    assert (preset.verdict, preset.advice) == ("better", "Use it.")
    assert preset.densities == {3: (0.5,), 5: (0.2, 0.7)}
    inits: tuple[Literal["library", "compensated"] | None, ...] = (None, "library", "compensated")
    for init in inits:
        torch.manual_seed(4)
        given = model()
        assert preset.apply(given, init=init) is given
        torch.manual_seed(4)
        expected = model()
        densitune.apply_densities(expected, preset.densities, init=init or "compensated")
        assert [type(layer) for layer in given] == [WeightedConv2d, WeightedConv2d, nn.Conv2d]
        torch.testing.assert_close(given.state_dict(), expected.state_dict(), rtol=0, atol=0)
    trained = model()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    preset.apply(trained, init="keep", trainable=True)
    assert trained.get_parameter("1.den").tolist() == pytest.approx([0.2, 0.7])
    assert all(trained.state_dict()[name].equal(value) for name, value in before.items())


def test_a_preset_of_a_study_that_kept_the_networks_own_weights_keeps_them(tmp_path: Path) -> None:
    changes = {"task": {"init": "model"}, "densities": {"3": [0.5]}}
    preset = load_preset(write(tmp_path / "a.json", **changes))
    given = model()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    preset.apply(given, layers="0")
    assert [type(layer) for layer in given] == [WeightedConv2d, nn.Conv2d, nn.Conv2d]
    assert all(given.state_dict()[name].equal(value) for name, value in before.items())
    scaled = preset.scale_initial_weights(model().requires_grad_(False))
    assert scaled.get_parameter("0.bias").any()  # the authors' layer would have drawn zeros


def test_its_start_alone_is_drawn_and_multiplied_by_rms_phi(tmp_path: Path) -> None:
    """RMS(phi) by hand: the root of the mean of alpha squared, squared for two dimensions."""
    changed: dict[str, Any] = {"densities": {"3": [0.5]}, "task": {"init": "library"}}
    preset = load_preset(write(tmp_path / "a.json", **changed))
    torch.manual_seed(4)
    plain = model()
    densitune.apply_densities(plain, {3: (1.0,)}, init="library")
    for scale in (preset.scale_initial_weights, by_function(preset)):
        torch.manual_seed(4)
        given = scale(model())
        assert isinstance(given, nn.Sequential)
        drawn = plain.get_parameter("0.weight")
        torch.testing.assert_close(given.get_parameter("0.weight"), drawn * (2 * 0.25 + 1) / 3)
        assert type(given[0]) is nn.Conv2d


def test_a_density_that_starts_as_the_plain_convolution_does_has_no_start_to_give(
    tmp_path: Path,
) -> None:
    preset = load_preset(write(tmp_path / "a.json", task={"init": "compensated"}))
    given = model()
    before = given.get_parameter("0.weight").clone()
    with pytest.raises(ValueError, match="nothing to multiply"):
        preset.scale_initial_weights(given)
    assert torch.equal(given.get_parameter("0.weight"), before)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    text = path.read_text()
    path.write_text(text.replace('"densities":', '"densities": {"3": [0.9]}, "densities":', 1))
    with pytest.raises(ValueError, match="is no preset: it gives a key twice"):
        load_preset(path)


def by_function(preset: densitune.Preset) -> Any:
    """What the advice of a preset calls."""
    return lambda model: densitune.scale_initial_weights(model, preset, init="library")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "densitune/preset/9"}, "is no preset of schema densitune/preset/1"),
        ({"densities": {"3": [0.5, 0.5]}}, "damaged preset: density"),
        ({"densities": {"4": [0.5]}}, "damaged preset: "),
        ({"densities": {"3": [-1.0]}}, "damaged preset: density"),
        ({"densities": {"3": [math.nan]}}, "damaged preset: density"),
        ({"densities": {"3": "0"}}, "damaged preset: "),
        ({"densities": {"3": [10**400]}}, r"damaged preset: density\[0\] = 1000*0 is not a finite"),
        ({"densities": {"3": [True]}}, r"damaged preset: density\[0\] = True is not a finite"),
        ({"densities": {"3": [0.5], "03": [0.7]}}, "damaged preset: kernel size 3 is given twice"),
        ({"densities": {}}, "damaged preset: it has no densities"),
        ({"evidence": {"verdict": None}}, "damaged preset: verdict None"),
        ({"densities": [1]}, "damaged preset: "),
        ({"task": {"init": "keep"}}, "damaged preset: init is 'keep'"),
        ({"task": {}}, "damaged preset: 'init'"),
        ({"evidence": None}, "damaged preset: "),
        ({"filling": "x" * 2**20}, "has more than 1048576 bytes"),
    ],
)
def test_what_is_no_preset_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.json", **changes)
    with pytest.raises(ValueError, match=message) as refused:
        load_preset(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"{}"])
def test_what_is_no_json_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="is no preset"):
        load_preset(tmp_path / "a.json")
