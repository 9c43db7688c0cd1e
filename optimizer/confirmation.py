"""The third phase: finalists with fresh seeds and a longer budget, beside identity and controls.

All arms of open finalists, and identity, are trained with the same batch of seeds; when the whole
batch has ended, every open finalist is judged (optimizer.evidence) and the others get the next
one. So what is trained depends on the ledger alone. A finalist's arms are:

finalist     its densities, trained as the search did
control      identity with initial weights multiplied by RMS(phi) of the finalist: its scale control
compensated  its densities at identity's initial scale; it informs and has no part in the verdict

With `init: compensated` the finalist starts at identity's scale, and identity is its control.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from optimizer import density, evidence, finalists, results
from optimizer.config import StudyConfig
from optimizer.density import Densities
from optimizer.evidence import Interval, Plan
from optimizer.results import TrialResult
from optimizer.verdicts import Comparison, FinalistVerdict, PairedDifference
from storage import jobs, ledger, studies, trials
from storage.arms import Arm
from storage.studies import Study
from storage.trials import Role, TrialRow

Values = Mapping[int, Mapping[int, float]]
"""The metric after the full budget, by arm and seed."""
IDENTITY = 0


@dataclass(frozen=True)
class Group:
    """A finalist and the arms that belong to it."""

    finalist: TrialRow
    control: TrialRow | None
    compensated: TrialRow | None

    @property
    def arms(self) -> list[TrialRow]:
        """Return all arms of the group."""
        return [arm for arm in (self.finalist, self.control, self.compensated) if arm is not None]

    @property
    def error(self) -> str | None:
        """Return why the finalist cannot be judged: an arm of the comparison failed."""
        for arm in (self.finalist, self.control):
            if arm is not None and arm.error is not None:
                return f"{arm.label} could not be trained with every fresh seed: {arm.failure}"
        return None


def step(connection: Connection, study: Study, config: StudyConfig) -> bool:
    """Take the next step if there is one now: begin, or judge a batch that has ended."""
    arms = trials.all_of(connection, study.id, "confirm")
    if not arms:
        _begin(connection, study, config)
        return True
    if any(arm.waiting or arm.running for arm in arms):
        jobs.fail_lost(connection, study.id)
        return False
    if arms[IDENTITY].error is not None:
        reason = f"identity could not be trained with every fresh seed: {arms[IDENTITY].error}"
        studies.halt(connection, study.id, reason)
        return False
    _judge(connection, study, config, arms)
    return True


def groups(arms: Sequence[TrialRow]) -> list[Group]:
    """Return the arms of a confirmation by finalist, in the order in which they were chosen."""
    of = {(arm.origin, arm.role): arm for arm in arms}
    return [
        Group(arm, of.get((arm.origin, "control")), of.get((arm.origin, "compensated")))
        for arm in arms
        if arm.role == "finalist"
    ]


def _begin(connection: Connection, study: Study, config: StudyConfig) -> None:
    """Choose the finalists and queue the first batch; without finalists there are no verdicts."""
    rows = ledger.read(connection, study.id)
    found = results.results(trials.all_of(connection, study.id), rows)
    by_number = {result.number: result for result in found}
    chosen = [by_number[number] for number in finalists.choose(found, config)]
    if not chosen:
        studies.decide(connection, study.id, [])
        return
    plain = {k: density.identity(k) for k in config.kernel_size}
    _add(connection, study, config, IDENTITY, ("identity", "identity", plain, Arm(lr=study.lr)))
    number = IDENTITY
    for finalist in chosen:
        for arm in _arms(config, study.lr, finalist):
            number += 1
            _add(connection, study, config, number, arm, finalist.number)


def _arms(
    config: StudyConfig, lr: float | None, finalist: TrialResult
) -> Iterator[tuple[Role, str, Densities, Arm]]:
    densities, label = finalist.densities, finalist.label
    yield "finalist", label, densities, Arm(lr=lr, init=config.init)
    if config.init == "library":
        plain = {k: density.identity(k) for k in densities}
        gain = {k: density.rms(den) for k, den in densities.items()}
        yield "control", f"scale control of {label}", plain, Arm(lr=lr, gain=gain)
        yield "compensated", f"{label}, compensated", densities, Arm(lr=lr, init="compensated")


def _add(
    connection: Connection,
    study: Study,
    config: StudyConfig,
    number: int,
    described: tuple[Role, str, Densities, Arm],
    origin: int | None = None,
) -> None:
    role, label, densities, arm = described
    trials.add(
        connection,
        study.id,
        number=number,
        origin=origin,
        role=role,
        label=label,
        densities=densities,
        seeds=config.fresh_seeds[: config.confirm.batch],
        budget=config.confirm_budget,
        arm=arm,
        phase="confirm",
    )


def _judge(
    connection: Connection, study: Study, config: StudyConfig, arms: Sequence[TrialRow]
) -> None:
    """Close the finalists that have a verdict; queue a batch for the others, or decide."""
    values = results.final_values(ledger.read(connection, study.id, "confirm"))
    found = groups(arms)
    plan = Plan(config.confirm.seeds, config.confirm.batch, finalists=len(found))
    # A finalist that was judged before is judged as then: its arms have had no seed since.
    judged = [(group, _verdict(group, values, plan)) for group in found]
    open_groups = [group for group, verdict in judged if verdict is None]
    going_on = [arms[IDENTITY], *(arm for group in open_groups for arm in group.arms)]
    if open_groups:
        done = arms[IDENTITY].jobs
        seeds = config.fresh_seeds[done : done + plan.batch]
        for arm in going_on:
            if arm.error is None:
                budget = config.confirm_budget
                jobs.enqueue(connection, study.id, arm.number, seeds, budget, phase="confirm")
    else:
        stored = [verdict.model_dump() for _, verdict in judged if verdict is not None]
        studies.decide(connection, study.id, stored)
        going_on = []
    for arm in arms:
        if arm.state == "running" and arm not in going_on:
            state: trials.State = "complete" if arm.error is None else "failed"
            trials.finish(connection, study.id, arm.number, state, arm.error, "confirm")


def _verdict(group: Group, values: Values, plan: Plan) -> FinalistVerdict | None:
    """Return the verdict on a finalist after whole batches, None if it takes more of them."""
    finalist, control = group.finalist, group.control
    assert finalist.origin is not None  # as all finalists
    densities = {str(k): list(den) for k, den in finalist.densities.items()}
    if group.error is not None:
        return FinalistVerdict(
            trial=finalist.origin,
            label=finalist.label,
            densities=densities,
            verdict="no_evidence",
            reason=group.error,
        )
    own = values[finalist.number]
    to_identity = results.paired(own, values[IDENTITY]).by_seed
    to_control = None if control is None else results.paired(own, values[control.number]).by_seed
    found = evidence.judge(to_identity, to_control, plan)
    if found.verdict is None:
        return None
    return FinalistVerdict(
        trial=finalist.origin,
        label=finalist.label,
        densities=densities,
        verdict=found.verdict,
        to_identity=_comparison(found.to_identity, to_identity),
        to_control=_comparison(found.to_control, to_control),
        compensated=_compensated(group.compensated, values),
        seeds_to_settle=found.seeds_to_settle,
    )


def _comparison(
    interval: Interval | None, by_seed: Mapping[int, float] | None
) -> Comparison | None:
    if interval is None or by_seed is None:
        return None
    return Comparison(
        mean=interval.mean, low=interval.low, high=interval.high, by_seed=_by_text(by_seed)
    )


def _compensated(arm: TrialRow | None, values: Values) -> PairedDifference | None:
    """Return the compensated arm minus identity; None without one, or if it failed."""
    if arm is None or arm.error is not None:
        return None
    found = results.paired(values[arm.number], values[IDENTITY])
    return PairedDifference(
        mean=found.mean, standard_error=found.standard_error, by_seed=_by_text(found.by_seed)
    )


def _by_text(by_seed: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in by_seed.items()}
