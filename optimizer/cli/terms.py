"""The terms on which a worker works, as they pass from one process to another."""

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Terms:
    """How a worker works, and when it ends before its study does."""

    pack: int | None
    checkpoints: Path
    idle_exit: float  # seconds
    outage_limit: float  # seconds

    def options(self) -> list[str]:
        """Return them as options of the command, but for the pack."""
        ending = [] if math.isinf(self.idle_exit) else ["--idle-exit", f"{self.idle_exit}s"]
        limit = ["--outage-limit", f"{self.outage_limit}s"]
        return ["--checkpoints", str(self.checkpoints), *limit, *ending]
