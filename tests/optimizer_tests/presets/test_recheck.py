"""A preset that says what its numbers do not is refused, whoever made its hashes fit."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from support import simulated
from support.databases import temporary

from optimizer.errors import UsageError
from optimizer.presets import document, exports, recheck
from optimizer.snapshot import Snapshot
from storage.database import connect
from storage.jobs import ClaimedJob

Content = dict[str, Any]


def measure(job: ClaimedJob) -> float:
    """A density near 0.5 is better than identity, and than all its controls."""
    (den,) = job.densities[3]
    helps = den != 1 and job.arm["mask"] != "uniform"
    return 27 + simulated.noise(job, 0.2) + 2 * max(0.0, 1 - abs(den - 0.5)) * helps


@pytest.fixture(scope="module")
def study(postgres: str, prepared: str) -> Iterator[Snapshot]:
    with temporary(postgres, prepared) as url:
        engine = connect(url)
        yield simulated.run(engine, simulated.small(**simulated.TESTED), measure)
        engine.dispose()


@pytest.fixture(scope="module")
def content(study: Snapshot) -> Content:
    """The file of a study that has all: a confirmation, a control, a test split."""
    preset = exports.compose(study, exports.chosen(study))
    assert preset.evidence.verdict == "better"
    assert preset.evidence.test is not None
    found: Content = json.loads(preset.text())
    return found


def check(content: Content) -> None:
    recheck.check(document.parse(content, Path("given.json")), content)


def sealed(content: Content) -> Content:
    """What somebody who knows how does last."""
    provenance = content["provenance"]
    provenance["config_sha256"] = document.sha256(provenance["config"])
    provenance["content_sha256"] = document.content_sha256(content)
    return content


def test_every_exported_preset_agrees_with_itself(study: Snapshot, tmp_path: Path) -> None:
    verdicts = set()
    for result in study.results:
        preset = exports.compose(study, result)
        verdicts.add(preset.evidence.verdict)
        path = document.write(preset, tmp_path)
        recheck.check(document.load(path), document.content(path))
        assert recheck.hashes(preset) == "hashes"
    assert {"better", "dropped", "unconfirmed"} <= verdicts


def test_that_others_were_ahead_is_taken_from_the_plan_as_far_as_it_goes(study: Snapshot) -> None:
    """One preset does not hold the others' differences, so `dropped` itself is not computed."""
    (number,) = (verdict.trial for verdict in study.verdicts if verdict.verdict == "dropped")
    left = json.loads(exports.compose(study, exports.chosen(study, number)).text())
    check(left)
    for forge, said in (
        (lambda c: c["evidence"].update(verdict="better"), "differences say: undecided"),
        (lambda c: confirmation(c).update(reason=None), "does not say that it was dropped after"),
        (
            lambda c: c["provenance"]["config"]["confirm"].update(keep=[]),
            "all finalists go on after",
        ),
    ):
        forged = copy.deepcopy(left)
        forge(forged)
        with pytest.raises(UsageError, match=said):
            check(sealed(forged))
    # In an extended study the race counts the most seeds of all, which may be more than its own.
    late = copy.deepcopy(left)
    late["provenance"]["config"]["confirm"].update(keep=[2, 2, 1])
    with pytest.raises(UsageError, match="all finalists go on after"):
        check(sealed(copy.deepcopy(late)))
    confirmation(late).update(extended_from=16)
    check(sealed(late))


@pytest.mark.parametrize(
    ("expected", "identity", "control", "uniform"),
    [
        ("scale_only", 0.0, 1.0, 0.0),
        ("step_only", 0.0, 0.0, 1.0),
        ("no_evidence", 1.0, 0.0, 0.0),
        ("worse", 2.0, 0.0, 0.0),
        ("better", None, 0.0, 0.0),
    ],
)
def test_every_verdict_follows_from_its_preset(
    expected: str, identity: float | None, control: float, uniform: float, database: Engine
) -> None:
    """The arms are as good as is said, a density is at 1; identity at None diverges."""

    def level(job: ClaimedJob) -> float:
        if job.arm["mask"] == "uniform":
            return uniform
        if job.densities[3] != (1.0,):
            return 1.0
        if job.phase != "confirm":
            return 0.5
        return control if any(gain != 1 for gain in job.arm["gain"].values()) else identity or 0.0

    def measured(job: ClaimedJob) -> float:
        if (job.phase, job.trial, identity) == ("confirm", 0, None) and job.seed % 2:
            raise ArithmeticError("loss nan")
        return 27 + simulated.noise(job, 0.2) + level(job)

    given = simulated.small(confirm={"finalists": 1})
    now = simulated.run(database, given, measured)
    preset = exports.compose(now, exports.chosen(now))
    assert preset.evidence.verdict == expected
    check(json.loads(preset.text()))


def test_the_hash_is_of_the_whole_content_in_any_order_of_keys(content: Content) -> None:
    turned = dict(reversed(content.items()))
    assert document.content_sha256(turned) == content["provenance"]["content_sha256"]


def leaves(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, inner in items for place in leaves(inner, (*above, key))]
    return [above]


@given(st.data())
def test_no_value_can_be_altered_unnoticed(content: Content, data: st.DataObject) -> None:
    altered = copy.deepcopy(content)
    *above, last = data.draw(st.sampled_from(leaves(content)))
    inside: Any = altered
    for key in above:
        inside = inside[key]
    value = inside[last]
    inside[last] = (
        value * 1.001 + 1
        if isinstance(value, float)
        else value + 1
        if isinstance(value, int) and not isinstance(value, bool)
        else "other"
    )
    with pytest.raises(UsageError) as raised:
        check(altered)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def confirmation(content: Content) -> Content:
    found: Content = content["evidence"]["confirmation"]
    return found


FORGERIES: dict[str, tuple[Any, str]] = {
    "verdict": (lambda c: c["evidence"].update(verdict="worse"), "verdict worse, but the diff"),
    "unconfirmed": (lambda c: c["evidence"].update(confirmation=None), "verdict better, but"),
    "density": (lambda c: c["densities"].update({"3": [0.9]}), "is not the one in `use`"),
    "size": (
        lambda c: c.update(densities={"5": [0.9, 1]}, use="den=[0.9, 1.0]"),
        r"sizes \[5\]",
    ),
    "mean": (lambda c: confirmation(c)["to_identity"].update(mean=9.0), "to_identity is 9"),
    "interval": (lambda c: confirmation(c)["to_control"].update(low=1.5), "to_control is"),
    "images": (
        lambda c: c["evidence"]["test"]["difference"]["images"].update(low=0.3),
        "test.difference has an interval over images that is not around its mean",
    ),
    "uniform": (lambda c: confirmation(c)["to_uniform"].update(high=0.1), "to_uniform is"),
    "no uniform": (lambda c: confirmation(c).update(to_uniform=None), "say: undecided"),
    "advice": (lambda c: c["evidence"].update(advice="Use it."), "advice is not what follows"),
    "failures": (lambda c: confirmation(c).update(failures={"control": 99}), "99 seeds of control"),
    "arm": (lambda c: confirmation(c).update(failures={"x": 1}), "1 seeds of x"),
    "silence": (lambda c: confirmation(c).update(failures={"identity": 1}), "cautions do not say"),
    "other seeds": (
        lambda c: confirmation(c).update(failures={"identity": 1}, diverged={"identity": [7]}),
        "diverged names seeds that are not",
    ),
    "other arms": (
        lambda c: confirmation(c).update(diverged={"identity": [1000000000]}),
        "diverged names other seeds than failures",
    ),
    "divergence": (
        lambda c: confirmation(c).update(
            failures={"identity": confirmation(c)["seeds"]},
            diverged={"identity": [1000000000 + n for n in range(confirmation(c)["seeds"])]},
        ),
        "differences say: no_evidence",
    ),
    "normalised": (
        lambda c: confirmation(c).update(uniform_is_identity=True, to_control=None),
        "uniform_is_identity, which no nafnet has",
    ),
    "identity": (lambda c: confirmation(c).update(identity=-1.0), "no healthy baseline"),
    "seed": (
        lambda c: confirmation(c)["to_identity"]["by_seed"].update({"1000000000": 9.0}),
        "its seeds say",
    ),
    "seeds": (lambda c: confirmation(c).update(seeds=999), "999 seeds are stated"),
    "finalists": (lambda c: confirmation(c).update(finalists=9), "9 finalists"),
    "budget": (lambda c: confirmation(c).update(budget=77), "confirmed for 77 epochs"),
    "no seeds": (lambda c: confirmation(c)["to_identity"].update(by_seed={}), "no whole numbers"),
    "odd seeds": (
        lambda c: confirmation(c)["to_uniform"].update(by_seed={"x": 1.0}),
        "seeds of to_uniform are no whole numbers",
    ),
    "search": (
        lambda c: c["evidence"]["difference_to_identity"].update(mean=9.0),
        "difference_to_identity has the mean 9",
    ),
    "value": (lambda c: c["evidence"].update(value=99.0), "value minus identity"),
    "floor": (lambda c: c["evidence"].update(floor=-1.0), "not the highest of floors"),
    "health": (
        lambda c: c["evidence"].update(floor=99.0, floors={"noisy input": 99.0}),
        "no healthy baseline",
    ),
    "test": (lambda c: c["evidence"]["test"]["difference"].update(mean=9.0), "test.difference is"),
    "tested": (lambda c: c["evidence"]["test"].update(value=99.0), "test.value minus"),
    "config": (lambda c: c["provenance"]["config"]["search"].update(seeds=1), "not among those"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_hashes_that_fit_is_refused_and_said(content: Content, name: str) -> None:
    forge, said = FORGERIES[name]
    forged = copy.deepcopy(content)
    forge(forged)
    with pytest.raises(UsageError, match=said) as raised:
        check(sealed(forged))
    assert "hash" not in str(raised.value)
    assert "does not agree with itself" in str(raised.value)


def test_what_was_judged_as_better_by_too_few_is_not(content: Content) -> None:
    """Differences that were cut down to a lucky beginning are no look of the plan."""
    forged = copy.deepcopy(content)
    confirmed = confirmation(forged)
    for name in ("to_identity", "to_control", "to_uniform"):
        by_seed = confirmed[name]["by_seed"]
        kept = dict(sorted(by_seed.items())[:3])
        confirmed[name]["by_seed"] = kept
    confirmed["seeds"] = 3
    with pytest.raises(UsageError, match="3 seeds are not a look of this plan"):
        check(sealed(forged))


def test_an_older_preset_without_the_hash_is_checked_all_the_same(content: Content) -> None:
    older = copy.deepcopy(content)
    del older["provenance"]["content_sha256"]
    del older["evidence"]["confirmation"]["extended_from"]
    del older["evidence"]["advice"]
    check(older)
    assert "older" in recheck.hashes(document.parse(older, Path("given.json")))
    older["evidence"]["verdict"] = "no_evidence"
    with pytest.raises(UsageError, match="verdict no_evidence, but the differences say: better"):
        check(older)
