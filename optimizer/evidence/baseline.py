"""Whether identity is a healthy baseline: above what takes no network or no training."""

from collections.abc import Mapping

from optimizer.config.study_file import StudyConfig
from storage.studies import Study


def floors(study: Study, config: StudyConfig) -> dict[str, float]:
    """Return the metric of what needs no deep network, by name.

    A study from before there were several has one, and one made by hand may have none.
    """
    provenance = study.provenance
    if "floors" not in provenance and "floor" in provenance:
        return {config.floor_name: float(provenance["floor"])}
    return {name: float(value) for name, value in provenance.get("floors", {}).items()}


def complaint(config: StudyConfig, floors: Mapping[str, float], identity: float) -> str | None:
    """Return what is wrong with identity's score, against the highest floor; None if nothing."""
    name, floor = max(floors.items(), key=lambda item: item[1], default=("", float("-inf")))
    if identity > floor:
        return None
    return (
        f"Identity ({identity:.3f} {config.unit}) is not above the {name} ({floor:.3f} "
        f"{config.unit}): the proxy has not learnt its task, and differences to it mean little. "
        f"Train longer or with another learning rate."
    )


def failure(config: StudyConfig, floors: Mapping[str, float], identity: float) -> str | None:
    """Return why a study stops because of identity's score; None if it is healthy."""
    wrong = complaint(config, floors, identity)
    return wrong and f"{wrong} To go on all the same: densitune resume {config.name} --force"
