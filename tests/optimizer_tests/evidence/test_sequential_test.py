"""Verdicts against scipy's own tests, worked cases and the properties a fair judge has."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from optimizer.evidence import sequential_test
from optimizer.evidence.sequential_test import Plan, judge
from optimizer.evidence.verdicts import Control

PLAN = Plan(seeds=24, batch=6, finalists=3)
sizes = st.sampled_from(PLAN.looks)
numbers = st.floats(-100, 100).filter(lambda value: value == 0 or abs(value) > 1e-6)


Controls = dict[Control, Mapping[int, float] | None]


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[dict[int, float], Controls]:
    """Differences against all arms, on the same seeds, shifted so that all verdicts occur."""
    size = draw(sizes)

    def one() -> dict[int, float]:
        values = draw(st.lists(numbers, min_size=size, max_size=size))
        shift = draw(st.sampled_from([-200.0, 0.0, 200.0]))
        return {7000 + n: value + shift for n, value in enumerate(values)}

    return one(), {"control": one(), "uniform": one()}


def seen(mean: float, size: int, spread: float = 1.0) -> dict[int, float]:
    """Differences with exactly this mean and sample standard deviation.

    The furthest from the mean come first, so that earlier looks show less.
    """
    shape = stats.norm.ppf((np.arange(size) + 0.5) / size)
    shape = shape[np.argsort(-np.abs(shape), kind="stable")]
    return dict(enumerate((mean + spread * shape / shape.std(ddof=1)).tolist()))


def against(**controls: Mapping[int, float] | None) -> Controls:
    return {name: controls[name] for name in get_args(Control) if name in controls}


def verdict(identity: dict[int, float], **controls: Mapping[int, float] | None) -> str | None:
    return judge(identity, against(**controls), PLAN).verdict


CLEAR, NOTHING = 2.0, 0.0
UNSURE = 0.8  # in standard deviations: at 12 of 24 seeds neither shown nor past hope


@pytest.mark.parametrize(
    ("size", "to_identity", "to_control", "to_uniform", "expected"),
    [
        (12, CLEAR, CLEAR, CLEAR, "better"),
        (12, CLEAR, CLEAR, None, "better"),
        (12, CLEAR, None, CLEAR, "better"),
        (12, CLEAR, None, None, "better"),
        (12, CLEAR, NOTHING, CLEAR, "scale_only"),
        (12, CLEAR, NOTHING, UNSURE, "scale_only"),
        (12, CLEAR, NOTHING, NOTHING, "scale_only"),
        (12, CLEAR, -CLEAR, CLEAR, "scale_only"),
        (12, CLEAR, CLEAR, NOTHING, "step_only"),
        (12, CLEAR, CLEAR, -CLEAR, "step_only"),
        (12, CLEAR, None, NOTHING, "step_only"),
        (12, CLEAR, UNSURE, CLEAR, None),
        (12, CLEAR, CLEAR, UNSURE, None),
        (12, CLEAR, UNSURE, NOTHING, None),  # not better, but which of the two it is is open
        (24, CLEAR, UNSURE / 2, CLEAR, "scale_only"),
        (24, CLEAR, CLEAR, UNSURE / 2, "step_only"),
        (12, UNSURE, NOTHING, NOTHING, None),
        (12, UNSURE, CLEAR, CLEAR, None),
        (24, UNSURE / 2, CLEAR, CLEAR, "no_evidence"),
        (12, NOTHING, CLEAR, CLEAR, "no_evidence"),
        (6, -UNSURE / 2, None, None, "no_evidence"),
        (6, -UNSURE, None, None, None),  # past hope, but likely to be shown worse
        (24, -UNSURE / 2, CLEAR, CLEAR, "no_evidence"),
        (12, CLEAR, -UNSURE, CLEAR, "scale_only"),
        (12, -CLEAR, CLEAR, CLEAR, "worse"),
        (12, -CLEAR, None, None, "worse"),
    ],
)
def test_a_verdict_says_what_all_comparisons_show(
    size: int,
    to_identity: float,
    to_control: float | None,
    to_uniform: float | None,
    expected: str | None,
) -> None:
    """None is a control that `better` does not ask for."""
    effects = {"control": to_control, "uniform": to_uniform}
    controls = {name: seen(at, size) for name, at in effects.items() if at is not None}
    assert verdict(seen(to_identity, size), **controls) == expected


@pytest.mark.parametrize("effect", [CLEAR, UNSURE, NOTHING, -CLEAR])
def test_nothing_is_read_from_controls_before_identity_is_beaten(effect: float) -> None:
    """So they need not be trained; once it is beaten the verdict waits for them."""
    values, untrained = seen(effect, 12), against(control=None, uniform=None)
    finding = judge(values, untrained, PLAN)
    assert finding.above_identity == (effect == CLEAR)
    assert finding.to_controls == {}
    if effect == CLEAR:
        assert finding.verdict is None
        return
    for control in (CLEAR, NOTHING, -CLEAR):
        trained = against(control=seen(control, 12), uniform=seen(control, 12))
        assert judge(values, trained, PLAN).verdict == finding.verdict


def test_what_a_look_has_shown_stays_shown() -> None:
    """Above at 12 seeds of 24, and at 18 no more."""
    shown = seen(CLEAR, 12)
    later = shown | {12 + n: -4 * x for n, x in enumerate(seen(CLEAR, 6).values())}
    assert judge(shown, {}, PLAN).verdict == "better"
    assert judge(dict(reversed(later.items())), {}, PLAN).verdict == "better"
    assert judge({-seed: x for seed, x in later.items()}, {}, PLAN).verdict != "better"
    assert verdict(seen(CLEAR, 18), control=later, uniform=seen(CLEAR, 18)) == "better"


@given(comparisons())
def test_arrays_of_studies_are_judged_as_each_of_them(
    found: tuple[dict[int, float], Controls],
) -> None:
    identity, controls = found
    rows = np.array([list(by.values()) for by in (identity, *filter(None, controls.values()))])
    together = sequential_test.outcomes(rows, PLAN)
    assert together.tolist() == [sequential_test.outcomes(row, PLAN).item() for row in rows]
    assert judge(identity, {}, PLAN).above_identity == (together[0] == "above")


@given(comparisons())
def test_after_the_last_seed_there_is_always_a_verdict(
    found: tuple[dict[int, float], Controls],
) -> None:
    finding = judge(*found, PLAN)
    assert finding.verdict is not None or finding.to_identity.seeds < PLAN.seeds


@given(comparisons())
def test_better_is_above_zero_in_all_intervals_and_worse_is_below(
    found: tuple[dict[int, float], Controls],
) -> None:
    """With a look of all seeds, a verdict agrees with all its intervals."""
    finding = judge(*found, Plan(len(found[0]), len(found[0]), 3))
    lows = [one.low for one in (finding.to_identity, *finding.to_controls.values())]
    if finding.verdict == "better":
        assert min(lows) >= 0
    if finding.verdict in ("scale_only", "step_only"):
        assert finding.to_identity.low >= 0
    if finding.verdict == "worse":
        assert finding.to_identity.high <= 0


@given(comparisons())
def test_names_of_seeds_and_the_order_of_a_mapping_do_not_matter(
    found: tuple[dict[int, float], Controls],
) -> None:
    identity, controls = found
    again = judge(
        {7 * seed: value for seed, value in reversed(identity.items())},
        {
            name: by and {7 * seed: value for seed, value in by.items()}
            for name, by in controls.items()
        },
        PLAN,
    )
    assert again == judge(identity, controls, PLAN)


@pytest.mark.parametrize("factor", [1e-6, 0.1, 1e6])
@pytest.mark.parametrize("mean", [-2.0, -0.3, 0.6, 0.9, 2.0])
def test_the_unit_does_not_matter(mean: float, factor: float) -> None:
    plain, scaled = (
        judge(seen(mean * unit, 12, unit), against(control=seen(mean * unit, 12, unit)), PLAN)
        for unit in (1.0, factor)
    )
    assert scaled.verdict == plain.verdict
    assert scaled.seeds_to_settle == plain.seeds_to_settle


@given(sizes, st.floats(-3, 3))
def test_intervals_are_those_of_student(size: int, mean: float) -> None:
    values = seen(mean, size, spread=0.7)
    found = judge(values, {}, PLAN).to_identity
    reference = stats.ttest_1samp(list(values.values()), 0.0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, *reference), abs=1e-9)
    assert found.seeds == size


@pytest.mark.parametrize(("effect", "expected"), [(2.0, "better"), (-2.0, "worse"), (0.0, None)])
def test_one_finalist_and_two_batches_of_six_can_settle_it(
    effect: float, expected: str | None
) -> None:
    """The size of configs/quickstart.yaml."""
    plan = Plan(seeds=12, batch=6, finalists=1)
    first = judge(seen(effect, 6), against(control=seen(effect, 6)), plan)
    assert first.verdict == (None if expected else "no_evidence")
    finding = judge(seen(effect, 12), against(control=seen(effect, 12)), plan)
    assert finding.verdict == (expected or "no_evidence")


@pytest.mark.parametrize("size", [12, 18, 24])
@pytest.mark.parametrize("finalists", [1, 3, 10])
def test_a_look_decides_where_its_share_of_the_level_lies(size: int, finalists: int) -> None:
    """The mean at which the p-value of scipy's t test equals the share, from both sides."""
    plan = replace(PLAN, finalists=finalists)
    share = 0.05 / 2 / finalists * ((size / 24) ** 3 - ((size - 6) / 24) ** 3)
    limit = stats.t.ppf(1 - share, size - 1) / math.sqrt(size)
    exact = stats.ttest_1samp(list(seen(limit, size).values()), 0, alternative="greater").pvalue
    assert exact == pytest.approx(share)
    assert judge(seen(limit * 1.0001, size), {}, plan).verdict == "better"
    assert judge(seen(limit * 0.9999, size), {}, plan).verdict != "better"
    assert judge(seen(-limit * 1.0001, size), {}, plan).verdict == "worse"
    assert judge(seen(-limit * 0.9999, size), {}, plan).verdict != "worse"


@given(st.integers(2, 40), st.integers(2, 12), st.integers(1, 10), st.floats(0.001, 0.2))
def test_all_shares_of_both_sides_and_all_finalists_add_up_to_the_level(
    seeds: int, batch: int, finalists: int, level: float
) -> None:
    plan = Plan(seeds, batch, finalists, level)
    shares = [plan.share(look) for look in plan.looks]
    assert plan.looks[-1] == seeds
    assert all(share > 0 for share in shares)
    assert 2 * finalists * sum(shares) == pytest.approx(level)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fewer_seeds_than_signs_can_carry_decide_nothing(sign: float) -> None:
    """Six differences of one sign happen by chance once in 2**6, however alike they are."""
    alike = {seed: sign * (1 + 1e-9 * seed) for seed in range(6)}
    assert verdict(alike, control=alike) is None
    twelve = dict.fromkeys(range(12), sign)
    assert verdict(twelve, control=twelve) == ("better" if sign > 0 else "worse")


def test_a_plan_too_small_for_any_proof_still_ends() -> None:
    alike = {seed: 5 + 1e-9 * seed for seed in range(4)}
    finding = judge(alike, against(control=alike), Plan(seeds=4, batch=2, finalists=3))
    assert finding.verdict == "no_evidence"


def test_arms_that_are_the_same_differ_in_nothing() -> None:
    finding = judge(dict.fromkeys(range(6), 0.0), {}, PLAN)
    assert finding.verdict == "no_evidence"
    assert finding.to_identity == sequential_test.Interval(0.0, 0.0, 0.0, 6)
    assert finding.seeds_to_settle is None


@pytest.mark.parametrize("size", [6, 12, 18])
def test_what_is_given_up_would_hardly_ever_have_been_shown(size: int) -> None:
    """Against many continuations of the study, drawn with the effect seen so far."""
    rng = np.random.default_rng(size)
    last = 0.05 / 6 * (1 - (18 / 24) ** 3)
    for mean in np.linspace(-1.2, 1.0, 45):
        score = stats.norm.isf(stats.t.sf(mean * math.sqrt(size), size - 1))
        effect = score / math.sqrt(size)
        rest = rng.normal(effect * (24 - size), math.sqrt(24 - size), 20_000)
        end = (effect * size + rest) / math.sqrt(24)
        above, below = (float(np.mean(sign * end > stats.norm.isf(last))) for sign in (1, -1))
        finding = judge(seen(mean, size), {}, PLAN)
        if above > 0.007 or below > 0.52:
            assert finding.verdict in (None, "better", "worse")
        if above < 0.0035 and below < 0.48:
            assert finding.verdict == "no_evidence"


@pytest.mark.parametrize("mean", [0.2, 0.35, 0.5])
def test_the_seeds_to_settle_a_question_would_settle_it_in_nine_of_ten(mean: float) -> None:
    finding = judge(seen(mean, 24), against(control=seen(mean, 24)), PLAN)
    assert finding.verdict == "no_evidence"
    n = finding.seeds_to_settle
    assert n is not None
    limit = stats.t.ppf(1 - 0.05 / 6, n - 1)
    assert stats.nct.sf(limit, n - 1, mean * math.sqrt(n)) == pytest.approx(0.9, abs=0.01)


def settling(to_identity: float, to_control: float | None) -> int | None:
    controls = {} if to_control is None else against(control=seen(to_control, 24))
    return judge(seen(to_identity, 24), controls, PLAN).seeds_to_settle


def test_the_hardest_open_question_decides_how_many_seeds_it_takes() -> None:
    assert settling(CLEAR, 0.3) == settling(0.3, CLEAR) == settling(0.3, 0.5) == settling(0.3, None)
    assert settling(0.3, None) > settling(0.5, None) > 24  # type: ignore[operator]


def test_what_leans_below_zero_has_no_number_of_seeds() -> None:
    """They would more likely show the opposite."""
    assert settling(-0.3, None) is None
    assert settling(CLEAR, -0.3) is None
    assert settling(0.3, -0.3) is None


def test_no_number_of_seeds_is_too_few_for_the_signs() -> None:
    few = Plan(seeds=4, batch=4, finalists=1)
    assert judge(seen(50.0, 4), {}, few).verdict == "no_evidence"
    assert judge(seen(50.0, 4), {}, few).seeds_to_settle == 6  # 2**-6 < 0.025 < 2**-5
    assert judge(seen(50.0, 4), {}, replace(few, finalists=3)).seeds_to_settle == 7


def test_nothing_open_and_nothing_visible_have_no_number_of_seeds() -> None:
    assert settling(CLEAR, CLEAR) is None
    assert settling(-CLEAR, -CLEAR) is None
    assert settling(0.01, None) is None
    assert settling(CLEAR, 0.0) is None


def test_more_finalists_need_more() -> None:
    values = seen(0.75, 24)
    found = [judge(values, {}, replace(PLAN, finalists=n)) for n in (1, 3, 10)]
    assert [finding.verdict for finding in found] == ["better", "better", "better"]
    limit = stats.t.ppf(1 - 0.05 / 6 * (1 - 0.75**3), 23) / math.sqrt(24)
    values = seen(limit * 1.01, 24)
    found = [judge(values, {}, replace(PLAN, finalists=n)) for n in (1, 3, 4)]
    assert [finding.verdict for finding in found] == ["better", "better", "no_evidence"]


def test_a_shorter_last_batch_is_a_look_too() -> None:
    plan = Plan(seeds=14, batch=6, finalists=1)
    assert plan.looks == [6, 12, 14]
    assert judge(seen(2.0, 14), {}, plan).verdict == "better"


@pytest.mark.parametrize("size", [1, 5, 7, 23, 25, 30])
def test_between_looks_nothing_is_judged(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} seeds are not a look"):
        judge(dict.fromkeys(range(size), 1.0), {}, PLAN)


def test_unpaired_or_missing_numbers_are_refused() -> None:
    values = seen(1.0, 6)
    with pytest.raises(ValueError, match="different seeds"):
        judge(values, against(uniform={seed + 1: value for seed, value in values.items()}), PLAN)
    for arm in (0, 1):
        both = [dict(values), dict(values)]
        both[arm][3] = math.nan
        with pytest.raises(ValueError, match="seed 3 is nan"):
            judge(both[0], against(control=both[1]), PLAN)


@pytest.mark.parametrize("size", PLAN.looks)
@pytest.mark.parametrize("arm", ["identity", "control", "uniform"])
def test_nothing_is_better_by_what_another_arm_failed_at(size: int, arm: str) -> None:
    """A finalist that is as good where nobody fails, beside an arm that diverges on some seeds."""
    rng = np.random.default_rng(size)
    for failures in range(size + 1):
        lost = dict(enumerate(rng.normal(0, 0.1, size).tolist()))
        lost |= {seed: 7.0 + lost[seed] for seed in range(failures)}
        shown = seen(CLEAR, size)
        to_identity = lost if arm == "identity" else shown
        controls = {name: lost if arm == name else shown for name in get_args(Control)}
        found = judge(to_identity, against(**controls), PLAN, {arm: range(failures)})
        assert found.verdict != "better"
        assert found.verdict != "worse"


def test_such_seeds_would_show_something_if_they_counted() -> None:
    """The bounds above catch a judge who takes a score of the floor as it is."""
    lost = dict(enumerate([7.0] * 9 + [0.1, -0.1, 0.0]))
    assert judge(lost, {}, replace(PLAN, finalists=1)).verdict == "better"
    assert judge(lost, {}, replace(PLAN, finalists=1), {"identity": range(9)}).verdict != "better"


def test_what_helps_by_far_is_better_although_a_control_fails_now_and_then() -> None:
    sure = seen(CLEAR, 24)
    lost = {"identity": [3], "control": [5], "uniform": [7]}
    assert judge(sure, against(control=sure, uniform=sure), PLAN, lost).verdict == "better"


def test_what_another_arm_failed_at_speaks_against_harm() -> None:
    """Worse where identity did not diverge, and by far better where it did: not shown to harm."""
    half = seen(-CLEAR, 24, 0.1) | dict.fromkeys(range(0, 24, 2), 9.0)
    assert judge(half, {}, PLAN, {"identity": range(0, 24, 2)}).verdict == "no_evidence"


def test_zeros_are_no_signs() -> None:
    """Seven equal differences of a sign among zeros: once in 2**7, whatever t says of them."""
    few = {seed: float(seed < 7) for seed in range(24)}
    plan = Plan(seeds=24, batch=24, finalists=3)
    assert judge(few, {}, plan).verdict == "better"
    assert judge({seed: float(seed < 6) for seed in range(24)}, {}, plan).verdict == "no_evidence"
