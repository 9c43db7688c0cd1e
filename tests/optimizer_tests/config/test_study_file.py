"""A study's configuration: what is accepted, and the one line for everything that is not."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.checkout import ROOT

from optimizer.config import study_file
from optimizer.config.changes import between
from optimizer.config.study_file import StudyConfig
from optimizer.errors import UsageError

BASE: dict[str, Any] = {
    "name": "a-study",
    "task": "cifar100",
    "proxy": {"family": "vgg", "width": 8, "depth": 6},
    "kernel_size": 5,
    "training": {"budget": 8},
    "search": {"trials": 20},
}
DENOISER = {"family": "dncnn", "width": 8, "depth": 5}
# Python types, and pydantic's names for the members of unions: nobody's business.
LEAKS = re.compile(
    r"tuple|\bdict|instance of|<class|constrained|\[key\]|\ba list =|task folder|"
    r"folder-classes|cifar100\.|pydantic|validat(or|ion error)"
)


def written(**changes: Any) -> dict[str, Any]:
    """BASE with changes; `section__key` reaches into a section, None takes a key out."""
    raw = copy.deepcopy(BASE)
    for path, value in changes.items():
        *section, key = path.split("__")
        inner = raw.setdefault(section[0], {}) if section else raw
        if value is None:
            inner.pop(key, None)
        else:
            inner[key] = value
    return raw


def refusal(raw: dict[str, Any]) -> str:
    """The line with which a config is refused."""
    with pytest.raises(UsageError) as caught:
        study_file.parse(raw, origin="x.yaml")
    line = str(caught.value)
    assert line.startswith("config x.yaml: ")
    assert "\n" not in line
    assert not LEAKS.search(line), line
    return line.removeprefix("config x.yaml: ")


# What is written, and what the line must say: the key, the value, and what is allowed.
REFUSED: list[tuple[dict[str, Any], str]] = [
    # Unknown keys, at every level.
    ({"kernal_size": 3}, "unknown key kernal_size; did you mean kernel_size?"),
    ({"kernel-size": 3}, "unknown key kernel-size; did you mean kernel_size?"),
    ({"task": None, "taks": "cifar100"}, "unknown key taks; did you mean task?"),
    ({"proxy__widht": 3}, "unknown key proxy.widht; did you mean width?"),
    ({"data__folderr": "x"}, "unknown key data.folderr; did you mean folder?"),
    ({"data__kind": "classes"}, "unknown key data.kind; known are task, folder, download"),
    (
        {"task": "folder", "data": {"kind": "classes", "folder": "x", "sizes": 3}},
        "unknown key data.sizes; did you mean size?",
    ),
    (
        {"task": "folder", "data": {"folder": "x", "sigm": 3}, "proxy": DENOISER},
        "unknown key data.sigm; did you mean sigma?",
    ),
    ({"density__lo": 1}, "unknown key density.lo; did you mean low?"),
    (
        {"training__epochs": 3},
        "unknown key training.epochs; known are budget, batch_size, lr",
    ),
    ({"search__trails": 3}, "unknown key search.trails; did you mean trials?"),
    ({"search__in-flight": 3}, "unknown key search.in-flight; did you mean in_flight?"),
    # Missing keys and sections that are none.
    ({"name": None}, "name is missing"),
    ({"proxy": None}, "proxy is missing"),
    ({"kernel_size": None}, "kernel_size is missing"),
    ({"training__budget": None}, "training.budget is missing"),
    ({"search__trials": None}, "search.trials is missing"),
    ({"task": "folder", "proxy": DENOISER}, "data.folder is missing"),
    ({"proxy": "vgg"}, "proxy = 'vgg': input should be a mapping of keys to values"),
    ({"proxy": [1]}, "proxy = [1]: input should be a mapping"),
    ({"data": "x"}, "data = 'x': input should be a mapping"),
    ({"data": [1]}, "data = [1]: input should be a mapping"),
    # Names.
    *(
        ({"name": name}, f"name = {name!r}: a name has 1 to 63 of the characters A-Z a-z 0-9")
        for name in ("", "two words", "../up", "é", ".hidden", "a" * 64, "newline\n")
    ),
    ({"name": 3}, "name = 3: input should be a valid string"),
    ({"name": False}, "name = False: a boolean has no place here"),
    # Tasks.
    (
        {"task": "cifar10"},
        "task = 'cifar10' is unknown; take one of cifar100, div2k, photos, folder",
    ),
    ({"task": ["cifar100"]}, "task = ['cifar100'] is unknown; take one of cifar100"),
    ({"task": True}, "task = True is unknown; take one of cifar100"),
    ({"task": None}, "task is missing; take one of cifar100, div2k, photos, folder"),
    ({"task": None, "data": {"download": False}}, "task is missing; take one of cifar100"),
    ({"data__task": "div2k"}, "task = 'cifar100', but data.task = 'div2k'; give one"),
    (
        {"task": "folder", "data": {"folder": "x", "kind": "things"}, "proxy": DENOISER},
        "data.kind = 'things': input should be 'photographs'",
    ),
    ({"data__validation": 1}, "data.validation = 1: input should be less than 1"),
    ({"data__labels": "super"}, "data.labels = 'super': input should be 'fine' or 'coarse'"),
    ({"data__download": "maybe"}, "data.download = 'maybe': input should be a valid boolean"),
    ({"data__folder": 3}, "data.folder = 3: input should be a path"),
    # Proxies.
    (
        {"proxy__family": "vggg"},
        "proxy.family = 'vggg': input should be 'vgg', 'resnet', 'dncnn' or 'nafnet'",
    ),
    (
        {"proxy__family": "nafnet"},
        "proxy.family nafnet is for denoising, but task cifar100 is classification; "
        "take vgg or resnet, or a network by name",
    ),
    (
        {"task": "photos"},
        "proxy.family vgg is for classification, but task photos is denoising; "
        "take dncnn or nafnet",
    ),
    (
        {"task": "python", "data": {"load": "a:b"}},
        "data.floor is missing",
    ),
    (
        {"task": "python", "data": {"load": "a b", "floor": 1}},
        "data.load = 'a b': string should match pattern",
    ),
    (
        {"task": "python", "data": {"load": "a:b", "floor": 1, "kwargs": {"x": float("inf")}}},
        "data.kwargs has a number that is not finite",
    ),
    ({"task": "python", "data": {"load": "a:b", "floor": 1}, "proxy": None}, "proxy is missing"),
    ({"init": "model"}, "init: model keeps the initial weights that a network of your own has"),
    (
        {"proxy": {"network": "resnet18"}},
        "proxy.network = 'resnet18': a network is torchvision:NAME, timm:NAME or PACKAGE.MODULE",
    ),
    (
        {"proxy": {"network": "workers.models:build"}},
        "proxy.network = 'workers.models:build': workers is a package of densitune's own",
    ),
    (
        {"proxy": {"network": "a:b", "kwargs": {"classes": 3}}},
        "proxy.kwargs.classes follows from the data; leave it out",
    ),
    (
        {"proxy": {"network": "a:b", "kwargs": {"rate": float("nan")}}},
        "proxy.kwargs has a number that is not finite",
    ),
    ({"proxy": {"network": "a:b", "width": 3}}, "unknown key proxy.width; known are network, kwa"),
    ({"proxy": {"network": "a:b", "layers": "!"}}, "proxy.layers = '!': an empty pattern fits not"),
    ({"proxy__depth": 2}, "proxy.depth 2 is too small; a vgg has at least 3"),
    (
        {"proxy": {"family": "resnet", "width": 8, "depth": 9}},
        "proxy.depth 9 is not 6n + 2; a resnet has 8, 14, 20",
    ),
    (
        {"proxy": {"family": "resnet", "width": 8, "depth": 2}},
        "proxy.depth 2 is not 6n + 2; a resnet has 8, 14, 20",
    ),
    ({"proxy__width": 0}, "proxy.width = 0: input should be greater than or equal to 1"),
    ({"proxy__width": 3.5}, "proxy.width = 3.5: input should be a valid integer"),
    ({"proxy__depth": True}, "proxy.depth = True: a boolean has no place here"),
    # Kernel sizes.
    ({"kernel_size": 4}, "kernel_size 4 is not an odd size from 3 to 31; the nearest is 3"),
    ({"kernel_size": 1}, "kernel_size 1 is not an odd size from 3 to 31; the nearest is 3"),
    ({"kernel_size": [3, -5]}, "kernel_size -5 is not an odd size from 3 to 31; the nearest is 3"),
    ({"kernel_size": 33}, "kernel_size 33 is not an odd size from 3 to 31; the nearest is 31"),
    ({"kernel_size": []}, "kernel_size [] must name at least one size"),
    ({"kernel_size": [3, 5, 3]}, "kernel_size [3, 5, 3] must name at least one size, each once"),
    (
        {"kernel_size": [3, 5, 7, 9]},
        "kernel_size names 4 sizes, but a vgg of depth 6 has 3 stages to take them; name at most 3",
    ),
    ({"kernel_size": True}, "kernel_size = [True]: a boolean has no place here"),
    ({"kernel_size": [3, True]}, "kernel_size = [3, True]: a boolean has no place here"),
    ({"kernel_size": 5.5}, "kernel_size[0] = 5.5: input should be a valid integer"),
    ({"kernel_size": "five"}, "kernel_size[0] = 'five': input should be a valid integer"),
    ({"kernel_size": {}}, "kernel_size[0] = {}: input should be a valid integer"),
    # The search box, and densities given.
    ({"density__low": 0}, "density.low = 0: input should be greater than 0"),
    ({"density__low": -0.5}, "density.low = -0.5: input should be greater than 0"),
    ({"density__low": math.nan}, "density.low = nan: input should be a finite number"),
    ({"density__high": math.inf}, "density.high = inf: input should be a finite number"),
    ({"density__low": True}, "density.low = True: a boolean has no place here"),
    ({"density": {"low": 2, "high": 1}}, "density.low 2.0 is not below density.high 1.0"),
    ({"density": {"low": 1, "high": 1}}, "density.low 1.0 is not below density.high 1.0"),
    (
        {"density__include": [[0.2, 0.8], [0.1]]},
        "density.include[1]: density [0.1] has 1 values; kernel size 5 takes 2",
    ),
    (
        {"density__include": [[-1, 1]]},
        "density.include[0]: density[0] = -1.0 is not a finite number >= 0",
    ),
    (
        {"density__include": [[1, math.nan]]},
        "density.include[0]: density[1] = nan is not a finite number >= 0",
    ),
    (
        {"density__include": [{5: [math.inf, 1]}]},
        "density.include[0]: density[0] = inf is not a finite number >= 0",
    ),
    (
        {"density__include": [{3: [1]}]},
        "density.include[0] names the kernel sizes [3]; the study has [5]",
    ),
    (
        {"density__include": [[0.3]], "kernel_size": [3, 5]},
        "density.include[0] is [0.3], but the study has the kernel sizes [3, 5]; write",
    ),
    ({"density__include": [0.3, 0.7]}, "density.include[0] = 0.3: input should be a list"),
    ({"density__include": 0.3}, "density.include = 0.3: input should be a list"),
    ({"density__include": [["a", 1]]}, "density.include[0][0] = 'a': input should be a valid"),
    ({"density__include": [{"x": [1]}]}, "density.include[0].x = 'x': input should be a valid"),
    ({"density__include": [[True, 1]]}, "density.include = [[True, 1]]: a boolean has no place"),
    ({"density__include": [{5: [True, 1]}]}, "a boolean has no place here"),
    # Training.
    ({"training__budget": 0}, "training.budget = 0: input should be greater than or equal to 1"),
    ({"training__budget": math.inf}, "training.budget = inf: input should be a finite number"),
    ({"training__batch_size": False}, "training.batch_size = False: a boolean has no place"),
    ({"training__lr": 0}, "training.lr = 0: input should be greater than 0, or input should be"),
    ({"training__lr": math.nan}, "training.lr = nan: input should be a finite number"),
    ({"training__lr": math.inf}, "training.lr = inf: input should be a finite number"),
    ({"training__lr": True}, "training.lr = True: a boolean has no place here"),
    (
        {"training__lr": "fast"},
        "training.lr = 'fast': input should be a valid number, unable to parse string as a "
        "number, or input should be 'auto'",
    ),
    # Search.
    (
        {"search__sampler": "bayes"},
        "search.sampler = 'bayes': input should be 'auto', 'tpe', 'gp', 'cmaes', 'direct', 'qmc', "
        "'grid' or 'random'",
    ),
    ({"search__rungs": [3, 2]}, "search.rungs [3, 2] must rise and stay below training.budget 8"),
    ({"search__rungs": [2, 2]}, "search.rungs [2, 2] must rise"),
    ({"search__rungs": [2, 8]}, "search.rungs [2, 8] must rise and stay below training.budget 8"),
    ({"search__rungs": [0]}, "search.rungs[0] = 0: input should be greater than 0"),
    ({"search__rungs": [True]}, "search.rungs = [True]: a boolean has no place here"),
    ({"search__rungs": 2}, "search.rungs = 2: input should be a list"),
    ({"search__trials": 3}, "search.trials 3 is below 4: identity, the published densities"),
    (
        {"search__trials": 4, "density__include": [[0.3, 0.7]]},
        "search.trials 4 is below 5: identity",
    ),
    ({"search__trials": math.nan}, "search.trials = nan: input should be a finite number"),
    ({"search__seeds": 0}, "search.seeds = 0: input should be greater than or equal to 1"),
    ({"search__seeds": 101}, "search.seeds = 101: input should be less than or equal to 100"),
    ({"search__seed": -1}, "search.seed = -1: input should be greater than or equal to 0"),
    ({"search__seed": 1_000_000}, "search.seed = 1000000: input should be less than 1000000"),
    ({"search__keep": 0}, "search.keep = 0: input should be greater than 0"),
    ({"search__keep": 1.1}, "search.keep = 1.1: input should be less than or equal to 1"),
    (
        {"training__precision": "half"},
        "training.precision = 'half': input should be 'auto', 'full' or 'bfloat16'",
    ),
    (
        {"confirm__seeds": 13, "confirm__batch": 4},
        "confirm.seeds 13 is not a multiple of confirm.batch 4; take 12 or 16",
    ),
    (
        {"confirm__seeds": 3, "confirm__batch": 4},
        "confirm.seeds 3 is not a multiple of confirm.batch 4; take 4",
    ),
    (
        {"confirm__finalists": 11},
        "confirm.finalists = 11: input should be less than or equal to 10",
    ),
    ({"confirm__batch": 1}, "confirm.batch = 1: input should be greater than or equal to 2"),
    ({"confirm__budget": 0}, "confirm.budget = 0: input should be greater than 0"),
    ({"confirm__finalist": 2}, "unknown key confirm.finalist; did you mean finalists?"),
    ({"search__in_flight": 0}, "search.in_flight = 0: input should be greater than or equal to 1"),
    (
        {"search__sampler": "cmaes", "kernel_size": 3},
        "search.sampler cmaes needs at least two values to search and kernel size 3 has one",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[line[:60] for _, line in REFUSED])
def test_a_mistake_is_refused_with_one_line_that_says_what_is_allowed(
    changes: dict[str, Any], expected: str
) -> None:
    line = refusal(written(**changes))
    assert expected in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": None, "data": {"task": "cifar100"}},
        {"data__task": "cifar100"},
        {"data": {}},
        {"kernel_size": [5]},
        {"density__include": [[0, 0.5], [0, 0]]},
        {"density__include": [{5: [3.0, 1.0]}]},
        {"kernel_size": [3, 5], "density__include": [{5: [0.2, 0.8], 3: [0.7]}]},
        {"training__lr": "1e-3"},  # how YAML reads 1e-3
        {"search__rungs": [1, 4, 7]},
        {"search__keep": 1},
        {"training__precision": "bfloat16"},
        {"search__sampler": "cmaes"},
        {"name": "A.b_c-9"},
        {"proxy": {"family": "resnet", "width": 8, "depth": 14}},
    ],
)
def test_what_is_valid_is_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(study_file.parse(written(**changes), "x"), StudyConfig)


@pytest.mark.parametrize("size", [3, 5, 7, [3, 5]])
@pytest.mark.parametrize("trials", [8, 9, 10, 12, 15, 24, 30, 100])
def test_a_grid_that_does_not_fill_suggests_counts_that_do(size: Any, trials: int) -> None:
    raw = written(kernel_size=size, search__sampler="grid", search__trials=trials)
    dimensions = sum((k - 1) // 2 for k in (size if isinstance(size, list) else [size]))
    first = len(study_file.parse(written(kernel_size=size), "x").anchors)
    full = {first + levels**dimensions for levels in range(2, 100)}
    if trials in full:
        study_file.parse(raw, "x")
        return
    line = refusal(raw)
    suggested = [int(count) for count in line.rsplit("take ")[1].split(" or ")]
    assert f"search.trials {trials} does not fill a grid of {dimensions} values" in line
    below, above = [n for n in full if n < trials], [n for n in full if n > trials]
    assert suggested == [*([max(below)] if below else []), min(above)]
    for count in suggested:
        study_file.parse({**raw, "search": {**raw["search"], "trials": count}}, "x")


def valid_densities(sizes: list[int]) -> st.SearchStrategy[Any]:
    value = st.floats(0, 1e6)
    by_size = st.fixed_dictionaries(
        {k: st.lists(value, min_size=(k - 1) // 2, max_size=(k - 1) // 2) for k in sizes}
    )
    return by_size if len(sizes) > 1 else by_size | by_size.map(lambda given: given[sizes[0]])


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    """Any config that has to be accepted."""
    task = draw(st.sampled_from(["cifar100", "div2k", "photos", "folder", "classes"]))
    data: dict[str, Any] = {}
    if task in ("folder", "classes"):
        data["folder"] = draw(st.sampled_from(["images", "/data/images"]))
        data["test"] = draw(st.sampled_from([None, "others", "/data/others"]))
    if task == "classes":
        task, data["kind"] = "folder", "classes"
    classification = task == "cifar100" or "kind" in data
    if draw(st.booleans()):
        data["validation"] = draw(st.floats(0.01, 0.99))
    family = draw(st.sampled_from(["vgg", "resnet"] if classification else ["dncnn", "nafnet"]))
    depth = draw(st.integers(3, 30))
    stages = {"vgg": 3, "resnet": 3, "dncnn": depth, "nafnet": min(4, (depth - 1) // 2) + 1}
    odd = st.integers(1, 15).map(lambda n: 2 * n + 1)
    sizes = draw(st.lists(odd, min_size=1, max_size=min(3, stages[family]), unique=True))
    low = draw(st.floats(1e-6, 10))
    budget = draw(st.integers(1, 500))
    rungs = draw(st.sets(st.integers(1, max(1, budget - 1)), max_size=4))
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)),
        "task": task,
        "data": data,
        "proxy": {
            "family": family,
            "width": draw(st.integers(1, 1024)),
            "depth": 6 * depth + 2 if family == "resnet" else depth,
        },
        "kernel_size": sizes[0] if len(sizes) == 1 and draw(st.booleans()) else sizes,
        "density": {
            "low": low,
            "high": draw(st.floats(low * 1.01, 100)),
            "include": draw(st.lists(valid_densities(sizes), max_size=3)),
        },
        "init": draw(st.sampled_from(["library", "compensated"])),
        "training": {
            "budget": budget,
            "lr": draw(st.just("auto") | st.floats(1e-9, 10)),
        },
        "search": {
            "sampler": draw(st.sampled_from(["auto", "tpe", "gp", "qmc", "random"])),
            "trials": draw(st.integers(10, 1000)),
            "rungs": sorted(rung for rung in rungs if rung < budget),
            "seed": draw(st.integers(0, 999_999)),
        },
        "confirm": {
            "finalists": draw(st.integers(1, 10)),
            "seeds": (batch := draw(st.integers(2, 100))) * draw(st.integers(1, 10)),
            "batch": batch,
            "budget": draw(st.none() | st.integers(1, 1000)),
            "trainable": draw(st.booleans()),
        },
    }


@given(valid())
def test_a_config_survives_yaml_and_json(raw: dict[str, Any]) -> None:
    first = study_file.parse(yaml.safe_load(yaml.safe_dump(raw)), "x")
    assert first == study_file.parse(raw, "x")
    stored = json.loads(json.dumps(first.document(), allow_nan=False))
    again = study_file.parse(stored, "x")
    assert again == first
    assert again.document() == stored
    assert between(stored, first.document()) == []
    assert again.anchors == first.anchors


@given(valid())
def test_derived_values_agree_with_what_is_written(raw: dict[str, Any]) -> None:
    found = study_file.parse(raw, "x")
    sizes = raw["kernel_size"] if isinstance(raw["kernel_size"], list) else [raw["kernel_size"]]
    assert found.kernel_size == tuple(sizes)
    assert found.dimensions == sum((k - 1) // 2 for k in sizes)
    assert found.rungs == (*raw["search"]["rungs"], raw["training"]["budget"])
    assert found.seeds == (1000 * raw["search"]["seed"], 1000 * raw["search"]["seed"] + 1)
    denoising = raw["proxy"]["family"] in ("dncnn", "nafnet")
    assert (found.metric, found.unit) == (("PSNR", "dB") if denoising else ("top-1 accuracy", "%"))
    # What the user gives comes last among the anchors, in the order given.
    given = raw["density"]["include"]
    own = found.anchors[len(found.anchors) - len(given) :]
    assert [anchor.label for anchor in own] == [f"given {n + 1}" for n in range(len(given))]
    for anchor, den in zip(own, given, strict=True):
        by_size = den if isinstance(den, dict) else {sizes[0]: den}
        assert anchor.densities == {k: tuple(values) for k, values in by_size.items()}
        assert anchor.role == "candidate"


def test_differences_name_what_changed() -> None:
    old = study_file.parse(written(), "x").document()
    new = study_file.parse(
        written(
            kernel_size=[3, 5],
            search__trials=30,
            data__folder="/elsewhere",
            data__download=False,
            data__verify=False,
            density__include=[{3: [0.5], 5: [0.1, 0.2]}],
        ),
        "x",
    ).document()
    assert between(old, new) == [
        "density.include: [] -> [{'3': [0.5], '5': [0.1, 0.2]}]",
        "kernel_size: [5] -> [3, 5]",
        "search.trials: 20 -> 30",
    ]
    assert between({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> None", "b.c: None -> 2"]


@pytest.mark.parametrize(
    ("content", "rest", "expected"),
    [
        ("", False, "is not a mapping of keys to values; configs/quickstart.yaml is an example"),
        ("- name: a\n", False, "is not a mapping of keys to values"),
        ("just words\n", False, "is not a mapping of keys to values"),
        ("name: [\n", False, "is not YAML: "),
        ("name: a\n\ttask: b\n", False, "is not YAML: "),
        ("name: a\ntask: photos\nname: b\n", False, "is not YAML: key name is given twice"),
        ("search:\n  trials: 3\n  trials: 4\n", False, "is not YAML: key trials is given twice"),
        ("name: 2026-02-31\n", False, "is not YAML: "),
        ("? [a]\n: b\n", False, "is not YAML: "),
        (
            "training: {budget: .nan}\n",
            True,
            "training.budget = nan: input should be a finite number",
        ),
        ("density: {high: .inf}\n", True, "density.high = inf: input should be a finite number"),
        ("kernel_size: yes\n", True, "kernel_size = [True]: a boolean has no place here"),
        ("3: 4\n", True, ": unknown key 3"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_one_line(
    tmp_path: Path, content: str, rest: bool, expected: str
) -> None:
    path = tmp_path / "study.yaml"
    if rest:
        content += yaml.safe_dump({key: BASE[key] for key in BASE if f"{key}:" not in content})
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        study_file.load(path)
    line = str(caught.value)
    assert line.startswith(f"config {path}")
    assert expected in line
    assert "\n" not in line


def test_a_repeated_key_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nsearch:\n  trials: 3\n  seeds: 1\n  trials: 4\n")
    with pytest.raises(UsageError, match=r"key trials is given twice.* line 5"):
        study_file.load(path)


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.yaml cannot be read: No such file"):
        study_file.load(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        study_file.load(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"cannot be read: .*utf-8"):
        study_file.load(latin)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("images", "here/images"),
        ("../images", "images"),
        ("~/images", "home/images"),
        ("~nobody-of-this-name/images", "here/~nobody-of-this-name/images"),
    ],
)
def test_a_relative_folder_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "study.yaml"
    path.write_text(yaml.safe_dump(written(data__folder=folder)))
    monkeypatch.chdir("/")
    found = study_file.load(path)
    assert found.document()["data"]["folder"] == str((tmp_path / expected).resolve())


@pytest.mark.parametrize("kind", ["photographs", "classes"])
def test_a_test_folder_is_relative_to_the_file_and_makes_a_test_split(
    tmp_path: Path, kind: str
) -> None:
    proxy = DENOISER if kind == "photographs" else written()["proxy"]
    data = {"kind": kind, "folder": "images"}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(written(task="folder", data=data, proxy=proxy)))
    without = study_file.load(path)
    assert not without.data.has_test
    data["test"] = "../others"
    path.write_text(yaml.safe_dump(written(task="folder", data=data, proxy=proxy)))
    found = study_file.load(path)
    assert found.data.has_test
    document = found.document()
    assert document["data"]["test"] == str(tmp_path.parent / "others")
    # Where it lies does not count, whether there is one does.
    moved = {**document, "data": {**document["data"], "test": "/elsewhere"}}
    assert between(document, moved) == []
    assert between(without.document(), document) == [
        f"data.test: None -> {tmp_path.parent / 'others'}"
    ]


def test_photographs_that_are_packaged_have_no_test_split() -> None:
    photos = study_file.parse(written(task="photos", data={}, proxy=DENOISER), "x")
    div2k = study_file.parse(written(task="div2k", data={}, proxy=DENOISER), "x")
    cifar100 = study_file.parse(written(), "x")
    assert [given.data.has_test for given in (photos, div2k, cifar100)] == [False, True, True]


def test_yaml_merge_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    text = yaml.safe_dump({**written(), "search": None}).replace("search: null\n", "")
    path.write_text(text + "search: {<<: {trials: 9, seeds: 1}, trials: 12}\n")
    found = study_file.load(path)
    assert (found.search.trials, found.search.seeds) == (12, 1)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_that_ships_is_valid_and_named_after_its_file(path: Path) -> None:
    assert study_file.load(path).name == path.stem
