"""What a network draws itself (dropout, stochastic depth), from a generator of its job's own.

Such layers draw from the device's global generator, which all members of a pack share: a member
would depend on its neighbours. So that generator goes on where the job's own one is meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Have all that draws from a device's global generator draw from this one; None: as ever.

    On a GPU also in a step that is captured, if the generator is registered with its graph.
    """
    if generator is None:
        yield
    elif device.type == "cuda":
        # The very state of the generator is lent, not a copy: a graph goes by what it has met.
        shared = torch.cuda.default_generators[_index(device)]
        kept = shared.graphsafe_get_state()
        shared.graphsafe_set_state(generator)
        try:
            yield
        finally:
            shared.graphsafe_set_state(kept)
    else:
        shared = torch.default_generator
        before = shared.get_state()
        shared.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(shared.get_state())
            shared.set_state(before)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
