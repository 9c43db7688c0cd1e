"""What an audit says: ranks, noise, loss and the rule behind its sentence."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from optimizer.evidence import audit
from optimizer.evidence.audit import GOOD, POOR, Audit, AuditArm, RankCorrelation
from optimizer.evidence.differences import Difference
from optimizer.evidence.verdicts import PairedDifference

Array = audit.Array

few = st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(few, few), min_size=3, max_size=12))
def test_ranks_correlate_as_scipy_has_it_with_ties(pairs: list[tuple[float, float]]) -> None:
    one, other = (np.array(values)[None] for values in zip(*pairs, strict=True))
    found = float(audit.spearman(one, other)[0])
    if len(set(one[0])) == 1 or len(set(other[0])) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(stats.spearmanr(one[0], other[0]).statistic, abs=1e-12)


@given(st.integers(3, 8), st.integers(2, 5), st.integers(0, 10_000))
def test_reliability_is_cronbachs_alpha_and_knows_nothing_of_what_all_arms_share(
    arms: int, seeds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(arms, 1)) + 0.5 * rng.normal(size=(arms, seeds))
    each, whole = values.var(axis=0, ddof=1).sum(), values.sum(axis=1).var(ddof=1)
    alpha = seeds / (seeds - 1) * (1 - each / whole)  # Cronbach 1951
    assert audit.reliability(values) == pytest.approx(max(0.0, alpha), abs=1e-9)
    shared = values + rng.normal(size=(1, seeds))
    assert audit.reliability(shared) == pytest.approx(audit.reliability(values), abs=1e-9)
    assert audit.reliability(values[:, :1]) is None


def table(values: Array) -> dict[int, dict[int, float]]:
    return {
        number: {seed: float(value) for seed, value in enumerate(row)}
        for number, row in enumerate(values, start=1)
    }


def drawn(
    rng: np.random.Generator, rank: float, arms: int, noise: tuple[float, float]
) -> tuple[Array, Array]:
    """Differences on proxy (2 seeds) and full network (4) whose truths have a rank correlation."""
    slope = 2 * math.sin(math.pi * rank / 6)  # of normal truths (Pearson 1907)
    one = rng.normal(size=arms)
    other = slope * one + math.sqrt(1 - slope**2) * rng.normal(size=arms)
    return (
        one[:, None] + noise[0] * rng.normal(size=(arms, 2)),
        other[:, None] + noise[1] * rng.normal(size=(arms, 4)),
    )


@pytest.mark.parametrize("rank", [0.0, 0.9])
def test_an_interval_covers_with_noise_in_both_coordinates(rank: float) -> None:
    """What it covers is the correlation of means over so many seeds: the truth times its ceiling.

    benchmarks/audit_errors.py has the long table.
    """
    rng, noise, studies = np.random.default_rng(7), (0.7, 0.7), 60
    shrunk = math.sqrt(1 / (1 + 0.7**2 / 2) / (1 + 0.7**2 / 4))
    truth = 6 / math.pi * math.asin(math.sin(math.pi * rank / 6) * shrunk)
    covered, ceilings = 0, []
    for _ in range(studies):
        proxy, full = drawn(rng, rank, 13, noise)
        found = audit.rank_correlation(table(proxy[1:]), table(full[1:]))
        assert found is not None
        assert found.ceiling is not None
        ceilings.append(found.ceiling)
        covered += found.low <= truth <= found.high
    assert covered >= stats.binom.ppf(0.001, studies, 0.95)
    # Of ranks within single seeds, where noise weighs more: a little below, which is cautious.
    assert shrunk - 0.1 < np.mean(ceilings) < shrunk


def correlation(value: float, low: float, high: float, ceiling: float | None) -> RankCorrelation:
    return RankCorrelation(value=value, low=low, high=high, ceiling=ceiling)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (correlation(0.9, 0.5, 1.0, 0.95), "carries_over"),
        (correlation(GOOD, POOR + 0.01, 0.9, None), "carries_over"),
        (correlation(0.9, POOR, 1.0, 0.95), "open"),
        (correlation(0.69, 0.4, 0.8, 0.95), "open"),
        (correlation(0.1, -0.4, 0.6, 0.95), "does_not"),
        (correlation(0.1, -0.4, 0.6, 0.8), "open"),  # so much noise could hide a good proxy
        (correlation(-0.5, -0.9, 0.1, 0.49), "open"),
        (correlation(-0.5, -0.9, 0.1, None), "open"),
        (None, "open"),
    ],
)
def test_the_sentence_follows_by_a_rule_that_was_fixed_before(
    told: RankCorrelation | None, said: str
) -> None:
    assert audit.found(told) == said


def arm(number: int, proxy: list[float] | None, full: list[float]) -> AuditArm:
    def paired(values: list[float]) -> PairedDifference:
        return PairedDifference.of(
            Difference(float(np.mean(values)), None, dict(enumerate(values)))
        )

    return AuditArm(
        trial=number,
        label=f"trial {number}",
        densities={"3": [0.5]},
        proxy=None if proxy is None else paired(proxy),
        full=paired(full),
    )


def test_a_proxy_that_ranks_as_the_full_network_does_carries_over_and_the_reverse_does_not() -> (
    None
):
    rng = np.random.default_rng(1)
    truth = np.linspace(-1, 1, 12)
    for sign, said in ((1, "carries_over"), (-1, "does_not")):
        arms = [
            arm(
                n,
                [*(value + 0.01 * rng.normal(size=2))],
                [*(sign * value + 0.01 * rng.normal(size=3))],
            )
            for n, value in enumerate(truth, start=1)
        ]
        told = audit.judged(Audit(trial=12, finding="open", arms=arms))
        assert told.finding == said
        assert told.correlation is not None
        assert told.correlation.value * sign > 0.95
        again = audit.judged(told)
        assert again == told
    assert told.loss is not None
    assert (told.loss.best, told.loss.low > 1.9, told.loss.high < 2.1) == (1, True, True)


def test_what_was_learned_has_no_rank_and_is_compared_with_the_best_all_the_same() -> None:
    arms = [arm(n, [n / 10], [n / 10, n / 10 + 0.01]) for n in range(1, 8)]
    learned = arm(99, None, [0.1, 0.1])
    told = audit.judged(Audit(trial=99, finding="open", arms=[*arms, learned]))
    assert told.correlation is not None
    assert told.correlation.value == 1
    assert told.correlation.ceiling is None  # a single seed of the proxy does not tell
    assert told.loss is not None
    assert told.loss.best == 7


def test_the_loss_covers_although_the_best_is_chosen_by_the_same_numbers() -> None:
    rng, covered, studies = np.random.default_rng(3), 0, 300
    truth = np.array([0.3, 0.5, 0.5, 0.45, 0.2, -0.1, 0.0, 0.4])
    for _ in range(studies):
        shared = rng.normal(size=(1, 4))  # identity's noise
        values = truth[:, None] + 0.3 * (rng.normal(size=(8, 4)) - shared)
        told = audit.loss(table(values), 1)
        assert told is not None
        assert told.low <= told.mean <= told.high
        covered += told.low <= 0.2 <= told.high
    assert covered >= stats.binom.ppf(0.001, studies, 0.95)
    best = audit.loss(table(np.array([[0.5, 0.6], [0.1, 0.1]])), 1)
    assert best is not None
    assert (best.best, best.mean, best.low) == (1, 0, 0)
    assert audit.loss(table(np.array([[0.5], [0.1]])), 1) is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_what_is_spread_has_the_first_the_last_and_no_rank_twice(many: int, count: int) -> None:
    chosen = audit.spread(range(many), count)
    assert len(chosen) == len(set(chosen)) == min(many, count)
    assert chosen == sorted(chosen)
    if min(many, count) >= 2:
        assert (chosen[0], chosen[-1]) == (0, many - 1)
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1


def test_the_ceiling_is_one_of_ranks_which_harmful_densities_do_not_raise() -> None:
    """Ranks of truths that are alike but for two are mostly noise, however bad the two are."""
    rng, ceilings, wrong = np.random.default_rng(5), [], 0
    for _ in range(40):
        truth = np.array([*(0.3 * rng.normal(size=22)), -10.0, -20.0])
        measured = (truth[:, None] + rng.normal(size=(24, seeds)) for seeds in (2, 4))
        found = audit.rank_correlation(*map(table, measured))
        assert found is not None
        assert found.ceiling is not None
        ceilings.append(found.ceiling)
        wrong += audit.found(found) == "does_not"
    assert wrong <= stats.binom.ppf(0.999, 40, 0.025)
    assert np.mean(ceilings) < 0.6  # of raw differences it would be 0.98


def test_a_winner_that_is_behind_there_is_not_carried_over_with_the_ranks() -> None:
    rng = np.random.default_rng(2)
    truth = np.linspace(1.0, -1.0, 12)
    there = np.array([-0.3, *truth[1:]])
    arms = [
        arm(n, [*(one + 0.01 * rng.normal(size=2))], [*(other + 0.01 * rng.normal(size=4))])
        for n, (one, other) in enumerate(zip(truth, there, strict=True), start=1)
    ]
    told = audit.judged(Audit(trial=1, finding="open", arms=arms))
    assert told.correlation is not None
    assert told.correlation.value > GOOD
    assert told.loss is not None
    assert told.loss.low > 1
    assert told.finding == "ranks_only"
    assert audit.judged(told.model_copy(update={"trial": 2})).finding == "carries_over"


def test_the_correlation_among_the_good_ones_is_told_apart() -> None:
    good, bad = np.arange(1.0, 6.0), -np.arange(5.0, 10.0)
    proxy = np.array([*good, *bad])[:, None] + np.zeros((10, 2))
    full = np.array([*good[::-1], *bad])[:, None] + np.zeros((10, 3))
    found = audit.rank_correlation(table(proxy), table(full))
    assert found is not None
    expected = stats.spearmanr([0, *good], [0, *good[::-1]]).statistic
    assert found.above == pytest.approx(expected, abs=1e-12)
    assert found.above is not None
    assert found.value > found.above
