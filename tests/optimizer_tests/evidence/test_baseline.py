"""What a study says that stops because identity learns too little."""

import pytest
from support.synthetic import configured, snapshot

from optimizer.evidence import baseline


@pytest.mark.parametrize(
    ("steps", "budget", "batch_size", "advice"),
    [
        (
            5,
            8,
            64,
            "5 steps per epoch, 40 in all; try training.budget 40 or training.batch_size 16",
        ),
        (1, 8, 16, "1 step per epoch, 8 in all; try training.budget 200 in the config"),
        (500, 8, 128, "500 steps per epoch, 4000 in all; try training.budget 16 or "),
        (1, 9_000, 16, "1 step per epoch, 9000 in all; try training.budget 10000 in the config"),
        (None, 8, 64, "Try training.budget 16 in the config"),
    ],
)
def test_a_weak_identity_is_told_with_numbers_to_try(
    steps: int | None, budget: int, batch_size: int, advice: str
) -> None:
    given = configured(training={"budget": budget, "batch_size": batch_size}, search={"rungs": []})
    provenance = {"floors": {"noisy input": 20.0, "linear 3 x 3 filter": 25.0}}
    kept = provenance | ({} if steps is None else {"steps_per_epoch": steps})
    study = snapshot([], [], given=given, provenance=kept).study
    said = baseline.failure(study, given, 24.5)
    assert said is not None
    assert said.startswith("Identity (24.500 dB) is not above the linear 3 x 3 filter (25.000 dB)")
    assert advice in said
    assert "densitune launch CONFIG --again" in said
    assert said.endswith(f"densitune resume {given.name} --force")
    assert baseline.failure(study, given, 25.5) is None
