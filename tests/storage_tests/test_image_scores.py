"""Scores of images in a few bytes: what comes back, and how large it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import image_scores

scores = st.lists(st.floats(0, 100), min_size=1, max_size=50)


@given(scores)
def test_scores_come_back_to_within_half_a_step_of_the_grid(given: list[float]) -> None:
    stored = image_scores.packed(given)
    assert stored is not None
    found = image_scores.unpacked(json.loads(json.dumps(stored)))
    half = (max(given) - min(given)) / 65_535 / 2
    assert len(found) == len(given)
    assert found == [pytest.approx(score, rel=1e-12, abs=half * 1.0001) for score in given]


@given(st.lists(st.sampled_from([0.0, 100.0]), min_size=1, max_size=50))
def test_hits_and_misses_come_back_as_they_were(given: list[float]) -> None:
    stored = image_scores.packed(given)
    assert stored is not None
    assert stored["bits"] == 1
    assert image_scores.unpacked(stored) == given


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ([0.0, 100.0] * 5_000, 1_600, 1_800),  # CIFAR-100's validation images: 10,000 bits
        ([25.0, 31.7, 28.2, 30.1] * 25, 300, 400),  # the usual photographs
        ([0.0, 100.0] * 196_608, 65_000, 66_000),
        ([25.0, 31.7, 28.2] * 8_192, 65_000, 66_000),
    ],
)
def test_they_take_few_bytes(given: list[float], least: int, most: int) -> None:
    assert least < len(json.dumps(image_scores.packed(given))) < most


def test_of_too_many_images_nothing_is_kept() -> None:
    assert image_scores.packed([1.0, 2.0, 3.0] * 8_193) is None
    assert image_scores.packed([0.0, 100.0] * 196_612) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(scores, st.sampled_from(["count", "low", "high", "bits", "data"]), anything)
def test_what_is_no_scores_of_images_is_told_apart(
    given: list[float], key: str, written: object
) -> None:
    """Whatever a worker's role writes there, it is finite scores or a ValueError."""
    stored = image_scores.packed(given)
    assert stored is not None
    for forged in ({**stored, key: written}, written):
        try:
            found = image_scores.unpacked(forged)  # type: ignore[arg-type]
        except ValueError:
            continue
        assert found
        assert all(abs(score) <= image_scores.MOST for score in found)
