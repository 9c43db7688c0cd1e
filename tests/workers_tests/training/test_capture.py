"""Capture and lanes, against a torch.cuda that is made up: there was no GPU to run them on."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from workers.training import capture, devices
from workers.training.capture import EAGER_STEPS, CaptureError, Lane, Lanes, Repeated

CUDA = torch.device("cuda", 0)


@dataclass
class FakeCuda:
    """Notes what is asked of it; `broken` has errors by what raises them."""

    events: list[str] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)
    streams: int = 0
    collecting: list[bool] = field(default_factory=list)

    def note(self, event: str) -> None:
        self.events.append(event)
        self.collecting.append(gc.isenabled())
        if event in self.broken:
            raise self.broken[event]


class FakeGraph:
    """What torch.cuda.CUDAGraph has."""

    cuda: FakeCuda

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.cuda.note(f"register {generator.initial_seed()}")

    def capture_begin(self, *, capture_error_mode: str) -> None:
        self.cuda.note(f"begin {capture_error_mode}")

    def capture_end(self) -> None:
        self.cuda.note("end")

    def replay(self) -> None:
        self.cuda.note("replay")


class FakeStream:
    """What torch.cuda.Stream has."""

    cuda: FakeCuda

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda.streams += 1
        self.name = f"stream {self.cuda.streams}"

    def wait_stream(self, other: Any) -> None:
        self.cuda.note(f"{self.name} waits for {other}")

    def synchronize(self) -> None:
        self.cuda.note(f"{self.name} is done")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(FakeGraph, "cuda", fake, raising=False)
    monkeypatch.setattr(FakeStream, "cuda", fake, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the default one")

    @contextmanager
    def stream(chosen: FakeStream) -> Iterator[None]:
        fake.note(f"into {chosen.name}")
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    for forbidden in ("synchronize", "empty_cache", "graph"):
        monkeypatch.setattr(torch.cuda, forbidden, lambda *_: pytest.fail("all lanes would wait"))
    return fake


def stepping(cuda: FakeCuda) -> Callable[[], None]:
    return lambda: cuda.note("step")


def test_a_step_is_captured_once_and_replayed_from_then_on(cuda: FakeCuda) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    repeated, step = Repeated(captured=True, generators=generators), stepping(cuda)
    for _ in range(EAGER_STEPS):
        repeated(step)
    assert cuda.events == ["step"] * EAGER_STEPS
    cuda.events.clear()
    repeated(step)
    # The generators before the capture: what it draws is drawn anew at every replay.
    captured = ["register 7", "register 8", "begin thread_local", "step", "end"]
    assert cuda.events == [*captured, "replay"]
    repeated(step)
    assert cuda.events == [*captured, "replay", "replay"]


def test_a_step_that_is_not_to_be_captured_never_is(cuda: FakeCuda) -> None:
    repeated = Repeated(captured=False, generators=[])
    for _ in range(EAGER_STEPS + 2):
        repeated(stepping(cuda))
    assert set(cuda.events) == {"step"}


def test_nothing_is_collected_within_a_capture(cuda: FakeCuda) -> None:
    capture.record(stepping(cuda), [])
    assert cuda.collecting == [False, False, False]
    assert gc.isenabled()
    cuda.broken["step"] = ValueError("of the step")
    with pytest.raises(ValueError, match="of the step"):
        capture.record(stepping(cuda), [])
    assert gc.isenabled()
    gc.disable()
    try:
        del cuda.broken["step"]
        capture.record(stepping(cuda), [])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_step_that_raises_ends_its_capture_and_comes_through(cuda: FakeCuda) -> None:
    cuda.broken["step"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        capture.record(stepping(cuda), [])
    assert cuda.events == ["begin thread_local", "step", "end"]


@pytest.mark.parametrize("where", ["begin thread_local", "end"])
def test_a_capture_that_fails_says_that_the_process_is_of_no_more_use(
    cuda: FakeCuda, where: str
) -> None:
    cuda.broken[where] = RuntimeError("CUDA error: operation failed due to a previous error")
    with pytest.raises(CaptureError, match="operation failed") as caught:
        capture.record(stepping(cuda), [])
    assert not devices.is_out_of_memory(caught.value)


def test_memory_that_runs_out_within_a_capture_is_seen_behind_its_failing_end(
    cuda: FakeCuda,
) -> None:
    cuda.broken["step"] = torch.OutOfMemoryError("CUDA out of memory")
    cuda.broken["end"] = RuntimeError("CUDA error: operation failed due to a previous error")
    with pytest.raises(CaptureError) as caught:
        capture.record(stepping(cuda), [])
    assert devices.is_out_of_memory(caught.value)


def test_a_graph_that_does_not_fit_is_out_of_memory(cuda: FakeCuda) -> None:
    cuda.broken["end"] = RuntimeError("CUDA error: out of memory")
    with pytest.raises(CaptureError) as caught:
        capture.record(stepping(cuda), [])
    assert devices.is_out_of_memory(caught.value)


class User:
    """Somebody who has a lane as long as it exists."""


def test_a_lane_waits_for_the_data_and_queues_on_its_stream(cuda: FakeCuda) -> None:
    lane = Lane(CUDA)
    with lane():
        pass
    lane.wait()
    waits = "stream 1 waits for the default one"
    assert cuda.events == [waits, "into stream 1", "stream 1 is done"]


def test_lanes_are_used_again_and_no_stream_has_two_users_before_all_have_one(
    cuda: FakeCuda,
) -> None:
    lanes = Lanes(CUDA, captured=True)
    users = [User() for _ in range(devices.QUEUES)]
    given = [lanes.give(user) for user in users]
    assert len(set(map(id, given))) == cuda.streams == devices.QUEUES
    del users[5]
    newcomers = [User(), User()]
    assert lanes.give(newcomers[0]) is given[5]
    assert cuda.streams == devices.QUEUES
    assert len(lanes.give(newcomers[1]).users) == 2  # no more streams in torch's pool
    assert cuda.streams == devices.QUEUES


def test_elsewhere_lanes_are_the_calling_thread_and_nothing_is_captured() -> None:
    cpu = torch.device("cpu")
    lanes = Lanes(cpu, captured=True)
    assert not lanes.captured
    lane = lanes.give(User())
    with lane():
        lane.wait()
