"""Whom a run tells how it goes, and how it hears that it ends."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


class Ended(BaseException):
    """A run ends here: a study has seen enough of it. Scripts let it pass, after a clean-up."""


class Link:
    """Whom a run tells how it goes: nobody, outside a study."""

    rungs: Collection[int] = ()
    """Epochs after which a report is needed."""
    wants_test = False
    """Whether the last report has to tell the test split's value as well."""

    def applied(self, count: int, left_alone: Mapping[str, str]) -> None:
        """Hear how many convolutions an arm has treated, and why others of their sizes are not."""

    def begins(self, epoch: int) -> None:
        """Hear that an epoch begins."""

    def report(self, epoch: int, value: float, test: float | None, learned: Any) -> bool:
        """Hear a value; return whether the run goes on."""
        return True

    def wants_checkpoint(self) -> bool:
        """Return whether a checkpoint would be of use now."""
        return False

    def save(self, epoch: int, parts: Sequence[bytes]) -> None:
        """Keep a checkpoint that was made at the end of an epoch: the parts, one after another."""

    def saved(self) -> bytes | None:
        """Return the checkpoint that this run goes on from."""
        return None
