"""A study's data, as the commands that train prepare them."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from optimizer.cli import environment
from optimizer.config.study_file import StudyConfig
from optimizer.show import printing

if TYPE_CHECKING:
    from workers.entries import Entry
    from workers.preparation import Prepared


def prepare(config: StudyConfig) -> "Prepared | Entry":
    """Prepare the study's data, with a progress bar for a download; say what was taken.

    Of a training script, which has data of its own, find the code.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from workers import preparation
    from workers.entries import Entry

    columns = ("downloading", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ExitStack() as shown:
        progress = Progress(*columns, transient=True, console=printing.console())
        bar = progress.add_task("download", total=None)

        def show(done: int, total: int) -> None:
            if not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(bar, completed=done, total=total)

        bank = preparation.prepare(config.data, environment.home(), show)
    if isinstance(bank, Entry):
        return bank
    for line in bank.taken:
        printing.say(line)
    return bank
