"""How the size of a pack is found, with devices whose speed and memory are made up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.training.packing import GROWTH, LARGEST, Calibration, calibrate

pytestmark = pytest.mark.numerical


class Device:
    """A device whose packs train at a rate that saturates, with memory for so many members."""

    def __init__(self, saturation: float, memory: int = 10**9) -> None:
        self._saturation, self._memory = saturation, memory
        self.asked: list[int] = []

    def rate(self, size: int) -> float:
        self.asked.append(size)
        if size > self._memory:
            raise torch.OutOfMemoryError("out of memory")
        return min(float(size), self._saturation)


@given(saturation=st.floats(1, 200), memory=st.integers(1, 200))
def test_the_size_found_is_the_best_doubling_that_fits(saturation: float, memory: int) -> None:
    device = Device(saturation, memory)
    found = calibrate(device.rate)
    sizes = [2**power for power in range(7) if 2**power <= min(memory, LARGEST)]
    best = max(min(size, saturation) for size in sizes)
    assert found.size in sizes
    assert min(found.size, saturation) >= best / GROWTH
    assert device.asked == [2**power for power in range(len(device.asked))]


def test_one_core_trains_one_job_at_a_time() -> None:
    device = Device(saturation=1.0)
    assert calibrate(device.rate) == Calibration(1, {1: 1.0, 2: 1.0}, full=None)


def test_nothing_larger_than_allowed_is_tried() -> None:
    device = Device(saturation=100)
    assert calibrate(device.rate, largest=1) == Calibration(1, {1: 1.0}, full=None)
    assert device.asked == [1]


def test_memory_ends_the_search_and_is_told() -> None:
    found = calibrate(Device(saturation=100, memory=5).rate)
    assert (found.size, found.full) == (4, 8)


def test_a_device_too_small_for_one_job_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        calibrate(Device(saturation=1, memory=0).rate)


def test_other_errors_come_through() -> None:
    def broken(size: int) -> float:
        raise RuntimeError("the device has caught fire")

    with pytest.raises(RuntimeError, match="caught fire"):
        calibrate(broken)


def test_memory_of_a_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    from workers.training.devices import is_out_of_memory

    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("the device has caught fire"))
