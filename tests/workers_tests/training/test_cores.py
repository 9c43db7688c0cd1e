"""How many cores a process may use, by files like those of the kernel."""

import os
from pathlib import Path

import pytest

from workers.training import cores

HOST = len(os.sched_getaffinity(0))


def laid(system: Path, groups: str, **files: str) -> Path:
    """A system whose process is in these groups; files by their path, / written as __."""
    content = {"proc/self/cgroup": groups}
    content |= {"sys/fs/cgroup/" + name.replace("__", "/"): text for name, text in files.items()}
    for name, text in content.items():
        path = system / name.replace("=", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return system


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        # Version 2: the container's own root, a job's group, a quota that only the parent has.
        ("0::/\n", {"cpu=max": "50000 100000\n"}),
        ("0::/slurm/job_7\n", {"slurm__job_7__cpu=max": "150000 100000\n"}),
        ("0::/pod/box\n", {"pod__box__cpu=max": "max 100000\n", "pod__cpu=max": "9 10\n"}),
        # Version 1: the controller is mounted with another; the path is the host's.
        (
            "4:cpu,cpuacct:/docker/4f\n3:memory:/\n",
            {
                "cpu,cpuacct__cpu=cfs_quota_us": "50000\n",
                "cpu,cpuacct__cpu=cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_a_quota_bounds_the_cores(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert cores.usable(laid(tmp_path, groups, **files)) == 1


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"cpu=max": "max 100000\n"}),
        ("0::/\n", {"cpu=max": "nonsense\n"}),
        ("0::/\n", {}),
        ("0::/\n", {"cpu=max": f"{100000 * (HOST + 3)} 100000\n"}),
        ("4:cpu:/\n", {"cpu__cpu=cfs_quota_us": "-1\n", "cpu__cpu=cfs_period_us": "100000\n"}),
        ("3:memory:/a\n", {"memory__a__cpu=max": "1 10\n"}),
    ],
)
def test_without_a_quota_the_affinity_counts(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    assert cores.usable(laid(tmp_path, groups, **files)) == HOST
    assert cores.usable(tmp_path / "nothing") == HOST
