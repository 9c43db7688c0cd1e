"""A decided study goes on: more fresh seeds for the finalists that are not `better`, once.

What was called better or dropped stays so. The others are judged anew by a plan of more seeds,
which begins with those that they have. Each of the two confirmations spends its level, so that what
the first left of it is spent twice: docs/evidence.md has what that comes to.
"""

from typing import Any

from sqlalchemy import Engine

from optimizer.config import changes
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from storage import studies
from storage.studies import Study

SEEDS = "confirm.seeds"


def is_asked_for(stored: StudyConfig, asked: StudyConfig) -> bool:
    """Tell whether a config differs from its study's in more seeds of the confirmation alone.

    They have to be written there: a default that rose between two versions asks for nothing.
    """
    changed = changes.between(stored.document(), asked.document())
    written = "seeds" in asked.confirm.model_fields_set
    more = written and asked.confirm.seeds > stored.confirm.seeds
    return more and [line.partition(":")[0] for line in changed] == [SEEDS]


def seeds_before(study: Study) -> int | None:
    """Return the seeds of the first of two confirmations; None if the study was not extended."""
    seeds: int | None = study.provenance.get("extended", {}).get("seeds")
    return seeds


def extend(engine: Engine, study: Study, asked: StudyConfig) -> Study:
    """Reopen the confirmation of a decided study; return the study as it is then.

    UsageError if it is not decided yet, has no finalists, was extended before, or none of them is
    open.
    """
    verdicts = study.verdicts or []
    obstacle = None
    if study.state != "finished":
        obstacle = f"is {study.state} at phase {study.phase}, and only a finished one can be"
    elif not verdicts:
        obstacle = "has no finalists, and so nothing to be"
    elif "extended" in study.provenance:
        obstacle = "was extended once, and a second time would spend the level again; it cannot be"
    elif all(one["verdict"] in ("better", "dropped") for one in verdicts):
        obstacle = "has nothing open: every finalist is better or was dropped; it need not be"
    if obstacle is not None:
        raise UsageError(f"study {study.name} {obstacle} extended; choose another name")
    was: dict[str, Any] = {"seeds": study.config["confirm"]["seeds"], "verdicts": verdicts}
    return studies.reopen(engine, study.id, asked.document(), {"extended": was})
