"""Steps on a GPU without the host: each job on a stream of its own, its step captured once.

A small network's step is hundreds of kernels of a few microseconds each, which Python cannot issue
as fast as a GPU runs them. A CUDA graph replays all of them with one call, and graphs on several
streams fill the device together. Elsewhere everything here does nothing.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from workers.training import devices

EAGER_STEPS = 3
"""Steps before the capture, in which libraries choose algorithms and optimisers make their state
(torch.cuda.graph asks for a warm-up on a side stream)."""

Step = Callable[[], None]


class CaptureError(Exception):
    """A capture could not be begun or ended; only a new process can trust the device again.

    torch's allocator may still believe in the capture, and an assertion of its then ends the
    process. What the step itself raised, if it did, is the cause.
    """


class Lane:
    """Where the work of one job is queued: a stream on a GPU, the calling thread elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # the data were put there by the default stream
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self.users: weakref.WeakSet[object] = weakref.WeakSet()

    def __call__(self) -> AbstractContextManager[object]:
        """Return a context in which work is queued here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Wait until all that is queued here is done."""
        if self._stream is not None:
            self._stream.synchronize()


class Lanes:
    """The lanes of a device, each used again: torch has a pool of streams and deals them in turn.

    Two jobs on one stream would take turns while other streams are empty.
    """

    def __init__(self, device: torch.device, *, captured: bool) -> None:
        self.device = device
        self.captured = captured and device.type == "cuda"
        """Whether steps are captured here."""
        self._lanes: list[Lane] = []

    def give(self, user: object) -> Lane:
        """Return a lane with the fewest users that still exist, this one included from now on."""
        fewest = min(self._lanes, key=lambda lane: len(lane.users), default=None)
        if fewest is None or (fewest.users and len(self._lanes) < devices.QUEUES):
            fewest = Lane(self.device)
            self._lanes.append(fewest)
        fewest.users.add(user)
        return fewest


class Repeated:
    """A step that is done again and again: captured after EAGER_STEPS on a GPU, then replayed.

    A step takes and returns nothing, touches only tensors that stay where they are, and decides
    nothing on the host. `generators` are those of the device that it draws from. A replay computes
    what the step itself does: the same kernels on the same data.
    """

    def __init__(self, *, captured: bool, generators: Sequence[torch.Generator]) -> None:
        self._captured, self._generators = captured, generators
        self._eager_steps = 0
        self._replay: Step | None = None

    def __call__(self, step: Step) -> None:
        """Do the step, which is the same at every call, within the lane of its job.

        CaptureError if it cannot be captured; what the step raises comes through.
        """
        if self._captured and self._replay is None and self._eager_steps >= EAGER_STEPS:
            self._replay = record(step, self._generators)
        if self._replay is None:
            self._eager_steps += 1
            step()
        else:
            self._replay()


def record(step: Step, generators: Sequence[torch.Generator]) -> Step:
    """Capture a step on the current stream and return what replays it.

    Not with torch.cuda.graph: that waits for all other jobs and empties the allocator's cache.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with _without_collection():
        # Other threads (the heartbeat) do not use the GPU, but must not be able to break this.
        with _trusted("begun"):
            graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:
            with _trusted("ended"):
                graph.capture_end()
    return graph.replay


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from freeing garbage: a stream or a graph among it would spoil a capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _trusted(what: str) -> Iterator[None]:
    """Make an error of the capture itself one that says so, caused by what the step raised."""
    try:
        yield
    except RuntimeError as error:
        raise CaptureError(f"a capture could not be {what}: {error}") from error
