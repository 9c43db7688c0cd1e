"""The rival of the benchmarks: it trains what densitune trains, and is what it says."""

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from support.checkout import ROOT
from support.synthetic import configured
from torch import nn

from optimizer.arms import Arm
from optimizer.errors import UsageError
from workers.data.bank import Arrays, Bank
from workers.networks.proxies import Proxy
from workers.training import tasks
from workers.training.loop import train
from workers.training.recipe import Job, Measurement, Recipe, steps_per_epoch
from workers.training.slots import Slots

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
IMAGES = 8


@pytest.fixture(scope="module")
def plain() -> Iterator[ModuleType]:
    """The script, found as Python finds it when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("plain_search")


def images(count: int, size: int, channels: int) -> np.ndarray:
    """Smooth images without edges that the eight symmetries of the square leave as they are."""
    ramp = np.minimum(np.arange(size), np.arange(size)[::-1])
    slopes = np.random.default_rng(count).integers(-30, 30, (count, channels, 1, 1))
    levels = np.random.default_rng(size).integers(80, 170, (count, channels, 1, 1))
    pixels: np.ndarray = levels + slopes * (ramp[:, None] + ramp) / 2
    clipped: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped


def recipe(
    family: Any, channels: int, *, batch_size: int = IMAGES, init: Any = "library"
) -> Recipe:
    depth, kinds = 8 if family == "resnet" else 3, 3 if family in ("vgg", "resnet") else None
    proxy = Proxy(family, 4, depth, (3,), channels, kinds)
    return Recipe(proxy, init, batch_size, lr=0.02, rungs=(4,))


def classes() -> Arrays:
    # Below eight pixels there is no margin to crop from.
    labels = [np.arange(count) % 3 for count in (IMAGES, 500)]
    return Arrays(images(IMAGES, 7, 3), images(500, 7, 3), labels[0], labels[1], 3)


def photographs() -> Arrays:
    return Arrays(images(IMAGES, 12, 1), images(3, 16, 1))


class Recorder(nn.Module):
    """A network that keeps what it says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self.outputs: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.outputs.append(self._network(inputs))
        return self.outputs[-1]


def judged(data: Any, train: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Train, and return what the network said about the validation images."""
    evaluate, recorders = data.evaluate, []

    def recorded(network: nn.Module) -> Any:
        recorders.append(Recorder(network))
        return evaluate(recorders[-1])

    monkeypatch.setattr(data, "evaluate", recorded)
    train()
    return torch.cat(recorders[-1].outputs)


def of_densitune(
    task: Any, how: Recipe, densities: Mapping[int, Sequence[float]], patch: pytest.MonkeyPatch
) -> tuple[float, torch.Tensor]:
    """Train with densitune; return the value and the outputs."""
    values: list[float] = []

    def keep(_: int, measurement: Measurement) -> None:
        values.append(measurement.score.value)

    def fail(_: int, error: Exception) -> None:
        raise error

    arm = Arm({size: tuple(den) for size, den in densities.items()})
    job = Job(arm, 5, how.rungs[-1])
    outputs = judged(
        task,
        lambda: train(Slots(task, how, CPU), [job], on_rung=keep, on_failure=fail),
        patch,
    )
    return values[-1], outputs


def banked(arrays: Arrays) -> Bank:
    return Bank(**vars(arrays), fingerprint="0", source="by hand")


@pytest.mark.parametrize("init", ["library", "compensated"])
@pytest.mark.parametrize("family", ["vgg", "resnet", "dncnn", "nafnet"])
def test_where_chance_has_no_say_a_network_ends_as_densitune_s(
    plain: ModuleType, family: str, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All items in every batch, symmetric images, no margin to crop from, next to no noise.
    densities, seed = {3: (0.6,)}, 5
    if family in ("vgg", "resnet"):
        arrays, channels, sigma = classes(), 3, None
        task: Any = tasks.Classification(banked(arrays), CPU)
    else:
        arrays, channels, sigma = photographs(), 1, 1e-4
        task = tasks.Denoising(banked(arrays), CPU, sigma)
    how = recipe(family, channels, init=init)
    value, expected = of_densitune(task, how, densities, monkeypatch)
    rival = plain.Problem(arrays, how, sigma, device=CPU)
    results: list[Any] = []
    outputs = judged(rival.data, lambda: results.append(rival.train(densities, seed)), monkeypatch)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=2e-3 * expected.std().item())
    assert results[0].value == pytest.approx(value, abs=0.2)  # an image of 500, 0.2 dB


def test_noise_is_judged_as_densitune_judges_it(plain: ModuleType) -> None:
    task = tasks.Denoising(banked(photographs()), CPU, 25.0)
    rival = plain.Problem(photographs(), recipe("dncnn", 1), 25.0, device=CPU)
    assert rival.data.evaluate(nn.Identity()) == pytest.approx(task.floor(), abs=1e-4)


def test_crops_and_flips_are_all_windows_of_the_padded_image(plain: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    label = np.array([2])
    bank = Arrays(pixels, pixels, label, label, 3)
    items = plain.Problem(bank, recipe("vgg", 3), None, device=CPU).data.items
    padded = np.pad(pixels[0], ((0, 0), (1, 1), (1, 1)))
    windows = {
        np.ascontiguousarray(padded[:, y : y + 8, x : x + 8][:, :, ::flip]).tobytes()
        for y, x, flip in itertools.product(range(3), range(3), (1, -1))
    }
    torch.manual_seed(0)
    drawn = {items[0][0].contiguous().numpy().tobytes() for _ in range(400)}
    assert drawn == windows
    assert items[0][1] == 2


def test_patches_come_in_all_eight_symmetries(plain: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8)
    bank = Arrays(pixels, pixels)
    items = plain.Problem(bank, recipe("dncnn", 1), 25.0, device=CPU).data.items
    symmetries = {
        np.ascontiguousarray(np.rot90(pixels[0][:, :, ::flip], turns, (1, 2))).tobytes()
        for turns, flip in itertools.product(range(4), (1, -1))
    }
    torch.manual_seed(0)
    drawn = {items[0].contiguous().numpy().tobytes() for _ in range(200)}
    assert drawn == symmetries


def test_training_noise_has_the_tasks_sigma(plain: ModuleType) -> None:
    problem = plain.Problem(photographs(), recipe("dncnn", 1), 25.0, device=CPU)
    patches = torch.full((50, 1, 40, 40), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    noisy, clean = problem.data.pair(patches)
    assert torch.equal(clean, torch.full_like(clean, 100 / 255))
    assert (noisy - clean).std().item() == pytest.approx(25 / 255, rel=0.02)
    assert (noisy - clean).mean().item() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_seed_fixes_a_training(plain: ModuleType, loader_workers: int) -> None:
    how = recipe("dncnn", 1, batch_size=4)
    problem = plain.Problem(photographs(), how, 25.0, loader_workers=loader_workers, device=CPU)
    first, again, other = (problem.train({3: (0.6,)}, seed).value for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("batch_size", "steps"), [(3, 8), (8, 4), (100, 4)])
def test_steps_are_those_of_densitune(
    plain: ModuleType, monkeypatch: pytest.MonkeyPatch, batch_size: int, steps: int
) -> None:
    how = recipe("dncnn", 1, batch_size=batch_size)
    task = tasks.Denoising(banked(photographs()), CPU, 25.0)
    problem = plain.Problem(photographs(), how, 25.0, device=CPU)
    pair, sizes = problem.data.pair, []

    def seen(patches: torch.Tensor) -> Any:
        sizes.append(len(patches))
        return pair(patches)

    monkeypatch.setattr(problem.data, "pair", seen)
    assert problem.train({3: (1.0,)}, 0).steps == steps
    assert sizes == [min(batch_size, IMAGES)] * steps
    assert steps == 4 * steps_per_epoch(task, how)
    assert problem.train({3: (1.0,)}, 0, max_steps=2).steps == 2
    assert problem.train({3: (1.0,)}, 0, epochs=2).steps == steps // 2


def test_only_steps_after_the_warm_up_are_clocked(
    plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = plain.Problem(photographs(), recipe("dncnn", 1), 25.0, device=CPU)
    taken = 0
    pair = problem.data.pair

    def counted(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal taken
        taken += 1
        pairs: tuple[torch.Tensor, torch.Tensor] = pair(batch)
        return pairs

    monkeypatch.setattr(problem.data, "pair", counted)
    monkeypatch.setattr(problem, "_now", lambda: float(taken))  # a second per step
    assert problem.step_rate({3: (0.6,)}, 0, steps=5, warmup=2) == 1.0
    assert taken == 7


class Parabola:
    """A problem whose values are known: the nearer to 0.3 and 1.3, the better; seeds differ."""

    def __init__(self, plain: ModuleType) -> None:
        self.trained: list[tuple[dict[int, tuple[float, ...]], int]] = []
        self._result = plain.Result

    def train(self, densities: dict[int, tuple[float, ...]], seed: int) -> Any:
        self.trained.append((densities, seed))
        outer, inner = densities[5]
        return self._result(10 * seed - (outer - 0.3) ** 2 - (inner - 1.3) ** 2, 1, 0.0)


def test_a_search_begins_with_the_anchors_and_is_a_normal_optuna_study(
    plain: ModuleType,
    empty_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    problem = Parabola(plain)
    monkeypatch.setattr(plain, "prepare", lambda *_: problem)
    config = configured(density={"low": 0.25, "high": 1.4, "include": [[0.3, 1.25]]})
    found = plain.optimize(config, empty_url, tmp_path, 14)
    published = [(0.2, 0.8), (0.3, 1.5), (1.5, 0.75)]
    assert [given[5] for given, _ in found[:5]] == [(1.0, 1.0), *published, (0.3, 1.25)]
    assert problem.trained == [(given, seed) for given, _ in found for seed in (0, 1)]
    assert all(list(values) == [0, 1] for _, values in found)
    assert all(0.25 <= value <= 1.4 for given, _ in found[5:] for value in given[5])
    (name,) = optuna.get_all_study_names(empty_url)
    study = optuna.load_study(study_name=name, storage=empty_url)
    assert [trial.value for trial in study.trials] == [
        pytest.approx((values[0] + values[1]) / 2) for _, values in found
    ]
    best, _ = max(found, key=lambda pair: sum(pair[1].values()))
    assert str(best[5][0]) in capsys.readouterr().out


def test_a_search_is_repeatable(
    plain: ModuleType, empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plain, "prepare", lambda *_: Parabola(plain))
    config = configured()
    assert plain.optimize(config, empty_url, tmp_path, 12) == plain.optimize(
        config, empty_url, tmp_path, 12
    )


@pytest.mark.parametrize(
    ("text", "sizes", "densities"),
    [
        ("0.7", (3,), {3: (0.7,)}),
        ("0.2,0.8", (5,), {5: (0.2, 0.8)}),
        ("5:0.2, 0.8", (5,), {5: (0.2, 0.8)}),
        ("5:0.2,0.8;3:1", (3, 5), {3: (1.0,), 5: (0.2, 0.8)}),
    ],
)
def test_densities_are_read(
    plain: ModuleType, text: str, sizes: tuple[int, ...], densities: dict[int, tuple[float, ...]]
) -> None:
    assert plain.parse_densities(text, sizes) == densities


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("0.7", (5,)),
        ("0.7,x", (5,)),
        ("-1,1", (5,)),
        ("", (3,)),
        ("3:0.7", (3, 5)),
        ("0.7", (3, 5)),
        ("3:0.7;3:0.8", (3,)),
        ("7:1,1,1", (5,)),
    ],
)
def test_densities_of_another_study_are_refused(
    plain: ModuleType, text: str, sizes: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"^--retrain .*") as refused:
        plain.parse_densities(text, sizes)
    assert "\n" not in str(refused.value)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A small denoising study on noise."""
    pixels = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(pixels.integers(0, 256, (24, 24), dtype=np.uint8)).save(
            tmp_path / "images" / f"{number}.png"
        )
    file = tmp_path / "study.yaml"
    file.write_text(
        "{name: small, task: folder, kernel_size: 3, proxy: {family: dncnn, width: 4, depth: 3},"
        " data: {folder: images, patch: 8, patches_per_image: 4, crop: 16},"
        " training: {budget: 2, batch_size: 4}, search: {trials: 8, seeds: 2}}"
    )
    return file


def test_retraining_writes_what_training_gives(
    plain: ModuleType,
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from optimizer.cli import environment
    from optimizer.config.study_file import load

    out = study_file.with_name("values.json")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "plain_search.py",
            str(study_file),
            "--retrain",
            "0.7",
            "--seeds",
            "7,8",
            "--json",
            str(out),
        ],
    )
    plain.main()
    problem = plain.prepare(load(study_file), environment.home())
    expected = {str(seed): problem.train({3: (0.7,)}, seed).value for seed in (7, 8)}
    written = json.loads(out.read_text())
    assert written["trained"] == [{"densities": {"3": [0.7]}, "values": expected}]
    assert f"{expected['7']:.3f} {expected['8']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--retrain", "0.7,0.8"], 2, "--retrain"),
        (["--retrain", "0.7", "--seeds", "a"], 2, "--seeds"),
        (["--trials", "0"], 2, "--trials 0"),
        (["--trials", "5", "--storage", "postgresql://nobody@127.0.0.1:1/none"], 3, "127.0.0.1"),
    ],
)
def test_what_cannot_be_run_ends_with_one_line(
    plain: ModuleType,
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    what: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["plain_search.py", str(study_file), *arguments])
    with pytest.raises(SystemExit) as ended:
        plain.main()
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plain_search: ")
    assert what in line
