"""Verdicts against scipy's own tests, worked cases and the properties a fair judge has."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from optimizer.evidence import sequential_test
from optimizer.evidence.sequential_test import Finding, Plan, judge

PLAN = Plan(seeds=24, batch=6, finalists=3)
sizes = st.sampled_from(PLAN.looks)
numbers = st.floats(-100, 100).filter(lambda value: value == 0 or abs(value) > 1e-6)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[dict[int, float], dict[int, float]]:
    """Differences against both arms, on the same seeds, shifted so that all verdicts occur."""
    size = draw(sizes)

    def one() -> dict[int, float]:
        values = draw(st.lists(numbers, min_size=size, max_size=size))
        shift = draw(st.sampled_from([-200.0, 0.0, 200.0]))
        return {7000 + n: value + shift for n, value in enumerate(values)}

    return one(), one()


def seen(mean: float, size: int, spread: float = 1.0) -> dict[int, float]:
    """Differences with exactly this mean and sample standard deviation."""
    shape = stats.norm.ppf((np.arange(size) + 0.5) / size)
    return dict(enumerate((mean + spread * shape / shape.std(ddof=1)).tolist()))


def verdict(identity: dict[int, float], control: dict[int, float] | None = None) -> str | None:
    return judge(identity, control, PLAN).verdict


CLEAR, NOTHING = 2.0, 0.0
UNSURE = 0.8  # in standard deviations: at 12 of 24 seeds neither shown nor past hope


@pytest.mark.parametrize(
    ("size", "to_identity", "to_control", "expected"),
    [
        (12, CLEAR, CLEAR, "better"),
        (12, CLEAR, None, "better"),
        (12, CLEAR, NOTHING, "scale_only"),
        (12, CLEAR, -CLEAR, "scale_only"),
        (12, CLEAR, UNSURE, None),
        (24, CLEAR, UNSURE / 2, "scale_only"),
        (12, UNSURE, NOTHING, None),
        (12, UNSURE, CLEAR, None),
        (24, UNSURE / 2, CLEAR, "no_evidence"),
        (12, NOTHING, CLEAR, "no_evidence"),
        (6, -UNSURE / 2, -UNSURE / 2, "no_evidence"),
        (6, -UNSURE, NOTHING, None),  # past hope, but likely to be shown worse
        (6, -UNSURE, None, None),
        (24, -UNSURE / 2, CLEAR, "no_evidence"),
        (12, CLEAR, -UNSURE, "scale_only"),
        (12, -CLEAR, CLEAR, "worse"),
        (12, -CLEAR, None, "worse"),
    ],
)
def test_a_verdict_says_what_both_comparisons_show(
    size: int, to_identity: float, to_control: float | None, expected: str | None
) -> None:
    control = None if to_control is None else seen(to_control, size)
    assert verdict(seen(to_identity, size), control) == expected


@given(comparisons())
def test_after_the_last_seed_there_is_always_a_verdict(
    found: tuple[dict[int, float], dict[int, float]],
) -> None:
    finding = judge(*found, PLAN)
    assert finding.verdict is not None or finding.to_identity.seeds < PLAN.seeds


@given(comparisons())
def test_better_is_above_zero_in_both_intervals_and_worse_is_below(
    found: tuple[dict[int, float], dict[int, float]],
) -> None:
    finding = judge(*found, PLAN)
    assert finding.to_control is not None
    if finding.verdict == "better":
        assert min(finding.to_identity.low, finding.to_control.low) >= 0
    if finding.verdict == "scale_only":
        assert finding.to_identity.low >= 0
    if finding.verdict == "worse":
        assert finding.to_identity.high <= 0


@given(comparisons())
def test_order_and_names_of_seeds_do_not_matter(
    found: tuple[dict[int, float], dict[int, float]],
) -> None:
    one, other = ({-seed: value for seed, value in reversed(by.items())} for by in found)
    again, finding = judge(one, other, PLAN), judge(*found, PLAN)
    assert again.verdict == finding.verdict
    assert again.to_identity.mean == pytest.approx(finding.to_identity.mean)


@pytest.mark.parametrize("factor", [1e-6, 0.1, 1e6])
@pytest.mark.parametrize("mean", [-2.0, -0.3, 0.6, 0.9, 2.0])
def test_the_unit_does_not_matter(mean: float, factor: float) -> None:
    plain, scaled = (
        judge(seen(mean * unit, 12, unit), seen(mean * unit, 12, unit), PLAN)
        for unit in (1.0, factor)
    )
    assert scaled.verdict == plain.verdict
    assert scaled.seeds_to_settle == plain.seeds_to_settle


@given(sizes, st.floats(-3, 3))
def test_intervals_are_those_of_student(size: int, mean: float) -> None:
    values = seen(mean, size, spread=0.7)
    found = judge(values, None, PLAN).to_identity
    reference = stats.ttest_1samp(list(values.values()), 0.0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, *reference), abs=1e-9)
    assert found.seeds == size


@pytest.mark.parametrize(("effect", "expected"), [(2.0, "better"), (-2.0, "worse"), (0.0, None)])
def test_one_finalist_and_two_batches_of_six_can_settle_it(
    effect: float, expected: str | None
) -> None:
    """The size of configs/quickstart.yaml."""
    plan = Plan(seeds=12, batch=6, finalists=1)
    first = judge(seen(effect, 6), seen(effect, 6), plan)
    assert first.verdict == (None if expected else "no_evidence")
    finding = judge(seen(effect, 12), seen(effect, 12), plan)
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
    assert judge(seen(limit * 1.0001, size), None, plan).verdict == "better"
    assert judge(seen(limit * 0.9999, size), None, plan).verdict != "better"
    assert judge(seen(-limit * 1.0001, size), None, plan).verdict == "worse"
    assert judge(seen(-limit * 0.9999, size), None, plan).verdict != "worse"


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
    assert verdict(alike, alike) is None
    twelve = dict.fromkeys(range(12), sign)
    assert verdict(twelve, twelve) == ("better" if sign > 0 else "worse")


def test_a_plan_too_small_for_any_proof_still_ends() -> None:
    alike = {seed: 5 + 1e-9 * seed for seed in range(4)}
    finding = judge(alike, alike, Plan(seeds=4, batch=2, finalists=3))
    assert finding.verdict == "no_evidence"


def test_arms_that_are_the_same_differ_in_nothing() -> None:
    finding = judge(dict.fromkeys(range(6), 0.0), dict.fromkeys(range(6), 0.0), PLAN)
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
        finding = judge(seen(mean, size), None, PLAN)
        if above > 0.007 or below > 0.52:
            assert finding.verdict in (None, "better", "worse")
        if above < 0.0035 and below < 0.48:
            assert finding.verdict == "no_evidence"


@pytest.mark.parametrize("mean", [0.2, 0.35, 0.5])
def test_the_seeds_to_settle_a_question_would_settle_it_in_nine_of_ten(mean: float) -> None:
    finding = judge(seen(mean, 24), seen(mean, 24), PLAN)
    assert finding.verdict == "no_evidence"
    n = finding.seeds_to_settle
    assert n is not None
    limit = stats.t.ppf(1 - 0.05 / 6, n - 1)
    assert stats.nct.sf(limit, n - 1, mean * math.sqrt(n)) == pytest.approx(0.9, abs=0.01)


def settling(to_identity: float, to_control: float | None) -> int | None:
    control = None if to_control is None else seen(to_control, 24)
    return judge(seen(to_identity, 24), control, PLAN).seeds_to_settle


def test_the_hardest_open_question_decides_how_many_seeds_it_takes() -> None:
    assert settling(CLEAR, 0.3) == settling(0.3, CLEAR) == settling(0.3, 0.5) == settling(0.3, None)
    assert settling(CLEAR, -0.3) == settling(0.3, None)  # that the control is better is settled too
    assert settling(0.3, None) > settling(0.5, None) > 24  # type: ignore[operator]


def test_no_number_of_seeds_is_too_few_for_the_signs() -> None:
    few = Plan(seeds=4, batch=4, finalists=1)
    assert judge(seen(50.0, 4), None, few).verdict == "no_evidence"
    assert judge(seen(50.0, 4), None, few).seeds_to_settle == 6  # 2**-6 < 0.025 < 2**-5
    assert judge(seen(50.0, 4), None, replace(few, finalists=3)).seeds_to_settle == 7


def test_nothing_open_and_nothing_visible_have_no_number_of_seeds() -> None:
    assert settling(CLEAR, CLEAR) is None
    assert settling(-CLEAR, -CLEAR) is None
    assert settling(0.01, None) is None
    assert settling(CLEAR, 0.0) is None


def test_more_finalists_need_more() -> None:
    values = seen(0.75, 24)
    found = [judge(values, None, replace(PLAN, finalists=n)) for n in (1, 3, 10)]
    assert [finding.verdict for finding in found] == ["better", "better", "better"]
    limit = stats.t.ppf(1 - 0.05 / 6 * (1 - 0.75**3), 23) / math.sqrt(24)
    values = seen(limit * 1.01, 24)
    found = [judge(values, None, replace(PLAN, finalists=n)) for n in (1, 3, 4)]
    assert [finding.verdict for finding in found] == ["better", "better", "no_evidence"]


def test_a_shorter_last_batch_is_a_look_too() -> None:
    plan = Plan(seeds=14, batch=6, finalists=1)
    assert plan.looks == [6, 12, 14]
    assert judge(seen(2.0, 14), None, plan).verdict == "better"


@pytest.mark.parametrize("size", [1, 5, 7, 23, 25, 30])
def test_between_looks_nothing_is_judged(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} seeds are not a look"):
        judge(dict.fromkeys(range(size), 1.0), None, PLAN)


def test_unpaired_or_missing_numbers_are_refused() -> None:
    values = seen(1.0, 6)
    with pytest.raises(ValueError, match="different seeds"):
        judge(values, {seed + 1: value for seed, value in values.items()}, PLAN)
    for arm in (0, 1):
        both = [dict(values), dict(values)]
        both[arm][3] = math.nan
        with pytest.raises(ValueError, match="seed 3 is nan"):
            judge(both[0], both[1], PLAN)


def test_a_finding_without_control_has_no_interval_to_it() -> None:
    finding: Finding = judge(seen(CLEAR, 12), None, PLAN)
    assert finding.to_control is None
    assert finding == replace(judge(seen(CLEAR, 12), seen(CLEAR, 12), PLAN), to_control=None)
