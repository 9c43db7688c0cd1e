"""What a terminal shows, rendered to text by Rich at the widths of real terminals."""

import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.text import Text
from support.synthetic import (
    RUNG,
    configured,
    decided,
    measured,
    snapshot,
    trial,
    usual,
    worker,
)

from densitune.density import Densities
from optimizer.evidence import differences
from optimizer.show import printing, programs, progress, terminal, words
from optimizer.show.confirmation_table import arms_table
from optimizer.snapshot import PhaseRows, Snapshot
from storage.ledger import LedgerRow

WIDTHS = [80, 120]
CLAIMS = re.compile(r"better|improve|gain|win|superior|optimal|beats", re.IGNORECASE)
NOT_KNOWN = "The best of many noisy results looks better than it is."


def rendered(what: RenderableType, width: int = 80) -> str:
    console = Console(
        width=width,
        file=io.StringIO(),
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None,
    )
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text, "something is cut off"
    return text


def flat(text: str) -> str:
    """Text without the line breaks and frames that a width brings."""
    return " ".join(re.sub(r"[│┃┏┳┓┡╇┩├┼┤└┴┘━─]", " ", text).split())


def rows(text: str) -> list[list[str]]:
    """The cells of a table's body, row by row."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def several_sizes() -> Snapshot:
    """Three kernel sizes, one seed, every published density and a candidate."""
    given = configured(kernel_size=[3, 5, 7], proxy={"depth": 9}, search={"seeds": 1, "trials": 30})
    trials = [
        trial(number, anchor.densities, role=anchor.role, label=anchor.label)
        for number, anchor in enumerate(given.anchors)
    ]
    trials.append(
        trial(len(trials), {3: (0.123456,), 5: (0.123456, 1.23456), 7: (0.1, 1.23456, 0.0789012)})
    )
    measurements = [row for t in trials for row in measured(t.number, {0: 24 + t.number / 10})]
    return snapshot(trials, measurements, given=given)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_panel_shows_progress_best_and_workers(width: int) -> None:
    text = flat(rendered(terminal.panel(usual()), width))
    assert text.startswith("a-study")
    assert "11/24 trials done, 1 running, 0 cut, 1 failed" in text
    assert (
        "best so far (unconfirmed): [0.6333, 1.857] at 25.220 dB, +0.720 ± 0.060 dB to identity"
        in text
    )
    # 48 jobs, of which 22 are done or failed, at 120 an hour.
    assert "2 workers, 120 jobs/hour, about 13 min 0 s left" in text


def test_the_plain_line_is_one_line_with_all_that_the_panel_shows() -> None:
    line = terminal.plain_line(usual())
    assert "\n" not in line
    for part in (
        "11/24 trials done, 1 running, 0 cut, 1 failed",
        "[0.6333, 1.857] at 25.220 dB, +0.720 ± 0.060 dB to identity",
        "2 workers, 120 jobs/hour, about 13 min 0 s left",
    ):
        assert part in line
        assert part in flat(rendered(terminal.panel(usual())))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_final_table_has_identity_the_published_densities_and_the_best_five(
    width: int,
) -> None:
    text = rendered(terminal.final_table(usual()), width)
    assert rows(text) == [
        ["no network", "noisy input", "20.250", ""],
        ["[1, 1]", "identity", "24.500", "0 (the baseline)"],
        ["[0.2, 0.8]", "v2 README", "24.620", "+0.120 ± 0.010"],
        ["[0.3, 1.5]", "v1 README", "24.740", "+0.240 ± 0.020"],
        ["[1.5, 0.75]", "v2 learning_2D.py", "24.860", "+0.360 ± 0.030"],
        ["[0.6333, 1.857]", "1. trial 6", "25.220", "+0.720 ± 0.060"],
        ["[0.9333, 2.286]", "2. trial 9", "25.125", "+0.625 ± 0.365"],
        ["[0.5333, 1.714]", "3. trial 5", "25.100", "+0.600 ± 0.050"],
        ["[0.8333, 2.143]", "4. trial 8", "25.005", "+0.505 ± 0.375"],
        ["[0.4333, 1.571]", "5. trial 4", "24.980", "+0.480 ± 0.040"],
    ]
    assert "a-study: PSNR on validation data, search, unconfirmed" in flat(text)
    assert f"± is the standard error over 2 paired seeds. {NOT_KNOWN}" in flat(text)


def test_identity_is_the_first_density_also_where_it_is_not_the_first_in_rank() -> None:
    trials = [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.2, 0.8)}), trial(2, {5: (0.3, 0.8)})]
    found = [row for n, v in enumerate((20.0, 21.0, 19.0)) for row in measured(n, {0: v})]
    study = snapshot(trials, found, given=configured(search={"seeds": 1}))
    assert [row[1] for row in rows(rendered(terminal.final_table(study)))] == [
        "noisy input",
        "identity",
        "1. trial 1",
        "2. identity",
        "3. trial 2",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_status_shows_state_live_workers_and_failures(width: int) -> None:
    text = flat(rendered(terminal.status(usual()), width))
    assert text.startswith(
        "a-study: running, phase search budget 4 epochs, full precision, learning rate 0.01 "
        "11/24 trials done"
    )
    assert "11/24 trials done, 1 running, 0 cut, 1 failed" in text
    assert "node7 pid 4001 on NVIDIA H200: 6 jobs, 60/hour" in text
    assert "pid 4003" not in text  # it is gone
    assert "trial 10 failed: loss is not finite" in text
    assert "v1 README" in text
    stopped = usual(state="stopped", failure="identity could not be trained")
    assert "a-study: stopped, phase search (identity could not be trained)" in flat(
        rendered(terminal.status(stopped), width)
    )


def test_a_failed_anchor_is_named_with_number_and_label() -> None:
    trials = [
        trial(1, {5: (0.2, 0.8)}, role="published", label="v2 README", state="failed", reason="[x]")
    ]
    assert "trial 1 (v2 README) failed: [x]" in rendered(terminal.status(snapshot(trials, [])))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_study_without_results_can_be_shown(width: int) -> None:
    empty = snapshot([], [])
    for shown in (terminal.panel(empty), terminal.status(empty), Text(terminal.plain_line(empty))):
        text = flat(rendered(shown, width))
        assert "0/24 trials done, 0 running, 0 cut, 0 failed" in text
        assert "best so far: waiting for identity" in text
        assert "0 workers, 0 jobs/hour" in text
        assert "left" not in text
    assert rows(rendered(terminal.final_table(empty), width)) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_one_seed_has_no_standard_error(width: int) -> None:
    study = several_sizes()
    for shown in (terminal.panel(study), terminal.status(study), terminal.final_table(study)):
        text = flat(rendered(shown, width))
        assert "±" not in text
    assert "One seed says nothing about the spread." in flat(
        rendered(terminal.final_table(study), width)
    )
    assert "+0.500 dB to identity" in terminal.best_line(study)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_density_of_several_sizes_is_shown_whole(width: int) -> None:
    cells = [row[0] for row in rows(rendered(terminal.final_table(several_sizes()), width))]
    shown = " ".join(cells)
    for text in ("k=3 [0.7]", "k=5 [0.2, 0.8]", "k=7 [0.25, 0.15, 0.55]", "k=7 [0.06, 1.2, 1.6]"):
        assert text in shown
    assert "k=3 [0.1235] k=5 [0.1235, 1.235] k=7 [0.1, 1.235, 0.0789]" in shown
    line = terminal.best_line(several_sizes())
    assert "k=3 [0.1235]  k=5 [0.1235, 1.235]  k=7 [0.1, 1.235, 0.0789]" in line


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_labels_and_densities_are_never_cut_off(width: int) -> None:
    name = "n" * 63
    label = "a-label-" + "l" * 60
    den = tuple(0.1234 + n for n in range(15))
    given = configured(name=name, kernel_size=31)
    trials = [trial(0, {31: (1.0,) * 15}), trial(1, {31: den}, role="published", label=label)]
    found = measured(0, {0: 20.0, 1: 20.5}) + measured(1, {0: 20.25, 1: 21.0})
    crew = [worker(1, host="h" * 70, device="d" * 70)]
    study = snapshot(trials, found, given=given, workers=crew)
    for shown in (terminal.panel(study), terminal.status(study)):
        assert name in rendered(shown, width).replace("\n", "")
    table = rendered(terminal.final_table(study), width)
    assert "".join(row[1] for row in rows(table)).count("l" * 60) == 2  # as itself and in the rank
    assert ", ".join(f"{value:.4g}" for value in den) in " ".join(row[0] for row in rows(table))


def test_identity_as_the_best_is_said_as_such() -> None:
    trials = [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.2, 0.8)})]
    found = measured(0, {0: 20.0, 1: 20.5}) + measured(1, {0: 19.0, 1: 19.5})
    line = terminal.best_line(snapshot(trials, found))
    assert line == "best so far: identity itself, at 20.250 dB"


def test_nothing_shown_claims_that_a_density_helps() -> None:
    for study in (usual(), several_sizes(), snapshot([], []), usual(state="finished")):
        for shown in (terminal.panel(study), terminal.status(study), terminal.final_table(study)):
            text = flat(rendered(shown))
            assert not CLAIMS.search(text.replace(NOT_KNOWN, ""))
            assert study.best is None or "unconfirmed" in text
        assert json.loads(json.dumps(programs.document(study)))["verdict"] == "unconfirmed"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(("rate", "expected"), [(0.4, "0.4"), (9.96, "10.0"), (120.4, "120")])
def test_a_slow_rate_is_not_shown_as_none(rate: float, expected: str) -> None:
    assert f"{expected} jobs/hour" in progress.worker_line(usual(jobs_per_hour=rate))


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    printing.console().print("preset: /tmp/[bold]/:smile:/[/red].json", soft_wrap=True)
    assert capsys.readouterr().out == "preset: /tmp/[bold]/:smile:/[/red].json\n"


def with_cut_trials(count: int) -> Snapshot:
    """The usual study, in which more candidates were cut after one seed's first rung."""
    known = usual(provenance={"source": "photographs", "floor": 20.25, "precision": "bfloat16"})
    for number in range(12, 12 + count):
        known.trials.append(
            trial(number, {5: (1.9, 1.9)}, state="pruned", jobs=1, done=0, cut=1, reason="low")
        )
        known.rows.extend(row for row in measured(number, {0: 22.0}) if row.rung == RUNG)
    return known


def test_cut_trials_are_counted_and_named_beside_the_table() -> None:
    some, one, none = with_cut_trials(3), with_cut_trials(1), usual()
    assert "14/24 trials done, 1 running, 3 cut, 1 failed" in flat(rendered(terminal.panel(some)))
    assert "14/24 trials done, 1 running, 3 cut, 1 failed" in terminal.plain_line(some)
    table = rendered(terminal.final_table(some))
    assert rows(table) == rows(rendered(terminal.final_table(none)))
    assert "3 trials were cut: not trained to the end with all seeds." in flat(table)
    assert "1 trial was cut:" in flat(rendered(terminal.final_table(one)))
    assert "cut" not in rendered(terminal.final_table(none))
    assert "bfloat16 precision" in flat(rendered(terminal.status(some)))
    document = json.loads(json.dumps(programs.document(some)))
    assert document["trials"]["pruned"] == 3
    assert document["precision"] == "bfloat16"
    assert len(document["results"]) == 10
    # Nothing is left to train of the trials that were cut: 10 of two jobs each are.
    assert document["seconds_left"] == pytest.approx(20 * 30)


def test_the_document_for_programs_is_json_with_the_same_numbers() -> None:
    document = json.loads(json.dumps(programs.document(usual()), allow_nan=False))
    assert document["trials"] == {
        "complete": 10,
        "running": 1,
        "pruned": 0,
        "failed": 1,
        "asked for": 24,
    }
    assert document["precision"] == "full"
    assert document["seconds_left"] == pytest.approx(26 * 30)
    assert document["best"] == document["results"][0]
    assert document["best"]["trial"] == 6
    assert document["best"]["densities"] == {"5": list(usual().trials[6].densities[5])}
    assert document["best"]["by_seed"] == pytest.approx({"0": 24.66, "1": 25.78})
    assert document["failed"] == [
        {"trial": 10, "label": "trial 10", "reason": "loss is not finite"}
    ]
    assert [found["live"] for found in document["workers"]] == [True, True, False]
    empty = json.loads(json.dumps(programs.document(snapshot([], [])), allow_nan=False))
    assert (empty["best"], empty["results"], empty["seconds_left"]) == (None, [], None)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_a_confirmation_has_every_arm_with_intervals(width: int) -> None:
    text = rendered(arms_table(decided()), width)
    cells = rows(text)
    assert cells[0] == ["identity", "4", "27.505", "0 (the baseline)", ""]
    shown = [" ".join(filter(None, column)) for column in zip(*cells, strict=True)]
    for expected in ("[0.6333, 1.857]", "trial 6: better", "trial 9: scale_only", "compensated"):
        assert expected in shown[0]
    assert shown[0].count("scale control") == shown[0].count("uniform mask") == 2
    assert "[+0.440, +0.540]" in shown[3]
    assert "[+0.340, +0.440]" in shown[4]  # to the scale control
    assert "[+0.245, +0.345]" in shown[4]  # to the uniform mask
    words = flat(text)
    assert (
        "[0.6333, 1.857] is better: better than identity and than its controls, at identity's rate."
        in words
    )
    assert "[0.9333, 2.286] is scale_only: NOT a reason for a density" in words
    assert "about 40 seeds might settle it, with another search.seed" in words


def percent(study: Snapshot) -> Snapshot:
    """The same study of a classifier whose differences have two digits before the point."""

    def stretched(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
        return [dataclasses.replace(row, value=40 + 30 * (row.value - 25)) for row in rows]

    vgg = {"family": "vgg", "width": 8, "depth": 8}
    given = configured(task="cifar100", proxy=vgg, training={"lr": 0.1})
    rows = stretched(study.rows)
    confirm = PhaseRows(study.confirm.trials, stretched(study.confirm.rows))
    return dataclasses.replace(
        study,
        config=given,
        rows=rows,
        results=differences.results(study.trials, rows),
        confirm=confirm,
    )


@pytest.mark.parametrize(
    "shown",
    [
        *(terminal.final_table(study) for study in (usual(), percent(usual()), several_sizes())),
        *(arms_table(study) for study in (decided(), percent(decided()))),
        *(terminal.status(study) for study in (usual(), percent(decided()), several_sizes())),
    ],
)
def test_no_table_breaks_a_word_at_80_columns(shown: RenderableType) -> None:
    """Its words are those that it has where there is room for every line."""
    narrow, wide = (Counter(flat(rendered(shown, width)).split()) for width in (80, 300))
    assert narrow == wide


def test_a_decided_study_shows_the_verdict_where_the_best_so_far_was() -> None:
    assert terminal.best_line(decided()) == (
        "Use it, with the learning rate of the standard convolution: den=[0.6333, 1.857]. "
        "Verdict: [0.6333, 1.857] is better, better than identity and than its controls, "
        "at identity's rate"
    )
    document = json.loads(json.dumps(programs.document(decided()), allow_nan=False))
    assert (document["phase"], document["verdict"]) == ("decided", "better")
    assert [one["verdict"] for one in document["verdicts"]] == ["better", "scale_only"]
    assert document["phases"]["confirm"]["done"] == 18


def calibrating(**changes: Any) -> Snapshot:
    """Two of five rates are done."""
    identity: Densities = {5: (1.0, 1.0)}
    arms = [
        trial(n, identity, role="rate", arm={"lr": lr}, **done)
        for n, (lr, done) in enumerate(
            [(1e-4, {}), (1e-3, {}), (1e-2, {"state": "running", "done": 0, "waiting": 2})]
        )
    ]
    found = measured(0, {0: 20.0, 1: 21.0}) + measured(1, {0: 24.0, 1: 25.0})
    given = configured(training={"lr": "auto"})
    return snapshot([], [], given=given, calibrate=PhaseRows(arms, found), **changes)


def test_a_calibration_is_shown_as_such() -> None:
    now = calibrating(phase="calibrate")
    line = terminal.plain_line(now)
    assert line.startswith("calibrating the learning rate: 4/6 jobs done, 0 running, 0 failed")
    assert "; no density tried yet; " in line
    text = flat(rendered(terminal.status(now)))
    assert "phase calibrate" in text
    assert "learning rate not yet calibrated" in text
    found = json.loads(json.dumps(programs.document(now)))
    assert (found["lr"], found["phase"]) == (None, "calibrate")
    assert found["calibration"] == [{"lr": 1e-4, "value": 20.5}, {"lr": 1e-3, "value": 24.5}]
    later = flat(rendered(terminal.status(calibrating(lr=0.00123)), 120))
    assert "learning rate 0.00123 (identity at 0.0001: 20.500, 0.001: 24.500)" in later


def test_a_confirmation_in_progress_shows_counts_and_no_values() -> None:
    """Who looks at differences before the test does is tempted to stop at a lucky moment."""
    arms = [
        trial(n, {5: (1.0, 1.0)}, role=role, state="running", jobs=8, done=5, running=1, waiting=2)
        for n, role in enumerate(("identity", "finalist", "control", "compensated"))
    ]
    found = [row for n in range(4) for row in measured(n, {0: 99.0})]
    now = usual(phase="confirm", confirm=PhaseRows(arms, found))
    expected = "confirming: 1 of 1 finalists open, seed 8 of at most 36, 20/32 jobs done, 4 running"
    assert expected in terminal.plain_line(now)
    for width in WIDTHS:
        text = flat(rendered(terminal.status(now), width))
        assert "phase confirm" in text
        assert expected in text
        assert "99" not in text
