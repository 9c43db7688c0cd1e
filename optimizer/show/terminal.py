"""What is shown on a terminal: the live panel, the tables, and plain lines elsewhere."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from optimizer.evidence import differences
from optimizer.evidence.differences import TrialResult
from optimizer.evidence.verdicts import MEANING
from optimizer.show import words
from optimizer.show.printing import text
from optimizer.show.progress import progress, running_result, trial_counts, worker_line
from optimizer.snapshot import Snapshot, precision
from storage import printable
from storage.failures import FailureCount
from storage.trials import TrialRow

BEST_SHOWN = 5
FIXED = 4
"""Columns of the search's table, but for what it goes by where that is not the metric."""


def panel(snapshot: Snapshot) -> RenderableType:
    """Return the live view of a study: a few lines that fit any terminal."""
    shown = Table.grid(padding=(0, 1))
    shown.add_row(_bar(snapshot), progress(snapshot))
    return Group(
        text(snapshot.study.name, style="bold"),
        shown,
        text(best_line(snapshot)),
        text(worker_line(snapshot)),
    )


def _bar(snapshot: Snapshot) -> ProgressBar:
    """Return how far the phase is: the search in trials, the others in jobs queued so far."""
    if snapshot.study.phase in ("search", "decided"):
        total, completed = snapshot.counts["asked for"], snapshot.ended
    else:
        jobs = snapshot.phases[snapshot.study.phase].jobs
        total, completed = jobs["queued"] or 1, jobs["done"] + jobs["failed"]
    return ProgressBar(total=total, completed=completed, width=24)


def best_line(snapshot: Snapshot) -> str:
    """Return the verdict, or the best trial so far against identity."""
    if snapshot.winner is not None:
        densities = words.densities(snapshot.winner.by_kernel_size())
        return (
            f"{snapshot.advice} Verdict: {densities} is {snapshot.verdict}, "
            f"{MEANING[snapshot.verdict]}"
        )
    if snapshot.study.phase == "confirm":
        return running_result(snapshot)
    best = snapshot.best
    if best is None and snapshot.study.phase == "calibrate":
        return "no density tried yet"
    if best is None:
        return "best so far: waiting for identity"
    value = f"{best.mean:.3f} {snapshot.config.unit}"
    if best.role == "identity":
        return f"best so far: identity itself, at {value}"
    return (
        f"best so far (unconfirmed): {words.densities(best.densities)} at {value}, "
        f"{words.to_identity(best)} {snapshot.config.unit} to identity{_searched_by(best)}"
    )


def _searched_by(best: TrialResult) -> str:
    below = words.below_identity(best)
    return f", cross-entropy (searched by) {below} nats below its" if below else ""


def plain_line(snapshot: Snapshot) -> str:
    """Return the panel as one line, for logs."""
    return f"{progress(snapshot)}; {best_line(snapshot)}; {worker_line(snapshot)}"


def final_table(snapshot: Snapshot) -> Table:
    """Return identity, the published densities and the best five, with paired differences.

    What the metric is without a deep network stands above them, signs of caution below.
    """
    config = snapshot.config
    seeds = len(config.seeds)
    spread = (
        f"± is the standard error over {seeds} paired seeds."
        if seeds > 1
        else "One seed says nothing about the spread."
    )
    table = Table(
        title=f"{printable.line(snapshot.study.name)}: {config.metric} on validation data, search, "
        "unconfirmed",
        caption="\n".join(
            [
                f"{spread} The best of many noisy results looks better than it is.",
                *([words.BY_ENTROPY] if snapshot.searched_by == "cross_entropy" else []),
                *_cut_line(snapshot),
                *(f"Caution: {caution}" for caution in snapshot.cautions),
            ]
        ),
        caption_justify="left",
        show_lines=len(config.kernel_size) > 1,  # a row is then several lines
    )
    table.add_column("density (outermost first)", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column(f"{config.metric}, {config.unit}", justify="right")
    table.add_column("minus identity", justify="right")
    if snapshot.searched_by == "cross_entropy":
        table.add_column(f"{words.BELOW_IDENTITY} (searched by)", justify="right")
    ranked = differences.ranked(snapshot.results)
    anchors = sorted(
        (result for result in ranked if result.role != "candidate"), key=lambda r: r.number
    )
    for name, floor in snapshot.floors.items() if anchors else ():
        table.add_row("no network", name, f"{floor:.3f}", "")
    _add_rows(table, anchors)
    table.add_section()
    _add_rows(table, ranked[:BEST_SHOWN], rank=True)
    return table


def _add_rows(table: Table, shown: Iterable[TrialResult], *, rank: bool = False) -> None:
    for place, result in enumerate(shown, start=1):
        label = printable.line(result.label)
        what = f"{place}. {label}" if rank else label
        table.add_row(
            words.densities(result.densities, between="\n"),
            what,
            f"{result.mean:.3f}",
            words.to_identity(result),
            *([words.below_identity(result)] if len(table.columns) > FIXED else []),
        )


def _cut_line(snapshot: Snapshot) -> list[str]:
    """Return how many trials the table leaves out because they were cut; nothing if none was."""
    cut = snapshot.counts["pruned"]
    were = "1 trial was" if cut == 1 else f"{cut} trials were"
    return [f"{were} cut: not trained to the end with all seeds."] if cut else []


def status(snapshot: Snapshot) -> RenderableType:
    """Return what `status` shows: state, progress, workers and the table."""
    study = snapshot.study
    lines = [
        text(
            f"{study.name}: {study.state}, phase {study.phase}"
            + (f" ({study.failure})" if study.failure else "")
        ),
        text(
            f"budget {snapshot.config.training.budget} epochs, {precision(study)} precision, "
            f"{_learning_rate(snapshot)}"
        ),
        *([] if study.phase in ("search", "decided") else [text(progress(snapshot))]),
        text(trial_counts(snapshot)),
        text(best_line(snapshot)),
        text(worker_line(snapshot)),
    ]
    lines += [
        text(
            f"  {worker.host} pid {worker.pid} on {worker.device}: {worker.jobs_done} jobs, "
            f"{words.per_hour(worker.jobs_per_hour)}/hour"
        )
        for worker in snapshot.live_workers
    ]
    lines += [text(f"  {failure_line(failure)}") for failure in snapshot.failures]
    lines += [
        text(f"  {_name(trial)} failed: {trial.reason}", style="yellow")
        for phase in snapshot.phases.values()
        for trial in phase.trials
        if trial.state == "failed"
    ]
    return Group(*lines, final_table(snapshot)) if snapshot.results else Group(*lines)


def failure_line(failure: FailureCount) -> str:
    """Return how often jobs failed in a way, and the last time: which, where, and what it said."""
    times = "once" if failure.times == 1 else f"{failure.times} times"
    where = "" if failure.host is None else f" on {failure.host} pid {failure.pid}"
    said = "".join(f": {line}" for line in (failure.error or "").strip().splitlines()[-1:])
    return (
        f"{failure.kind.replace('_', ' ')} {times}, last at {failure.failed_at:%Y-%m-%d %H:%M} "
        f"UTC: {failure.phase} trial {failure.trial} seed {failure.seed}{where}{said}"
    )


def _learning_rate(snapshot: Snapshot) -> str:
    """Return the learning rate and, where it was calibrated, what identity reached with others."""
    lr = snapshot.lr
    if lr is None:
        calibrates = snapshot.study.phase == "calibrate"
        return "learning rate not yet calibrated" if calibrates else "the family's learning rate"
    others = ", ".join(
        f"{rate:g}: {score:.3f}" for rate, score in sorted(snapshot.calibration.items())
    )
    return f"learning rate {lr:g}" + (f" (identity at {others})" if others else "")


def _name(trial: TrialRow) -> str:
    """Return how a trial is called: by its number, and its label where that says more."""
    number = f"trial {trial.number}"
    return number if trial.label == number else f"{number} ({trial.label})"
