"""A decided study goes on: with checks of its winner, an audit, or with more fresh seeds, once.

Seeds are for the finalists that are not `better`; checks and an audit change no verdict, whenever
they come.

What was called better or dropped stays so. The others are judged anew by a plan of more seeds,
which begins with those that they have. Each of the two confirmations spends its level, so that what
the first left of it is spent twice: docs/evidence.md has what that comes to.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from optimizer.config import changes
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError
from optimizer.phases import audit
from storage import studies
from storage.states import Phase
from storage.studies import Study

SEEDS = "confirm.seeds"
CHECKS = {"confirm.rates", "confirm.arms"}
AUDIT = "audit"


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
        raise UsageError(
            f"study {study.name} {obstacle} extended; choose another "
            "name, and another search.seed for other seeds"
        )
    was: dict[str, Any] = {"seeds": study.config["confirm"]["seeds"], "verdicts": verdicts}
    config = asked.document()  # what the study knew nothing of is not asked for by a default
    config["confirm"] = {**study.config["confirm"], "seeds": asked.confirm.seeds}
    return _got(studies.reopen(engine, study.id, config, {"extended": was}), config)


def checks_are_asked_for(study: Study, stored: StudyConfig, asked: StudyConfig) -> bool:
    """Tell whether a config differs from its study's in checks of the winner or an audit alone.

    They have to be written there, and a study is audited once. Of a study of a version without the
    rate check, any word for it differs.
    """
    keys = _changed(stored, asked)
    written = {f"confirm.{key}" for key in asked.confirm.model_fields_set}
    if "rates" not in study.config.get("confirm", {}):
        keys |= {"confirm.rates"} & written
    if stored.audit is None:
        written.add(AUDIT)
    return bool(keys) and keys <= (CHECKS | {AUDIT}) & written


def check(
    engine: Engine,
    study: Study,
    stored: StudyConfig,
    asked: StudyConfig,
    facts: Callable[[], Mapping[str, Any]],
) -> Study:
    """Reopen a decided study for checks of its winner or an audit; return it as it is then.

    facts: computes what a new study keeps; what an audit needs of it is added.

    Its verdicts stand, and so does what has been checked. UsageError if it is not finished, or has
    no finalists.
    """
    if study.state != "finished" or not study.verdicts:
        why = "has no finalists" if study.state == "finished" else f"is {study.state}"
        raise UsageError(
            f"study {study.name} {why}, and only the winner of a finished one can get other checks "
            f"(confirm.rates, confirm.arms) or an audit; to go on as it is: densitune resume "
            f"{study.name}"
        )
    new = {audit.NORMALISED, "code"} if _changed(stored, asked) & {AUDIT} else set()
    known = {key: value for key, value in (facts() if new else {}).items() if key in new}
    config = asked.document()
    phase: Phase = "audit" if _changed(stored, asked) == {AUDIT} else "check"
    return _got(studies.look_again(engine, study.id, config, known, phase), config)


def _got(study: Study, config: dict[str, Any]) -> Study:
    """Return a study that has the config which it was reopened with; UsageError if it has not.

    Another process may have reopened it for something else at the same moment.
    """
    if study.config != config:
        told = "; ".join(changes.between(study.config, config))
        raise UsageError(
            f"study {study.name} was reopened for something else at the same moment ({told}); to "
            f"go on with that: densitune resume {study.name}"
        )
    return study


def _changed(stored: StudyConfig, asked: StudyConfig) -> set[str]:
    """Return the keys that differ; all of an audit are one."""
    lines = changes.between(stored.document(), asked.document())
    keys = {line.partition(":")[0] for line in lines}
    return {AUDIT if key.startswith(f"{AUDIT}.") else key for key in keys}
