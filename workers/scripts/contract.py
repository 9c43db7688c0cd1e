"""What a study expects of a training script, tried in a few short trainings before there is one."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from densitune import density
from densitune.density import Densities
from optimizer import arms
from optimizer.arms import Arm
from workers.scripts.process import ScriptError
from workers.scripts.stage import Stage
from workers.training.loop import StoppedError
from workers.training.member import State
from workers.training.recipe import Job, Measurement

HALF = 0.5
"""The density that is tried, at every ring: far from identity, and not near zero."""

INTERRUPTIONS = 2
"""Of one training, each at the checkpoint that comes next."""

Values = tuple[tuple[int, float], ...]
"""What a job has reported, by rung."""


@dataclass(frozen=True)
class Finding:
    """What one check says."""

    holds: bool | None
    """None if it is no more than worth knowing, or could not be tried."""
    line: str


class Contract:
    """Checks of a script with a stage; each training is of `budget` epochs.

    Resuming is tried from 2 epochs on; 3 show what a state that goes on twice lacks.

    seconds: for all of it; what has no time left is told.
    """

    def __init__(
        self,
        stage: Stage,
        kernel_sizes: Sequence[int],
        lr: float | None,
        *,
        seed: int,
        budget: int,
        seconds: float,
    ) -> None:
        self._stage, self._lr, self._seed, self._budget = stage, lr, seed, budget
        self._until = time.monotonic() + seconds
        self._identity = arms.identity(kernel_sizes, lr, stage.recipe.init)
        self._densities: Densities = {k: (HALF,) * density.length(k) for k in kernel_sizes}

    def findings(self) -> Iterator[Finding]:
        """Yield what holds and what does not, as it is found; the stage is closed after that."""
        try:
            first = self._train(self._identity)
            yield from self._told(first)
            yield from self._of_arms(first)
            yield from self._of_seeds(first)
            yield from self._of_a_plain_network(first)
            yield from self._of_resuming(first)
        except ScriptError as error:
            yield Finding(False, str(error))
        except TimeoutError:
            yield Finding(None, "the rest was not tried: no time is left (--seconds)")
        finally:
            self._stage.close()

    def _told(self, first: Values) -> Iterator[Finding]:
        count, left = self._stage.treated or (0, "")
        yield Finding(True, f"run.apply is called; {count} convolutions have a density")
        if left:
            yield Finding(None, f"left as they are: {left}")
        rungs = ", ".join(str(rung) for rung, _ in first)  # or it has failed
        yield Finding(True, f"reports come after the epochs that are measured ({rungs})")

    def _of_arms(self, first: Values) -> Iterator[Finding]:
        init = self._stage.recipe.init
        own = self._train(Arm(self._densities, self._lr, init))
        yield _differs(own, first, f"a density of {HALF:g} changes the result")
        control = self._train(arms.scale_control(self._densities, self._lr, init))
        uniform = self._train(arms.uniform(self._densities, self._lr, init))
        for values, what in ((control, "scale control"), (uniform, "uniform mask")):
            if values in (first, own):
                other = "identity" if values == first else "the density"
                yield Finding(
                    None,
                    f"the {what} gives the numbers of {other}: a coarse metric, or a network that "
                    f"normalises everything",
                )
            else:
                yield Finding(True, f"the {what} is applied, and changes the result")

    def _of_seeds(self, first: Values) -> Iterator[Finding]:
        """After other jobs, so that what they leave behind in their process shows."""
        self._train(self._identity, cut=True)
        again = self._train(self._identity)
        if again == first:
            yield Finding(True, "the same seed gives the same numbers, also after other jobs")
        elif not self._stage.recipe.warm:
            yield _unequal(first, again, "the same seed gives other numbers")
        else:
            self._stage.close()
            fresh = self._train(self._identity)
            if fresh == first:
                yield _unequal(
                    first,
                    again,
                    "the same seed gives other numbers after other jobs: they leave something "
                    "behind in their process; set data.warm: false",
                )
            else:
                yield _unequal(first, fresh, "the same seed gives other numbers")
        other = self._train(self._identity, seed=self._seed + 1)
        yield _differs(other, first, "another seed gives other numbers (run.seed is used)")

    def _of_a_plain_network(self, first: Values) -> Iterator[Finding]:
        if self._stage.recipe.init != "model":
            yield Finding(
                None,
                f"identity starts from weights that the study draws (init: "
                f"{self._stage.recipe.init}), not from the network's own",
            )
            return
        plain = self._train(Arm({}, self._lr))
        if plain == first:
            yield Finding(True, "identity gives the numbers of the plain network")
        else:
            yield _unequal(plain, first, "identity gives other numbers than the plain network")

    def _of_resuming(self, first: Values) -> Iterator[Finding]:
        if self._budget < 2:
            yield Finding(None, "resuming was not tried: it takes 2 epochs (--epochs)")
            return
        made: list[Measurement] = []
        state: State | None = None
        for resumed in range(INTERRUPTIONS + 1):
            stopped = self._part(made, state, until_saved=resumed < INTERRUPTIONS)
            if state is not None and self._stage.first_epoch == 1:
                line = "a preempted run is trained from epoch 1 again: run.resume() is not used"
                yield Finding(False, line)
                return
            if stopped is None:
                break
            state = stopped
        if state is None:
            line = "nothing is saved (run.checkpoint), so a preempted job starts again from epoch 1"
            yield Finding(None, line)
        elif _values(made) != first:
            yield _unequal(first, _values(made), "a resumed run gives other numbers")
        else:
            yield Finding(True, "a resumed run gives what an undisturbed one gives")

    def _job(self, arm: Arm, seed: int | None = None) -> Job:
        return Job(arm, self._seed if seed is None else seed, self._budget)

    def _train(self, arm: Arm, *, seed: int | None = None, cut: bool = False) -> Values:
        """Train an arm; return what it reported.

        cut: ends it at the first report that is measured. ScriptError if it fails, TimeoutError if
        no time is left.
        """
        if time.monotonic() > self._until:
            raise TimeoutError
        made: list[Measurement] = []
        failures: list[Exception] = []
        job = self._job(arm, seed)
        if cut:
            job = replace(job, bars=dict.fromkeys(self._stage.recipe.rungs_of(job), math.inf))
        self._stage.train(
            [job],
            on_rung=lambda number, measurement: made.append(measurement),
            on_failure=lambda number, error: failures.append(error),
        )
        if failures:
            raise ScriptError(f"a training failed: {_said(failures[0])}")
        return _values(made)

    def _part(
        self, made: list[Measurement], state: State | None, *, until_saved: bool
    ) -> State | None:
        """Train identity on from a state, and stop at its next checkpoint if that is wanted.

        `made` gets what it measures. Returns that checkpoint, None if the training ended before.
        """
        if time.monotonic() > self._until:
            raise TimeoutError
        saved: list[State] = []
        failures: list[Exception] = []
        stage: Any = self._stage
        try:
            stage.train(
                [self._job(self._identity)],
                on_rung=lambda number, measurement: made.append(measurement),
                on_failure=lambda number, error: failures.append(error),
                restore=lambda number: state,
                stopping=lambda: until_saved and stage.saved > 0,
                save=lambda number, state: saved.append(state),
            )
        except StoppedError:
            return saved[0]
        if failures:
            raise ScriptError(f"a training that saves failed: {_said(failures[0])}")
        return None


def _values(made: Sequence[Measurement]) -> Values:
    return tuple((one.rung, one.score.value) for one in made)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ScriptError) else f"{type(error).__name__}: {error}"


def _differs(values: Values, first: Values, line: str) -> Finding:
    if values != first:
        return Finding(True, line)
    return Finding(False, f"it does not hold that {line}: {_shown(values)} both times")


def _unequal(values: Values, others: Values, line: str) -> Finding:
    return Finding(False, f"{line}: {_shown(values)}, then {_shown(others)}")


def _shown(values: Values) -> str:
    return ", ".join(f"{value:.6g}" for _, value in values) or "nothing"
