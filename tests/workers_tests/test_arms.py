"""Arms: a job's own learning rate, init and gain, from the queue to the weights."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from support.stations import Station, contents, make_bench, make_config, without_time, work

from densitune import density
from densitune.density import Densities
from densitune.weighted_conv import WeightedConv2d
from optimizer import arms
from optimizer.arms import Arm, Init
from optimizer.config.tasks import FolderPhotographs
from storage import image_scores, jobs, roster, studies, trials
from workers import preparation
from workers.networks import proxies
from workers.networks.proxies import Proxy

positive = st.floats(min_value=1e-30, max_value=1e30)
any_arm = st.builds(
    Arm,
    densities=st.dictionaries(st.sampled_from([3, 9]), st.just((0.1,)), min_size=1),
    lr=st.none() | positive,
    init=st.sampled_from(["library", "compensated"]),
    gain=st.dictionaries(st.sampled_from([3, 5, 7]), positive),
    trainable=st.booleans(),
    split=st.sampled_from(["validation", "test", "both"]),
    mask=st.sampled_from(["density", "uniform", "ones"]),
    start=st.sampled_from(["drawn", "times_phi", "over_phi"]),
    per_image=st.booleans(),
    floored=st.booleans(),
    searched_by=st.sampled_from(["metric", "cross_entropy"]),
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(any_arm)
def test_an_arm_reaches_the_worker_to_the_last_bit(
    database: Engine, study: studies.Study, arm: Arm
) -> None:
    with database.begin() as connection:
        connection.execute(text("DELETE FROM densitune.trials"))
        trials.add(
            connection,
            study.id,
            "confirm",
            number=0,
            role="control",
            label="",
            densities=arm.densities,
            seeds=[1],
            budget=1,
            arm=arm.stored(),
            origin=7,
        )
        [stored] = trials.all_of(connection, study.id, "confirm")
        assert trials.all_of(connection, study.id, "search") == []
    worker = roster.register(database, study.id, "host", 1, "cpu", {})
    [job] = jobs.claim(database, study.id, worker, 5, 60)
    assert Arm.of(stored.densities, stored.arm) == Arm.of(job.densities, job.arm) == arm
    assert (stored.origin, stored.optuna_number, job.phase) == (7, None, "confirm")


def test_an_arm_of_an_older_version_is_what_it_was() -> None:
    """Rows from before there were masks, starts and what is told of images."""
    arm = Arm({3: (0.5,)}, 0.01, "compensated", {3: 2.0}, trainable=True, split="test")
    later = ("mask", "start", "per_image", "floored", "searched_by")
    stored = {name: value for name, value in arm.stored().items() if name not in later}
    assert Arm.of(arm.densities, stored) == arm
    assert Arm.of(arm.densities, {}) == Arm(arm.densities)


def add(engine: Engine, bench: Station, chosen: Sequence[Arm]) -> None:
    """Queue one trial per arm."""
    with engine.begin() as connection:
        for number, arm in enumerate(chosen):
            trials.add(
                connection,
                bench.study_id,
                "search",
                number=number,
                role="candidate",
                label="",
                densities=arm.densities,
                seeds=[0, 1],
                budget=2,
                arm=arm.stored(),
            )


MIXED = [
    Arm({3: (1.0,)}),
    Arm({3: (0.5,)}, lr=0.01),
    Arm({3: (0.6,)}, init="compensated"),
    Arm({3: (0.999,)}, gain={3: 0.25}),
    Arm({3: (0.7,)}, trainable=True),
    arms.uniform({3: (0.8,)}, None),
    arms.init_only({3: (0.8,)}, None),
    arms.steps_only({3: (0.8,)}, None),
]


def test_a_pack_of_mixed_arms_measures_what_each_does_alone(database: Engine, cache: Path) -> None:
    found = []
    for name, pack in (("alone", 1), ("packed", 8)):
        bench = make_bench(database, make_config().model_copy(update={"name": name}), cache)
        add(database, bench, MIXED)
        work(database, bench, pack=pack)
        found.append(without_time(contents(database, bench)[1]))
    assert found[0] == found[1]
    final = {row[0]: row[3] for row in found[0] if row[1:3] == (0, 2)}
    assert len(set(final.values())) == len(MIXED)
    learned = {row[0]: row[4].get("den") for row in found[0] if row[1:3] == (0, 2)}
    assert [number for number, den in learned.items() if den] == [4]
    layers = learned[4]["3"]
    assert len(layers) == 3
    assert all(den != [pytest.approx(0.7, abs=1e-6)] for den in layers)


def test_a_job_on_the_test_split_is_measured_on_its_images_at_the_end(
    database: Engine, cache: Path
) -> None:
    images = Path(str(files("skimage"))) / "data"
    for name in ("camera.png", "coins.png"):
        (cache / "others").mkdir(exist_ok=True)
        shutil.copy(images / name, cache / "others")
    given = make_config()
    data = FolderPhotographs(
        task="folder", folder=cache / "mine", test=cache / "others",
        patch=8, patches_per_image=2, crop=16,
    )  # fmt: skip
    (cache / "mine").mkdir(exist_ok=True)
    for name in ("brick.png", "grass.png", "gravel.png", "moon.png"):
        shutil.copy(images / name, cache / "mine")
    bench = make_bench(database, given.model_copy(update={"data": data}), cache)
    add(database, bench, [Arm({3: (1.0,)}), Arm({3: (0.999,)}, split="test")])
    assert work(database, bench) == 4
    _, rows = contents(database, bench)
    assert [(row.trial, row.seed, row.rung) for row in rows] == [
        (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 2), (1, 1, 2),
    ]  # fmt: skip
    bank = preparation.bank(data, cache)
    assert bank.test is not None
    assert [row.extra.get("test") for row in rows] == [None] * 4 + [bank.test().fingerprint] * 2


def test_what_a_confirmation_asks_for_beside_the_metric_reaches_the_ledger(
    database: Engine, cache: Path
) -> None:
    """The scores of all images, the test split's beside them, and the floor for a divergence."""
    images = Path(str(files("skimage"))) / "data"
    for folder, names in {"own": ("brick", "grass", "gravel"), "held": ("camera", "coins")}.items():
        (cache / folder).mkdir()
        for name in names:
            shutil.copy(images / f"{name}.png", cache / folder)
    data = FolderPhotographs(
        task="folder", folder=cache / "own", test=cache / "held",
        patch=8, patches_per_image=2, crop=16,
    )  # fmt: skip
    bench = make_bench(database, make_config().model_copy(update={"data": data}), cache)
    asked = Arm({3: (1.0,)}, split="both", per_image=True, floored=True)
    add(database, bench, [asked, replace(asked, densities={3: (1e30,)})])
    assert work(database, bench, pack=4) == 4
    done, rows = contents(database, bench)
    assert [(trial.done, trial.failed) for trial in done] == [(2, 0), (2, 0)]
    assert [(row.trial, row.seed, row.rung) for row in rows] == [
        (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 2), (1, 1, 2),
    ]  # fmt: skip
    bank, task = preparation.bank(data, cache), bench.bench.task
    assert bank.test is not None
    with database.connect() as connection:  # past the seal
        stored = connection.scalars(
            text("SELECT extra FROM densitune.measurements JOIN densitune.jobs ON jobs.id = job_id "
                 "ORDER BY trial, seed, rung")
        ).all()  # fmt: skip
    for row, extra in zip(rows, stored, strict=True):
        assert ("sealed" in extra) == ("images" in extra) == (row.rung == 2)
        assert row.extra.get("diverged", False) == (row.trial == 1)
        assert not {"sealed", "images"} & row.extra.keys()
    for number in (1, 4):
        sealed = stored[number]["sealed"]
        assert sealed["test"] == bank.test().fingerprint
        for value, told in ((rows[number].value, stored[number]), (sealed["value"], sealed)):
            each = image_scores.unpacked(told["images"])
            assert np.mean(each) == pytest.approx(value, abs=1e-3)
    assert rows[4].value == rows[5].value == task.floor()
    assert stored[4]["sealed"]["value"] == task.test()(task.untrained()).value


def test_a_study_whose_data_have_no_test_split_fails_the_job_and_says_so(
    database: Engine, cache: Path
) -> None:
    bench = make_bench(database, make_config(), cache)
    add(database, bench, [Arm({3: (1.0,)}), Arm({3: (0.999,)}, split="test")])
    work(database, bench, pack=4)
    done, _ = contents(database, bench)
    assert [(trial.done, trial.failed) for trial in done] == [(2, 0), (0, 2)]
    assert "have no test split" in (done[1].error_text or "")


def test_a_jobs_own_rate_and_init_are_those_of_a_recipe_that_has_them(
    database: Engine, cache: Path
) -> None:
    arm = Arm({3: (0.5,)}, lr=0.01, init="compensated")
    own = make_bench(database, make_config(lr=1e-3).model_copy(update={"name": "own"}), cache)
    add(database, own, [arm])
    work(database, own)
    other = make_bench(database, make_config(lr=0.01).model_copy(update={"name": "other"}), cache)
    assert other.bench.recipe.lr == 0.01
    add(database, other, [Arm({3: (0.5,)}, init="compensated")])
    work(database, other)
    plain = make_bench(database, make_config(lr=0.01).model_copy(update={"name": "plain"}), cache)
    add(database, plain, [Arm({3: (0.5,)})])
    work(database, plain)
    first, second, third = (
        without_time(contents(database, bench)[1]) for bench in (own, other, plain)
    )
    assert first == second != third


PROXY = Proxy("nafnet", 4, 3, (3, 5), 1, None)
ONES = {3: (1.0,), 5: (1.0, 1.0)}


def test_what_is_compared_has_one_start_whatever_draws_it() -> None:
    den: Densities = {3: (0.4,)}
    inits: dict[Init, str] = {"library": "library", "model": "model", "compensated": "library"}
    for init, plain in inits.items():
        compared = [
            arms.identity([3], 0.1, init),
            arms.scale_control(den, 0.1, init),
            arms.steps_only(den, 0.1, init),
        ]
        assert {arm.init for arm in compared} == {plain}
        taken = [arms.uniform(den, 0.1, init), arms.init_only(den, 0.1, init)]
        assert {arm.init for arm in taken} == {init}
    own = arms.compensated(den, 0.1, "model")
    assert own.init == "model"
    assert own.gain == {3: pytest.approx(1 / density.rms(den[3]))}


def test_a_gain_multiplies_the_weights_of_its_kernel_size_and_nothing_else() -> None:
    plain = proxies.build(PROXY, ONES, init="library", seed=3)
    gained = proxies.build(PROXY, ONES, init="library", seed=3, gain={5: 0.25})
    sizes = {
        f"{name}.weight": module.kernel_size[0]
        for name, module in plain.named_modules()
        if isinstance(module, WeightedConv2d)
    }
    assert set(sizes.values()) == {3, 5}
    for name, before in plain.state_dict().items():
        after = gained.state_dict()[name]
        assert torch.equal(after, before * (0.25 if sizes.get(name) == 5 else 1.0)), name


def test_a_scale_control_starts_with_the_scale_of_its_density_in_every_layer() -> None:
    """The root mean square of weight * phi, which is a draw for each of them: nearly equal."""
    proxy = replace(PROXY, width=32, kernel_sizes=(5,))
    a, b = den = (0.2, 0.8)
    alpha = np.array([a, b, 1, b, a])
    rms = float(np.sqrt((np.outer(alpha, alpha) ** 2).mean()))
    dense = proxies.build(proxy, {5: den}, init="library", seed=3)
    control = proxies.build(proxy, {5: (1.0, 1.0)}, init="library", seed=3, gain={5: rms})
    pairs = zip(dense.modules(), control.modules(), strict=True)
    compared = [
        (scale_of(one), scale_of(two))
        for one, two in pairs
        if isinstance(one, WeightedConv2d) and isinstance(two, WeightedConv2d)
    ]
    assert len(compared) > 3
    for first, second in compared:
        assert first == pytest.approx(second, rel=0.15)


def scale_of(layer: WeightedConv2d) -> float:
    return (layer.weight * layer.phi).detach().square().mean().sqrt().item()


DEN = {3: (0.6,), 5: (0.2, 0.8)}


def built(arm: Arm) -> dict[str, WeightedConv2d]:
    network = proxies.build(
        PROXY, arm.densities, init=arm.init or "library", seed=3,
        gain=arm.gain, mask=arm.mask, start=arm.start,
    )  # fmt: skip
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, WeightedConv2d)
    }


def phi_of(layer: WeightedConv2d) -> torch.Tensor:
    """The density's mask, worked out anew."""
    alpha = [*DEN[layer.kernel_size[0]], 1.0]
    alpha += alpha[-2::-1]
    return torch.tensor(np.outer(alpha, alpha))


def test_a_uniform_mask_has_the_densitys_weights_and_its_rms_everywhere() -> None:
    dense, uniform = built(Arm(DEN)), built(arms.uniform(DEN, 0.1))
    scaled = built(arms.scale_control(DEN, 0.1))
    for name, layer in uniform.items():
        rms = phi_of(layer).square().mean().sqrt()
        assert torch.equal(layer.weight, dense[name].weight)
        assert torch.allclose(layer.phi.double(), rms.expand_as(layer.phi), rtol=1e-6, atol=0)
        assert torch.equal(dense[name].phi.double(), phi_of(layer).float().double())
        # It starts as the scale control does; only the steps differ.
        start = scaled[name].weight * scaled[name].phi
        assert torch.allclose(layer.weight * layer.phi, start, rtol=1e-6, atol=0)


def test_a_densitys_start_and_its_steps_can_be_had_apart() -> None:
    plain, dense = built(arms.identity(DEN, 0.1)), built(Arm(DEN))
    init_only, steps_only = built(arms.init_only(DEN, 0.1)), built(arms.steps_only(DEN, 0.1))
    for name, layer in init_only.items():
        assert torch.equal(layer.phi, torch.ones_like(layer.phi))
        start = dense[name].weight * dense[name].phi
        assert torch.allclose(layer.weight * layer.phi, start, rtol=1e-6, atol=0)
    for name, layer in steps_only.items():
        assert torch.equal(layer.phi, dense[name].phi)
        assert torch.allclose(layer.weight * layer.phi, plain[name].weight, rtol=1e-6, atol=0)


def test_taps_that_a_density_closes_stay_finite_when_weights_are_divided_by_it() -> None:
    nested = {3: (0.6,), 5: (0.0, 0.8)}
    for layer in built(arms.steps_only(nested, 0.1)).values():
        assert layer.weight.isfinite().all()
