"""The sections of device_check.py, in the order in which a device is found out about."""

from collections.abc import Callable

from helpers import device_correctness, device_speeds
from helpers.device_plan import Figures, Plan

SECTIONS: dict[str, tuple[Callable[[Plan], Figures], float]] = {
    "ceilings": (device_speeds.ceilings, 25),
    "captured": (device_correctness.captured, 60),
    "packs": (device_correctness.packs, 50),
    "steps": (device_speeds.steps, 35),
    "sweep": (device_speeds.sweep, 55),
    "job": (device_speeds.job, 50),
    "rival": (device_speeds.rival, 80),
    "resume": (device_correctness.resume, 20),
    "memory": (device_correctness.memory, 25),
    "operator": (device_correctness.operator, 20),
    "hot spots": (device_speeds.hot_spots, 30),
}
"""By name, in the order in which they are run: what is found out, and in how many seconds."""
