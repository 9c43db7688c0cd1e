"""Checkpoints: what was saved comes back, and nothing else does."""

import dataclasses
import hashlib
import io
import logging
import os
import pickle
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synthetic import snapshot

from optimizer.arms import Arm
from storage.studies import Study
from workers.networks.proxies import Proxy
from workers.service import checkpoint
from workers.service.checkpoint import Checkpoints
from workers.training.recipe import Job, Recipe

pytestmark = pytest.mark.numerical

JOB, SUBJECT = 7, "a job and its recipe"


@pytest.fixture
def study() -> Study:
    return snapshot([], []).study


@pytest.fixture
def kept(tmp_path: Path, study: Study) -> Checkpoints:
    """A folder with the checkpoint of one job."""
    checkpoints = Checkpoints(tmp_path / "shared", study)
    checkpoints.save(JOB, SUBJECT, STATE)
    return checkpoints


STATE: dict[str, Any] = {
    "training": {
        "steps": 3,
        "network": {
            "weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
            "seen": torch.tensor(3),
        },
        "optimizer": {0: {"momentum_buffer": torch.tensor([float("nan"), -0.0, 1e-45])}},
        "generators": {"noise": torch.Generator().get_state()},
    },
    "measurements": [{"rung": 1, "score": {"value": 0.1 + 0.2, "extra": {}}, "ending": None}],
}


def only_file(folder: Path) -> Path:
    [path] = (folder / "shared").iterdir()
    return path


def bits(value: object) -> object:
    """Return a state with bytes and strides in place of its tensors."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.stride(), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return value


def test_a_state_comes_back_to_the_last_bit(kept: Checkpoints) -> None:
    found = kept.load(JOB, SUBJECT)
    assert bits(found) == bits(STATE)


def test_the_last_one_saved_counts_and_a_removed_one_is_gone(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save(JOB, SUBJECT, {"steps": 9})
    assert kept.load(JOB, SUBJECT) == {"steps": 9}
    kept.remove(JOB)
    assert list((tmp_path / "shared").iterdir()) == []
    assert kept.load(JOB, SUBJECT) is None
    kept.remove(JOB)
    assert caplog.records == []


def test_only_the_same_study_job_and_subject_get_it(
    kept: Checkpoints, tmp_path: Path, study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the name of the file says."""
    path = only_file(tmp_path)
    assert kept.load(JOB, "another learning rate") is None
    path.rename(path.with_name(path.name.replace("07.pt", "08.pt")))
    assert kept.load(8, SUBJECT) is None
    path.with_name(path.name.replace("07.pt", "08.pt")).rename(path)
    made_again = dataclasses.replace(study, created_at=study.created_at + timedelta(seconds=1))
    others = Checkpoints(tmp_path / "shared", made_again)
    assert others.load(JOB, SUBJECT) is None
    assert len(caplog.records) == 2  # that of another study is not even found under its name
    others.save(JOB, SUBJECT, {})
    [foreign] = set((tmp_path / "shared").iterdir()) - {path}
    foreign.replace(path)
    assert kept.load(JOB, SUBJECT) is None


def test_a_state_of_before_there_were_formats_is_read_and_one_of_later_is_not(
    kept: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = kept._key(JOB, SUBJECT)
    assert key.pop("format") == checkpoint.FORMAT
    path = only_file(tmp_path)
    content = stored({"key": key, "state": {"steps": 3}})
    path.write_bytes(hashlib.sha256(content).digest() + content)
    assert kept.load(JOB, SUBJECT) == {"steps": 3}
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    kept.save(JOB, SUBJECT, STATE)
    monkeypatch.undo()
    assert kept.load(JOB, SUBJECT) is None


def test_a_subject_keeps_the_words_of_the_first_checkpoints() -> None:
    """Else a study that an earlier version began would lose the jobs that were in training."""
    arm = Arm({3: (0.5,), 5: (0.2, 0.8)}, lr=0.01, init="library", gain={3: 0.25})
    recipe = Recipe(Proxy("nafnet", 4, 1, (3, 5), 1, None), "library", 8, None, (1, 2), "full")
    assert checkpoint.subject(Job(arm, 7, 2, {1: 20.5}), recipe, torch.device("cpu")) == (
        "(Job(densities={3: (0.5,), 5: (0.2, 0.8)}, seed=7, budget=2, bars={1: 20.5}, lr=0.01, "
        "init='library', gain={3: 0.25}, trainable=False, split='validation'), "
        "Recipe(proxy=Proxy(family='nafnet', width=4, depth=1, kernel_sizes=(3, 5), channels=1, "
        "classes=None), init='library', batch_size=8, lr=None, rungs=(1, 2), precision='full'), "
        "'cpu')"
    )


@pytest.mark.parametrize(
    "later",
    [
        {"mask": "uniform"}, {"start": "over_phi"}, {"per_image": True}, {"floored": True},
        {"searched_by": "cross_entropy"},
    ],
)  # fmt: skip
def test_what_an_arm_has_since_is_a_part_of_the_subject(later: dict[str, Any]) -> None:
    recipe = Recipe(Proxy("nafnet", 4, 1, (3,), 1, None), "library", 8, None, (1, 2), "full")
    both = (Arm({3: (0.5,)}), Arm({3: (0.5,)}, **later))
    first, second = (
        checkpoint.subject(Job(arm, 7, 2), recipe, torch.device("cpu")) for arm in both
    )
    assert first != second


@pytest.mark.parametrize("package", ["torch", "densitune"])
def test_another_version_starts_again(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package == "torch":
        monkeypatch.setattr(torch, "__version__", "1.0")
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
    assert kept.load(JOB, SUBJECT) is None


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_named_and_not_used(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    path = only_file(tmp_path)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        changed = bytearray(whole[:place])
    else:
        changed = bytearray(whole)
        changed[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        caplog.clear()
        assert kept.load(JOB, SUBJECT) is None
        assert str(path) in caplog.text
    finally:
        path.write_bytes(whole)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_link_in_place_of_a_checkpoint_is_not_used_nor_waited_for(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = only_file(tmp_path)
    victim = path.rename(tmp_path / "victim")
    whole = victim.read_bytes()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim)
    assert kept.load(JOB, SUBJECT) is None
    assert str(path) in caplog.text
    with pytest.raises(OSError, match="no regular file is there"):
        kept.save(JOB, SUBJECT, {})
    assert victim.read_bytes() == whole


class Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_file_of_somebody_else_runs_no_code(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    """Even with the right checksum."""
    evil = {"key": Bomb(tmp_path / "exploded"), "state": {}}
    stored = io.BytesIO()
    if by == "torch":
        torch.save(evil, stored)
    else:
        pickle.dump(evil, stored)
    content = stored.getvalue()
    only_file(tmp_path).write_bytes(hashlib.sha256(content).digest() + content)
    with caplog.at_level(logging.WARNING):
        assert kept.load(JOB, SUBJECT) is None
    assert not (tmp_path / "exploded").exists()
    assert "unusable, starting again" in caplog.text


def test_a_write_that_fails_leaves_the_earlier_one_and_no_litter(
    kept: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            kept.save(JOB, SUBJECT, {"steps": 9})
    assert only_file(tmp_path).suffix == ".pt"
    assert bits(kept.load(JOB, SUBJECT)) == bits(STATE)


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_after(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    kept.save(JOB, SUBJECT, STATE)
    assert done == ["file", "name", "folder"]


def stored(value: Any, *, legacy: bool = False) -> bytes:
    raw = io.BytesIO()
    torch.save(value, raw, _use_new_zipfile_serialization=not legacy)
    return raw.getvalue()


def deflated(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(packed, "w") as taken:
        for part in given.infolist():
            taken.writestr(part.filename, given.read(part), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["tensors", "no state", "a list", "no keys", "a bomb", "legacy"])
def test_a_foreign_file_with_a_right_checksum_is_of_no_use_and_nothing_else(
    kept: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    key = kept._key(JOB, SUBJECT)
    contents = {
        "tensors": stored({"key": {**key, "job": torch.zeros(2)}, "state": {}}),
        "no state": stored({"key": key, "state": 5}),
        "a list": stored([1]),
        "no keys": stored({}),
        "a bomb": deflated(stored({"key": key, "state": {"a": torch.zeros(2**22)}})),
        "legacy": stored({"key": key, "state": {}}, legacy=True),
    }
    content = contents[kind]
    only_file(tmp_path).write_bytes(hashlib.sha256(content).digest() + content)
    assert kept.load(JOB, SUBJECT) is None
    assert str(only_file(tmp_path)) in caplog.text
