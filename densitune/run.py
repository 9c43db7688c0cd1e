"""A run: one training of a script of the user's own, within a study or by itself.

    def train(run: densitune.Run) -> None:
        model = run.apply(build())
        for epoch in run.epochs():
            ...
            run.report(epoch, validate(model))

A study's worker makes the run and hands it to the script (densitune.child). Made by hand, with no
study around, it trains the plain network, and what is reported is kept in `values`.
"""

import io
import pickle
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from densitune import conversion, repeatable, treatment
from densitune.link import Ended, Link
from densitune.treatment import Treatment

_Model = TypeVar("_Model", bound=nn.Module)
_Value = float | Tensor
_HEAD = 8
"""Bytes that tell how many follow before the script's own state begins."""


class Run:
    """One training: its seed, its rate, what is done to the model, and whom it tells.

    densities: by kernel size, as in a preset; without any, the model stays plain. lr: None leaves
    the rate to the script. device: a GPU if there is one, else the CPU.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        lr: float | None = None,
        budget: int = 1,
        device: torch.device | str | None = None,
        densities: Mapping[int, Sequence[float]] | None = None,
    ) -> None:
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        own = Treatment(densities or {})
        self._begin(seed, lr, budget, torch.device(device or usual), own, Link())

    @classmethod
    def of_study(
        cls,
        seed: int,
        lr: float | None,
        budget: int,
        device: torch.device,
        arm: Treatment,
        link: Link,
    ) -> "Run":
        """Return a run of a study, which tells `link` how it goes."""
        run = cls.__new__(cls)
        run._begin(seed, lr, budget, device, arm, link)
        return run

    def _begin(
        self,
        seed: int,
        lr: float | None,
        budget: int,
        device: torch.device,
        arm: Treatment,
        link: Link,
    ) -> None:
        self.seed, self.lr, self.budget, self.device = seed, lr, budget, device
        self.values: dict[int, float] = {}
        """What has been reported, by epoch."""
        self._arm, self._link = arm, link
        self._models: list[weakref.ref[nn.Module]] = []
        self._epoch = 0  # that is being trained, or was the last one
        self._resumed = 0  # the epoch whose state `resume` has found
        self._looping = False  # whether epochs() tells when one ends
        self._pending: bytes | None = None  # a checkpoint of the epoch that is being trained
        self._kept = False  # whether one has been made
        self._random: dict[str, Any] | None = None

    @property
    def first_epoch(self) -> int:
        """The epoch to begin with, from 1 on: a later one after `resume` has found a state."""
        return self._epoch + 1

    def apply(self, model: _Model) -> _Model:
        """Weight, in place, what this arm weights in a model that is new; return the model.

        Convolutions of the study's kernel sizes get the arm's density, uniform mask or start. For
        identity the model stays plain, and for a study with `init: model` untouched. Before
        optimisers, compiling and wrappers are made. Each model once, and one at least: RuntimeError
        if not. ValueError if it has no convolution of a size that the study is about.
        """
        if any(reference() is model for reference in self._models):
            raise RuntimeError("run.apply was called twice for one model; apply to a new one")
        seed = self.seed + len(self._models)
        sizes = self._arm.densities
        treated = len(conversion._of_sizes(model, sizes)) if sizes else 0
        self._arm.apply(model, seed)
        self._link.applied(treated, conversion.left_alone(model, sizes))
        self._models.append(weakref.ref(model))
        return model

    def epochs(self) -> Iterator[int]:
        """Yield the epochs to train, the first one is 1 unless `resume` has found a state."""
        if self._random is not None:
            repeatable.set_random_state(self._random, self.device)
        self._looping = True
        for epoch in range(self.first_epoch, self.budget + 1):
            self._epoch = epoch
            self._link.begins(epoch)
            yield epoch
            self._ask_for_reports(epoch)
            self._write()

    def report(
        self, epoch: int, value: _Value, *, test: _Value | Callable[[], _Value] | None = None
    ) -> None:
        """Tell what the model reaches on validation data after an epoch, once, in their order.

        It ends the run, by an exception that no `except Exception` catches, if the study cuts it.
        test: the same on the test split, for a study with `data.test`; a function is called only
        where that is wanted, after the last epoch of a confirmation.
        """
        if not self._models:
            raise RuntimeError(
                "run.report before run.apply: nothing has a density; call model = run.apply(model) "
                "before training"
            )
        if not (type(epoch) is int and 1 <= epoch <= self.budget):
            raise ValueError(f"epoch {epoch!r} is not one of 1 to {self.budget}, as epochs() has")
        if self.values and epoch <= max(self.values):
            raise RuntimeError(
                f"run.report({epoch}, value) came after that of epoch {max(self.values)}; report "
                f"each epoch once, in their order"
            )
        self._ask_for_reports(epoch - 1)
        reached = _number(value)
        sealed = None
        if self._link.wants_test and epoch == self.budget:
            if test is None:
                raise RuntimeError(
                    "the study has data.test, and run.report was given no test=...; give the value "
                    "on the test split, or a function that returns it"
                )
            sealed = _number(test() if callable(test) else test)
        self._epoch = epoch
        self.values[epoch] = reached
        if not self._link.report(epoch, reached, sealed, self._learned()):
            raise Ended

    def checkpoint(self, state: Any) -> None:
        """Keep what the rest of the training depends on, to go on from after a preemption.

        state: tensors, numbers, texts, and dictionaries, lists and tuples of them, such as the
        state_dicts of model, optimiser and schedule. Global random numbers of Python, numpy and
        torch are kept along with it. Called once an epoch: with `epochs()` anywhere in it, and it
        counts from the end of the epoch on; in a loop of your own after the epoch's report, for it
        counts for the epoch that was reported last. RuntimeError if none was, TypeError for a state
        that cannot be kept.
        """
        if not (self._looping or self.values):
            raise RuntimeError(
                "run.checkpoint before run.report: without run.epochs() a state counts for the "
                "epoch reported last; report first, or loop over run.epochs()"
            )
        if self._link.wants_checkpoint():
            # A copy: training may go on in place before the epoch ends.
            self._pending = _packed(state)
            if not self._kept:
                _unpacked(self._pending)
                self._kept = True
            if not self._looping:
                self._write()

    def resume(self) -> Any:
        """Return the state of an earlier, preempted part of this run; None if there is none.

        Tensors are on the CPU. `epochs()` goes on after the epoch that it was made in, with the
        random numbers that came next; without `epochs()` they are those from here on.
        """
        content = self._link.saved()
        if content is None:
            return None
        beside = int.from_bytes(content[:_HEAD], "big")
        saved = _unpacked(content[_HEAD : _HEAD + beside])
        self._epoch = self._resumed = saved["epoch"]
        self._random = saved["random"]
        repeatable.set_random_state(self._random, self.device)
        return _unpacked(content[_HEAD + beside :])

    def _ask_for_reports(self, until: int) -> None:
        """Raise RuntimeError if an epoch that is measured has none, of those up to `until`."""
        due = [epoch for epoch in sorted(self._link.rungs) if self._resumed < epoch <= until]
        for epoch in due:
            if epoch not in self.values:
                raise RuntimeError(
                    f"epoch {epoch} ended without run.report({epoch}, value), and the study "
                    f"measures after the epochs {sorted(self._link.rungs)}"
                )

    def _write(self) -> None:
        if self._pending is None or self._epoch == self.budget:
            return
        state, self._pending = self._pending, None
        random = repeatable.random_state(self.device)
        beside = _packed({"epoch": self._epoch, "random": random})
        self._link.save(self._epoch, (len(beside).to_bytes(_HEAD, "big"), beside, state))

    def _learned(self) -> dict[str, list[list[float]]] | None:
        if not self._arm.trainable:
            return None
        found: dict[str, list[list[float]]] = {}
        for reference in self._models:
            model = reference()
            for size, layers in treatment.learned(model).items() if model else ():
                found.setdefault(size, []).extend(layers)
        return found


def _number(value: _Value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run.report takes a number, not {value!r}") from error


def _packed(state: Any) -> bytes:
    """Return a state as bytes; TypeError if it has what cannot become any."""
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _refused(f"{type(error).__name__}: {error}") from error
    return stream.getvalue()


def _unpacked(content: bytes) -> Any:
    """Return what was packed; TypeError if it is more than tensors and plain values."""
    try:
        return cast(Any, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:
        # Of torch's words no more than what it has met: they go on to advise trusting the file.
        met = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _refused(f"this one has a {met[1]}" if met else type(error).__name__) from None


def _refused(why: str) -> TypeError:
    return TypeError(
        f"a checkpoint takes tensors, numbers, texts, and dictionaries, lists and tuples of them; "
        f"{why}"
    )
