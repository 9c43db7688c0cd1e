"""Data of the user's own: what their function may return, and how it is trained on and judged."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.checkout import ROOT
from torch import Tensor
from torch.nn import functional as F

from optimizer.arms import Arm
from optimizer.errors import UsageError
from workers.data import given
from workers.data.given import Given
from workers.networks.named import Network
from workers.networks.proxies import Proxy
from workers.training import dry_run
from workers.training.loop import train
from workers.training.own import Own
from workers.training.recipe import Job, Measurement, Recipe
from workers.training.slots import Slots

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


def items(count: int, dimensions: int = 1) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 4
    waves = torch.sin(torch.arange(16) * (0.2 + labels[:, None]))[:, None]
    for _ in range(dimensions - 1):  # the same along every further axis
        waves = waves.unsqueeze(-1).expand(*waves.shape, 16)
    return waves.contiguous(), labels


def classes(dimensions: int = 1) -> dict[str, Any]:
    return {"train": items(32, dimensions), "validation": items(12, dimensions)}


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    each: Tensor = (outputs - targets).square().flatten(1).mean(1)
    return each


def restoring() -> dict[str, Any]:
    torch_drawn = torch.rand(24, 1, 16)  # by a fixed seed, whatever ran before
    clean = torch_drawn + np.random.rand()
    pair = clean + 0.1, clean
    return {
        "train": pair,
        "validation": torch.utils.data.TensorDataset(*pair),
        "test": pair,
        "loss": F.mse_loss,
        "metric": error,
    }


def load(function: Callable[..., Any], classes: int | None = None, **kwargs: Any) -> Given:
    has_test = function is restoring
    return given.load("my_data:load", function, kwargs, classes, has_test=has_test)


def recipe(name: str, kwargs: str, loaded: Given, **changes: Any) -> Recipe:
    network = Network(
        f"support.networks:{name}", kwargs, (), (3,), loaded.channels, loaded.classes,
        "regressor" if loaded.classes is None else "classifier", "", True, ROOT / "tests",
    )  # fmt: skip
    return replace(Recipe(network, "model", 8, 0.01, (1,)), **changes)


def run(task: Own, how: Recipe, arm: Arm) -> Measurement:
    told: list[Measurement] = []
    train(
        Slots(task, how, CPU),
        [Job(arm, 0, 2)],
        on_rung=lambda _, made: told.append(made),
        on_failure=lambda _, failure: pytest.fail(str(failure)),
    )
    return told[-1]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_classes_are_told_apart_in_any_number_of_dimensions(dimensions: int) -> None:
    loaded = load(classes, 4, dimensions=dimensions)
    task = Own(loaded, CPU, sign=1.0, floor=25.0)
    how = recipe("classifier", f'{{"dimensions": {dimensions}}}', loaded)
    [line, *_] = dry_run.check(task, how)
    assert f"2 of {' x '.join('3' * dimensions)}" in line
    scores = [run(task, how, Arm({3: (den,)})).score for den in (1.0, 0.3)]
    assert scores[0] != scores[1]
    assert set(scores[0].extra) == {"top5", "cross_entropy"}


def test_a_proxy_of_a_family_is_trained_where_its_shapes_fit_and_refused_elsewhere() -> None:
    for dimensions, fits in ((2, True), (1, False)):
        loaded = load(classes, 4, dimensions=dimensions)
        task = Own(loaded, CPU, sign=1.0, floor=25.0)
        how = Recipe(Proxy("vgg", 4, 3, (3,), 1, 4), "library", 8, 0.01, (1,))
        if fits:
            assert dry_run.check(task, how)[0].startswith("vgg: ")
            assert run(task, how, Arm({3: (0.5,)})).score.value >= 0
        else:
            with pytest.raises(UsageError, match="proxy vgg does not take inputs of shape"):
                dry_run.check(task, how)


def test_a_metric_to_be_minimized_is_negated_and_told_by_item() -> None:
    loaded = load(restoring)
    task = Own(loaded, CPU, sign=-1.0, floor=0.01)
    assert task.floor() == -0.01
    how = recipe("flat_denoiser", "{}", loaded)
    dry_run.check(task, how)
    made = run(task, how, Arm({3: (0.5,)}, split="both", per_image=True))
    assert made.score.value == pytest.approx(sum(made.score.images) / 24)
    assert all(value <= 0 for value in made.score.images)
    assert made.sealed is not None
    assert loaded.test is not None
    assert made.sealed.extra["test"] == loaded.test.fingerprint
    assert made.sealed.value == pytest.approx(made.score.value)  # the same items


def test_the_same_function_returns_the_same_whatever_ran_before() -> None:
    first = load(restoring).fingerprint
    torch.manual_seed(9), np.random.seed(9)
    before = torch.get_rng_state()
    assert load(restoring).fingerprint == first
    assert torch.equal(torch.get_rng_state(), before)
    assert load(classes, 4).fingerprint != load(classes, 5).fingerprint


def test_several_outputs_come_to_a_loss_of_the_users_as_they_are() -> None:
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        own: Tensor = F.cross_entropy(outputs["out"], targets) + outputs["aux"].square().mean()
        return own

    def hits(outputs: Tensor, targets: Tensor) -> float:
        return float(100 * (outputs.argmax(1) == targets).double().mean())

    loaded = load(lambda: {**classes(2), "loss": loss, "metric": hits}, 4)
    how = recipe("several", '{"form": "dict"}', loaded)
    task = Own(loaded, CPU, sign=1.0, floor=25.0)
    dry_run.check(task, how)
    made = run(task, how, Arm({3: (0.5,)}))
    assert 0 <= made.score.value <= 100
    assert made.score.images == ()


def test_a_training_that_diverges_scores_the_floor_if_it_is_to() -> None:
    loaded = load(classes, 4)
    task = Own(loaded, CPU, sign=1.0, floor=25.0)
    how = recipe("classifier", '{"dimensions": 1}', loaded, lr=1e30)
    made = run(task, how, Arm({3: (0.5,)}, floored=True))
    assert (made.score.value, made.score.extra) == (25.0, {"diverged": True})


def fails() -> Any:
    raise OSError("no\nsuch disk")


PAIR = items(8)
REFUSED: list[tuple[Callable[[], Any], int | None, str]] = [
    (fails, None, "data.load my_data:load failed: OSError: no such disk"),
    (lambda: [1], 4, "returned a list; it has to return a mapping with train, validation"),
    (lambda: {"train": PAIR}, 4, "lacks validation; there may be train, validation, test, loss"),
    (lambda: {**classes(), "valid": PAIR}, 4, "has valid; there may be train, validation"),
    (lambda: {**classes(), "loss": 3}, 4, "loss of data.load my_data:load is no function"),
    (classes, None, "has to return loss and metric, or data.classes has to say how many"),
    (classes, 3, "targets of train of data.load my_data:load are not all from 0 to 2"),
    (lambda: {**classes(), "train": 5}, 4, "train of data.load my_data:load is neither a pair of"),
    (
        lambda: {**classes(), "train": (PAIR[0].byte(), PAIR[1])},
        4,
        "inputs of train of data.load my_data:load are torch.uint8 (8, 1, 16); they have to be",
    ),
    (lambda: {**classes(), "train": (PAIR[0], PAIR[1][:3])}, 4, "has 8 inputs and 3 targets"),
    (lambda: {**classes(), "train": (PAIR[0] / 0, PAIR[1])}, 4, "are not all finite"),
    (
        lambda: {**classes(), "validation": (PAIR[0].expand(8, 2, 16), PAIR[1])},
        4,
        "validation of data.load my_data:load has 2 channels, train 1",
    ),
    (lambda: {**classes(), "test": PAIR}, 4, "data.test is false, but data.load my_data:load"),
    (
        lambda: {**classes(), "train": (PAIR[0], PAIR[1].float())},
        4,
        "are torch.float32 (8,); classes are whole numbers of shape (N,)",
    ),
]


@pytest.mark.parametrize(("function", "count", "expected"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_is_no_data_is_refused_in_one_line(
    function: Callable[[], Any], count: int | None, expected: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        load(function, count)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_metric_of_another_shape_is_refused_before_anything_is_trained() -> None:
    shapeless = {**restoring(), "test": None, "metric": lambda outputs, targets: outputs}
    loaded = load(lambda: shapeless)
    task = Own(loaded, CPU, sign=1.0, floor=0.0)
    with pytest.raises(UsageError, match=r"returned shape \(2, 1, 16\); it has to be a number, or"):
        dry_run.check(task, recipe("flat_denoiser", "{}", loaded))


def test_a_metric_beyond_what_is_kept_is_refused_or_counts_as_diverged() -> None:
    for sign, value in ((1.0, 2e6), (-1.0, -2e6)):
        far = Own(given_by(value), CPU, sign=sign, floor=0.0)
        with pytest.raises(UsageError, match="lies between -1,000,000 and 1,000,000"):
            far.evaluate(torch.nn.Identity())
        worse = Own(given_by(value), CPU, sign=-sign, floor=0.0).evaluate(torch.nn.Identity())
        assert worse.value == -math.inf
        assert not worse.is_finite
        assert worse.images == ()


def given_by(value: float) -> Given:
    metric = {"metric": lambda outputs, targets: torch.full((len(targets),), value)}
    return load(lambda: {**restoring(), "test": None, **metric}, None)
