"""The exported file: exact, honest, and readable by those who only know JSON."""

import ast
import copy
import dataclasses
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import configured, decided, measured, snapshot, trial, usual, worker

from optimizer.errors import EvidenceError, UsageError
from optimizer.presets import document, exports, notes, recheck, reruns
from optimizer.presets.document import Preset
from optimizer.show import words
from optimizer.snapshot import Snapshot

SHIPPED = Path(document.__file__).with_name("preset.schema.json")


class wConv2d:  # noqa: N801 - the authors' name
    """A layer with the signature of the authors' one, which takes a density as its fourth."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        den: list[float],
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        if len(den) != (kernel_size - 1) / 2:
            raise ValueError("den has another length than kernel_size takes")
        self.kernel_size, self.den, self.padding = kernel_size, den, padding


def used(preset: Preset) -> list[wConv2d]:
    """The layers that the line `use` makes, statement by statement."""
    scope = {"wConv2d": wConv2d, "in_channels": 3, "out_channels": 8}
    return [
        eval(compile(ast.Expression(statement.value), "use", "eval"), scope)
        for statement in ast.parse(preset.use).body
        if isinstance(statement, ast.Expr)
    ]


def best_of(given: Snapshot) -> Preset:
    assert given.best is not None
    return exports.compose(given, given.best)


def several_sizes(den: dict[int, tuple[float, ...]]) -> Snapshot:
    """Identity and one better candidate of a study with several kernel sizes."""
    given = configured(kernel_size=list(den), proxy={"family": "dncnn", "depth": 9})
    trials = [trial(0, {k: (1.0,) * len(values) for k, values in den.items()}), trial(1, den)]
    rows = measured(0, {0: 24.0, 1: 25.0}) + measured(1, {0: 24.5, 1: 25.75})
    return snapshot(trials, rows, given=given)


def test_a_preset_carries_the_numbers_of_the_study() -> None:
    study = usual()
    preset = best_of(study)
    assert preset.name == "a-study"
    assert preset.by_kernel_size() == {5: study.trials[6].densities[5]}  # 24.66 and 25.78: largest
    evidence = preset.evidence
    assert evidence.seeds == [0, 1]
    assert evidence.value == pytest.approx((24.66 + 25.78) / 2)
    assert evidence.identity == pytest.approx(24.5)
    assert evidence.difference_to_identity.mean == pytest.approx(0.72)
    assert evidence.difference_to_identity.standard_error == pytest.approx(0.06)
    assert evidence.difference_to_identity.by_seed == pytest.approx({"0": 0.66, "1": 0.78})
    assert evidence.trials_compared == 10
    provenance = preset.provenance
    assert (provenance.study, provenance.trial, provenance.optuna_trial) == ("a-study", 6, 106)
    assert provenance.devices == ["NVIDIA H200", "cpu"]
    # Ten trials of two seeds, 120 seconds each.
    assert provenance.device_hours == pytest.approx(10 * 2 * 120 / 3600, abs=1e-4)
    task = preset.task
    assert (task.source, task.split, task.metric, task.unit) == (
        "photographs",
        "validation",
        "PSNR",
        "dB",
    )
    assert task.proxy == {"family": "nafnet", "width": 8, "depth": 3}
    assert task.training == {"budget": 4, "batch_size": 128, "lr": 0.01, "precision": "full"}


def test_a_preset_says_in_what_arithmetic_the_study_was_trained() -> None:
    known = {"source": "photographs", "floor": 20.25, "versions": {}, "precision": "bfloat16"}
    preset = best_of(usual(provenance=known))
    assert preset.task.training["precision"] == "bfloat16"
    assert preset.provenance.config["training"]["precision"] == "auto"


def test_cut_trials_were_compared_too() -> None:
    study = usual()
    study.trials.append(trial(12, {5: (1.9, 1.9)}, state="pruned", jobs=1, done=0, cut=1))
    assert best_of(study).evidence.trials_compared == 11


def test_hashes_follow_the_config_and_the_ledger() -> None:
    first, same = best_of(usual()).provenance, best_of(usual()).provenance
    assert (first.config_sha256, first.ledger_sha256) == (same.config_sha256, same.ledger_sha256)
    other = best_of(usual(given=configured(search={"trials": 25}))).provenance
    assert other.config_sha256 != first.config_sha256
    assert other.ledger_sha256 == first.ledger_sha256
    changed = usual()
    changed.rows[0] = dataclasses.replace(changed.rows[0], value=changed.rows[0].value + 1e-12)
    assert best_of(changed).provenance.ledger_sha256 != first.ledger_sha256


@given(
    st.fixed_dictionaries({k: st.tuples(*[st.floats(0, 1e12)] * ((k - 1) // 2)) for k in (3, 5, 7)})
)
def test_densities_survive_the_file_to_the_last_bit(den: dict[int, tuple[float, ...]]) -> None:
    preset = best_of(several_sizes(den))
    content = json.loads(preset.text())
    assert {int(k): tuple(values) for k, values in content["densities"].items()} == den
    assert Preset.model_validate(content) == preset
    assert {layer.kernel_size: tuple(layer.den) for layer in used(preset)} == den


def test_a_written_preset_is_read_back_equal(tmp_path: Path) -> None:
    preset = best_of(usual())
    path = document.write(preset, tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "a-study.json"
    assert document.load(path) == preset
    assert document.write(preset, path.parent) == path  # again
    assert [file.name for file in path.parent.iterdir()] == ["a-study.json"]


def test_the_line_to_use_makes_the_layer_with_the_density_that_keeps_the_size() -> None:
    preset = best_of(usual())
    [statement] = ast.parse(preset.use).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    keywords = {word.arg: ast.literal_eval(word.value) for word in statement.value.keywords}
    assert keywords == {"kernel_size": 5, "den": preset.densities["5"], "padding": 2}
    [layer] = used(preset)
    assert layer.den == preset.densities["5"]
    assert 2 * layer.padding + 1 == layer.kernel_size


def test_a_reader_who_only_knows_json_finds_the_density(tmp_path: Path) -> None:
    path = document.write(best_of(usual()), tmp_path)
    content = json.loads(path.read_bytes())
    assert list(content)[:5] == ["schema", "name", "densities", "convention", "use"]
    den = content["densities"]["5"]
    assert isinstance(den, list)
    assert all(isinstance(value, float) for value in den)
    assert content["convention"] == "outermost first; centre 1 implied; phi = outer(alpha, alpha)"
    wConv2d(3, 8, 5, den)


def test_a_preset_claims_nothing() -> None:
    preset = best_of(usual())
    assert preset.evidence.verdict == "unconfirmed"
    claims = preset.text().replace(json.dumps(notes.NOTES["unconfirmed"])[1:-1], "")
    assert not re.search(r"better|best|improve|gain|win|superior|optimal", claims, re.IGNORECASE)
    assert "not confirmed" in notes.NOTES["unconfirmed"]
    assert "looks better than it is" in notes.NOTES["unconfirmed"]


def with_verdicts(*verdicts: str) -> Snapshot:
    """The decided study with other verdicts on trials 6 and 9."""
    known = decided()
    stored = [
        {**one, "verdict": verdict}
        for one, verdict in zip(known.study.verdicts or [], verdicts, strict=True)
    ]
    return dataclasses.replace(known, study=dataclasses.replace(known.study, verdicts=stored))


READ: dict[str, Any] = {
    "trial": 6,
    "fingerprint": "cafe" * 16,
    "seeds": [1_000_000_000, 1_000_000_001],
    "value": 27.5,
    "identity": 27.0,
    "difference": {
        "mean": 0.5,
        "low": -0.135,
        "high": 1.135,
        "by_seed": {"1000000000": 0.45, "1000000001": 0.55},
        "images": {"count": 24, "low": -0.2, "high": 1.2},
    },
}


@pytest.mark.parametrize("found", [READ, {"trial": 6, "reason": "it could not be measured"}])
def test_what_the_test_split_says_goes_with_the_winner_alone(found: dict[str, Any]) -> None:
    known = decided()
    study = dataclasses.replace(known, study=dataclasses.replace(known.study, holdout=found))
    preset = exports.compose(study, study.results[6])
    assert preset.evidence.test == study.holdout is not None
    content = json.loads(preset.text())
    assert Preset.model_validate(content) == preset
    validator().validate(content)
    told = content["evidence"]["test"]
    assert {key: value for key, value in told.items() if value} == found
    assert exports.compose(study, study.results[9]).evidence.test is None
    content["evidence"]["test"]["p"] = 0.01
    assert not validator().is_valid(content)


def test_a_preset_names_its_trial() -> None:
    labels = [exports.compose(usual(), usual().results[n]).provenance.label for n in (0, 1, 6)]
    assert labels == ["identity", "v2 README", "trial 6"]


def test_a_confirmed_preset_has_verdict_intervals_and_the_searchs_difference_beside() -> None:
    study = decided()
    preset = exports.compose(study, study.results[6])
    evidence = preset.evidence
    assert evidence.verdict == "better"
    assert evidence.difference_to_identity.mean == pytest.approx(0.72)  # of the search
    found = evidence.confirmation
    assert found is not None
    assert (found.seeds, found.budget, found.finalists) == (4, 8, 2)
    assert found.to_identity == study.verdicts[0].to_identity
    assert found.to_control == study.verdicts[0].to_control
    assert found.to_uniform == study.verdicts[0].to_uniform
    assert found.compensated == study.verdicts[0].compensated
    # Ten trials of two seeds and 120 s, nine arms of four seeds and 120 s.
    expected = (10 * 2 + 9 * 4) * 120 / 3600
    assert preset.provenance.device_hours == pytest.approx(expected, abs=1e-4)
    assert Preset.model_validate(json.loads(preset.text())) == preset
    validator().validate(json.loads(preset.text()))


@pytest.mark.parametrize(
    ("verdicts", "number"),
    [
        (("better", "better"), 6),
        (("no_evidence", "better"), 9),
        (("scale_only", "no_evidence"), 6),
        (("worse", "worse"), 6),
    ],
)
def test_export_takes_the_best_better_finalist_else_the_largest_difference(
    tmp_path: Path, verdicts: tuple[str, str], number: int
) -> None:
    _, preset = exports.export(with_verdicts(*verdicts), tmp_path)
    assert preset.provenance.trial == number
    assert preset.evidence.verdict == verdicts[0 if number == 6 else 1]


@pytest.mark.parametrize("verdict", ["scale_only", "no_evidence", "worse"])
def test_what_is_not_better_says_so_in_words_that_cannot_be_missed(verdict: str) -> None:
    study = with_verdicts(verdict, verdict)
    note = exports.compose(study, study.results[6]).evidence.note
    assert re.match(r"NOT |DO NOT ", note)
    assert note.split(":")[0].isupper()


def unchecked(known: Snapshot) -> Snapshot:
    """The same of a study that asks for no rate check."""
    confirm = known.config.confirm.model_copy(update={"rates": "never"})
    return dataclasses.replace(known, config=known.config.model_copy(update={"confirm": confirm}))


def test_a_better_that_was_to_be_checked_and_was_not_does_not_do(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"trial 6 is better, and .* was not checked"):
        exports.export(decided(), tmp_path, require_better=True)
    assert list(tmp_path.iterdir()) == []


def test_better_can_be_required(tmp_path: Path) -> None:
    exports.export(unchecked(decided()), tmp_path, require_better=True)
    (tmp_path / "a-study.json").unlink()
    for study, number, verdict in (
        (with_verdicts("scale_only", "no_evidence"), None, "scale_only"),
        (decided(), 9, "scale_only"),
        (decided(), 2, "unconfirmed"),
        (usual(), None, "unconfirmed"),
    ):
        with pytest.raises(EvidenceError, match=f"is {verdict} .*better was required") as caught:
            exports.export(study, tmp_path, number, require_better=True)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_better_beside_an_unhealthy_identity_is_marked_and_does_not_do(tmp_path: Path) -> None:
    known = decided()
    provenance = {**known.study.provenance, "floors": {"linear 3 x 3 filter": 99.0}}
    forced = dataclasses.replace(
        known, study=dataclasses.replace(known.study, provenance=provenance)
    )
    with pytest.raises(EvidenceError, match=r"not above the linear 3 x 3 filter .*required"):
        exports.export(forced, tmp_path, require_better=True)
    assert list(tmp_path.iterdir()) == []
    _, marked = exports.export(forced, tmp_path)
    assert marked.evidence.verdict == "better"
    assert marked.evidence.note.startswith("NOT TO BE RELIED ON")
    assert "identity was no healthy baseline" in words.preset_verdict(marked)
    _, sound = exports.export(known, tmp_path)
    assert "RELIED" not in sound.evidence.note
    told = "better: better than identity and than its controls, at identity's rate"
    assert words.preset_verdict(sound) == told


def test_the_hash_of_the_ledger_covers_the_confirmation() -> None:
    first, changed = decided(), decided()
    [row, *_] = changed.confirm.rows
    changed.confirm.rows[0] = dataclasses.replace(row, value=row.value + 1e-12)
    hashes = {best_of(study).provenance.ledger_sha256 for study in (first, changed, usual())}
    assert len(hashes) == 3


def test_a_preset_names_the_calibrated_learning_rate() -> None:
    given = configured(training={"lr": "auto"})
    assert best_of(usual(given=given, lr=0.00123)).task.training["lr"] == 0.00123
    assert best_of(usual(given=given)).task.training["lr"] == "auto"


def test_a_preset_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    content = json.loads(best_of(usual()).text())
    del content["evidence"]["confirmation"], content["evidence"]["floors"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = document.load(tmp_path / "old.json")
    assert (old.evidence.confirmation, old.evidence.verdict) == (None, "unconfirmed")


@pytest.mark.parametrize("kind", ["photographs", "classes"])
def test_a_preset_tells_nobody_where_the_data_lay(kind: str) -> None:
    folder = "/home/somebody/secret/images"
    proxy = {"family": "nafnet" if kind == "photographs" else "vgg", "depth": 3}
    given = configured(task="folder", data={"folder": folder, "kind": kind}, proxy=proxy)
    study = usual(
        given=given,
        provenance={"source": f"{kind} in {folder}: 20 training", "floor": 1.0, "versions": {}},
    )
    text = best_of(study).text()
    assert "somebody" not in text
    assert "node7" not in text
    assert best_of(study).task.source == f"{kind} in images: 20 training"


def test_one_seed_has_no_standard_error() -> None:
    trials = [trial(0, {5: (1.0, 1.0)}), trial(1, {5: (0.5, 0.5)})]
    rows = measured(0, {0: 20.0}) + measured(1, {0: 21.0})
    preset = best_of(snapshot(trials, rows, given=configured(search={"seeds": 1})))
    assert preset.evidence.difference_to_identity.standard_error is None
    assert Preset.model_validate(json.loads(preset.text())) == preset


def test_export_takes_the_largest_difference_or_the_trial_asked_for(tmp_path: Path) -> None:
    def exported(trial: int | None = None) -> Preset:
        path, preset = exports.export(usual(), tmp_path, trial)
        assert document.load(path) == preset
        return preset

    assert exported().provenance.trial == 6
    assert exported(2).provenance.trial == 2
    assert exported(0).densities == {"5": [1.0, 1.0]}


def test_export_refuses_what_has_no_result(tmp_path: Path) -> None:
    for number in (10, 11, 99):  # failed, running, unknown
        with pytest.raises(UsageError, match=f"a-study has no result of trial {number} to export"):
            exports.export(usual(), tmp_path, trial=number)
    with pytest.raises(UsageError, match=r"has no trial to export yet; .*densitune status a-study"):
        exports.export(snapshot([], []), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    for folder in (in_the_way, in_the_way / "below"):
        with pytest.raises(
            UsageError, match=r"a-study\.json cannot be written: .*; choose another"
        ):
            document.write(best_of(usual()), folder)
    assert in_the_way.read_text() == "not a folder"


def damaged(path: str, value: Any) -> dict[str, Any]:
    """A preset's content with one value replaced, or without it if the value is ...."""
    content: dict[str, Any] = json.loads(best_of(usual(workers=[worker(1)])).text())
    *parents, last = path.split("/")
    inner = content
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


# Damage that JSON Schema can express, and what our own reader says.
DAMAGED: list[tuple[str, Any, str]] = [
    ("name", ..., "name is missing"),
    ("densities", ..., "densities is missing"),
    ("densities", {}, "densities = {}: dictionary should have at least 1 item"),
    ("densities", [0.2, 0.8], "densities = [0.2, 0.8]: input should be a mapping"),
    ("densities", {"five": [0.2, 0.8]}, "densities.five = 'five': string should match"),
    ("densities/5", [0.2, -0.8], "densities.5[1] = -0.8: input should be greater than or equal"),
    ("densities/5", ["0.2", 0.8], "densities.5[0] = '0.2': input should be a valid number"),
    ("densities/5", [True, 0.8], "densities.5[0] = True: input should be a valid number"),
    ("densities/5", None, "densities.5 = None: input should be a valid list"),
    ("verdict", "better", "unknown key verdict"),
    ("evidence/verdict", "proven", "evidence.verdict = 'proven': input should be 'better'"),
    ("evidence/seeds", ..., "evidence.seeds is missing"),
    ("evidence/value", "25", "evidence.value = '25': input should be a valid number"),
    ("task/split", "test", "task.split = 'test': input should be 'validation'"),
    ("provenance/trial", 1.5, "provenance.trial = 1.5: input should be a valid integer"),
    ("provenance", None, "provenance = None: input should be a mapping"),
]
# Damage that only the reader finds.
WRONG: list[tuple[str, Any, str]] = [
    ("densities/5", [0.2], "density [0.2] has 1 values; kernel size 5 takes 2"),
    ("densities", {"4": [0.2]}, "kernel_size 4 is not an odd size from 3 to 31; the nearest is 3"),
    ("densities/5", [float("nan"), 1.0], "densities.5[0] = nan: input should be a finite number"),
    ("evidence/value", float("inf"), "evidence.value = inf: input should be a finite number"),
    (
        "schema",
        "densitune/preset/2",
        "has schema densitune/preset/2, but this densitune reads "
        "versions up to 1; install a newer densitune",
    ),
    ("schema", "densitune/preset/0", "schema 'densitune/preset/0'; expected densitune/preset/1"),
    ("schema", "another/1", "has schema 'another/1'; expected densitune/preset/1"),
    ("schema", ..., "has schema None; expected densitune/preset/1"),
]


@pytest.mark.parametrize(("path", "value", "expected"), DAMAGED + WRONG)
def test_a_damaged_preset_is_refused_with_one_line(
    tmp_path: Path, path: str, value: Any, expected: str
) -> None:
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(damaged(path, value)))
    with pytest.raises(UsageError) as caught:
        document.load(file)
    line = str(caught.value)
    assert line.startswith(f"preset {file}")
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not JSON: "),
        (b"", "is not JSON: "),
        (b"[]", "has schema None; expected densitune/preset/1"),
        (b"\xff\xfe", "cannot be read: "),
    ],
)
def test_what_is_no_preset_is_refused_with_one_line(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "preset.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="preset ") as caught:
        document.load(file)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        document.load(tmp_path / "missing.json")


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_that_ships_is_that_of_the_model() -> None:
    # It is written by: print(presets.json_schema(), end="")
    assert SHIPPED.read_text(encoding="utf-8") == document.json_schema()


def test_the_schema_accepts_presets() -> None:
    several = several_sizes({3: (0.7,), 5: (0.2, 0.8)})
    for study in (usual(), several, decided()):
        content = json.loads(best_of(study).text())
        before = copy.deepcopy(content)
        validator().validate(content)
        assert content == before


@pytest.mark.parametrize(("path", "value", "expected"), DAMAGED)
def test_the_schema_rejects_damaged_presets(path: str, value: Any, expected: str) -> None:
    assert not validator().is_valid(damaged(path, value))


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places below the top of a JSON value, as keys and numbers."""
    below: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        below = list(value.items() if isinstance(value, dict) else enumerate(value))
    found = [(*above, key) for key, _ in below]
    return found + [place for key, inner in below for place in places(inner, (*above, key))]


CONTENTS = [
    json.loads(exports.compose(study, exports.chosen(study)).text())
    for study in (usual(), decided())
]
ODD = [None, {}, [], "", "x", -1, 0, 10**99, 1e300, "9" * 5_000, [[1]], {"a\nb": 1}, True, [15_001]]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_altered_value_of_a_preset_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Nor does the rerun of one whose hash was made to fit."""
    content = copy.deepcopy(data.draw(st.sampled_from(CONTENTS)))
    *above, last = data.draw(st.sampled_from(places(content)))
    inside = content
    for key in above:
        inside = inside[key]
    inside[last] = data.draw(st.sampled_from(ODD))
    with suppress(TypeError, KeyError):
        content["provenance"]["config_sha256"] = document.sha256(content["provenance"]["config"])
    path = tmp_path_factory.getbasetemp() / "altered.json"
    path.write_text(json.dumps(content))
    try:
        preset = document.load(path)
        with suppress(UsageError):
            recheck.check(preset, content)
        told = reruns.recorded(preset, Path("images"))
        reruns.limits(preset, told.differences, "another device")
        for seed in told.seeds(1):
            reruns.compare(told, seed, dict.fromkeys(told.arms, 1.0), {})
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
        assert len(str(error)) < 1_500  # noqa: PT017


@pytest.mark.parametrize("size", ["15001", "33", "1", "9" * 5_000])
def test_a_kernel_that_no_study_has_is_refused_before_it_costs_memory(
    tmp_path: Path, size: str
) -> None:
    content = copy.deepcopy(CONTENTS[0])
    content["densities"] = {size: [1.0] * (7_500 if size == "15001" else 1)}
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        UsageError, match=r"preset\.json: (kernel_size|a number has 5,000)"
    ) as caught:
        document.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_what_a_rerun_needs_has_to_fit_together() -> None:
    content = copy.deepcopy(CONTENTS[1])
    content["provenance"]["config"]["kernel_size"] = [3]
    content["provenance"]["config"]["density"]["include"] = []
    with pytest.raises(UsageError, match=r"but provenance\.config has"):
        reruns.recorded(Preset.model_validate(content), None)
    content = copy.deepcopy(CONTENTS[1])
    by_seed = content["evidence"]["confirmation"]["to_identity"]["by_seed"]
    by_seed["a"] = by_seed.pop(next(iter(by_seed)))
    with pytest.raises(UsageError, match="by_seed is not by the same seeds, whole numbers"):
        reruns.recorded(Preset.model_validate(content), None)
