"""Random generators: what they depend on, and that an upgrade cannot change results unnoticed."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.seeds import derive, generator

SEEDS = st.integers(0, 2**40)
PURPOSES = st.lists(st.text(max_size=8) | st.integers(0, 9), max_size=3)


def draw(*args: str | int) -> list[float]:
    seed, *purpose = args
    return torch.rand(8, generator=generator(int(seed), *purpose)).tolist()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # Half of what printf '%s' "(0, 'order')" | b2sum -l 64 says, and so on.
        ((0, "order"), 5_541_719_180_202_367_972),
        ((1000, "weights", "stages.0.0.0"), 2_155_727_625_125_958_282),
        ((7,), 6_645_920_422_606_582_411),
    ],
)
def test_seeds_of_a_purpose_stay_what_they_were(
    parts: tuple[int | str, ...], expected: int
) -> None:
    seed, *purpose = parts
    assert derive(int(seed), *purpose) == expected


def test_numbers_of_a_generator_stay_what_they_were() -> None:
    found = torch.randint(1000, (6,), generator=generator(0, "order")).tolist()
    assert found == [261, 148, 875, 96, 433, 645]


@given(SEEDS, PURPOSES)
def test_a_seed_fits_every_generator(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= derive(seed, *purpose) < 2**63


@given(SEEDS, PURPOSES)
def test_same_purpose_gives_the_same_stream(seed: int, purpose: list[str | int]) -> None:
    assert draw(seed, *purpose) == draw(seed, *purpose)


def test_every_seed_and_purpose_has_a_stream_of_its_own() -> None:
    purposes: list[tuple[str | int, ...]] = [
        ("order",),
        ("noise",),
        ("weights", "head"),
        ("weights", "stem"),
        ("weightshead",),
        ("weights", 1),
        ("weights", "1"),
        (),
    ]
    streams = [draw(seed, *purpose) for seed in range(20) for purpose in purposes]
    firsts = {tuple(stream) for stream in streams}
    assert len(firsts) == len(streams)
    # Nor is one stream another one shifted or scaled: numbers of two purposes are uncorrelated.
    columns = (
        torch.rand(4000, generator=generator(0, "order")),
        torch.rand(4000, generator=generator(0, "noise")),
    )
    assert abs(torch.corrcoef(torch.stack(columns))[0, 1].item()) < 4 / 4000**0.5


def test_nothing_that_was_drawn_before_matters() -> None:
    expected = {purpose: draw(3, purpose) for purpose in ("order", "augmentation", "noise")}
    for order in itertools.permutations(expected):
        torch.rand(5)  # moves the global generator
        live = {purpose: generator(3, purpose) for purpose in order}
        # Interleaved: one number of each in turn.
        drawn: dict[str, list[float]] = {purpose: [] for purpose in order}
        for _ in range(8):
            for purpose in order:
                drawn[purpose].append(torch.rand((), generator=live[purpose]).item())
        for purpose in order:
            alone = generator(3, purpose)
            assert drawn[purpose] == [torch.rand((), generator=alone).item() for _ in range(8)]
            assert draw(3, purpose) == expected[purpose]


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    draw(1, "order")
    assert torch.equal(torch.get_rng_state(), before)
