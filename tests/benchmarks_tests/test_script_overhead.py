"""The benchmark of a script's process, on jobs that are over at once."""

import pytest
import script_overhead


@pytest.mark.slow
def test_what_a_process_adds_is_what_is_left_of_a_job_s_time() -> None:
    (cold, first), (warm, second) = script_overhead.measure(0.2, 2)
    assert cold > first >= 0.2
    assert warm > second >= 0.2
