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

from optimizer import arms
from optimizer.arms import Arm
from optimizer.evidence import differences, finalists, sequential_test
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.sequential_test import Interval, Plan
from optimizer.evidence.verdicts import Comparison, FinalistVerdict, PairedDifference, by_text
from optimizer.phases import holdout, learned
from optimizer.phases.desk import Desk
from storage import studies
from storage.states import Role
from storage.studies import Study
from storage.trials import TrialRow

Values = Mapping[int, Mapping[int, float]]
"""The metric after the full budget, by trial and seed."""
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
    def obstacle(self) -> str | None:
        """Return why the finalist cannot be judged: an arm of the comparison failed."""
        for arm in (self.finalist, self.control):
            if arm is not None and arm.failed:
                return f"{arm.label} could not be trained with every fresh seed: {arm.failure}"
        return None


def step(desk: Desk) -> bool:
    """Take the next step if there is one now: learn, begin, or judge a batch that has ended."""
    trained = desk.trials("confirm")
    if not trained and desk.config.confirm.trainable:
        learned.queue(desk)
        return True
    if desk.waits_for(trained):
        return False
    if all(arm.role == "trainable" for arm in trained):
        _begin(desk, trained)
        return True
    if trained[IDENTITY].failed:
        error = trained[IDENTITY].error_text
        desk.halt(f"identity could not be trained with every fresh seed: {error}")
        return False
    _judge(desk, trained)
    return True


def groups(trained: Sequence[TrialRow]) -> list[Group]:
    """Return the arms of a confirmation by finalist, in the order in which they were chosen."""
    of = {(arm.origin, arm.role): arm for arm in trained}
    return [
        Group(arm, of.get((arm.origin, "control")), of.get((arm.origin, "compensated")))
        for arm in trained
        if arm.role == "finalist"
    ]


def _begin(desk: Desk, trained: Sequence[TrialRow]) -> None:
    """Choose the finalists and queue the first batch; without finalists there are no verdicts.

    `trained` is the trainable arm, if there is one.
    """
    chosen = _chosen(desk, trained)
    for done in trained:
        desk.close(done)
    if not chosen:
        _decide(desk, [])
        return
    lr = desk.study.lr
    plain = arms.identity(desk.config.kernel_size, lr)
    _add(desk, IDENTITY, "identity", "identity", plain)
    number = IDENTITY + len(trained)
    for finalist in chosen:
        for role, label, arm in _arms(desk, finalist):
            number += 1
            _add(desk, number, role, label, arm, finalist.number)


def _chosen(desk: Desk, trained: Sequence[TrialRow]) -> list[TrialResult]:
    """Return the search's finalists, and what was learned unless it is practically one of them."""
    config = desk.config
    results = differences.results(desk.trials("search"), desk.measured("search"))
    by_number = {result.number: result for result in results}
    chosen = [by_number[number] for number in finalists.choose(results, config)]
    one_more = learned.result(config, trained, desk.measured("confirm"), by_number[IDENTITY])
    others = [by_number[IDENTITY], *chosen]
    if one_more is not None and not any(
        finalists.alike(one_more.densities, other.densities, config) for other in others
    ):
        chosen.append(one_more)
    return chosen


def _arms(desk: Desk, finalist: TrialResult) -> Iterator[tuple[Role, str, Arm]]:
    densities, label = finalist.densities, finalist.label
    lr, init = desk.study.lr, desk.config.init
    yield "finalist", label, Arm(densities, lr, init)
    if init == "library":
        yield "control", f"scale control of {label}", arms.scale_control(densities, lr)
        yield "compensated", f"{label}, compensated", arms.compensated(densities, lr)


def _add(
    desk: Desk, number: int, role: Role, label: str, arm: Arm, origin: int | None = None
) -> None:
    seeds = desk.config.fresh_seeds[: desk.config.confirm.batch]
    budget = desk.config.confirm_budget
    desk.add(number, role, label, arm, seeds=seeds, budget=budget, origin=origin)


def _judge(desk: Desk, trained: Sequence[TrialRow]) -> None:
    """Close the finalists that have a verdict; queue a batch for the others, or decide."""
    values = differences.final_values(desk.measured("confirm"))
    compared = groups(trained)
    confirm = desk.config.confirm
    plan = Plan(confirm.seeds, confirm.batch, finalists=len(compared))
    settled = _settled(desk.study)
    # A finalist that was judged before is judged as then: its arms have had no seed since.
    judged = [
        (group, settled.get(group.finalist.origin) or _verdict(group, values, plan))
        for group in compared
    ]
    open_groups = [group for group, verdict in judged if verdict is None]
    going_on = [arm for group in open_groups for arm in group.arms]
    if open_groups:
        _queue_batch(desk, trained[IDENTITY], open_groups)
        going_on.append(trained[IDENTITY])
    else:
        _decide(desk, [verdict for _, verdict in judged if verdict is not None])
    for arm in trained:
        if arm not in going_on and arm.state == "running":
            desk.close(arm)
        elif arm in going_on and arm.state != "running":
            desk.finish(arm, "running", arm.error_text)


def _settled(study: Study) -> dict[int | None, FinalistVerdict]:
    """Return by trial what an extended study has called better before."""
    stored = study.provenance.get("extended", {}).get("verdicts", [])
    verdicts = [FinalistVerdict.model_validate(verdict) for verdict in stored]
    return {verdict.trial: verdict for verdict in verdicts if verdict.verdict == "better"}


def _queue_batch(desk: Desk, identity: TrialRow, open_groups: Sequence[Group]) -> None:
    """Queue the next batch of seeds for the arms of these groups, and identity where it lacks them.

    In an extended study the groups may have ended with different numbers of seeds.
    """
    fresh, budget, most = desk.config.fresh_seeds, desk.config.confirm_budget, 0
    for group in open_groups:
        done = group.finalist.jobs
        seeds = fresh[done : done + desk.config.confirm.batch]
        most = max(most, done + len(seeds))
        for arm in group.arms:
            if not arm.failed:
                desk.train_on(arm, seeds, budget)
    desk.train_on(identity, fresh[identity.jobs : most], budget)


def _decide(desk: Desk, verdicts: Sequence[FinalistVerdict]) -> None:
    """Store the verdicts; the study ends with them unless the test split is still to be read."""
    stored = [verdict.model_dump() for verdict in verdicts]
    studies.decide(desk.connection, desk.study.id, stored)
    if desk.study.holdout is not None or not holdout.is_due(desk.config, verdicts):
        studies.finish(desk.connection, desk.study.id)


def _verdict(group: Group, values: Values, plan: Plan) -> FinalistVerdict | None:
    """Return the verdict on a finalist after whole batches, None if it takes more of them."""
    finalist, control = group.finalist, group.control
    assert finalist.origin is not None  # as all finalists
    densities = {str(k): list(den) for k, den in finalist.densities.items()}
    if group.obstacle is not None:
        return FinalistVerdict(
            trial=finalist.origin,
            label=finalist.label,
            densities=densities,
            verdict="no_evidence",
            reason=group.obstacle,
        )
    own = values[finalist.number]
    to_identity = differences.paired(own, values[IDENTITY]).by_seed
    to_control = (
        None if control is None else differences.paired(own, values[control.number]).by_seed
    )
    finding = sequential_test.judge(to_identity, to_control, plan)
    if finding.verdict is None:
        return None
    return FinalistVerdict(
        trial=finalist.origin,
        label=finalist.label,
        densities=densities,
        verdict=finding.verdict,
        to_identity=_comparison(finding.to_identity, to_identity),
        to_control=_comparison(finding.to_control, to_control),
        compensated=_compensated(group.compensated, values),
        seeds_to_settle=finding.seeds_to_settle,
    )


def _comparison(
    interval: Interval | None, by_seed: Mapping[int, float] | None
) -> Comparison | None:
    if interval is None or by_seed is None:
        return None
    return Comparison(
        mean=interval.mean, low=interval.low, high=interval.high, by_seed=by_text(by_seed)
    )


def _compensated(arm: TrialRow | None, values: Values) -> PairedDifference | None:
    """Return the compensated arm minus identity; None without one, or if it failed."""
    if arm is None or arm.failed:
        return None
    return PairedDifference.of(differences.paired(values[arm.number], values[IDENTITY]))
