"""The sections of device_check.py, in the order in which a device is found out about."""

from collections.abc import Callable
from functools import partial

from helpers import device_correctness, device_speeds
from helpers.device_plan import Figures, Plan

SECTIONS: dict[str, tuple[Callable[[Plan], Figures], float]] = {
    "ceilings": (device_speeds.ceilings, 10),
    "captured": (device_correctness.captured, 40),
    "packs": (device_correctness.packs, 30),
    "steps": (device_speeds.steps, 40),
    "sweep": (device_speeds.sweep, 45),
    "job": (device_speeds.job, 45),
    "rival vgg": (partial(device_speeds.rival, family="vgg"), 77),
    "rival nafnet": (partial(device_speeds.rival, family="nafnet"), 77),
    "resume": (device_correctness.resume, 15),
    "memory": (device_correctness.memory, 15),
    "operator": (device_correctness.operator, 25),
    "hot spots": (device_speeds.hot_spots, 30),
}
"""By name, in the order in which they are run: what is found out, and in how many seconds."""
