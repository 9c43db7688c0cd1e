"""Examples of the layer library do what they say."""

import runpy
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.checkout import ROOT
from support.synthetic import decided
from torch import nn

from optimizer.presets import document, exports

pytestmark = pytest.mark.slow


def ran(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an example has defined by its end."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with torch.random.fork_rng():
        return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_the_unet_tells_what_a_density_touches_and_learns_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match=r"left alone: up \(ConvTranspose2d\)$"):
        made = ran("unet.py", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert dict(line.split(maxsplit=1) for line in lines[:6]) == {
        **dict.fromkeys(("first", "down", "depthwise", "merge"), "weighted"),
        "up": "left alone: ConvTranspose2d",
        "last": "has no kernel of this size",
    }
    model: nn.Module = made["model"]
    assert {type(layer) for layer in model.children()} == {nn.Conv2d, nn.ConvTranspose2d}
    images, masks = made["discs"](64)
    found, true = model(images) > 0, masks > 0
    assert (found & true).sum() / (found | true).sum() > 0.7


def test_a_preset_goes_into_a_lightning_style_module_and_out_to_onnx(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    preset = exports.compose(decided(), exports.chosen(decided()))
    path = document.write(preset, tmp_path)
    monkeypatch.chdir(tmp_path)
    made = ran("preset_to_onnx.py", str(path), monkeypatch=monkeypatch)
    assert capsys.readouterr().out.startswith(f"better: {preset.evidence.advice}\n")

    assert [file.name for file in tmp_path.glob("denoiser*")] == ["denoiser.onnx"]
    exported = onnx.load(tmp_path / "denoiser.onnx")
    evaluator = ReferenceEvaluator(exported)
    for shape in ((1, 1, 24, 24), (3, 1, 17, 30)):
        noisy = torch.rand(shape)
        [computed] = evaluator.run(None, {exported.graph.input[0].name: noisy.numpy()})
        with torch.no_grad():
            expected = made["denoiser"](noisy)
        torch.testing.assert_close(torch.tensor(computed), expected, rtol=1e-4, atol=1e-5)
