"""What a function of the user's own may return as data, and what is refused in one line."""

from typing import Any

import numpy as np
import pytest
import torch

from optimizer.errors import UsageError
from workers.data import given

INPUTS = torch.rand(4, 1, 8)


def loaded(inputs: Any, targets: Any) -> given.Given:
    part = (inputs, targets)
    return given.load("a:b", lambda: {"train": part, "validation": part}, {}, 2, has_test=False)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (INPUTS, torch.zeros(4, dtype=torch.complex64)),
        (INPUTS.to_sparse(), torch.zeros(4, dtype=torch.int64)),
        (INPUTS.to("meta"), torch.zeros(4, dtype=torch.int64)),
        (INPUTS.double() * 1e300, torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_what_is_no_data_is_one_line(inputs: Any, targets: Any) -> None:
    with pytest.raises(UsageError):
        loaded(inputs, targets)


def test_a_function_that_exits_is_one_line() -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(UsageError, match="SystemExit"):
        given.load("a:b", leave, {}, 2, has_test=False)


def test_what_is_taken_is_a_copy_of_any_view_and_of_any_whole_numbers() -> None:
    inputs = np.ones((4, 1, 8), dtype=np.float32)
    made = loaded(inputs[:, :, ::-1], np.array([0, 1, 0, 1], dtype=np.uint16))
    inputs[:] = 5
    assert made.train.inputs.eq(1).all()
    assert made.train.targets.tolist() == [0, 1, 0, 1]
