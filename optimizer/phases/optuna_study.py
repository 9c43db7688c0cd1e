"""The Optuna study behind a densitune study: asked and told.

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
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from densitune import density
from densitune.density import Densities
from optimizer import design
from optimizer.arms import SearchedBy
from optimizer.config.study_file import StudyConfig
from optimizer.errors import StudyFailedError
from optimizer.evidence import ranking
from optimizer.phases import direct, samplers

Outcome = Literal["complete", "pruned", "failed"]
_STATES: dict[Outcome, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

OWNER = "densitune study"
"""The attribute of an Optuna study that holds the number of densitune's."""
METRIC = "difference in "
"""What the metric's name begins with. By it those are known that were begun without the former."""


class DensityStudy:
    """An Optuna study whose parameters are the values of the densities, outermost first."""

    def __init__(self, study: Study, config: StudyConfig) -> None:
        self._study, self._config = study, config
        self._distributions = {
            name: FloatDistribution(config.density.low, config.density.high)
            for k in config.kernel_size
            for name in _names(k)
        }

    def ask(self, number: int, ours: set[int]) -> tuple[int, Densities]:
        """Propose densitune's trial `number`; return Optuna's number and the densities.

        `ours` are the Optuna numbers that belong to earlier trials; all else that runs or waits is
        failed first, so that it is not taken for this one.
        """
        self.fail_strays(ours)
        point = self._point_of_ours(number)
        with _quiet():
            self._study.sampler = samplers.for_trial(self._config.search, number)
            if point is not None:
                self._study.enqueue_trial(point)
            trial = self._study.ask()
            values = {
                name: trial.suggest_float(name, distribution.low, distribution.high)
                for name, distribution in self._distributions.items()
            }
        if point is not None and values != point:
            raise StudyFailedError(
                f"Optuna gave trial {trial.number} of study {self._config.name} the parameters "
                f"{values} where {point} were asked for; something else writes to this study now"
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

        They are of what the study is searched by. The last one is its value, for a pruned trial
        too; a failed trial has none.
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

    def is_there(self) -> bool:
        """Tell whether nobody has deleted it."""
        try:
            return self._storage.get_study_id_from_name(self._config.name) == self._study._study_id
        except KeyError:
            return False

    def told(self) -> dict[int, tuple[Outcome | None, float | None]]:
        """Return what Optuna holds, by its number: outcome (None: not yet told) and value."""
        outcomes = {state: outcome for outcome, state in _STATES.items()}
        trials = self._study.get_trials(deepcopy=False)
        return {trial.number: (outcomes.get(trial.state), trial.value) for trial in trials}

    def conclude(self, attributes: Mapping[str, str]) -> None:
        """Attach to the study what it came to, where a dashboard shows it; again is harmless."""
        for key, value in attributes.items():
            self._study.set_user_attr(key, value)

    def fail_strays(self, ours: set[int]) -> None:
        """Fail what runs or waits and is none of the trials `ours`; again is harmless.

        Another tool has begun it, or a proposer of an older version that died.
        """
        open_states = (TrialState.RUNNING, TrialState.WAITING)
        for trial in self._study.get_trials(deepcopy=False, states=open_states):
            if trial.number not in ours:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    @property
    def _storage(self) -> BaseStorage:
        return self._study._storage

    def _frozen(self, optuna_number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[optuna_number]

    def _point_of_ours(self, number: int) -> dict[str, float] | None:
        """Return the parameters of an anchor, a design's point or DIRECT's; None for a sampler's.

        Those are Optuna's, and so is the random point where DIRECT has none left.
        """
        config = self._config
        if number < len(config.anchors):
            return _parameters(config.anchors[number].densities)
        number -= len(config.anchors)
        dimensions = config.dimensions
        if config.search.sampler == "direct":
            return self._next_of_direct()
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

    def _next_of_direct(self) -> dict[str, float] | None:
        """Return where DIRECT goes from the trials so far; a failed one counts as the worst."""
        told: dict[direct.Point, float] = {}
        others: list[direct.Point] = []
        for trial in samplers.shown(self._study):
            if trial.params.keys() < self._distributions.keys():
                continue  # a stray of another tool
            point = tuple(trial.params[name] for name in self._distributions)
            if trial.state is TrialState.COMPLETE:
                told.setdefault(point, trial.values[0])
            else:
                others.append(point)
        box = self._config.density
        found = direct.next_point(box.low, box.high, len(self._distributions), told, others)
        return None if found is None else dict(zip(self._distributions, found, strict=True))


def create(
    storage: BaseStorage, config: StudyConfig, study_id: int, by: SearchedBy = "metric"
) -> DensityStudy:
    """Create the Optuna study behind a densitune study that has none."""
    with _quiet():
        study = optuna.create_study(storage=storage, study_name=config.name, direction="maximize")
        study.set_user_attr(OWNER, study_id)
        study.set_metric_names([METRIC + ranking.name(config, by)])
    return DensityStudy(study, config)


def find(
    storage: BaseStorage, config: StudyConfig, study_id: int, by: SearchedBy = "metric"
) -> DensityStudy | None:
    """Return the Optuna study behind a densitune study, None if there is none.

    StudyFailedError if the one of its name belongs to another, or was told something else so far.
    """
    try:
        study = optuna.load_study(storage=storage, study_name=config.name)
    except KeyError:
        return None
    with _quiet():
        named, owner = study.metric_names, study.user_attrs.get(OWNER, study_id)
    if named is None or owner != study_id:
        raise StudyFailedError(
            f"the Optuna study {config.name} is not that of densitune's study of this name; "
            f"if it is left of a deleted one, remove it: densitune doctor --fix"
        )
    expected = METRIC + ranking.name(config, by)
    if named != [expected]:
        raise StudyFailedError(
            f"study {config.name} holds {named[0]} where this densitune tells {expected}: "
            f"it was begun by another version; finish it with that one, or begin anew: "
            f"densitune delete {config.name}"
        )
    return DensityStudy(study, config)


def names(storage: BaseStorage) -> set[str]:
    """Return the names of all Optuna studies, densitune's or not."""
    return set(optuna.get_all_study_names(storage))


def owners(storage: BaseStorage) -> dict[str, int | None]:
    """Return, by name, the numbers of densitune's studies behind which Optuna studies stand.

    None for one that an older version began, without the attribute.
    """
    found = dict[str, int | None]()
    for study in storage.get_all_studies():
        owner = study.user_attrs.get(OWNER)
        metrics = study.system_attrs.get("study:metric_names") or [""]
        if owner is not None or metrics[0].startswith(METRIC):
            found[study.study_name] = owner
    return found


def delete(storage: BaseStorage, name: str) -> None:
    """Delete the Optuna study of this name."""
    optuna.delete_study(study_name=name, storage=storage)


def versions() -> dict[str, str]:
    """Return the versions that fix what is proposed."""
    packages = ("densitune", "optuna", "cmaes", "scipy", "numpy", "torch")
    return {package: importlib.metadata.version(package) for package in packages}


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
