"""Steps on a GPU without the host: each job on a stream of its own, its step captured once.

A small network's step is hundreds of kernels of a few microseconds each, which Python cannot issue
as fast as a GPU runs them. A CUDA graph replays all of them with one call, and graphs on several
streams fill the device together. Elsewhere everything here does nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

EAGER_STEPS = 3
"""Steps before the capture, in which libraries choose algorithms and optimisers make their state
(torch.cuda.graph asks for a warm-up on a side stream)."""


class Lane:
    """Where the work of one job is queued: a stream on a GPU, the calling thread elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # the data were put there by the default stream
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def __call__(self) -> AbstractContextManager[object]:
        """Return a context in which work is queued here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class Repeated:
    """A step that is done again and again: captured after EAGER_STEPS on a GPU, then replayed.

    A step takes and returns nothing, touches only tensors that stay where they are, and decides
    nothing on the host. `generators` are those of the device that it draws from. A replay computes
    what the step itself does: the same kernels on the same data.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._captures = device.type == "cuda"
        self._generators = generators
        self._eager_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Callable[[], None]) -> None:
        """Do the step, which is the same at every call, within the lane of its job."""
        if self._graph is not None:
            self._graph.replay()
        elif not self._captures or self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            step()
        else:
            self._graph = self._captured(step)
            self._graph.replay()

    def _captured(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # Other threads (the heartbeat) do not use the GPU, but must not be able to break this.
        with torch.cuda.graph(
            graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            step()
        return graph
