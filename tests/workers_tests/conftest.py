"""What all tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose banks the tests of a module share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker: bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
