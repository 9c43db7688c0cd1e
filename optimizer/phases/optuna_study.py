"""The Optuna study behind a densitune study: with `samplers`, the only code that knows Optuna.

It stays a normal Optuna study, which Optuna's own command line and optuna-dashboard open. Only the
proposer writes to it, and always in the order of trial numbers, so that a proposal depends on
nothing but the configuration and the results of earlier trials: `ask(n)` sees trials up to
n - in_flight as finished and the others as running, whoever trained them and however fast.
"""

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Engine

from densitune import density
from densitune.density import Densities
from optimizer import design
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.phases import samplers
from storage import database

Outcome = Literal["complete", "pruned", "failed"]
_STATES: dict[Outcome, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


class DensityStudy:
    """An Optuna study whose parameters are the values of the densities, outermost first."""

    def __init__(self, engine: Engine, config: StudyConfig) -> None:
        self._config = config
        with _quiet():
            self._study = optuna.create_study(
                storage=optuna_storage(engine),
                study_name=config.name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )
            self._name_metric(f"difference in {config.metric} ({config.unit})")
        self._distributions = {
            name: FloatDistribution(config.density.low, config.density.high)
            for k in config.kernel_size
            for name in _names(k)
        }

    def ask(self, number: int, ours: set[int]) -> tuple[int, Densities]:
        """Propose densitune's trial `number`; return Optuna's number and the densities.

        `ours` are the Optuna numbers that belong to earlier trials. A running trial that is not
        among them is what a proposer left behind when it died: it is completed, not repeated.
        """
        point = self._point_known_in_advance(number)
        with _quiet():
            self._study.sampler = samplers.for_trial(self._config.search, number)
            orphan = self._orphan(ours)
            if orphan is None and point is not None and not self._waiting():
                self._study.enqueue_trial(point)
            trial = self._study.ask() if orphan is None else Trial(self._study, orphan._trial_id)
            values = {
                name: trial.suggest_float(name, distribution.low, distribution.high)
                for name, distribution in self._distributions.items()
            }
        if point is not None and values != point:
            raise StudyFailedError(
                f"Optuna gave trial {trial.number} of study {self._config.name} the parameters "
                f"{values} where {point} were asked for; something else has written to this study"
            )
        densities = {k: tuple(values[name] for name in _names(k)) for k in self._config.kernel_size}
        return trial.number, densities

    def describe(self, optuna_number: int, attributes: Mapping[str, Any]) -> None:
        """Attach attributes to a trial that is still running, where a dashboard shows them."""
        trial = self._frozen(optuna_number)
        if trial.state is TrialState.RUNNING:
            for key, value in attributes.items():
                self._storage.set_trial_user_attr(trial._trial_id, key, value)

    def tell(self, optuna_number: int, outcome: Outcome, differences: Mapping[int, float]) -> None:
        """Finish a trial with its differences to identity by rung; again is harmless.

        The last one is its value, for a pruned trial too; a failed trial has none.
        StudyFailedError if Optuna's table holds another result than the ledger.
        """
        trial = self._frozen(optuna_number)
        if not trial.state.is_finished():
            for rung, difference in sorted(differences.items()):
                self._storage.set_trial_intermediate_value(trial._trial_id, rung, difference)
        state = _STATES[outcome]
        value = differences[max(differences)] if differences else None
        # Optuna gives a pruned trial its last intermediate value itself, and takes no other.
        given = value if outcome == "complete" else None
        told = self._study.tell(optuna_number, given, state=state, skip_if_finished=True)
        if told.state is not state or told.value != value:
            raise StudyFailedError(
                f"Optuna's trial {optuna_number} of study {self._config.name} is {told.state.name} "
                f"with value {told.value}, but the ledger says {state.name} with {value}; "
                f"something else has written to this Optuna study"
            )

    def told(self) -> dict[int, tuple[Outcome | None, float | None]]:
        """Return what Optuna holds, by its number: outcome (None: not yet told) and value."""
        outcomes = {state: outcome for outcome, state in _STATES.items()}
        trials = self._study.get_trials(deepcopy=False)
        return {trial.number: (outcomes.get(trial.state), trial.value) for trial in trials}

    def conclude(self, attributes: Mapping[str, str]) -> None:
        """Attach to the study what it came to, where a dashboard shows it; again is harmless."""
        for key, value in attributes.items():
            self._study.set_user_attr(key, value)

    def close(self, ours: set[int]) -> None:
        """Fail what still runs and is none of the trials `ours`; again is harmless.

        Proposers that died have left it behind, and no further trial will use it.
        """
        while (orphan := self._orphan(ours)) is not None:
            self._study.tell(orphan.number, state=TrialState.FAIL, skip_if_finished=True)

    def _name_metric(self, name: str) -> None:
        """Name what is told; StudyFailedError if this study was told something else so far."""
        named = self._study.metric_names
        if named is None:
            self._study.set_metric_names([name])
        elif named != [name]:
            raise StudyFailedError(
                f"study {self._config.name} holds {named[0]} where this densitune tells {name}: it "
                f"was begun by another version; finish it with that one, or begin anew: "
                f"densitune delete {self._config.name}"
            )

    @property
    def _storage(self) -> optuna.storages.BaseStorage:
        return self._study._storage

    def _frozen(self, optuna_number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[optuna_number]

    def _orphan(self, ours: set[int]) -> FrozenTrial | None:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return next((trial for trial in running if trial.number not in ours), None)

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _point_known_in_advance(self, number: int) -> dict[str, float] | None:
        """Return the parameters of an anchor or of a point of a design, None for a sampler's."""
        config = self._config
        if number < len(config.anchors):
            return _parameters(config.anchors[number].densities)
        number -= len(config.anchors)
        dimensions = config.dimensions
        if config.search.sampler == "grid":
            unit = design.grid(config.search.trials - len(config.anchors), dimensions)[number]
        elif config.search.sampler == "qmc" or (
            config.search.sampler != "random" and number < design.startup(dimensions)
        ):
            unit = design.sobol(number + 1, dimensions, config.search.seed)[number]
        else:
            return None
        low, high = config.density.low, config.density.high
        values = (low + (high - low) * unit).tolist()
        return dict(zip(self._distributions, values, strict=True))


def exists(engine: Engine, name: str) -> bool:
    """Tell whether there is an Optuna study of this name, densitune's or not."""
    return name in optuna.get_all_study_names(optuna_storage(engine))


def delete(engine: Engine, name: str) -> None:
    """Delete the Optuna study of this name; nothing happens if there is none."""
    if exists(engine, name):
        optuna.delete_study(study_name=name, storage=optuna_storage(engine))


def versions() -> dict[str, str]:
    """Return the versions that fix what is proposed."""
    packages = ("densitune", "optuna", "cmaes", "scipy", "numpy", "torch")
    return {package: importlib.metadata.version(package) for package in packages}


def optuna_storage(engine: Engine) -> optuna.storages.RDBStorage:
    """Return Optuna's storage in our database, its tables made if they are not there.

    It borrows our pool, so that a process has at most two connections whatever it does.
    """
    url = engine.url.render_as_string(hide_password=False)
    if not database.has_table(engine, "alembic_version"):  # the last of its tables
        # Optuna does not cope with several processes that make its tables at once. It takes two
        # connections for that, and one of our pool's holds the lock.
        once = engine.pool.recreate()
        with database.alone(engine, "optuna"):
            optuna.storages.RDBStorage(url, engine_kwargs={"pool": once})
        once.dispose()
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool": engine.pool})


def _names(kernel_size: int) -> list[str]:
    return [f"k{kernel_size}_den{ring}" for ring in range(density.length(kernel_size))]


def _parameters(densities: Densities) -> dict[str, float]:
    return {
        name: value
        for k, den in densities.items()
        for name, value in zip(_names(k), den, strict=True)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what is intended here: anchors outside the box, and features Optuna calls new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Fixed parameter .* out of range")
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
