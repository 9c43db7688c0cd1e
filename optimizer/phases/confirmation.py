"""The third phase: finalists with fresh seeds and a longer budget, beside identity and controls.

All arms of open finalists, and identity, are trained with the same batch of seeds; when the whole
batch has ended, every open finalist is judged (optimizer.evidence.sequential_test) and the others
get the next one. So what is trained depends on the ledger alone. A finalist's arms are:

finalist     its densities, trained as the search did
control      identity with initial weights multiplied by RMS(phi) of the finalist: its scale control
compensated  its densities at identity's initial scale; it informs and has no part in the verdict

With `init: compensated` the finalist starts at identity's scale, and identity is its control. With
`confirm.trainable` one more finalist has been learned before (optimizer.phases.learned).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from densitune import density
from densitune.density import Densities
from optimizer.config.study_file import StudyConfig
from optimizer.evidence import differences, finalists, sequential_test
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.sequential_test import Interval, Plan
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, PairedDifference
from optimizer.phases import holdout, learned
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
    """Take the next step if there is one now: learn, begin, or judge a batch that has ended."""
    arms = trials.all_of(connection, study.id, "confirm")
    if not arms and config.confirm.trainable:
        learned.queue(connection, study, config)
        return True
    if any(arm.waiting or arm.running for arm in arms):
        jobs.fail_lost(connection, study.id)
        return False
    if all(arm.role == "trainable" for arm in arms):
        _begin(connection, study, config, arms)
        return True
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


def _begin(
    connection: Connection, study: Study, config: StudyConfig, trained: Sequence[TrialRow]
) -> None:
    """Choose the finalists and queue the first batch; without finalists there are no verdicts.

    `trained` is the trainable arm, if there is one.
    """
    chosen = _chosen(connection, study, config, trained)
    for done in trained:
        state: trials.State = "complete" if done.error is None else "failed"
        trials.finish(connection, study.id, done.number, state, done.error, "confirm")
    if not chosen:
        _decide(connection, study, config, [])
        return
    plain = {k: density.identity(k) for k in config.kernel_size}
    _add(connection, study, config, IDENTITY, ("identity", "identity", plain, Arm(lr=study.lr)))
    number = IDENTITY + len(trained)
    for finalist in chosen:
        for arm in _arms(config, study.lr, finalist):
            number += 1
            _add(connection, study, config, number, arm, finalist.number)


def _chosen(
    connection: Connection, study: Study, config: StudyConfig, trained: Sequence[TrialRow]
) -> list[TrialResult]:
    """Return the search's finalists, and what was learned unless it is practically one of them."""
    rows = ledger.read(connection, study.id)
    found = differences.results(trials.all_of(connection, study.id), rows)
    by_number = {result.number: result for result in found}
    chosen = [by_number[number] for number in finalists.choose(found, config)]
    confirmed = ledger.read(connection, study.id, "confirm")
    one_more = learned.result(config, trained, confirmed, by_number[IDENTITY])
    known = [by_number[IDENTITY], *chosen]
    if one_more is not None and not any(
        finalists.alike(one_more.densities, other.densities, config) for other in known
    ):
        chosen.append(one_more)
    return chosen


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
    values = differences.final_values(ledger.read(connection, study.id, "confirm"))
    found = groups(arms)
    plan = Plan(config.confirm.seeds, config.confirm.batch, finalists=len(found))
    settled = _settled(study)
    # A finalist that was judged before is judged as then: its arms have had no seed since.
    judged = [
        (group, settled.get(group.finalist.origin) or _verdict(group, values, plan))
        for group in found
    ]
    open_groups = [group for group, verdict in judged if verdict is None]
    if open_groups:
        _queue_batch(connection, study, config, arms[IDENTITY], open_groups)
    else:
        _decide(connection, study, config, [one for _, one in judged if one is not None])
    going_on = [arm for group in open_groups for arm in group.arms]
    if open_groups:
        going_on.append(arms[IDENTITY])
    for arm in arms:
        state: trials.State = "complete" if arm.error is None else "failed"
        state = "running" if arm in going_on else state
        if state != arm.state:
            trials.finish(connection, study.id, arm.number, state, arm.error, "confirm")


def _settled(study: Study) -> dict[int | None, FinalistVerdict]:
    """Return by trial what an extended study has called better before."""
    verdicts = study.provenance.get("extended", {}).get("verdicts", [])
    known = [FinalistVerdict.model_validate(one) for one in verdicts]
    return {one.trial: one for one in known if one.verdict == "better"}


def _queue_batch(
    connection: Connection,
    study: Study,
    config: StudyConfig,
    identity: TrialRow,
    open_groups: Sequence[Group],
) -> None:
    """Queue the next batch of seeds for the arms of these groups, and identity where it lacks them.

    In an extended study the groups may have ended with different numbers of seeds.
    """
    most = 0
    for group in open_groups:
        done = group.finalist.jobs
        seeds = config.fresh_seeds[done : done + config.confirm.batch]
        most = max(most, done + len(seeds))
        for arm in group.arms:
            if arm.error is None:
                _enqueue(connection, study, config, arm, seeds)
    _enqueue(connection, study, config, identity, config.fresh_seeds[identity.jobs : most])


def _enqueue(
    connection: Connection,
    study: Study,
    config: StudyConfig,
    arm: TrialRow,
    seeds: Sequence[int],
) -> None:
    jobs.enqueue(connection, study.id, arm.number, seeds, config.confirm_budget, phase="confirm")


def _decide(
    connection: Connection,
    study: Study,
    config: StudyConfig,
    verdicts: Sequence[FinalistVerdict],
) -> None:
    """Store the verdicts; the study ends with them unless the test split is still to be read."""
    studies.decide(connection, study.id, [verdict.model_dump() for verdict in verdicts])
    if study.holdout is not None or not holdout.is_due(config, verdicts):
        studies.finish(connection, study.id)


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
    to_identity = differences.paired(own, values[IDENTITY]).by_seed
    to_control = (
        None if control is None else differences.paired(own, values[control.number]).by_seed
    )
    found = sequential_test.judge(to_identity, to_control, plan)
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
    found = differences.paired(values[arm.number], values[IDENTITY])
    return PairedDifference(
        mean=found.mean, standard_error=found.standard_error, by_seed=_by_text(found.by_seed)
    )


def _by_text(by_seed: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in by_seed.items()}
