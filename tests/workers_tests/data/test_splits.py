import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import UsageError
from workers.data.splits import split, stratified_split


@given(st.integers(2, 500), st.floats(0.001, 0.6))
def test_split_divides_all_items_in_two(count: int, fraction: float) -> None:
    train, validation = split(count, fraction)
    assert sorted([*train, *validation]) == list(range(count))
    assert len(validation) == max(1, round(fraction * count))
    np.testing.assert_array_equal(train, np.sort(train))
    np.testing.assert_array_equal(train, split(count, fraction)[0])


def test_splits_never_change() -> None:
    # Pinned: measurements of different versions are only comparable on the same split.
    assert split(12, 0.25)[1].tolist() == [1, 6, 9]
    labels = np.array([0, 1, 2] * 4)
    assert stratified_split(labels, 0.25)[1].tolist() == [3, 5, 10]


def test_split_is_spread_over_the_items() -> None:
    _, validation = split(10_000, 0.1)
    tenths = np.bincount(validation // 1000, minlength=10)
    assert tenths.min() > 60  # 100 expected, standard deviation below 10
    assert tenths.max() < 140


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.1), (2, 0.9), (0, 0.5)])
def test_split_without_training_items_is_a_usage_error(count: int, fraction: float) -> None:
    with pytest.raises(UsageError, match=f"^{count} images leave none to train on .*; give"):
        split(count, fraction)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_outside_its_range_is_a_usage_error(fraction: float) -> None:
    line = f"fraction {fraction} is not between 0 and 1; use"
    with pytest.raises(UsageError, match=line):
        split(10, fraction)
    with pytest.raises(UsageError, match=line):
        stratified_split(np.repeat(np.arange(5), 2), fraction)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=300).filter(lambda x: len(set(x)) < len(x)),
    st.floats(0.001, 0.999),
)
def test_stratified_split_trains_on_every_class(values: list[int], fraction: float) -> None:
    labels = np.array(values, dtype=np.int64)
    train, validation = stratified_split(labels, fraction)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert set(labels[train]) == set(values)
    wanted = max(1, round(fraction * len(labels)))
    assert len(validation) == min(wanted, len(values) - len(set(values)))
    np.testing.assert_array_equal(validation, stratified_split(labels, fraction)[1])


@given(st.integers(1, 10), st.integers(1, 9), st.integers(1, 12))
def test_stratified_split_takes_the_same_share_of_equal_classes(
    tens: int, tenths: int, classes: int
) -> None:
    labels = np.repeat(np.arange(classes), 10 * tens)
    labels = labels[np.random.default_rng(tens).permutation(len(labels))]
    _, validation = stratified_split(labels, tenths / 10)
    assert np.bincount(labels[validation], minlength=classes).tolist() == [tens * tenths] * classes


def test_class_of_a_single_image_is_trained_on() -> None:
    labels = np.array([7, 0, 0, 0, 0, 9], dtype=np.int64)
    train, validation = stratified_split(labels, 0.5)
    assert {0, 7, 9} == set(labels[train].tolist())
    assert labels[validation].tolist() == [0, 0, 0]


def test_stratified_split_of_single_images_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"^3 images of 3 classes leave nothing .*; give"):
        stratified_split(np.arange(3), 0.1)
