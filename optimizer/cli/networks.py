"""A study's networks on this machine: its own, and the larger one of its audit if there is one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimizer.arms import Precision
from optimizer.config.study_file import StudyConfig

if TYPE_CHECKING:  # torch takes seconds to load
    from workers.entries import Entry
    from workers.preparation import Bench, Prepared
    from workers.scripts.stage import Stage


def code(config: StudyConfig) -> dict[str, str]:
    """Return which code names stand for here, as workers.preparation does for one network."""
    from workers import preparation

    return {name: here for one in _each(config) for name, here in preparation.code(one).items()}


def tried(config: StudyConfig, prepared: "Prepared | Entry") -> list[str]:
    """Try each network on the study's data; return lines for people.

    UsageError if one cannot be trained.
    """
    from workers import preparation

    return [line for one in _each(config) for line in preparation.try_network(one, prepared)]


def facts(config: StudyConfig, prepared: "Prepared | Entry") -> dict[str, Any]:
    """Return what a study keeps from the beginning, and of its audit's network."""
    from workers import preparation
    from workers.entries import Entry

    kept = preparation.facts(config, prepared)
    if config.audit is None or isinstance(prepared, Entry):
        return kept
    normalised = preparation.uniform_is_identity(config.audited, prepared)
    return {**kept, "code": code(config), "audit_uniform_is_identity": normalised}


def benches(
    config: StudyConfig,
    prepared: "Prepared | Entry",
    precision: Precision,
    device: str,
    floors: Mapping[str, float],
) -> "tuple[Bench | Stage, Bench | None]":
    """Return what jobs are trained with on a device, and what those of an audit are.

    The data are on the device once.
    """
    from workers import preparation
    from workers.entries import Entry
    from workers.preparation import Bench
    from workers.training import devices

    own = preparation.bench(config, prepared, precision, devices.resolve(device), floors)
    if config.audit is None or isinstance(prepared, Entry) or not isinstance(own, Bench):
        return own, None
    return own, replace(own, recipe=preparation.recipe(config.audited, prepared, precision))


def _each(config: StudyConfig) -> list[StudyConfig]:
    return [config] if config.audit is None else [config, config.audited]
