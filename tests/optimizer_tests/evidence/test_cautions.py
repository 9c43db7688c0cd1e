"""Signs that differences mean little: an identity that has not learnt, an optimum on the edge."""

import pytest
from support.synthetic import configured, measured, snapshot, trial, usual

from optimizer.evidence import cautions
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, Holdout, OverImages, Verdict
from optimizer.snapshot import PhaseRows


def test_a_healthy_study_has_no_cautions() -> None:
    assert usual().cautions == []


@pytest.mark.parametrize(("identity", "warned"), [(20.25, True), (9.1, True), (20.26, False)])
def test_an_identity_that_is_not_above_the_noisy_input_is_said(
    identity: float, warned: bool
) -> None:
    study = snapshot(
        [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.5, 0.5)})],
        [*measured(0, {0: identity}), *measured(1, {0: identity + 1})],
    )
    lines = study.cautions
    assert bool(lines) is warned
    if warned:
        assert "noisy input (20.250 dB)" in lines[0]
        assert f"Identity ({identity:.3f} dB)" in lines[0]


def test_the_highest_floor_is_the_one_to_beat() -> None:
    study = snapshot(
        [trial(0, {5: (1.0, 1.0)})],
        measured(0, {0: 24.0}),
        provenance={"floors": {"noisy input": 20.0, "linear 3 x 3 filter": 25.0}},
    )
    [line] = study.cautions
    assert "Identity (24.000 dB) is not above the linear 3 x 3 filter (25.000 dB)" in line


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ((26.0, 25.0, 24.0, 23.0, 22.0), True),
        ((22.0, 23.0, 24.0, 25.0, 26.0), True),
        ((22.0, 26.0, 24.0, 23.0, 22.0), False),
        ((22.0, 23.0, 24.0, 26.0, None), False),  # beyond the best one, training diverged
    ],
)
def test_a_best_learning_rate_at_the_edge_of_the_grid_is_said(
    scores: tuple[float | None, ...], warned: bool
) -> None:
    grid = (1e-6, 3.16e-4, 1e-3, 3.16e-3, 1.0)  # with the ends beyond which it does not grow
    arms = [
        trial(n, {5: (1.0, 1.0)}, role="rate", arm={"lr": lr}, failed=score is None)
        for n, (lr, score) in enumerate(zip(grid, scores, strict=True))
    ]
    rows = [row for n, score in enumerate(scores) if score for row in measured(n, {0: score})]
    study = snapshot(
        [trial(0, {5: (1.0, 1.0)})],
        measured(0, {0: 25.0}),
        given=configured(training={"lr": "auto"}),
        calibrate=PhaseRows(arms, rows),
    )
    assert bool(study.cautions) is warned
    if warned:
        assert "edge of the grid [1e-06, 1]" in study.cautions[0]


@pytest.mark.parametrize(
    ("value", "warned"),
    [(0.05, True), (0.0889, True), (0.0891, False), (1.9609, False), (2.0, True)],
)
def test_an_optimum_on_the_edge_of_the_box_is_said(value: float, warned: bool) -> None:
    """The box is [0.05, 2]; its edges are 2 % of 1.95 wide."""
    study = snapshot(
        [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.5, value)})],
        [*measured(0, {0: 25.0}), *measured(1, {0: 26.0})],
    )
    assert bool(study.cautions) is warned
    if warned:
        assert "edge of the search box [0.05, 2]" in study.cautions[0]


def test_a_published_density_outside_the_box_is_not_on_its_edge() -> None:
    study = snapshot(
        [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.01, 1.0)}, role="published", label="v2")],
        [*measured(0, {0: 25.0}), *measured(1, {0: 26.0})],
        given=configured(),
    )
    assert study.cautions == []


def compared(images: tuple[float, float] | None) -> Comparison:
    over = None if images is None else OverImages(count=12, low=images[0], high=images[1])
    by_seed = {"1": 0.4, "2": 0.6}
    return Comparison(mean=0.5, low=0.3, high=0.7, by_seed=by_seed, images=over)


@pytest.mark.parametrize(
    ("verdict", "validation", "test", "said"),
    [
        ("better", (-0.1, 1.1), None, "over seeds and 12 validation images, [-0.100, +1.100]"),
        ("better", (0.1, 0.9), None, None),
        ("better", None, None, None),
        ("better", (0.1, 0.9), (-0.2, 1.2), "over seeds and 12 test images, [-0.200, +1.200]"),
        ("better", (-0.1, 1.1), (0.2, 0.8), None),
        ("no_evidence", (-0.1, 1.1), (-0.2, 1.2), None),
    ],
)
def test_a_better_that_may_come_to_nothing_on_other_images_is_said(
    verdict: Verdict,
    validation: tuple[float, float] | None,
    test: tuple[float, float] | None,
    said: str | None,
) -> None:
    """By the test split's interval where there is one; the validation images chose the winner."""
    winner = FinalistVerdict(
        trial=1, label="trial 1", densities={"5": [0.5, 0.5]}, verdict=verdict,
        to_identity=compared(validation),
    )  # fmt: skip
    tested = None if test is None else Holdout(trial=1, difference=compared(test))
    study = usual()
    lines = cautions.signs(
        study.config, study.results, study.floors, {}, verdicts=[winner], tested=tested
    )
    assert len(lines) == (said is not None)
    assert all(said in line and "holds zero" in line for line in lines if said)
