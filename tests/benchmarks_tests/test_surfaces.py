"""Tests of the recording of surfaces: whole wherever it was ended, and read as it was measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import surfaces
from helpers import surface
from helpers.surface import HIGH, LOW, Journal, Plan
from PIL import Image

PLAN = Plan("tiny", "nafnet", 2, 1, 3, 4, 8, (1, 2))


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "FOLDER", tmp_path / "surfaces")
    monkeypatch.setattr(surfaces, "RATE_SEEDS", range(1000, 1001))
    monkeypatch.setattr(surfaces, "_commit", lambda: "a commit")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "bsd-train400"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(20):
        pixels = random.integers(0, 256, (100, 100), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder.parent


def _measured(path: Path) -> list[dict[str, object]]:
    """Return the lines of a file without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_recording_that_was_ended_anywhere_goes_on_to_the_same_surface(
    images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "surfaces" / "tiny.jsonl"
    surfaces.record(PLAN, images, 2)
    whole = _measured(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:40])  # in the middle of a line

    surfaces.record(PLAN, images, 2)

    assert _measured(path) == whole
    recorded = surface.load(path)
    assert recorded.values.shape == (4, 2, 2)
    assert np.isfinite(recorded.values).all()
    assert (np.diff(recorded.seconds, axis=2) > 0).all()
    by_job = {(line["place"], line["seed"]): line for line in whole if "place" in line}
    assert recorded.values[3, 1].tolist() == by_job[3, 1]["searched"]


def test_all_places_of_a_null_surface_train_identity_with_other_seeds(
    images: Path, tmp_path: Path
) -> None:
    surfaces.record(PLAN, images, 2)
    surfaces.record(replace(PLAN, name="null", null=True), images, 2)
    plain = surface.load(tmp_path / "surfaces" / "tiny.jsonl").values
    null = surface.load(tmp_path / "surfaces" / "null.jsonl").values
    assert (null[0] == plain[0]).all()
    assert len({tuple(row) for row in null.reshape(-1, 2).tolist()}) == null.shape[0] * 2


def test_another_plan_does_not_go_on_with_a_file(tmp_path: Path) -> None:
    Journal(tmp_path / "a.jsonl").begin(PLAN, {}, {})
    with pytest.raises(ValueError, match="about something else"):
        Journal(tmp_path / "a.jsonl").begin(replace(PLAN, width=3), {}, {})


@pytest.mark.parametrize("plan", surfaces.PLANS, ids=lambda plan: plan.name)
def test_a_design_spans_the_box_and_repeats_nothing(plan: Plan) -> None:
    densities = plan.densities()
    assert densities.shape == (plan.points, plan.dimensions)
    assert (densities[0] == 1).all()
    assert len(np.unique(densities, axis=0)) == plan.points
    assert densities.min() == LOW
    assert densities.max() == HIGH


@pytest.mark.parametrize("path", sorted(surface.FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_what_is_kept_is_of_a_plan_and_says_where_it_was_recorded(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (plan,) = [plan for plan in surfaces.PLANS if plan.name == path.stem]
    assert Plan(**{**lines[0]["plan"], "rungs": tuple(lines[0]["plan"]["rungs"])}) == plan
    assert len(lines[0]["fingerprint"]) == 64
    environments = [line["environment"] for line in lines if "environment" in line]
    assert environments
    assert all(each["commit"] and each["cpu"] and each["torch"] for each in environments)
    jobs = [line for line in lines if "place" in line]
    assert len({(job["place"], job["seed"]) for job in jobs}) == len(jobs)
    assert len({job["lr"] for job in jobs}) == 1
    recorded = surface.load(path)
    assert np.isfinite(recorded.values).any(axis=(1, 2)).all()
