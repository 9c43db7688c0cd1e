"""That a density is another start and other steps of a plain convolution, and nothing else."""

from copy import deepcopy
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densitune import density
from densitune.weighted_conv import fold_all
from optimizer.errors import UsageError
from workers import verification
from workers.training import equivalence
from workers.training.equivalence import Rule

pytestmark = pytest.mark.numerical

each_rule = pytest.mark.parametrize("rule", get_args(Rule))
value = st.floats(0, 3) | st.sampled_from([0.0, 1e-6, 30.0])
densities = st.sampled_from([1, 3, 5, 7]).flatmap(
    lambda k: st.tuples(st.just(k), st.tuples(*[value] * density.length(k)))
)


@each_rule
@settings(max_examples=15, deadline=None)
@given(densities)
def test_any_density_trains_as_a_plain_convolution(
    rule: Rule, given: tuple[int, density.Density]
) -> None:
    assert equivalence.deviation(*given, rule) < 1e-10


@each_rule
def test_kernels_move_and_another_density_moves_them_elsewhere(rule: Rule) -> None:
    phi, other = (torch.from_numpy(density.phi(den)) for den in ((0.5,), (0.51,)))
    weighted = equivalence._weighted(3, (0.5,))
    plain = fold_all(deepcopy(weighted))
    kernels, wrong = equivalence._path(weighted, phi, rule), equivalence._path(plain, other, rule)
    assert (kernels[-1] - kernels[0]).abs().max() > 1e-2
    assert (kernels - wrong).abs().max() > 1e-4


def test_a_preset_whose_density_trains_differently_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verification.check_equivalence(5, [0.2, 0.8])
    monkeypatch.setattr(equivalence, "deviation", lambda k, den, rule: 2e-10 * (rule == "Adam"))
    with pytest.raises(
        UsageError, match="20 steps of Adam differ from a plain convolution's by 2e"
    ):
        verification.check_equivalence(5, [0.2, 0.8])
    monkeypatch.setattr(equivalence, "deviation", lambda *_: float("nan"))
    with pytest.raises(UsageError, match="20 steps of SGD differ"):
        verification.check_equivalence(5, [0.2, 0.8])
