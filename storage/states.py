"""The closed sets that the tables hold: phases, roles, and the states of studies, trials and jobs.

A module without imports, so that whoever needs the words loads no driver. Kinds of failure, which
come with a policy each, stand in `storage.failures`.
"""

from typing import Literal

Phase = Literal["calibrate", "search", "confirm", "check", "audit", "decided"]
"""What a study is at, each with trials and jobs of its own, in this order; `check` and `audit` are
passed over unless they are asked for, and `decided` has none, but in studies of earlier versions.
Jobs of an audit are trained by a recipe of their own."""
StudyState = Literal["running", "stopped", "finished"]
TrialState = Literal["running", "complete", "pruned", "failed"]
JobState = Literal["waiting", "running", "done", "cut", "failed"]
Role = Literal[
    "identity",
    "published",
    "candidate",
    "rate",
    "trainable",
    "finalist",
    "control",
    "uniform",
    "compensated",
    "init_only",
    "steps_only",
]
"""What a trial is for: the first three are the search's, `rate` is calibration's."""
