"""What to do about a verdict: a control is recommended only where it is itself shown to help."""

from typing import Any, get_args

import pytest
from support.synthetic import configured

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import advice
from optimizer.evidence.verdicts import Comparison, Control, FinalistVerdict, Verdict

WANTED = get_args(Control)
SMALL = "multiply its 3 x 3 initial weights by 0.5"
NOISE = (-0.2, -0.1, 0.0, 0.1, 0.2)


def compared(mean: float, turned: int = 1) -> Comparison:
    by_seed = {str(n): mean + turned * x for n, x in enumerate(NOISE)}
    return Comparison(mean=mean, low=mean - 0.2, high=mean + 0.2, by_seed=by_seed)


def found(verdict: Verdict, **changes: Any) -> FinalistVerdict:
    """A density of RMS 0.5 that gains 1; both controls gain as much as is said, 0.9 by default."""
    known = {
        "trial": 7,
        "label": "trial 7",
        "densities": {"3": [0.5]},
        "to_identity": compared(1.0),
        "to_control": compared(0.1, -1),
        "to_uniform": compared(0.1, -1),
    }
    return FinalistVerdict(**{**known, "verdict": verdict, **changes})


def nafnet(**changes: Any) -> StudyConfig:
    return configured(kernel_size=3, **changes)


def vgg(**changes: Any) -> StudyConfig:
    proxy = {"family": "vgg", "width": 8, "depth": 3}
    return configured(task="cifar100", kernel_size=3, proxy=proxy, **changes)


def told(one: FinalistVerdict, config: StudyConfig) -> str:
    return advice.of_study(one, config, WANTED, decided=True)


def test_a_smaller_start_is_recommended_by_the_call_that_was_tested() -> None:
    line = told(found("scale_only"), nafnet())
    assert line.startswith(f"Use the plain convolution and {SMALL}")
    assert 'densitune.scale_initial_weights(model, preset, init="library")' in line


@pytest.mark.parametrize(
    "changes",
    [
        {"to_control": compared(1.0, -1)},  # the control gains nothing
        {"to_control": compared(0.8, -1)},  # 0.2 ± 0.39
        {"to_control": compared(1.5)},  # it loses
        {"failures": {"control": 1}, "diverged": {"control": [3]}},
        {"failures": {"identity": 1}, "diverged": {"identity": [3]}},
        {"to_control": None},
    ],
)
def test_a_start_that_was_not_shown_to_help_is_not_recommended(changes: dict[str, Any]) -> None:
    line = told(found("scale_only", **changes), nafnet())
    assert line.startswith("Use the plain convolution: ")
    assert "multiply" not in line
    assert "not settled" in line


def test_neither_are_steps() -> None:
    line = told(found("step_only", to_uniform=compared(1.0, -1)), vgg())
    assert "multiply" not in line
    assert "not settled" in line


def test_the_steps_of_a_mask_are_those_of_its_optimiser() -> None:
    """SGD: rate times RMS squared, decay by as much more; Adam: rate times RMS, without decay."""
    assert "its 3 x 3 learning rate by 0.5:" in told(found("step_only"), nafnet())
    line = told(found("step_only"), vgg())
    assert "its 3 x 3 learning rate by 0.25;" in line
    assert "its 3 x 3 weight decay by 4:" in line
    assert SMALL in line
    assert "initial weights" not in told(found("step_only"), vgg(init="compensated"))


def test_better_names_the_start_that_is_not_the_library_s() -> None:
    call = 'densitune.apply_densities(model, preset["densities"], init="compensated")'
    assert call not in told(found("better"), nafnet())
    assert call in told(found("better"), nafnet(init="compensated"))


def test_a_better_without_its_mask_is_not_recommended() -> None:
    assert told(found("better", to_uniform=None), nafnet()) == advice.EARLIER
    one = found("better", to_uniform=None)
    assert "Use it" in advice.of_study(one, vgg(), (), decided=True)


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_has_one_line(verdict: Verdict) -> None:
    for config in (nafnet(), vgg()):
        line = told(found(verdict), config)
        assert line.endswith(".")
        assert "\n" not in line


def named(**changes: Any) -> StudyConfig:
    proxy = {"network": "torchvision:resnet18", **changes.pop("proxy", {})}
    raw = {**vgg().document(), "init": "model", **changes, "proxy": proxy}
    return StudyConfig.model_validate(raw)


def test_what_kept_its_own_weights_is_scaled_without_drawing_them_again() -> None:
    line = told(found("scale_only"), named())
    assert line.startswith(f"Use the plain convolution and {SMALL}")
    assert "densitune.scale_initial_weights(model, preset) does" in line


def test_where_only_some_layers_were_weighted_the_advice_names_them() -> None:
    one = found("better")
    assert "layers=" not in told(one, named())
    assert "layers=['layer*']" in told(one, named(proxy={"layers": "layer*"}))


def test_of_a_network_of_unknown_dimensions_a_factor_is_told_for_each() -> None:
    own = {"task": "python", "load": "a:b", "floor": 1}
    line = told(found("scale_only"), named(data=own))
    # RMS(phi) of [0.5] is sqrt(0.5)^d.
    assert "of kernel size 3 by 0.5 in 2-D, 0.707 in 1-D or 0.354 in 3-D" in line
