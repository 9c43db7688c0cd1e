"""The third phase: finalists with fresh seeds and a longer budget, beside identity and controls.

Open finalists and identity are trained with the same batch of seeds; when the whole batch has
ended, every open finalist is judged (optimizer.evidence.sequential_test). One that is shown to be
above identity gets its controls, with the seeds that it has, and is judged again: before that
nothing is read from them (optimizer.phases.comparisons). Of those that are still open the best go
on (optimizer.evidence.race) with the next batch. So what is trained depends on the ledger alone.

With `confirm.trainable` one more finalist has been learned before (optimizer.phases.learned).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optimizer import arms
from optimizer.arms import Arm
from optimizer.evidence import advice, differences, finalists, images, race, ranking
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.sequential_test import Finding, Plan
from optimizer.evidence.verdicts import FinalistVerdict, best, of_study
from optimizer.phases import checks, comparisons, holdout, learned
from optimizer.phases.comparisons import IDENTITY, Group
from optimizer.phases.desk import Desk
from optimizer.phases.optuna_study import DensityStudy
from storage import studies
from storage.states import Role
from storage.studies import Study
from storage.trials import TrialRow


def step(desk: Desk, optuna: DensityStudy | None) -> bool:
    """Take the next step if there is one now: learn, begin, or judge a batch that has ended."""
    trained = desk.trials("confirm")
    if not trained and desk.config.confirm.trainable:
        learned.queue(desk)
        return True
    if desk.waits_for(trained):
        return False
    if all(arm.role == "trainable" for arm in trained):
        _begin(desk, optuna, trained)
        return True
    if trained[IDENTITY].failed:
        error = trained[IDENTITY].error_text
        desk.halt(f"identity could not be trained with every fresh seed: {error}")
        return False
    _judge(desk, optuna, trained)
    return True


def _begin(desk: Desk, optuna: DensityStudy | None, trained: Sequence[TrialRow]) -> None:
    """Choose the finalists and queue the first batch; without finalists there are no verdicts.

    `trained` is the trainable arm, if there is one.
    """
    chosen = _chosen(desk, trained)
    rows = desk.measured("confirm")
    for done in trained:
        if done.failed or learned.densities(desk.config, done, rows) is not None:
            desk.close(done)
        else:
            desk.finish(done, "failed", "a worker did not tell what was learned")
    if not chosen:
        _decide(desk, optuna, [])
        return
    lr, plain = (
        desk.study.lr,
        arms.identity(desk.config.kernel_size, desk.study.lr, desk.config.init),
    )
    _add(desk, IDENTITY, "identity", "identity", plain)
    for number, finalist in enumerate(chosen, start=IDENTITY + len(trained) + 1):
        arm = Arm(finalist.densities, lr, desk.config.init)
        _add(desk, number, "finalist", finalist.label, arm, finalist.number)


def _chosen(desk: Desk, trained: Sequence[TrialRow]) -> list[TrialResult]:
    """Return the search's finalists, and what was learned unless it is practically one of them."""
    config = desk.config
    searched, by = desk.measured("search"), ranking.of(desk.study)
    results = differences.results(desk.trials("search"), searched, by)
    by_number = {result.number: result for result in results}
    chosen = [by_number[number] for number in finalists.choose(results, config)]
    one_more = learned.result(config, trained, desk.measured("confirm"), by_number[IDENTITY])
    others = [by_number[IDENTITY], *chosen]
    if one_more is not None and not any(
        finalists.alike(one_more.densities, other.densities, config) for other in others
    ):
        chosen.append(one_more)
    return chosen


def _add(
    desk: Desk,
    number: int,
    role: Role,
    label: str,
    arm: Arm,
    origin: int | None = None,
    seeds: int | None = None,
) -> None:
    """Add an arm with so many of the fresh seeds, a batch without a number.

    Training that diverges scores the floor, so that no seed is left out (docs/evidence.md). What
    may be compared on the test split is measured there as well, for nobody to read yet.
    """
    config = desk.config
    fresh = config.fresh_seeds[: config.confirm.batch if seeds is None else seeds]
    arm = replace(arm, floored=True, per_image=True)
    if config.data.has_test and role in ("identity", "finalist"):
        arm = replace(arm, split="both")
    desk.add(number, role, label, arm, seeds=fresh, budget=config.confirm_budget, origin=origin)


def _judge(desk: Desk, optuna: DensityStudy | None, trained: Sequence[TrialRow]) -> None:
    """Take the one step that follows from what has ended: controls, more seeds, or verdicts.

    A finalist that was judged before is judged as then: its arms have had no seed since.
    """
    rows = desk.measured("confirm")
    values, lost = differences.final_values(rows), comparisons.diverged(rows)
    compared, confirm = comparisons.groups(trained), desk.config.confirm
    plan = Plan(confirm.seeds, confirm.batch, finalists=len(compared))
    asked, settled = comparisons.controls(desk.study, desk.config), _settled(desk.study)
    said: dict[int, FinalistVerdict] = {}
    undecided: list[tuple[Group, Finding]] = []
    for group in compared:
        number, obstacle = group.finalist.number, group.obstacle
        if group.finalist.origin in settled:
            said[number] = settled[group.finalist.origin]
        elif obstacle is not None:
            said[number] = comparisons.failed(group, obstacle)
        else:
            finding = comparisons.judged(group, asked, values, plan, lost)
            verdict = "dropped" if group.dropped else finding.verdict
            if verdict is None:
                undecided.append((group, finding))
            else:
                said[number] = comparisons.verdict(group, verdict, finding, values, lost)
    going_on = _race(undecided, plan, confirm.keep)
    for group, finding in undecided:
        if group not in going_on:
            number = group.finalist.number
            said[number] = comparisons.verdict(group, "dropped", finding, values, lost)
    _close(desk, trained, going_on, said)
    beaten = [group for group, finding in undecided if finding.above_identity]
    if not _train_controls(desk, len(trained), [group for group in going_on if group in beaten]):
        if going_on:
            _queue_batch(desk, trained[IDENTITY], going_on)
        else:
            _decide(desk, optuna, [said[group.finalist.number] for group in compared])


def _settled(study: Study) -> dict[int | None, FinalistVerdict]:
    """Return by trial what an extended study has called better before."""
    stored = study.provenance.get("extended", {}).get("verdicts", [])
    return {verdict.trial: verdict for verdict in of_study(stored) if verdict.verdict == "better"}


def _train_controls(desk: Desk, number: int, beaten: Sequence[Group]) -> bool:
    """Queue the seeds that the arms beside these finalists lack; tell whether there were any.

    An arm that is not there yet is added, the first with this number.
    """
    queued = False
    for group in beaten:
        there, seeds = {arm.role: arm for arm in group.arms}, group.finalist.jobs
        for role, label, arm in comparisons.beside(desk.study, desk.config, group.finalist):
            known = there.get(role)
            if known is None:
                _add(desk, number, role, label, arm, group.finalist.origin, seeds)
                number, queued = number + 1, True
            elif known.jobs < seeds and not known.failed:
                fresh = desk.config.fresh_seeds[known.jobs : seeds]
                desk.train_on(known, fresh, desk.config.confirm_budget)
                queued = True
    return queued


def _race(
    undecided: Sequence[tuple[Group, Finding]], plan: Plan, keep: Sequence[int]
) -> list[Group]:
    """Return the groups that go on, in the order in which they were chosen."""
    if not undecided:
        return []
    by_number = {group.finalist.number: finding.to_identity for group, finding in undecided}
    means = {number: difference.mean for number, difference in by_number.items()}
    looks = plan.looks.index(max(difference.seeds for difference in by_number.values())) + 1
    first = race.going_on(means, looks, keep)
    return [group for group, _ in undecided if group.finalist.number in first]


def _close(
    desk: Desk,
    trained: Sequence[TrialRow],
    going_on: Sequence[Group],
    said: Mapping[int, FinalistVerdict],
) -> None:
    """Note which arms go on and which have ended, and which finalists were dropped."""
    on = {arm.number for group in going_on for arm in group.arms}
    if going_on:
        on.add(IDENTITY)
    for arm in trained:
        verdict = said.get(arm.number)
        if arm.number in on and arm.state != "running":
            desk.finish(arm, "running", arm.error_text)
        elif arm.number not in on and arm.state == "running":
            if verdict is not None and verdict.verdict == "dropped":
                desk.finish(arm, "pruned", verdict.reason)
            else:
                desk.close(arm)


def _queue_batch(desk: Desk, identity: TrialRow, going_on: Sequence[Group]) -> None:
    """Queue the next batch of seeds for the arms of these groups, and identity where it lacks them.

    In an extended study the groups may have ended with different numbers of seeds.
    """
    fresh, budget, most = desk.config.fresh_seeds, desk.config.confirm_budget, 0
    for group in going_on:
        done = group.finalist.jobs
        seeds = fresh[done : done + desk.config.confirm.batch]
        most = max(most, done + len(seeds))
        for arm in group.arms:
            if not arm.failed:
                desk.train_on(arm, seeds, budget)
    desk.train_on(identity, fresh[identity.jobs : most], budget)


def _decide(desk: Desk, optuna: DensityStudy | None, verdicts: Sequence[FinalistVerdict]) -> None:
    """Store the verdicts; the study ends with them unless the test split is still to be read.

    Optuna's study, if it is still there, is told what to do: its best value is unconfirmed.
    """
    groups = comparisons.groups(desk.trials("confirm"))
    told_of = [_with_images(desk, *one) for one in zip(verdicts, groups, strict=True)]
    stored, winner, config = [one.model_dump() for one in told_of], best(verdicts), desk.config
    told = advice.of_study(winner, config, comparisons.controls(desk.study, config), decided=True)
    if optuna is not None:
        verdict = "unconfirmed" if winner is None else winner.verdict
        optuna.conclude({"advice": told, "verdict": verdict})
    phase = checks.next_phase(desk.study, config, winner)
    studies.decide(desk.connection, desk.study.id, stored, phase)
    unread = desk.study.holdout is None and holdout.due(desk.config, verdicts) is not None
    if phase == "decided" and not unread:
        studies.finish(desk.connection, desk.study.id)


def _with_images(desk: Desk, verdict: FinalistVerdict, group: Group) -> FinalistVerdict:
    """Return a verdict whose differences have intervals over seeds and images as well."""
    rows = desk.scored([IDENTITY, *(arm.number for arm in group.arms)])
    return comparisons.over_images(verdict, group, images.by_trial(rows))
