"""The arithmetic and the shapes of the overhead benchmark, with a clock that knows the answer."""

import json
from pathlib import Path

import conv_overhead
import numpy as np
import pytest
from helpers import ratios
from helpers.ratios import Run


class FakeClock:
    """Says how long a run takes by what it returns, and a little more at every call."""

    def __init__(self, drift: float = 0.0) -> None:
        self.drift, self.calls = drift, 0

    def __call__(self, run: Run) -> float:
        seconds = run()
        assert isinstance(seconds, float)
        self.calls += 1
        return seconds + self.drift * self.calls


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_a_ratio_is_that_of_the_first_to_the_second(rounds: int) -> None:
    ratio = ratios.interleaved(lambda: 3.0, lambda: 2.0, rounds, clock=FakeClock())
    assert ratio == ratios.Ratio(1.5, 1.5, 1.5, rounds, (3.0, 2.0))


def test_a_linear_drift_cancels() -> None:
    ratio = ratios.interleaved(lambda: 1.0, lambda: 1.0, 9, clock=FakeClock(drift=0.1))
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1, 1, 1))


def test_the_interval_of_a_median_holds_the_true_one_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(1).normal(5, 1, (200, 30))
    hits = [low <= 5 <= high for low, high in map(ratios.interval, samples)]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_columns_of_a_table_line_up() -> None:
    lines = ratios.table(("name", "x"), [("a", "1.5"), ("longer", "10")]).splitlines()
    assert lines == ["name      x", "------  ---", "a       1.5", "longer   10"]


def test_shapes_are_those_that_the_proxies_run() -> None:
    shapes = conv_overhead.collect([5], [32], 4)
    assert len(set(shapes)) == len(shapes)
    depthwise = {(shape.inputs, shape.height) for shape in shapes if shape.groups > 1}
    assert depthwise == {(32, 32), (64, 16), (128, 8)}  # NAFNet 16x5: twice the width, per level
    images = {(shape.inputs, shape.outputs, shape.batch) for shape in shapes if shape.first}
    assert images == {(3, 32, 32), (1, 32, 16), (1, 16, 8)}
    halving = {(shape.inputs, shape.outputs) for shape in shapes if shape.stride == 2}
    assert halving == {(32, 64), (64, 128)}  # between ResNet's stages


def test_whole_batches_are_those_of_the_proxies() -> None:
    shapes = conv_overhead.collect([3], [conv_overhead.OWN_RESOLUTION], 1)
    images = {(shape.inputs, shape.outputs, shape.batch) for shape in shapes if shape.first}
    assert images == {(3, 32, 128), (1, 32, 64), (1, 16, 32)}


def test_every_shape_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = conv_overhead.collect([3], [16], 4)[-2:]
    monkeypatch.setattr(conv_overhead, "collect", lambda *_: chosen)
    conv_overhead.main(["--quick", "--seconds", "0", "--json", str(tmp_path / "figures")])
    content = json.loads((tmp_path / "figures").read_text())
    assert {row["shape"]["inputs"] for row in content["rows"]} == {s.inputs for s in chosen}
    assert [row["precision"] for row in content["rows"]] == ["fp32", "fp32", "bf16", "bf16"]
    assert all(row["training"]["n"] >= 5 for row in content["rows"])
    assert content["environment"]["threads"] == 1
    assert "bf16 all" in capsys.readouterr().out
