"""Signs that differences mean little: an identity that has not learnt, an optimum on the edge."""

import pytest
from synthetic import configured, measured, snapshot, trial, usual


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
