"""Whether identity is a healthy baseline: above what takes no network or no training."""

import math
from collections.abc import Mapping

from optimizer.config.study_file import StudyConfig
from storage.studies import Study

ENOUGH_STEPS = 200
"""With which small proxies are above linear ones on a few hundred images (docs/decisions.md)."""
MOST_EPOCHS = 10_000
"""That a config may have."""


def floors(study: Study, config: StudyConfig) -> dict[str, float]:
    """Return the metric of what needs no deep network, by name.

    A study from before there were several has one, and one made by hand may have none.
    """
    provenance = study.provenance
    if "floors" not in provenance and "floor" in provenance:
        return {config.floor_name: float(provenance["floor"])}
    return {name: float(value) for name, value in provenance.get("floors", {}).items()}


def complaint(
    config: StudyConfig,
    floors: Mapping[str, float],
    identity: float,
    confirmed: float | None = None,
) -> str | None:
    """Return what is wrong with identity's score, against the highest floor; None if nothing.

    identity: in the search. confirmed: with fresh seeds, once a study is decided.
    """
    name, floor = max(floors.items(), key=lambda item: item[1], default=("", float("-inf")))
    for said, value in (("Identity", identity), ("Identity with fresh seeds", confirmed)):
        if value is not None and not value > floor:
            return (
                f"{said} ({value:.3f} {config.unit}) is not above the {name} ({floor:.3f} "
                f"{config.unit}): the proxy has not learnt its task, and differences to it mean "
                f"little. Train longer or with another learning rate."
            )
    return None


def failure(study: Study, config: StudyConfig, identity: float) -> str | None:
    """Return why a study stops because of identity's score, and what to try; None if healthy."""
    wrong = complaint(config, floors(study, config), identity)
    return wrong and (
        f"{wrong} {_advice(study, config)} in the config, then: densitune launch CONFIG --again. "
        f"To go on all the same: densitune resume {config.name} --force"
    )


def _advice(study: Study, config: StudyConfig) -> str:
    """Return how long identity was trained, and numbers to try."""
    budget, batch_size = config.training.budget, config.training.batch_size
    steps: int | None = study.provenance.get("steps_per_epoch")
    if steps is None:  # of a study from before it was counted
        return f"Try training.budget {2 * budget}"
    longer = min(max(2 * budget, math.ceil(ENOUGH_STEPS / steps)), MOST_EPOCHS)
    smaller = f" or training.batch_size {batch_size // 4}" if batch_size >= 32 else ""
    per_epoch = "1 step" if steps == 1 else f"{steps} steps"
    return (
        f"It has {per_epoch} per epoch, {steps * budget} in all; try training.budget "
        f"{longer}{smaller}"
    )
